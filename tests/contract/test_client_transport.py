"""On the wire: headers, bodies, connections, time-outs, and broken responses."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from support.client import GENEROUS, AsyncDrive, Drive, whole_text_of
from support.clock import VirtualClock
from support.etlworks import Received, ScriptedServer, reply, silent_server

from airflow_provider_etlworks import __version__
from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.client.errors import (
    EtlworksError,
    EtlworksNotFound,
    EtlworksRateLimited,
    EtlworksReplyError,
    EtlworksServerError,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.client.sync import EtlworksClient
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, delay, status, truncated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Connect = Callable[..., Drive]

READ = endpoints.get_flow(7)
FLOW = b'{"id": 7, "name": "Orders"}'
CARD = "4111-1111"
LOG_PATH = "/rest/v1/executions/console/download"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    log = tuple(f"line {number}" for number in range(20_000))
    with Sandbox([SandboxFlow(7, "Orders", log=log)], requests_per_minute=None) as running:
        yield running


def raw(head: str, body: bytes = b"") -> Callable[[Received], bytes]:
    """Return a response with these header lines and this body, whether or not they match."""
    lines = f"HTTP/1.1 {head}\nConnection: close".replace("\n", "\r\n")
    return lambda _: f"{lines}\r\n\r\n".encode() + body


def test_common_headers(connect: Connect, sandbox: Sandbox) -> None:
    connect(sandbox.url).send(READ)
    (request,) = sandbox.requests
    assert request.headers["User-Agent"] == f"airflow-provider-etlworks/{__version__}"
    assert request.headers["Accept"].startswith("application/json")
    assert "Cookie" not in request.headers


def test_cookies_are_not_kept(connect: Connect) -> None:
    with ScriptedServer(lambda _: reply(body=FLOW, Set_Cookie="session=1; Path=/")) as server:
        # A cookie jar may treat IP addresses differently.
        drive = connect(server.url.replace("127.0.0.1", "localhost"))
        drive.send(READ)
        drive.send(READ)
    assert [request.headers["Cookie"] for request in server.received] == [None, None]


def test_one_connection_serves_many_calls(connect: Connect, sandbox: Sandbox) -> None:
    drive = connect(sandbox.url)
    sandbox.fault("GET", "/rest/v1/flows/7", status(404), after=2)
    for _ in range(2):
        drive.send(READ)
    with pytest.raises(EtlworksNotFound):
        drive.send(READ)
    drive.iterate(endpoints.list_flows())
    assert len({request.connection for request in sandbox.requests}) == 1


def test_start_goes_on_a_fresh_connection(connect: Connect, sandbox: Sandbox) -> None:
    drive = connect(sandbox.url)
    for call in (READ, endpoints.run_flow(7), READ, endpoints.run_flow(7)):
        drive.send(call)
    start, _, second_start = [request.connection for request in sandbox.requests][1:]
    assert start != sandbox.requests[0].connection
    assert second_start not in {request.connection for request in sandbox.requests[:3]}


def test_polls_return_what_each_response_says(connect: Connect) -> None:
    """Whatever a client keeps of the one before: a value, or nothing after an error."""
    responses = [
        reply(body=b'{"flowId": 7, "auditId": 1, "status": "running"}'),
        reply(body=b'{"flowId": 7, "auditId": 1, "status": "running"}'),
        reply(500, body=b'{"flowId": 7, "auditId": 1, "status": "running"}'),
        reply(body=b'{"flowId": 7, "auditId": 1, "status": "running"}'),
        reply(body=b'{"flowId": 7, "auditId": 1, "status": "success"}'),
        reply(body=b'{"flowId": 7, "auditId": 2, "status": "success"}'),
        reply(body=b'{"flowId": 7, "auditId": 2, "status": "success"}'),
        reply(body=b'{"flowId": 7, "auditId": 1, "status": "success"}'),
        reply(body=b""),
        reply(body=b'{"flowId": 7, "auditId": 1, "status": "running"}'),
    ]
    poll = endpoints.get_execution(7, 1)

    def said(drive: Drive) -> str | None:
        try:
            return drive.send(poll, attempts=1).status
        except EtlworksError as error:
            return type(error).__name__

    with ScriptedServer(lambda _: responses[len(server.received) - 1]) as server:
        drive = connect(server.url)
        assert [said(drive) for _ in responses] == [
            "running",
            "running",
            "EtlworksServerError",
            "running",
            "success",
            "EtlworksReplyError",
            "EtlworksReplyError",
            "success",
            "EtlworksReplyError",
            "running",
        ]


@pytest.mark.parametrize(("pause", "connections"), [(20, 1), (60, 1), (90, 2)])
async def test_connection_is_kept_between_two_polls(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, pause: float, connections: int
) -> None:
    passed = 0.0
    loop = asyncio.get_running_loop()
    loop_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: loop_time() + passed)
    monkeypatch.setattr("aiohttp.connector.monotonic", loop.time)
    async with AsyncEtlworksClient(ClientSettings(sandbox.url, sandbox.api_key)) as client:
        await client.send(READ)
        for _ in range(int(pause)):
            # In steps, so that the timers of the pool run on time.
            passed += 1
            await asyncio.sleep(0)
        await client.send(READ)
    assert len({request.connection for request in sandbox.requests}) == connections


def test_ten_connections_are_enough_for_two_hundred_tasks(connect: Connect, sandbox: Sandbox) -> None:
    sandbox.fault("GET", "/rest/v1/flows/7", delay(0.02), times=None)
    drive = connect(sandbox.url)
    flows = drive.send_at_once([READ] * (200 if isinstance(drive, AsyncDrive) else 10))
    assert {flow.id for flow in flows} == {7}
    assert 1 <= len({request.connection for request in sandbox.requests}) <= 10


@pytest.mark.timeout(GENEROUS)
@pytest.mark.parametrize("call", [READ, endpoints.run_flow(7)], ids=str)
def test_the_read_time_out_holds(connect: Connect, call: endpoints.Call[Any]) -> None:
    with silent_server() as server:
        with pytest.raises(EtlworksUnreachable, match="may have received"):
            connect(server.url, connect_timeout=10 * GENEROUS, read_timeout=0.2).send(call, attempts=1)
        assert len(server.received) == 1


@pytest.mark.timeout(GENEROUS)
def test_the_read_time_out_counts_between_two_parts_of_a_body(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        drive = connect(f"http://127.0.0.1:{listening.getsockname()[1]}", read_timeout=0.2)
        held: list[socket.socket] = []

        def begin_a_response() -> None:
            connection, _ = listening.accept()
            held.append(connection)
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")

        thread = threading.Thread(target=begin_a_response)
        thread.start()
        with pytest.raises(EtlworksUnreachable, match="may have received"):
            drive.send(READ, attempts=1)
        thread.join(GENEROUS)
        held[0].close()


@pytest.fixture
def nobody_accepts() -> Iterator[str]:
    """Give the address of a server whose queue is full, so that no further connection succeeds."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = []
        for _ in range(4):
            queued = socket.socket()
            queued.setblocking(False)
            queued.connect_ex(listening.getsockname())
            waiting.append(queued)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        for queued in waiting:
            queued.close()


