"""Over both transports: whose request is sent when, and what is sent while Etlworks asks for a pause."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.client import GENEROUS
from support.clock import VirtualClock
from support.etlworks import ScriptedServer, reply

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksRateLimited, EtlworksUnreachable
from airflow_provider_etlworks.client.procedure import SendOnce
from airflow_provider_etlworks.client.rate_limit import Priority, rate_limiter_for
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.client.sync import EtlworksClient
from airflow_provider_etlworks.hooks.clients import urgent_client
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, status
from airflow_provider_etlworks.sandbox.faults import hang_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.client import Drive

    Connect = Callable[..., Drive]

READ, STOP = endpoints.get_flow(7), endpoints.stop_flow(7, 70)
READ_PATH, STOP_PATH = "/rest/v1/flows/7", "/rest/v1/flows/7/stop"


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def sandbox(clock: VirtualClock) -> Iterator[Sandbox]:
    with Sandbox([SandboxFlow(7, "Orders")], clock=clock.time, requests_per_minute=None) as running:
        yield running


def refused(drive: Drive, sandbox: Sandbox) -> None:
    """Let Etlworks ask for a pause of 30 s."""
    sandbox.fault("GET", READ_PATH, status(429, headers={"Retry-After": "30"}))
    with pytest.raises(EtlworksRateLimited):
        drive.send(READ, attempts=1)


@pytest.mark.parametrize("credentials", [{}, {"login": "sandbox", "password": "sandbox"}], ids=["key", "log-in"])
def test_stop_is_sent_during_a_pause(
    connect: Connect, sandbox: Sandbox, clock: VirtualClock, credentials: dict[str, str]
) -> None:
    refused(connect(sandbox.url, clock=clock, **credentials), sandbox)
    audit_id = sandbox.run_by_user(7)
    # Another client logs in first.
    another = connect(sandbox.url, clock=clock, connect_timeout=3.0, **credentials)
    another.send(endpoints.stop_flow(7, audit_id), priority=Priority.STOP)
    assert clock.slept == []


@pytest.mark.parametrize("in_procedure", [False, True])
def test_stop_that_is_refused_waits_like_others(
    connect: Connect, sandbox: Sandbox, clock: VirtualClock, in_procedure: bool
) -> None:
    drive = connect(sandbox.url, clock=clock)
    refused(drive, sandbox)
    sandbox.fault("POST", STOP_PATH, status(429, headers={"Retry-After": "30"}))
    stop = endpoints.stop_flow(7, sandbox.run_by_user(7))

    def procedure() -> Any:
        try:
            yield SendOnce(stop)
        except EtlworksRateLimited:
            yield SendOnce(stop)

    if in_procedure:
        drive.run(procedure(), priority=Priority.STOP)
    else:
        drive.send(stop, priority=Priority.STOP)
    assert sum(clock.slept) >= 30


def test_request_that_connects_during_a_pause_is_not_sent(
    connect: Connect, sandbox: Sandbox, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = connect(sandbox.url, clock=clock, requests_per_minute=1)
    limiter = rate_limiter_for(drive.settings, clock)
    begin = limiter.begin

    def begin_before_the_pause(priority: Priority) -> float:
        delay = begin(priority)
        monkeypatch.undo()
        limiter.refuse(30)
        return delay

    monkeypatch.setattr(limiter, "begin", begin_before_the_pause)
    assert drive.send(READ, attempts=1).id == 7
    assert sum(clock.slept) >= 30
    assert len(sandbox.requests) == 1


def test_failed_connections_leave_no_hole(connect: Connect, clock: VirtualClock, closed_port: int) -> None:
    drive = connect(f"http://127.0.0.1:{closed_port}", clock=clock, requests_per_minute=1)
    for _ in range(3):
        with pytest.raises(EtlworksUnreachable):
            drive.send(READ, attempts=1)
    assert clock.slept == []


def test_requests_without_an_answer_count(connect: Connect, sandbox: Sandbox, clock: VirtualClock) -> None:
    sandbox.fault("GET", READ_PATH, hang_up(carried_out=True))
    drive = connect(sandbox.url, clock=clock, requests_per_minute=1)
    drive.send(READ)
    assert sum(clock.slept) >= 60 - 1e-6  # the clock counts from 1970


def test_procedure_has_one_priority(connect: Connect, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = connect(sandbox.url, login="sandbox", password="sandbox")
    limiter = rate_limiter_for(drive.settings, drive.clock)
    priorities, begin = [], limiter.begin

    def recorded(priority: Priority) -> float:
        priorities.append(priority)
        return begin(priority)

    monkeypatch.setattr(limiter, "begin", recorded)

    def procedure() -> Any:
        yield READ
        yield SendOnce(READ)

    drive.run(procedure(), priority=Priority.SEARCH)
    # The log-in is the first.
    assert priorities == [Priority.SEARCH] * 3
    drive.send(READ)
    drive.send(endpoints.run_flow(7))
    assert priorities[3:] == [Priority.POLL, Priority.START]


def test_long_response_refused_for_its_token_is_requested_again(sandbox: Sandbox, clock: VirtualClock) -> None:
    # The refused response is done with before the next request waits for its turn.
    settings = ClientSettings(sandbox.url, "sandbox", login="sandbox", requests_per_minute=1)
    with EtlworksClient(settings, clock=clock, sleep=clock.sleep) as client:
        client.send(READ)
        sandbox.revoke_tokens()
        with client.stream(READ) as chunks:
            assert b"Orders" in b"".join(chunks)


def test_client_that_does_not_wait_says_so(sandbox: Sandbox, clock: VirtualClock) -> None:
    settings = ClientSettings(sandbox.url, sandbox.api_key, requests_per_minute=1)
    with EtlworksClient(settings, clock=clock, sleep=clock.sleep, longest_wait=0.0) as client:
        client.send(READ)
        with pytest.raises(EtlworksRateLimited, match="was not sent") as raised:
            client.send(READ, attempts=1)
    assert raised.value.not_processed
    assert clock.slept == []


@pytest.mark.timeout(GENEROUS)
def test_signal_handler_stops_a_run_while_its_thread_sends() -> None:
    """As ``on_kill`` does: it interrupts the main thread anywhere, and sends a stop from there."""
    stops, done, ready = 0, threading.Event(), threading.Semaphore()

    def on_signal(*_: object) -> None:
        nonlocal stops
        with urgent_client(settings) as client:
            client.send(STOP, attempts=1)
        stops += 1
        ready.release()

    def send_signals() -> None:
        while not done.wait(0.01):
            if ready.acquire(timeout=0.01):
                os.kill(os.getpid(), signal.SIGUSR1)

    with ScriptedServer(lambda _: reply(body=b'{"id": 7}')) as server:
        settings = ClientSettings(server.url, "key", requests_per_minute=0)
        before = signal.signal(signal.SIGUSR1, on_signal)
        sender = threading.Thread(target=send_signals)
        try:
            with EtlworksClient(settings) as client:
                sender.start()
                while stops < 20:
                    client.send(READ)
        finally:
            done.set()
            sender.join()
            signal.signal(signal.SIGUSR1, before)
        assert len(server.received) >= 21
