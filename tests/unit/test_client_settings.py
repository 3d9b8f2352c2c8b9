"""Every spelling of a host gives the same address, and what cannot work is said before anything is sent."""

from __future__ import annotations

import re

import pytest
from support.client import whole_text_of

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.client.settings import ClientSettings, root_url

CLOUD = "https://app.etlworks.com"
SECRET = "hunter2"


@pytest.mark.parametrize("scheme", ["", "https://", "HTTPS://"])
@pytest.mark.parametrize("name", ["app.etlworks.com", "APP.Etlworks.COM"])
@pytest.mark.parametrize("port", ["", ":443"])
@pytest.mark.parametrize("path", ["", "/", "//", "/rest", "/rest/", "/rest/v1", "/rest/v1/", "//rest//v1//"])
@pytest.mark.parametrize("space", ["", " ", "\n"])
def test_every_spelling_gives_one_address(scheme: str, name: str, port: str, path: str, space: str) -> None:
    assert root_url(f"{space}{scheme}{name}{port}{path}{space}") == CLOUD


@pytest.mark.parametrize(
    ("host", "port", "scheme", "url"),
    [
        ("etl", None, None, "https://etl"),
        ("etl", 8443, None, "https://etl:8443"),
        ("etl", 8080, "http", "http://etl:8080"),
        ("etl", None, " HTTP ", "http://etl"),
        ("etl", 80, "http", "http://etl"),
        ("etl", 443, "http", "http://etl:443"),
        ("etl", 80, None, "https://etl:80"),
        ("etl", None, "", "https://etl"),
        ("etl:", None, None, "https://etl"),
        ("https://etl", None, "public", "https://etl"),
        ("etl:8443", 0, None, "https://etl:8443"),
        # What Host says counts more than the other fields.
        ("http://etl", None, "https", "http://etl"),
        ("etl:8443", 9999, None, "https://etl:8443"),
        ("https://etl:443", 9999, None, "https://etl"),
        ("http://etl:80/rest", 9999, "https", "http://etl"),
        # Below a path.
        ("https://example.com/etlworks", None, None, "https://example.com/etlworks"),
        ("example.com/etlworks/rest/v1/", 8443, None, "https://example.com:8443/etlworks"),
        ("example.com/rest/rest", None, None, "https://example.com/rest"),
        # Addresses.
        ("10.0.0.5", None, "http", "http://10.0.0.5"),
        ("[::1]", None, None, "https://[::1]"),
        ("::1", None, None, "https://[::1]"),
        ("2001:DB8::5/rest/", 8443, None, "https://[2001:db8::5]:8443"),
        ("http://fe80::1", None, None, "http://[fe80::1]"),
        ("[2001:DB8::5]:8080/rest", None, "http", "http://[2001:db8::5]:8080"),
        ("http://[::1]", 8085, None, "http://[::1]:8085"),
    ],
)
def test_address(host: str, port: int | None, scheme: str | None, url: str) -> None:
    assert root_url(host, port, scheme) == url


@pytest.mark.parametrize(
    ("host", "port", "scheme", "field", "remedy"),
    [
        (None, None, None, "Host", "app.etlworks.com"),
        ("", None, None, "Host", "app.etlworks.com"),
        ("  ", None, None, "Host", "app.etlworks.com"),
        ("https://", None, None, "Host", "app.etlworks.com"),
        ("/rest", None, None, "Host", "app.etlworks.com"),
        ("my host", None, None, "Host", "app.etlworks.com"),
        ("etl:port", None, None, "Host", "app.etlworks.com"),
        ("etl:99999", None, None, "Host", "app.etlworks.com"),
        ("etl:0", None, None, "Host", "app.etlworks.com"),
        ("http://[::1", None, None, "Host", "app.etlworks.com"),
        ("etl?x=1", None, None, "Host", "app.etlworks.com"),
        ("etl#x", None, None, "Host", "app.etlworks.com"),
        ("https:/app.etlworks.com", None, None, "Host", "app.etlworks.com"),
        ("ftp://etl", None, None, "Host", "http or https"),
        ("etl", None, "ftp", "Schema", "http or https"),
        ("etl", None, "https://", "Schema", "http or https"),
        ("etl", 0, None, "Port", "65535"),
        ("etl", -1, None, "Port", "65535"),
        ("etl", 70000, None, "Port", "65535"),
    ],
)
def test_invalid_address_is_named(host, port, scheme, field: str, remedy: str) -> None:
    with pytest.raises(EtlworksConfigError) as raised:
        root_url(host, port, scheme)
    assert re.search(rf"\b{field}\b", str(raised.value))
    assert remedy in str(raised.value)