@pytest.mark.timeout(GENEROUS)
def test_the_connect_time_out_holds(connect: Connect, nobody_accepts: str) -> None:
    with pytest.raises(EtlworksUnreachable, match="did not reach") as raised:
        connect(nobody_accepts, connect_timeout=0.2, read_timeout=10 * GENEROUS).send(endpoints.run_flow(7), attempts=1)
    assert raised.value.not_processed


@pytest.mark.timeout(GENEROUS)
def test_silent_proxy_times_out(connect: Connect) -> None:
    with silent_server() as proxy, pytest.raises(EtlworksUnreachable):
        connect("https://etlworks.invalid", proxy=proxy.url, connect_timeout=0.3, read_timeout=0.3).send(
            READ, attempts=1
        )
    assert len(proxy.received) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(raw("200 OK\nContent-Length: 100", FLOW), id="shorter than announced"),
        pytest.param(raw("200 OK\nTransfer-Encoding: chunked", b"1b\r\n" + FLOW + b"\r\n"), id="no last chunk"),
        pytest.param(raw("200 OK\nTransfer-Encoding: chunked", b"40\r\n" + FLOW), id="half a chunk"),
        pytest.param(raw("200 OK\nTransfer-Encoding: chunked", b"zz\r\n" + FLOW), id="a chunk of no length"),
        pytest.param(raw("200 OK\nContent-Encoding: gzip\nContent-Length: 27", FLOW), id="not gzip at all"),
        pytest.param(lambda _: b"", id="nothing"),
        pytest.param(lambda _: b"HTTP/1.1 2", id="half a status line"),
        pytest.param(lambda _: b"SSH-2.0-OpenSSH_9.6\r\n", id="not HTTP"),
    ],
)
@pytest.mark.parametrize("call", [READ, endpoints.run_flow(7)], ids=str)
def test_broken_response_is_in_doubt(
    connect: Connect, answer: Callable[[Received], bytes], call: endpoints.Call[Any]
) -> None:
    with ScriptedServer(answer) as server, pytest.raises(EtlworksUnreachable) as raised:
        connect(server.url).send(call, attempts=1)
    assert (raised.value.retryable, raised.value.not_processed) == (True, False)


