"""Limits of time and size on what a server sends, alike over both transports."""

from __future__ import annotations

import gzip
import threading
import time
import zlib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from support.client import GENEROUS, Drive
from support.etlworks import Received, ScriptedServer, reply

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.call import MAX_RECORD_BYTES
from airflow_provider_etlworks.client.errors import (
    EtlworksReplyError,
    EtlworksServerError,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.client.streaming import MAX_ERROR_BYTES, tail_lines
from airflow_provider_etlworks.client.sync import EtlworksClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Connect = Callable[..., Drive]

READ = endpoints.get_execution(7, 70)
START = endpoints.run_flow(7)
RECORD = b'{"flowId": 7, "auditId": 70, "status": "success"}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
INTERVAL = 0.05


def drip(data: bytes, closing: threading.Event) -> Iterator[bytes]:
    for byte in data:
        if closing.wait(INTERVAL):
            return
        yield bytes([byte])


DRIPS = {
    "headers": b"X-Long: " + b"x" * 10_000,
    "a body with a length": HEAD + b"Content-Length: 10000\r\n\r\n" + b" " * 10_000,
    "a body without a length": HEAD + b"\r\n" + b" " * 10_000,
    "a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2710\r\n" + b" " * 10_000,
    "many chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 2_000,
    "interim responses": b"HTTP/1.1 102 Processing\r\n\r\n" * 400,
}


@pytest.mark.timeout(GENEROUS)
@pytest.mark.parametrize("call", [READ, START], ids=str)
@pytest.mark.parametrize("what", DRIPS)
def test_dripping_response_ends(connect: Connect, what: str, call: endpoints.Call[Any]) -> None:
    def answer(_: Received) -> Iterator[bytes]:
        # What comes before the drip arrives at once.
        head, blank, body = DRIPS[what].partition(b"\r\n\r\n")
        if what in ("headers", "interim responses"):
            yield HEAD if what == "headers" else b""
            yield from drip(DRIPS[what], server.closing)
        else:
            yield head + blank
            yield from drip(body, server.closing)

    with ScriptedServer(answer) as server:
        drive = connect(server.url, read_timeout=0.7)
        started = time.monotonic()
        with pytest.raises(EtlworksReplyError, match=r"not complete after 0\.8 s") as raised:
            drive.send(replace(call, overtime=0.1), attempts=1)
        assert 0.79 < time.monotonic() - started < 5
    assert (raised.value.not_processed, raised.value.retryable) == (False, True)


@pytest.mark.timeout(GENEROUS)
def test_connection_may_allow_less_time_than_the_call(connect: Connect) -> None:
    with ScriptedServer(lambda _: drip(HEAD, server.closing)) as server:
        drive = connect(server.url, read_timeout=0.7, max_overtime=0.1)
        with pytest.raises(EtlworksReplyError, match=r"not complete after 0\.8 s"):
            drive.send(READ, attempts=1)


@pytest.mark.timeout(GENEROUS)
def test_dripping_tunnel_ends(connect: Connect) -> None:
    def answer(_: Received) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        yield from drip(b"X-Long: " + b"x" * 10_000, proxy.closing)

    with ScriptedServer(answer) as proxy:
        drive = connect("https://etlworks.invalid", proxy=proxy.url, connect_timeout=0.3, read_timeout=0.3)
        with pytest.raises(EtlworksUnreachable, match="did not reach") as raised:
            drive.send(START, attempts=1)
    assert raised.value.not_processed


def body_of(size: int) -> bytes:
    return RECORD[:-1] + b', "pad": "' + b"x" * (size - len(RECORD) - 11) + b'"}'


def chunked(body: bytes) -> bytes:
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "length": lambda body: reply(body=body),
    "chunks": chunked,
    "until closed": lambda body: HEAD + b"\r\n" + body,
    "gzip": lambda body: reply(body=gzip.compress(body, 1), Content_Encoding="gzip"),
    "deflate": lambda body: reply(body=zlib.compress(body, 1), Content_Encoding="deflate"),
    "gzip in chunks": lambda body: chunked(gzip.compress(body, 1)).replace(HEAD, HEAD + b"Content-Encoding: gzip\r\n"),
}


@pytest.mark.parametrize("frame", FRAMES)
def test_long_record_is_not_read(connect: Connect, frame: str) -> None:
    longest, too_long = FRAMES[frame](body_of(MAX_RECORD_BYTES)), FRAMES[frame](body_of(MAX_RECORD_BYTES + 1))
    with ScriptedServer(lambda _: next(answers)) as server:
        drive = connect(server.url)
        answers = iter([longest, too_long, too_long, too_long])
        assert drive.send(READ, attempts=1).audit_id == 70
        for call in (READ, START):
            with pytest.raises(EtlworksReplyError, match=f"longer than {MAX_RECORD_BYTES} bytes") as raised:
                drive.send(call, attempts=1)
            assert not raised.value.not_processed


