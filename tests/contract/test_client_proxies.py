"""Behind a proxy that breaks connections: what is certainly not processed, and what is in doubt."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
from support.etlworks import Received, ScriptedServer, reply
from support.proxy import Break, Proxy
from support.tls import self_signed_certificate

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksServerError, EtlworksUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.client import Drive

    Connect = Callable[..., Drive]

CALLS = [
    endpoints.get_flow(7),
    endpoints.run_flow(7),
    endpoints.import_bundle(b'{"flows": []}'),
    endpoints.send_to_listener("orders", b"{}"),
]
START = endpoints.run_flow(7)


def answer(_: Received) -> bytes:
    return reply(body=b'{"id": 7, "flowId": 7, "auditId": 70, "status": 0}')


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, certificate: Path) -> Iterator[ScriptedServer]:
    """Run a server behind the proxy: plain requests are forwarded, those over TLS go through a tunnel."""
    tls = None
    if request.param == "https":
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
        # The proxy recognizes requests by the records of older versions.
        tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with ScriptedServer(answer, tls=tls) as running:
        yield running


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as running:
        yield running


@pytest.fixture
def send(
    connect: Connect, server: ScriptedServer, proxy: Proxy, certificate: Path
) -> Callable[[endpoints.Call[Any]], Any]:
    drive = connect(server.url, proxy=proxy.url, verify=str(certificate))
    return lambda call, **options: drive.send(call, **{"attempts": 1, **options})


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_request_passes_the_proxy(send, server: ScriptedServer, call: endpoints.Call[Any]) -> None:
    send(call)
    assert [request.method for request in server.received] == [call.method]
    assert "Proxy-Authorization" not in server.received[0].headers


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("where", [Break.BEFORE_FORWARDING, Break.AFTER_RESPONSE, Break.INSIDE_RESPONSE])
def test_dropped_request_is_in_doubt(
    send, server: ScriptedServer, proxy: Proxy, where: Break, call: endpoints.Call[Any]
) -> None:
    proxy.break_connections(where)
    with pytest.raises(EtlworksUnreachable, match="may have received") as raised:
        send(call)
    assert not raised.value.not_processed
    assert len(server.received) == (0 if where is Break.BEFORE_FORWARDING else 1)


@pytest.mark.parametrize("where", [Break.BEFORE_FORWARDING, Break.AFTER_RESPONSE, Break.INSIDE_RESPONSE])
def test_start_in_doubt_behind_a_proxy_is_sent_once(send, server: ScriptedServer, proxy: Proxy, where: Break) -> None:
    proxy.break_connections(where)
    with pytest.raises(EtlworksUnreachable):
        send(START, attempts=4)
    assert len(proxy.received) == 1
    assert len(server.received) <= 1


@pytest.mark.parametrize("where", [Break.BEFORE_FORWARDING, Break.AFTER_RESPONSE, Break.INSIDE_RESPONSE])
def test_read_behind_a_proxy_is_repeated(send, server: ScriptedServer, proxy: Proxy, where: Break) -> None:
    proxy.break_connections(where, times=2)
    assert send(CALLS[0], attempts=4).id == 7
    assert len(proxy.received) == 3


@pytest.mark.parametrize("server", ["https"], indirect=True)
@pytest.mark.parametrize("status", [407, 403, 502, 504, 0])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_refused_tunnel_is_not_processed(
    send, server: ScriptedServer, proxy: Proxy, status: int, call: endpoints.Call[Any]
) -> None:
    proxy.break_connections(Break.REFUSE, status=status)
    with pytest.raises(EtlworksUnreachable, match="did not reach") as raised:
        send(call)
    assert raised.value.not_processed
    assert {method for method, _ in proxy.received} == {"CONNECT"}
    assert server.received == []


@pytest.mark.parametrize("server", ["https"], indirect=True)
def test_start_is_repeated_after_a_refused_tunnel(send, server: ScriptedServer, proxy: Proxy) -> None:
    proxy.break_connections(Break.REFUSE, times=2)
    assert send(START, attempts=4).audit_id == 70
    assert len(server.received) == 1


@pytest.mark.parametrize("server", ["https"], indirect=True)
def test_failed_handshake_inside_a_tunnel_is_not_processed(
    connect: Connect, server: ScriptedServer, proxy: Proxy
) -> None:
    with pytest.raises(EtlworksUnreachable, match=r"(?i)certificate") as raised:
        connect(server.url, proxy=proxy.url).send(START, attempts=1)
    assert raised.value.not_processed
    assert server.received == []


@pytest.mark.parametrize("server", ["http"], indirect=True)
def test_502_of_a_forward_proxy_is_in_doubt(send, proxy: Proxy, server: ScriptedServer) -> None:
    proxy.break_connections(Break.REFUSE, status=502)
    with pytest.raises(EtlworksServerError) as raised:
        send(START)
    assert not raised.value.not_processed
