"""Credentials go only to the connection's host, wherever a server redirects to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.etlworks import ScriptedServer

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksRedirected
from airflow_provider_etlworks.client.transport import redirect_target
from airflow_provider_etlworks.sandbox import Sandbox, redirect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.client import Drive

    Connect = Callable[..., Drive]

GET = endpoints.get_flow(12345)
POST = endpoints.run_flow(12345)
CODES = (301, 302, 303, 307, 308)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(requests_per_minute=None) as running:
        yield running


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", [GET, POST], ids=str)
@pytest.mark.parametrize("place", ["{}/rest/v1/flows/12345", "//{host}/"])
def test_nothing_is_sent_to_another_host(connect: Connect, sandbox: Sandbox, call, code: int, place: str) -> None:
    with ScriptedServer() as another:
        target = place.format(another.url, host=another.url.removeprefix("http://"))
        sandbox.fault("*", call_path(call), redirect(target, code), times=None)
        drive = connect(sandbox.url)
        with pytest.raises(EtlworksRedirected) as raised:
            drive.send(call)
    assert another.received == []
    assert len(sandbox.requests) == 1
    assert (raised.value.status, raised.value.retryable) == (code, False)
    assert another.url in str(raised.value)
    assert "Host" in str(raised.value)


def call_path(call) -> str:
    return f"/rest{call.path}"


def test_password_does_not_follow_a_redirect_to_another_host(connect: Connect, sandbox: Sandbox) -> None:
    with ScriptedServer() as another:
        sandbox.fault("POST", "/rest/v1/token-auth", redirect(f"{another.url}/rest/v1/token-auth", 308), times=None)
        with pytest.raises(EtlworksRedirected):
            connect(sandbox.url, login="sandbox", password="sandbox").send(GET)
    assert another.received == []


@pytest.mark.parametrize("code", CODES)
def test_get_is_redirected_with_its_credentials(connect: Connect, sandbox: Sandbox, code: int) -> None:
    sandbox.fault("GET", call_path(GET), redirect("/rest/v1/flows/12346", code))
    assert connect(sandbox.url).send(GET).id == 12346
    assert [each.headers["Authorization"] for each in sandbox.requests] == [f"Bearer {sandbox.api_key}"] * 2


@pytest.mark.parametrize("code", [307, 308])
def test_post_is_redirected_with_its_body(connect: Connect, sandbox: Sandbox, code: int) -> None:
    sandbox.fault("POST", call_path(POST), redirect(f"{sandbox.url}/rest/v1/flows/12346/run", code))
    assert connect(sandbox.url).send(POST).flow_id == 12346
    first, second = sandbox.requests
    assert (second.method, second.body, second.headers["Content-Type"]) == ("POST", first.body, "application/json")


@pytest.mark.parametrize("code", [301, 302, 303])
def test_post_does_not_turn_into_a_get(connect: Connect, sandbox: Sandbox, code: int) -> None:
    sandbox.fault("POST", call_path(POST), redirect("/rest/v1/flows/12346", code))
    with pytest.raises(EtlworksRedirected, match="POST"):
        connect(sandbox.url).send(POST)
    assert len(sandbox.requests) == 1
    assert sandbox.runs_started() == 0


def test_redirect_loop_ends(connect: Connect, sandbox: Sandbox) -> None:
    sandbox.fault("GET", "/rest/v1/flows/*", redirect("/rest/v1/flows/12345"), times=None)
    with pytest.raises(EtlworksRedirected, match="Too many"):
        connect(sandbox.url).send(GET)
    assert len(sandbox.requests) == 6


@pytest.mark.parametrize(
    ("here", "location", "followed"),
    [
        ("https://etl/a", "/b", "https://etl/b"),
        ("https://etl/a/x", "b", "https://etl/a/b"),
        ("https://etl/a", "https://etl:443/b", "https://etl:443/b"),
        ("https://etl:443/a", "https://ETL/b", "https://ETL/b"),
        ("https://etl:8443/a", "https://etl:8443/b", "https://etl:8443/b"),
        ("http://etl/a", "https://etl/a", "https://etl/a"),
        ("http://etl:8080/a", "https://etl:8443/a", "https://etl:8443/a"),
        ("https://etl/a", "http://etl/a", None),
        ("https://etl:8443/a", "https://etl/a", None),
        ("http://etl:8080/a", "http://etl/a", None),
        ("https://etl/a", "https://etl.example.com/a", None),
        ("https://etl/a", "https://alice@etl/a", None),
        ("https://etl/a", "https://etl@example.com/a", None),
        ("https://etl/a", "https://[etl/a", None),
        ("https://etl/a", "/b c", None),
        ("https://etl/a", "/b\xe4", None),
        ("https://etl/a", "/b\udce4", None),
        ("https://etl/a", "https://etl:port/a", None),
        ("https://etl/a", "ftp://etl/a", None),
        ("https://etl/a", "javascript:alert(1)", None),
    ],
)
def test_where_a_redirect_may_lead(here: str, location: str, followed: str | None) -> None:
    headers = {"Location": location}
    if followed is not None:
        assert redirect_target(GET, here, 307, headers) == followed
    else:
        with pytest.raises(EtlworksRedirected) as raised:
            redirect_target(GET, here, 307, headers)
        assert "alice" not in str(raised.value)


@pytest.mark.parametrize("status", [200, 304, 300])
def test_other_statuses_are_not_redirects(status: int) -> None:
    assert redirect_target(GET, "https://etl", status, {"Location": "https://elsewhere"}) is None


def test_stream_does_not_follow_a_redirect_to_another_host(sandbox: Sandbox) -> None:
    from airflow_provider_etlworks.client.settings import ClientSettings
    from airflow_provider_etlworks.client.sync import EtlworksClient

    call = endpoints.execution_log(1, 2)
    with ScriptedServer() as another, EtlworksClient(ClientSettings(sandbox.url, sandbox.api_key)) as client:
        sandbox.fault("GET", call_path(call), redirect(another.url, 307))
        with pytest.raises(EtlworksRedirected), client.stream(call):
            pass
        assert another.received == []
