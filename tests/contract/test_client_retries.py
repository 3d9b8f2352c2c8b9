"""Over both transports: which calls are sent again, which never are, and how the rate limit is kept."""

from __future__ import annotations

import logging
import threading
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import VirtualClock
from support.etlworks import ScriptedServer, reply

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import (
    EtlworksError,
    EtlworksNotFound,
    EtlworksRateLimited,
    EtlworksReplyError,
    EtlworksServerError,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, broken_body, delay, hang_up, status, truncated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.client import Drive

    from airflow_provider_etlworks.sandbox import Fault

    Connect = Callable[..., Drive]

READ = endpoints.get_flow(7)
START = endpoints.run_flow(7)
READ_PATH, START_PATH = "/rest/v1/flows/7", "/rest/v1/flows/7/run"

FAULTS: dict[str, tuple[Callable[[], Fault], type[EtlworksError]]] = {
    "500": (lambda: status(500), EtlworksServerError),
    "502 with a page": (lambda: status(502, body="<html>Bad gateway</html>"), EtlworksServerError),
    "503": (lambda: status(503), EtlworksServerError),
    "504 after carrying out": (lambda: broken_body(code=504), EtlworksServerError),
    "408": (lambda: status(408), EtlworksServerError),
    "425": (lambda: status(425), EtlworksServerError),
    "reset before": (lambda: hang_up(carried_out=False), EtlworksUnreachable),
    "reset after": (lambda: hang_up(carried_out=True), EtlworksUnreachable),
    "cut off": (lambda: truncated(), EtlworksUnreachable),
    "a page": (lambda: broken_body(), EtlworksReplyError),
    "half a document": (
        lambda: broken_body('{"id": 7, "auditId"', content_type="application/json"),
        EtlworksReplyError,
    ),
    "nothing": (lambda: broken_body(b"", content_type="application/json"), EtlworksReplyError),
}


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def sandbox(clock: VirtualClock) -> Iterator[Sandbox]:
    with Sandbox([SandboxFlow(7, "Orders")], clock=clock.time, requests_per_minute=None) as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS)
def test_read_is_repeated(connect: Connect, sandbox: Sandbox, clock: VirtualClock, fault: str) -> None:
    sandbox.fault("GET", READ_PATH, FAULTS[fault][0](), times=3)
    drive = connect(sandbox.url, clock=clock)
    assert drive.send(READ).id == 7
    assert len(sandbox.requests) == 4
    assert len(clock.slept) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_read_is_given_up_after_four_attempts(
    connect: Connect, sandbox: Sandbox, clock: VirtualClock, fault: str
) -> None:
    sandbox.fault("GET", READ_PATH, FAULTS[fault][0](), times=None)
    drive = connect(sandbox.url, clock=clock)
    with pytest.raises(FAULTS[fault][1]):
        drive.send(READ)
    assert len(sandbox.requests) == 4


@pytest.mark.parametrize("fault", FAULTS)
def test_start_in_doubt_is_sent_once(connect: Connect, sandbox: Sandbox, clock: VirtualClock, fault: str) -> None:
    sandbox.fault("POST", START_PATH, FAULTS[fault][0](), times=None)
    with pytest.raises(FAULTS[fault][1]) as raised:
        connect(sandbox.url, clock=clock).send(START)
    assert not raised.value.not_processed
    assert len(sandbox.requests) == 1
    assert sandbox.runs_started() <= 1


@pytest.mark.parametrize("call", [READ, START], ids=str)
def test_time_out_repeats_a_read_but_not_a_start(
    connect: Connect, sandbox: Sandbox, clock: VirtualClock, call: endpoints.Call[Any]
) -> None:
    sandbox.fault("*", f"/rest{call.path}", delay(60, carried_out_last=False))
    drive = connect(sandbox.url, clock=clock, read_timeout=0.3)
    if call is READ:
        assert drive.send(call).id == 7
    else:
        with pytest.raises(EtlworksUnreachable, match="may have received") as raised:
            drive.send(call)
        assert not raised.value.not_processed
        assert sandbox.runs_started() == 1
    assert len(sandbox.requests) == (2 if call is READ else 1)


