"""The connection of the webhook, and the plugin that it turns on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.webhook.settings import WebhookSettings, webhook_settings, webhook_url

SECRET = "shared-secret-0815-0815"


def connection(extra: Any = None, **fields: Any) -> Any:
    written = extra if extra is None or isinstance(extra, str) else json.dumps(extra)
    return SimpleNamespace(
        **{"conn_id": "etlworks_webhook", "login": None, "password": SECRET, **fields}, extra=written
    )


def test_password_alone_is_enough() -> None:
    settings = webhook_settings(connection())
    assert settings == WebhookSettings(SECRET)
    assert (settings.statuses, settings.etlworks_conn_id) == (("success", "warning"), "etlworks_default")
    assert SECRET not in repr(settings)


def test_extra_is_read() -> None:
    extra = {
        "header": "X-Ours",
        "signature_header": "",
        "etlworks_conn_id": "etlworks_eu",
        "airflow_conn_id": "airflow_api",
        "statuses": ["error"],
    }
    settings = webhook_settings(connection(extra, login=" etl "))
    assert settings == WebhookSettings(SECRET, "etl", "X-Ours", None, "etlworks_eu", "airflow_api", ("error",))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"password": None}, "Password"),
        ({"password": "short"}, "Password"),
        ({"password": f" {SECRET}"}, "Password"),
        ({"password": f"{SECRET}\n"}, "Password"),
        ({"password": f"{SECRET}ö"}, "Password"),
        ({"login": "a:b"}, "Login"),
        ({"extra": SECRET}, "JSON object"),
        ({"extra": [SECRET]}, "JSON object"),
        ({"extra": {"heder": "X-Ours"}}, "'heder'"),
        ({"extra": {"header": 5}}, "'header'"),
        ({"extra": {"header": "X Ours"}}, "'header'"),
        ({"extra": {"header": "X-Ours\r\n"}}, "'header'"),
        ({"extra": {"header": "authorization"}}, "Authorization"),
        ({"extra": {"signature_header": "a b"}}, "'signature_header'"),
        ({"extra": {"statuses": "errors"}}, "'statuses'"),
        ({"extra": {"statuses": [5]}}, "'statuses'"),
        ({"extra": {"statuses": ["running"]}}, "'statuses'"),
    ],
)
def test_what_cannot_work_is_named_without_the_secret(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(EtlworksConfigError) as raised:
        webhook_settings(connection(**changes))
    assert "'etlworks_webhook'" in str(raised.value)
    assert named in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {"headers": [{"key": "X-Etlworks-Webhook-Secret", "value": SECRET}]}),
        ({"login": "etl"}, {"basicUser": "etl", "basicPass": SECRET}),
        ({"login": "etl", "signature_header": "X-Sign"}, {"secret": SECRET}),
    ],
)
def test_webhook_in_etlworks_proves_itself_in_one_way(settings: dict[str, str], fields: dict[str, Any]) -> None:
    assert WebhookSettings(SECRET, **settings).webhook_fields() == fields


@pytest.mark.parametrize(
    "written", ["https://a.example.com", "https://a.example.com/", " https://a.example.com/etlworks/webhook "]
)
def test_address_of_the_webhook_is_below_airflows(written: str) -> None:
    assert webhook_url(written) == "https://a.example.com/etlworks/webhook"
    assert webhook_url("http://a:8080/team") == "http://a:8080/team/etlworks/webhook"


@pytest.mark.parametrize(
    "written", ["", "a.example.com", "ftp://a", "https://", "https://u:p@a", "https://a?b", "https://a#b"]
)
def test_address_that_cannot_work_is_refused(written: str) -> None:
    with pytest.raises(EtlworksConfigError):
        webhook_url(written)


# --- The plugin -----------------------------------------------------------------------------------------------------


def test_plugin_imports_nothing_heavy_and_has_a_name() -> None:
    script = """
import json, sys, warnings
warnings.simplefilter("ignore")
import airflow.plugins_manager
already = set(sys.modules)
from airflow_provider_etlworks.plugin import EtlworksWebhookPlugin
print(json.dumps([EtlworksWebhookPlugin.name, sorted(set(sys.modules) - already)]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    name, loaded = json.loads(done.stdout.splitlines()[-1])
    assert name == "etlworks_webhook"
    assert set(loaded) <= {"airflow_provider_etlworks", "airflow_provider_etlworks.plugin"}


def test_without_a_connection_there_is_no_app_and_no_line(caplog: pytest.LogCaptureFixture) -> None:
    from airflow_provider_etlworks.plugin import EtlworksWebhookPlugin

    caplog.set_level(logging.INFO)
    assert EtlworksWebhookPlugin().fastapi_apps == []
    assert [each for each in caplog.records if each.levelno >= logging.INFO] == []


@pytest.fixture
def airflow_3() -> None:
    pytest.importorskip("airflow.sdk", reason="Airflow 2 has no plugins with FastAPI apps")


@pytest.mark.usefixtures("airflow_3")
def test_connection_turns_one_app_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_etlworks.plugin import EtlworksWebhookPlugin

    monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_WEBHOOK", json.dumps({"conn_type": "generic", "password": SECRET}))
    plugin = EtlworksWebhookPlugin()
    (app,) = plugin.fastapi_apps
    assert (app["url_prefix"], app["name"]) == ("/etlworks", "Etlworks webhook")
    assert [route.path for route in app["app"].routes] == ["/webhook"]
    assert plugin.fastapi_apps[0] is app
    assert SECRET not in repr(app)


@pytest.mark.usefixtures("airflow_3")
def test_connection_that_cannot_work_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from airflow_provider_etlworks.plugin import EtlworksWebhookPlugin

    written = {"conn_type": "generic", "password": SECRET, "extra": {"heder": "X-Ours"}}
    monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_WEBHOOK", json.dumps(written))
    assert EtlworksWebhookPlugin().fastapi_apps == []
    (line,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert "'heder'" in line
    assert SECRET not in line


@pytest.mark.usefixtures("airflow_3")
def test_airflow_finds_the_plugin() -> None:
    from importlib.metadata import entry_points

    (found,) = entry_points(group="airflow.plugins", name="etlworks_webhook")
    assert found.load().__name__ == "EtlworksWebhookPlugin"
