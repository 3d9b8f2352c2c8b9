"""Any response at all: both transports give the same value, or the same error of ours."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.client import DRIVES, GENEROUS
from support.clock import VirtualClock
from support.effort import effort
from support.etlworks import ScriptedServer

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.client.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.client import Drive

CALLS = [
    endpoints.get_execution(7, 70),
    endpoints.latest_execution(7),
    endpoints.run_flow(7),
    endpoints.get_flow(7),
    endpoints.list_flows().first(),
    endpoints.execution_log(7, 70),
    endpoints.stop_flow(7, 70),
    endpoints.import_bundle(b"{}"),
    endpoints.send_to_listener("orders", b"x"),
]

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=8), each, max_size=3),
    max_leaves=8,
)
_FIELDS = ("id", "flowId", "auditId", "status", "started", "ended", "name", "success", "message", "exception")
_record = st.fixed_dictionaries({}, optional=dict.fromkeys(_FIELDS, _json))
_body = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"), _json | _record | st.lists(_record)),
)
# What a header may hold: visible characters, blanks, and bytes beyond ASCII.
_value = st.lists(st.sampled_from([*range(0x21, 0x7F), 0x20, 0x09, *range(0x80, 0x100)]), max_size=30).map(bytes)
_name = st.sampled_from(
    [b"Content-Type", b"X-Total-Count", b"Retry-After", b"Location", b"Set-Cookie", b"Server", b"Link", b"X-\x41"]
)
_header = st.tuples(_name, _value) | st.sampled_from(
    [
        (b"Content-Type", b"application/json; charset=utf-16"),
        (b"X-Total-Count", b"1"),
        (b"X-Total-Count", b"1e3"),
        (b"Retry-After", b"5"),
        (b"Retry-After", b"Wed, 21 Oct 2099 07:28:00 GMT"),
        (b"Location", b"/rest/v1/flows/8"),
        (b"Location", b"http://[::"),
        (b"Content-Encoding", b"br"),
        (b"Content-Encoding", b"gzip"),
    ]
)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """Return a whole response, in any of the ways in which HTTP frames a body, or nearly so."""
    status = draw(st.sampled_from([200, 200, 200, 201, 204, 404, 429, 500]) | st.integers(200, 599))
    # Bytes after a response that cannot have a body belong to none, and are a matter of taste.
    body = b"" if status in (204, 304) else draw(_body)
    headers = draw(st.lists(_header, max_size=4))
    if draw(st.booleans()):
        headers.append((b"Content-Encoding", draw(st.sampled_from([b"gzip", b"GZIP", b"identity"]))))
        body = gzip.compress(body) if body else b""
    framings = ["closed"] if status in (204, 304) else ["length", "length", "chunked", "closed", "short", "cut"]
    framing = draw(st.sampled_from(framings))
    if framing in ("chunked", "cut"):
        headers.append((b"Transfer-Encoding", b"chunked"))
        size = draw(st.integers(1, 50))
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        body += b"0\r\n\r\n" if framing == "chunked" else b""
    elif framing != "closed":
        missing = draw(st.integers(1, 9)) if framing == "short" else 0
        headers.append((b"Content-Length", b"%d" % (len(body) + missing)))
    interim = draw(st.lists(st.sampled_from([100, 102, 103]), max_size=2))
    head = b"".join(b"HTTP/1.1 %d Wait\r\n\r\n" % each for each in interim)
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return head + b"HTTP/1.1 %d Reason\r\nConnection: close\r\n%b\r\n" % (status, lines) + body


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture(scope="module")
def drives(server: ScriptedServer) -> Iterator[list[Drive]]:
    made = [
        make(ClientSettings(server.url, "key", requests_per_minute=0, read_timeout=GENEROUS), VirtualClock())
        for make in DRIVES.values()
    ]
    yield made
    for drive in made:
        drive.close()


def outcome(drive: Drive, call: endpoints.Call[Any]) -> str:
    try:
        # Some values, such as NaN, do not equal themselves.
        return repr(drive.send(call, attempts=1))
    except EtlworksError as error:
        return f"{type(error).__name__} {error.retryable} {error.not_processed}"


@pytest.mark.fuzzing
@settings(max_examples=effort(150, 1_000), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(call=st.sampled_from(CALLS), response=responses())
# A redirect with a body that is cut off.
@example(CALLS[0], b"HTTP/1.1 307 Reason\r\nConnection: close\r\nLocation: !\r\nContent-Length: 1\r\n\r\n")
def test_both_transports_read_any_response_alike(
    server: ScriptedServer, drives: list[Drive], call: endpoints.Call[Any], response: bytes
) -> None:
    server.answer = lambda _: response
    server.received.clear()
    first, second = (outcome(drive, call) for drive in drives)
    assert first == second