def test_start_is_repeated_after_429(connect: Connect, sandbox: Sandbox, clock: VirtualClock) -> None:
    sandbox.fault("POST", START_PATH, status(429, headers={"Retry-After": "30"}), times=2)
    started = clock.now
    assert connect(sandbox.url, clock=clock).send(START).audit_id
    assert sandbox.runs_started() == 1
    assert clock.now - started >= 60


def test_start_is_repeated_if_the_connection_is_refused(
    connect: Connect, clock: VirtualClock, closed_port: int
) -> None:
    drive = connect(f"http://127.0.0.1:{closed_port}", clock=clock)
    with pytest.raises(EtlworksUnreachable, match="did not reach") as raised:
        drive.send(START)
    assert raised.value.not_processed
    assert len(clock.slept) == 3


def test_start_is_repeated_if_the_host_name_is_unknown(connect: Connect, clock: VirtualClock) -> None:
    with pytest.raises(EtlworksUnreachable) as raised:
        connect("http://etlworks.invalid", clock=clock).send(START)
    assert raised.value.not_processed
    assert len(clock.slept) == 3


def test_start_succeeds_once_the_server_listens(connect: Connect, clock: VirtualClock, closed_port: int) -> None:
    sandbox = Sandbox([SandboxFlow(7, "Orders")], port=closed_port, requests_per_minute=None)
    slept = clock.sleep

    def sleep_and_start(seconds: float) -> None:
        slept(seconds)
        if len(clock.slept) == 2:
            sandbox.start()

    clock.sleep = sleep_and_start  # type: ignore[method-assign]
    try:
        assert connect(f"http://127.0.0.1:{closed_port}", clock=clock).send(START).audit_id
    finally:
        sandbox.stop()
    assert sandbox.runs_started() == 1


@pytest.mark.parametrize("code", [400, 403, 404, 405, 409, 415])
def test_refused_read_is_not_repeated(connect: Connect, sandbox: Sandbox, clock: VirtualClock, code: int) -> None:
    sandbox.fault("GET", READ_PATH, status(code), times=None)
    with pytest.raises(EtlworksError) as raised:
        connect(sandbox.url, clock=clock).send(READ)
    assert (raised.value.retryable, len(sandbox.requests), clock.slept) == (False, 1, [])


def test_single_attempt(connect: Connect, sandbox: Sandbox, clock: VirtualClock) -> None:
    sandbox.fault("GET", READ_PATH, status(503), times=None)
    with pytest.raises(EtlworksServerError):
        connect(sandbox.url, clock=clock).send(READ, attempts=1)
    assert len(sandbox.requests) == 1


def test_each_retry_is_logged(connect: Connect, sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    sandbox.fault("GET", READ_PATH, status(503), times=2)
    connect(sandbox.url).send(READ)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 2
    assert all("503" in text and "GET /v1/flows/7" in text and "Trying again in" in text for text in messages)


def test_error_of_a_call_is_raised_inside_the_procedure(connect: Connect, sandbox: Sandbox) -> None:
    closed = []

    def procedure():
        try:
            try:
                yield endpoints.get_flow(99)
            except EtlworksNotFound as error:
                flow = yield READ
                return flow.id, error.status
        finally:
            closed.append(True)

    assert connect(sandbox.url).run(procedure()) == (7, 404)
    assert closed == [True]


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("30", 30, 33),
        ("86400", 300, 303),
        ("in-a-while", 0, 30),
        ("-5", 0, 30),
        ("a date", 80, 95),
    ],
)
@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_obeyed(
    connect: Connect, sandbox: Sandbox, clock: VirtualClock, header: str, least: float, most: float, code: int
) -> None:
    # A date is compared with the clock of the machine.
    value = formatdate(usegmt=True, timeval=time.time() + 91) if header == "a date" else header
    sandbox.fault("GET", READ_PATH, status(code, headers={"Retry-After": value}))
    started = clock.now
    connect(sandbox.url, clock=clock).send(READ)
    # After a 429 everybody comes back at a random moment of the minute after that.
    assert least <= clock.now - started <= (most if code == 503 else least + 15 + 60)


