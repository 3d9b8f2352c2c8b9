"""A busy or unreachable Etlworks is waited for before anything is started; a refusal is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.clock import BEGINNING
from support.task import FLOW, FLOW_NAME, HISTORY_PATH, RECORD_PATH, RUN_PATH

from airflow_provider_etlworks.client.errors import (
    EtlworksExecutionTimeout,
    EtlworksRateLimited,
    EtlworksServerError,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.rate_limit import Priority, RateLimiter
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.sandbox import Fault, hang_up, status

if TYPE_CHECKING:
    from support.etlworks import Etlworks

BUSY = status(429, headers={"Retry-After": "30"})
OUTAGE = 1200.0
BY_NAME = {"flow_name": FLOW_NAME}
LOGIN = {"login": "sandbox", "password": "sandbox"}

# What is asked before the run is there: by which task, and how.
BEFORE_THE_RUN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "log-in": ("POST", "/rest/v1/token-auth*", {}),
    "name": ("GET", "/rest/v1/flows", BY_NAME),
    "watermark": ("GET", RECORD_PATH, {}),
    "history": ("GET", HISTORY_PATH, {}),
    "start": ("POST", RUN_PATH, {}),
}
both_modes = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])


@both_modes
@pytest.mark.parametrize("request_", BEFORE_THE_RUN)
def test_busy_etlworks_is_waited_for(etlworks: Etlworks, request_: str, deferrable: bool) -> None:
    method, path, arguments = BEFORE_THE_RUN[request_]
    etlworks.connect(**LOGIN)
    etlworks.sandbox.fault(method, path, BUSY, times=None)
    etlworks.clock.at(OUTAGE, etlworks.sandbox.clear_faults)

    went = etlworks.task(deferrable=deferrable, **arguments).run()

    assert went.colour == "success"
    assert len(went.accepted) == 1
    assert OUTAGE <= etlworks.clock.time() - BEGINNING < OUTAGE + 400
    waits = etlworks.warnings(" yet. ", "Waiting for Etlworks until", "UTC")
    assert 2 <= len(waits) <= 8
    assert "Etlworks can be used again" in etlworks.log_text


@pytest.mark.parametrize("arguments", [{}, BY_NAME], ids=["by id", "by name"])
def test_unreachable_etlworks_is_waited_for(etlworks: Etlworks, arguments: dict[str, Any]) -> None:
    etlworks.sandbox.stop()
    etlworks.clock.at(OUTAGE, etlworks.sandbox.start)

    went = etlworks.task(**arguments).run()

    assert went.colour == "success"
    assert etlworks.asked("POST", RUN_PATH) == 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(BUSY, EtlworksRateLimited), (status(503), EtlworksServerError), (hang_up(), EtlworksUnreachable)],
)
def test_outage_longer_than_patience_fails_the_task(etlworks: Etlworks, fault: Fault, kind: type[Exception]) -> None:
    etlworks.sandbox.fault("GET", RECORD_PATH, fault, times=None)

    went = etlworks.task(patience=900).run()

    assert went.colour == "failed"
    assert isinstance(went.error, kind)
    assert 900 <= etlworks.clock.time() - BEGINNING < 1800
    assert etlworks.asked("POST", RUN_PATH) == 0


def test_start_that_stays_busy_ends_with_patience(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("POST", RUN_PATH, BUSY, times=None)

    went = etlworks.task(patience=900).run()

    assert isinstance(went.error, EtlworksRateLimited)
    assert 900 <= etlworks.clock.time() - BEGINNING < 1800
    assert etlworks.sandbox.runs_started() == 0


def test_refused_second_start_is_waited_for(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up(carried_out=False))
    etlworks.sandbox.fault("POST", RUN_PATH, BUSY, times=6)

    went = etlworks.task().run()

    assert went.colour == "success"
    assert len(went.accepted) == 1


def test_each_start_after_an_outage_has_a_new_watermark(etlworks: Etlworks) -> None:
    etlworks.flow(running=0)
    etlworks.sandbox.fault("POST", RUN_PATH, BUSY, times=5)
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up(carried_out=True), after=5)
    etlworks.clock.at(40, lambda: etlworks.run_of_somebody_else("sandbox"))

    went = etlworks.task().run()

    assert went.colour == "success"
    assert went.result is not None
    assert went.result["audit_id"] == went.accepted[0]


def test_timeout_ends_the_wait(etlworks: Etlworks) -> None:
    etlworks.sandbox.stop()

    went = etlworks.task(timeout=300).run()

    assert isinstance(went.error, EtlworksExecutionTimeout)
    assert "is not started yet, and the time is over" in went.report
    assert 300 <= etlworks.clock.time() - BEGINNING < 330


def test_kill_ends_the_wait(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("POST", RUN_PATH, BUSY, times=None)
    task = etlworks.task()
    operator = task.operator()
    etlworks.clock.at(200, operator.on_kill)

    with pytest.raises(Exception, match="the task was killed"):
        operator.execute(task.next_try())  # type: ignore[arg-type]

    # At most one more start is refused: 30 s after the request before it, and then a pause of up to 90 s.
    assert etlworks.clock.time() - BEGINNING < 330
    assert etlworks.sandbox.runs_started() == 0
    assert task.store is not None
    assert task.store.kept == {}


def test_lost_try_waits_for_etlworks_before_it_decides(etlworks: Etlworks) -> None:
    etlworks.flow(running=7200)
    task = etlworks.task(patience=3600, timeout=5000)
    lost = task.run()
    etlworks.sandbox.stop()
    etlworks.clock.at(5000 + OUTAGE, etlworks.sandbox.start)
    assert isinstance(lost.error, EtlworksExecutionTimeout)

    went = task.run()

    assert etlworks.warnings("An earlier try started run", "may still be going", "Waiting for Etlworks until")
    assert len(went.accepted) == 1


@pytest.mark.parametrize("by", ["operator", "hook"])
def test_all_that_comes_before_the_run_has_the_priority_of_the_start(
    etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """With a small share of the rate limit, it waits less than polls."""
    begin, begun = RateLimiter.begin, []

    def recording(limiter: RateLimiter, priority: Priority) -> float:
        begun.append(priority)
        return begin(limiter, priority)

    monkeypatch.setattr(RateLimiter, "begin", recording)
    etlworks.connect(**LOGIN)

    if by == "operator":
        etlworks.task(deferrable=False, **BY_NAME).run()
    else:
        EtlworksHook().run_flow(FLOW)

    sent = [(each.method, each.path) for each in etlworks.sandbox.requests]
    before_the_run = sent.index(("POST", RUN_PATH)) + 1
    assert before_the_run >= 3
    assert set(begun[:before_the_run]) == {Priority.START}
    assert Priority.POLL in begun[before_the_run:] or by == "hook"


def test_hook_waits_as_long_as_asked(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("POST", RUN_PATH, BUSY, times=6)

    assert EtlworksHook().run_flow(FLOW).audit_id is not None

    etlworks.sandbox.clear_faults()
    etlworks.sandbox.fault("POST", RUN_PATH, BUSY, times=None)
    with pytest.raises(EtlworksRateLimited):
        EtlworksHook().run_flow(FLOW, patience=0)