@pytest.mark.parametrize(
    "host",
    [
        "alice:hunter2@etl",
        "https://alice:hunter2@etl/rest",
        "https://hunter2@etl",
        "https://alice:hun/hunter2@etl",
        "https://alice:hun#hunter2@etl",
        "https://alice:hun?hunter2@etl",
        "https://alice:[hunter2@etl",
        "ftp://alice:hunter2@etl:port",
    ],
)
def test_credentials_in_host_are_refused_and_not_repeated(host: str) -> None:
    with pytest.raises(EtlworksConfigError, match="Login and Password") as raised:
        root_url(host)
    # The test's own line is part of the traceback; the secret is not.
    assert "hunter2" not in whole_text_of(raised.value)


def settings(**changes: object) -> ClientSettings:
    return ClientSettings(**{"root_url": CLOUD, "password": SECRET, **changes})  # type: ignore[arg-type]


def test_defaults() -> None:
    chosen = settings()
    assert (chosen.connect_timeout, chosen.read_timeout, chosen.requests_per_minute) == (10, 30, 300)
    assert (chosen.login, chosen.tenant_id, chosen.proxy, chosen.verify) == (None, None, None, True)
    assert chosen.base_url == f"{CLOUD}/rest"
    assert chosen.execution_url(7, 42) == CLOUD


def test_links_and_stops_are_filled_in() -> None:
    chosen = settings(ui_url="https://ui.example.com/f/{flow_id}/r/{audit_id}")
    assert chosen.execution_url(7, 42) == "https://ui.example.com/f/7/r/42"


def test_other_timeouts_change_nothing_else() -> None:
    chosen = settings(login="alice", tenant_id="acme").with_timeouts(connect=1, read=2)
    assert chosen == settings(login="alice", tenant_id="acme", connect_timeout=1, read_timeout=2)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"password": ""}, ["no credentials", "API key in Password"]),
        ({"password": "", "login": "alice"}, ["no credentials", "Password for its Login"]),
        ({"password": "hunter2\n"}, ["Password", "line break"]),
        ({"password": "hunter2\r\nX: y"}, ["Password", "line break"]),
        ({"password": "hunter2é"}, ["Password", "characters that no key has"]),
        ({"connect_timeout": 0}, ["connect_timeout", "seconds", "greater than 0"]),
        ({"read_timeout": -1}, ["read_timeout", "seconds", "greater than 0"]),
        ({"read_timeout": float("nan")}, ["read_timeout", "seconds", "greater than 0"]),
        ({"read_timeout": float("inf")}, ["read_timeout", "seconds", "greater than 0"]),
        ({"requests_per_minute": -1}, ["requests_per_minute", "0 means no limit"]),
        ({"stop_path": "v1/stop"}, ["stop_path", "begins with /", "{audit_id}"]),
        ({"stop_path": "/v1/{run}/stop"}, ["stop_path", "{flow_id}"]),
        ({"stop_path": "/v1/{/stop"}, ["stop_path", "{flow_id}"]),
        ({"stop_path": "/v1/{}/stop"}, ["stop_path", "{flow_id}"]),
        ({"ui_url": "etl/{audit_id}"}, ["ui_url", "https://", "{audit_id}"]),
        ({"ui_url": "javascript:alert(1)"}, ["ui_url", "https://"]),
        ({"proxy": "ftp://:hunter2@proxy"}, ["proxy", "http://proxy.example.com:3128"]),
        ({"proxy": "http://alice:hunter2@"}, ["proxy", "http://proxy.example.com:3128"]),
        ({"proxy": "http://alice:hunter2@proxy:port"}, ["proxy", "http://proxy.example.com:3128"]),
        ({"proxy": "http://[hunter2"}, ["proxy", "http://proxy.example.com:3128"]),
    ],
)
def test_invalid_settings_are_named(changes: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(EtlworksConfigError) as raised:
        settings(**changes)
    for part in parts:
        assert part in str(raised.value)
    assert "hunter2" not in whole_text_of(raised.value)


def test_password_may_have_any_characters() -> None:
    assert settings(login="alice", password="ключ\n").password == "ключ\n"


def test_secrets_are_not_shown() -> None:
    chosen = settings(proxy="http://alice:pr0xy-secret@proxy:3128")
    assert "hunter2" not in repr(chosen) + str(chosen)
    assert "pr0xy-secret" not in repr(chosen) + str(chosen)
    assert {"hunter2", "pr0xy-secret"} <= set(chosen.secrets)


@pytest.mark.parametrize("proxy", ["http://proxy:3128", "proxy.example.com:3128", "https://alice:x@proxy", "PROXY"])
def test_proxy_in_every_spelling(proxy: str) -> None:
    assert settings(proxy=proxy).proxy == proxy