def test_longer_list_is_read(connect: Connect) -> None:
    flow = body_of(MAX_RECORD_BYTES + 1).replace(b'"flowId"', b'"id"')
    with ScriptedServer(lambda _: reply(body=b"[" + flow + b"]", X_Total_Count="1")) as server:
        assert [each.id for each in connect(server.url).iterate(endpoints.list_flows())] == [7]


@pytest.mark.parametrize("frame", FRAMES)
def test_long_error_is_still_that_error(connect: Connect, frame: str) -> None:
    answer = FRAMES[frame](b"overloaded" + b" " * (2 * MAX_ERROR_BYTES)).replace(b" 200 ", b" 503 ", 1)
    with ScriptedServer(lambda _: answer) as server, pytest.raises(EtlworksServerError, match=r"503.*overloaded"):
        connect(server.url).send(READ, attempts=1)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content_Encoding": "gzip"}, gzip.compress(RECORD[:10]) + gzip.compress(RECORD[10:])),
        ({"Content_Encoding": "GZIP"}, gzip.compress(RECORD) + b"\0\0\0"),
        ({"Content_Encoding": "x-gzip"}, gzip.compress(RECORD)),
        ({"Content_Encoding": "deflate"}, zlib.compress(RECORD)),
        ({"Content_Encoding": "deflate"}, zlib.compress(RECORD)[2:-4]),
        ({"Content_Encoding": "identity"}, RECORD),
    ],
    ids=["two members", "bytes after the end", "x-gzip", "deflate", "raw deflate", "identity"],
)
def test_compressed_response(connect: Connect, headers: dict[str, str], body: bytes) -> None:
    with ScriptedServer(lambda _: reply(body=body, **headers)) as server:
        assert connect(server.url).send(READ, attempts=1).audit_id == 70


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_response_that_is_cut_off_is_in_doubt(connect: Connect, encoding: str) -> None:
    body = (gzip.compress if encoding == "gzip" else zlib.compress)(RECORD)[:-6]
    server = ScriptedServer(lambda _: reply(body=body, Content_Encoding=encoding))
    with server, pytest.raises(EtlworksUnreachable, match="cut off") as raised:
        connect(server.url).send(START, attempts=1)
    assert not raised.value.not_processed


@pytest.mark.parametrize("interim", [[100], [102], [103], [100, 102, 103, 199], [102] * 50])
@pytest.mark.parametrize("call", [READ, START], ids=str)
def test_interim_responses_are_skipped(connect: Connect, interim: list[int], call: endpoints.Call[Any]) -> None:
    head = b"".join(b"HTTP/1.1 %d Wait\r\nLink: </style.css>; rel=preload\r\n\r\n" % status for status in interim)
    with ScriptedServer(lambda _: head + reply(body=b'{"flowId": 7, "auditId": 70, "status": 0}')) as server:
        assert connect(server.url).send(call, attempts=1).audit_id == 70
    assert len(server.received) == 1


@pytest.mark.parametrize("length", [8_191, 60_000])
def test_long_header_is_read(connect: Connect, length: int) -> None:
    with ScriptedServer(lambda _: reply(body=RECORD, X_Policy="x" * length)) as server:
        assert connect(server.url).send(READ, attempts=1).audit_id == 70


@pytest.mark.parametrize(
    "headers", [{"X_Policy": "x" * 70_000}, {f"X_{number}": "x" for number in range(200)}], ids=["long", "many"]
)
def test_too_long_headers_are_in_doubt(connect: Connect, headers: dict[str, str]) -> None:
    with (
        ScriptedServer(lambda _: reply(body=RECORD, **headers)) as server,
        pytest.raises(EtlworksUnreachable) as raised,
    ):
        connect(server.url).send(START, attempts=1)
    assert not raised.value.not_processed


def test_server_that_drops_every_second_request_of_a_connection(connect: Connect) -> None:
    starts = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        served = 0

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.served += 1
            if self.served % 2 == 0:
                self.close_connection = True
                return
            starts.append(self.path)
            body = b'{"flowId": 7, "auditId": 70, "status": 0}'
            # It keeps the connection, whatever the client asks for.
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            self.close_connection = False

        def log_message(self, *_: Any) -> None:
            """Keep the terminal quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        drive = connect(f"http://127.0.0.1:{server.server_address[1]}")
        for _ in range(4):
            assert drive.send(START, attempts=1).audit_id == 70
        server.shutdown()
    assert len(starts) == 4


@pytest.mark.timeout(GENEROUS)
@pytest.mark.parametrize("limit", [{"overtime": 0.3}, {"max_bytes": 1_000_000}], ids=["time", "size"])
def test_endless_log_ends(limit: dict[str, Any]) -> None:
    def answer(_: Received) -> Iterator[bytes]:
        yield HEAD + b"\r\n"
        while not server.closing.wait(0.001):
            yield b"one more line of the log\n" * 100

    call = replace(endpoints.execution_log(7, 70), **limit)
    with ScriptedServer(answer) as server:
        settings = ClientSettings(server.url, "key", read_timeout=0.7)
        with EtlworksClient(settings) as client, pytest.raises(EtlworksReplyError), client.stream(call) as chunks:
            tail_lines(chunks, 10)