def test_header_names_ignore_case(connect: Connect) -> None:
    limited = raw("429 Slow down\nretry-after: 7")
    with ScriptedServer(limited) as server, pytest.raises(EtlworksRateLimited) as raised:
        connect(server.url).send(READ, attempts=1)
    assert raised.value.retry_after == 7
    odd = raw("200 OK\nCONTENT-TYPE: text/x-odd", b"<p>")
    with ScriptedServer(odd) as server, pytest.raises(EtlworksReplyError, match="text/x-odd"):
        connect(server.url).send(READ, attempts=1)


def test_gzip_and_chunks_are_decoded(connect: Connect) -> None:
    packed = gzip.compress(FLOW)
    half = len(packed) // 2
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (packed[:half], packed[half:], b""))
    answer = raw("200 OK\nContent-Encoding: gzip\nTransfer-Encoding: chunked", body)
    with ScriptedServer(answer) as server:
        assert connect(server.url).send(READ).name == "Orders"
    assert "gzip" in server.received[0].headers["Accept-Encoding"]


@pytest.mark.parametrize("answer", [raw("204 No Content"), raw("200 OK\nContent-Length: 0"), raw("201 Created")])
def test_empty_response_has_no_value(connect: Connect, answer: Callable[[Received], bytes]) -> None:
    with ScriptedServer(answer) as server:
        drive = connect(server.url)
        assert drive.send(endpoints.request("POST", "/v1/x", root_url=server.url)) is None
        assert drive.send(endpoints.pause_schedule(1)) is None
        assert drive.send(endpoints.latest_execution(7)) is None
        assert drive.send(endpoints.replace_flow(7, {"name": "Orders"})).name == "Orders"
        with pytest.raises(EtlworksReplyError):
            drive.send(endpoints.run_flow(7))


@pytest.mark.parametrize(
    ("body", "value"), [(b'{"a": 1}', {"a": 1}), (b"plain", "plain"), (b"<x/>", "<x/>"), (b"7", 7)]
)
def test_response_of_unknown_shape(connect: Connect, body: bytes, value: object) -> None:
    with ScriptedServer(lambda _: reply(body=body)) as server:
        assert connect(server.url).send(endpoints.send_to_listener("orders", b"x", "text/plain")) == value