def test_shortened_retry_after_is_logged_once(
    connect: Connect, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.fault("GET", READ_PATH, status(429, headers={"Retry-After": "86400"}))
    connect(sandbox.url).send(READ)
    assert [record.levelname for record in caplog.records if "86400" in record.getMessage()] == ["WARNING"]


def test_retry_after_pauses_the_whole_client(connect: Connect, sandbox: Sandbox, clock: VirtualClock) -> None:
    sandbox.fault("GET", READ_PATH, status(429, headers={"Retry-After": "30"}))
    drive = connect(sandbox.url, clock=clock, requests_per_minute=300)
    with pytest.raises(EtlworksRateLimited):
        drive.send(READ, attempts=1)
    started = clock.now
    drive.send(endpoints.metrics_summary(), attempts=1)
    assert clock.now - started >= 30
    # Evenly from then on, without a burst.
    for _ in range(10):
        drive.send(READ, attempts=1)
    assert clock.now - started >= 30 + 10 * 60 / 300


def test_retry_after_pauses_other_clients_of_the_connection(
    connect: Connect, sandbox: Sandbox, clock: VirtualClock
) -> None:
    sandbox.fault("GET", READ_PATH, status(429, headers={"Retry-After": "30"}))
    with pytest.raises(EtlworksRateLimited):
        connect(sandbox.url, clock=clock).send(READ, attempts=1)
    connect(sandbox.url, clock=clock, read_timeout=5.0).send(READ)
    assert sum(clock.slept) >= 30


def test_retry_after_does_not_pause_other_connections(connect: Connect, sandbox: Sandbox, clock: VirtualClock) -> None:
    sandbox.fault("GET", READ_PATH, status(429, headers={"Retry-After": "30"}))
    with pytest.raises(EtlworksRateLimited):
        connect(sandbox.url, clock=clock).send(READ, attempts=1)
    connect(sandbox.url, clock=clock, login="sandbox", password="sandbox").send(READ)
    assert clock.slept == []


def test_clients_of_one_connection_share_its_rate_limit(connect: Connect, clock: VirtualClock) -> None:
    with ScriptedServer() as server:
        for _ in range(20):
            connect(server.url, clock=clock, requests_per_minute=10).send(endpoints.metrics_summary())
    assert sum(clock.slept) >= 60


@pytest.mark.parametrize("limit", [1, 10, 60])
def test_client_stays_below_its_rate_limit(connect: Connect, clock: VirtualClock, limit: int) -> None:
    moments: list[float] = []
    counting = threading.Lock()

    def answer(_: object) -> bytes:
        with counting:
            moments.append(clock.now)
        return reply(body=b'{"id": 7}')

    with ScriptedServer(answer) as server:
        drive = connect(server.url, clock=clock, requests_per_minute=limit)
        for _ in range(3 * limit):
            drive.send(READ)
    assert max(sum(start <= moment < start + 60 for moment in moments) for start in moments) <= limit


def test_server_with_the_same_rate_limit_never_answers_429(connect: Connect, clock: VirtualClock) -> None:
    with Sandbox([SandboxFlow(7, "Orders")], clock=clock.time, requests_per_minute=30) as sandbox:
        drive = connect(sandbox.url, clock=clock, requests_per_minute=30, login="sandbox", password="sandbox")
        for _ in range(90):
            drive.send(READ)
    assert {request.status for request in sandbox.requests} == {200}