def test_long_body_arrives_whole(connect: Connect) -> None:
    bundle = json.dumps({"flows": ["x" * 1_000] * 5_000}).encode()
    with ScriptedServer(lambda request: reply(body=request.body)) as server:
        assert connect(server.url).send(endpoints.import_bundle(bundle)) == json.loads(bundle)


def test_instance_below_a_path(connect: Connect) -> None:
    with ScriptedServer(lambda _: reply(body=FLOW)) as server:
        drive = connect(f"{server.url}/etlworks")
        drive.send(READ)
        drive.send(endpoints.request("GET", f"{server.url}/etlworks/etl/x", root_url=f"{server.url}/etlworks"))
    assert [request.target for request in server.received] == ["/etlworks/rest/v1/flows/7", "/etlworks/etl/x"]


def test_url_parameters_are_not_shown(connect: Connect, closed_port: int) -> None:
    drive = connect(f"http://127.0.0.1:{closed_port}")
    with pytest.raises(EtlworksUnreachable) as raised:
        drive.send(endpoints.run_flow_by_name("Orders", {"card": CARD}), attempts=1)
    assert CARD not in whole_text_of(raised.value)
    assert "POST /v1/flows/flow-name/Orders/run" in str(raised.value)


def test_unopened_async_client_says_how_to_open_it() -> None:
    client = AsyncEtlworksClient(ClientSettings("http://127.0.0.1:9", "key"))
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(client.send(READ))
    asyncio.run(client.close())


def test_clients_are_context_managers(sandbox: Sandbox) -> None:
    settings = ClientSettings(sandbox.url, sandbox.api_key)

    async def flow_id() -> int:
        async with AsyncEtlworksClient(settings) as client:
            return (await client.send(READ)).id

    assert asyncio.run(flow_id()) == 7
    with EtlworksClient(settings) as client:
        assert client.send(READ).id == 7


# Streams: only the sync client has them.


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[EtlworksClient]:
    settings = ClientSettings(sandbox.url, sandbox.password, login=sandbox.login)
    with EtlworksClient(settings, sleep=VirtualClock().sleep) as client:
        yield client


def a_log(client: EtlworksClient) -> endpoints.Call[str]:
    return endpoints.execution_log(7, client.send(endpoints.run_flow(7)).audit_id or 0)


def test_log_arrives_in_chunks(client: EtlworksClient) -> None:
    call = a_log(client)
    with client.stream(call) as chunks:
        parts = list(chunks)
    assert len(parts) > 1
    assert b"".join(parts).decode() == client.send(call)


def test_stream_logs_in_again(client: EtlworksClient, sandbox: Sandbox) -> None:
    call = a_log(client)
    sandbox.revoke_tokens()
    with client.stream(call) as chunks:
        assert b"line 19999" in b"".join(chunks)
    assert sandbox.log_ins == 2


def test_refused_stream_is_an_error(client: EtlworksClient, sandbox: Sandbox) -> None:
    call = a_log(client)
    sandbox.fault("GET", LOG_PATH, status(503))
    with pytest.raises(EtlworksServerError, match="armed fault"), client.stream(call):
        pass


def test_broken_stream_is_an_error(client: EtlworksClient, sandbox: Sandbox) -> None:
    call = a_log(client)
    sandbox.fault("GET", LOG_PATH, truncated())
    with pytest.raises(EtlworksUnreachable), client.stream(call) as chunks:
        for _ in chunks:
            pass


def test_stream_left_early_frees_its_connection(client: EtlworksClient, sandbox: Sandbox) -> None:
    call = a_log(client)
    for _ in range(15):
        with client.stream(call) as chunks:
            next(chunks)
    assert client.send(READ).id == 7
    used = Counter(request.connection for request in sandbox.requests)
    assert sum(used.values()) == 18
