"""When a task is killed or out of time, its run is stopped, and only its own; what did not work is said."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.triggers.base import BaseTrigger
from support.clock import BEGINNING
from support.task import FLOW, HISTORY_PATH, RUN_PATH, STOP_PATH, stored_and_loaded

from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksExecutionFailed, EtlworksExecutionTimeout
from airflow_provider_etlworks.client.models import FlowStart
from airflow_provider_etlworks.sandbox import Fault, hang_up, status
from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger
from airflow_provider_etlworks.worker import run_flow

if TYPE_CHECKING:
    from support.etlworks import Etlworks
    from support.task import Try

both_modes = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])


class Killed(BaseException):
    """The process ends after on_kill, as after Airflow's signal."""


def kill(etlworks: Etlworks, after: float = 100.0, **arguments: Any) -> int:
    """Start a run, kill its task after some seconds on the worker, and return the run's audit id."""
    task = etlworks.task(**arguments)
    operator = task.operator()

    def signal() -> None:
        operator.on_kill()
        raise Killed

    etlworks.clock.at(etlworks.clock.time() - BEGINNING + after, signal)
    with pytest.raises(Killed):
        operator.execute(task.next_try())
    return etlworks.sandbox.runs()[-1].audit_id


def kill_while_deferred(etlworks: Etlworks, *, tells: bool = True, **arguments: Any) -> int:
    """Cancel the trigger of a run that goes on; from Airflow 3.3 on it is told why."""
    audit_id = etlworks.sandbox.run_by_user(FLOW)
    trigger = stored_and_loaded(EtlworksFlowExecutionTrigger(FLOW, audit_id, **arguments))

    async def cancel() -> None:
        watched = asyncio.Event()
        etlworks.clock.at(etlworks.clock.time() - BEGINNING + 30, watched.set)
        watch = asyncio.ensure_future(anext(trigger.run()))
        await asyncio.wait({watch, asyncio.ensure_future(watched.wait())}, return_when=asyncio.FIRST_COMPLETED)
        watch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watch
        if tells:
            await trigger.on_kill()

    asyncio.run(cancel())
    return audit_id


def stops(etlworks: Etlworks) -> list[list[str]]:
    """Return which runs were asked to stop."""
    return [each.query.get("auditId", []) for each in etlworks.sandbox.requests if each.path == STOP_PATH]


# --- A kill ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("login", [None, "sandbox"], ids=["API key", "login"])
def test_kill_on_the_worker_stops_the_run_once(etlworks: Etlworks, login: str | None) -> None:
    if login:
        etlworks.connect(login=login, password="sandbox")
    etlworks.flow(running=3600)

    audit_id = kill(etlworks)

    assert stops(etlworks) == [[str(audit_id)]]
    assert etlworks.sandbox.runs()[0].stop_requested


def test_kill_in_the_triggerer_stops_the_run_once(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600)

    audit_id = kill_while_deferred(etlworks)

    assert stops(etlworks) == [[str(audit_id)]]


def test_cancelled_trigger_stops_nothing(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600)

    kill_while_deferred(etlworks, tells=False)

    assert stops(etlworks) == []
    assert "The run goes on" in etlworks.log_text


@pytest.mark.parametrize(
    ("answer", "is_stopped"),
    [({"run": {"run_3": "deferred"}}, False), ({"run": {"run_3": "failed"}}, True), ({}, True), (OSError(), True)],
    ids=["it still waits", "a person marked it", "it is gone", "Airflow does not answer"],
)
def test_run_is_stopped_unless_its_task_still_waits(
    etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch, answer: Any, is_stopped: bool
) -> None:
    """Airflow kills a trigger, too, that another triggerer has taken over since this one missed its heartbeats."""
    if not hasattr(BaseTrigger, "on_kill"):
        pytest.skip("this Airflow does not call on_kill")
    comms = pytest.importorskip("airflow.sdk.execution_time.comms")
    task_runner = pytest.importorskip("airflow.sdk.execution_time.task_runner")
    asked = []

    async def asend(question: Any) -> Any:
        asked.append(question)
        if isinstance(answer, Exception):
            raise answer
        return comms.TaskStatesResult(task_states=answer)

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
    etlworks.flow(running=3600)
    audit_id = etlworks.sandbox.run_by_user(FLOW)
    trigger = stored_and_loaded(EtlworksFlowExecutionTrigger(FLOW, audit_id))
    trigger.task_instance = SimpleNamespace(dag_id="dag", run_id="run", task_id="run", map_index=3)

    asyncio.run(trigger.on_kill())

    assert stops(etlworks) == ([[str(audit_id)]] if is_stopped else [])
    assert ("still waits for it" in etlworks.log_text) is not is_stopped
    (question,) = asked
    assert (question.dag_id, question.run_ids, question.task_ids, question.map_index) == ("dag", ["run"], ["run"], 3)


# Airflow 2 ends the process after on_kill, Airflow 3 lets the task go on.
@pytest.mark.parametrize("ends", [True, False], ids=["Airflow 2", "Airflow 3"])
def test_kill_during_reconciliation_stops_the_run(etlworks: Etlworks, ends: bool) -> None:
    etlworks.flow(running=3600)
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up())
    task = etlworks.task()
    operator = task.operator()
    assert task.store is not None
    # The first look fails, so that the kill comes before the run is known.
    task.store.before_the_start = lambda: etlworks.sandbox.fault("GET", HISTORY_PATH, status(503))

    def signal() -> None:
        operator.on_kill()
        if ends:
            raise Killed

    etlworks.clock.at(0.5, signal)
    with pytest.raises(Killed if ends else EtlworksError):
        operator.execute(task.next_try())

    (run,) = etlworks.sandbox.runs()
    assert stops(etlworks) == [[str(run.audit_id)]]
    etlworks.flow(running=5)
    assert task.run().colour == "success"
    assert etlworks.sandbox.runs_started() == 2


def test_kill_before_the_start_starts_nothing(etlworks: Etlworks) -> None:
    task = etlworks.task()
    operator = task.operator()
    assert task.store is not None
    task.store.before_the_start = operator.on_kill

    with pytest.raises(EtlworksError, match="killed"):
        operator.execute(task.next_try())

    assert etlworks.asked("POST", RUN_PATH) == 0
    assert stops(etlworks) == []


def test_kill_during_the_response_stops_the_run(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    etlworks.flow(running=3600)
    task = etlworks.task()
    operator = task.operator()
    # The answer to the start is read, and nobody has seen it yet.
    monkeypatch.setattr(run_flow, "find_run_at_once", lambda *_: None)
    read, killed = FlowStart.from_json, []

    def read_and_kill(value: Any) -> FlowStart:
        if not killed:
            killed.append(True)
            operator.on_kill()
        return read(value)

    monkeypatch.setattr(FlowStart, "from_json", staticmethod(read_and_kill))

    with pytest.raises(EtlworksError, match="killed"):
        operator.execute(task.next_try())

    (run,) = etlworks.sandbox.runs()
    assert stops(etlworks) == [[str(run.audit_id)]]


def test_kill_while_waiting_for_another_run_starts_nothing(etlworks: Etlworks) -> None:
    etlworks.flow(running=600)
    other = etlworks.run_of_somebody_else()
    task = etlworks.task(on_already_running="wait")
    operator = task.operator()
    etlworks.clock.at(100, operator.on_kill)

    with pytest.raises(EtlworksError, match="killed"):
        operator.execute(task.next_try())

    assert [run.audit_id for run in etlworks.sandbox.runs()] == [other]
    assert stops(etlworks) == []


def test_kill_without_cancel_on_kill_stops_nothing(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600)

    on_worker = kill(etlworks, cancel_on_kill=False)
    in_triggerer = kill_while_deferred(etlworks, cancel_on_kill=False)

    assert stops(etlworks) == []
    assert f"Run {on_worker} goes on" in etlworks.log_text
    assert f"/ui/flows/{FLOW}/runs/{on_worker}" in etlworks.log_text
    assert f"Run {in_triggerer} goes on" in etlworks.log_text


def test_kill_outside_the_run_stops_nothing(etlworks: Etlworks) -> None:
    task = etlworks.task()
    task.operator().on_kill()
    operator = task.operator()
    operator.execute(task.next_try())
    operator.on_kill()

    assert stops(etlworks) == []


@pytest.mark.parametrize("where", ["on the worker", "in the triggerer"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(403), "may not stop runs (it takes Editor)"),
        (status(404), "set stop_path"),
        (status(405), "set stop_path"),
        (status(500), "Not certain whether"),
        (hang_up(carried_out=False), "Not certain whether"),
    ],
)
def test_failed_stop_is_logged(etlworks: Etlworks, fault: Fault, said: str, where: str) -> None:
    etlworks.flow(running=3600)
    etlworks.sandbox.fault("POST", STOP_PATH, fault, times=None)

    audit_id = kill(etlworks) if where == "on the worker" else kill_while_deferred(etlworks)

    assert etlworks.warnings(said, str(audit_id), str(FLOW))
    assert not etlworks.sandbox.runs()[0].stop_requested


@pytest.mark.parametrize("fault", [status(503), hang_up(carried_out=False)])
def test_stop_survives_a_transient_fault(etlworks: Etlworks, fault: Fault) -> None:
    etlworks.flow(running=3600)
    etlworks.sandbox.fault("POST", STOP_PATH, fault)

    kill(etlworks)

    assert etlworks.sandbox.runs()[0].stop_requested


def test_legacy_stop_spares_foreign_runs(etlworks: Etlworks) -> None:
    etlworks.connect(stop_path="/v1/flows/{flow_id}/stop")
    etlworks.flow(running=3600)
    etlworks.clock.at(50, etlworks.run_of_somebody_else)
    task = etlworks.task(timeout=100)

    went = task.run()

    ours, other = etlworks.sandbox.runs()
    assert stops(etlworks) == []
    assert "was NOT stopped and goes on" in went.report
    assert f"would stop the newest run, which is {other.audit_id}" in went.report
    assert (ours.status, other.status) == ("running", "running")


def test_legacy_stop_stops_our_newest_run(etlworks: Etlworks) -> None:
    etlworks.connect(stop_path="/v1/flows/{flow_id}/stop")
    etlworks.flow(running=3600)

    kill(etlworks)

    assert stops(etlworks) == [[]]
    assert etlworks.sandbox.runs()[0].stop_requested


def test_connection_may_name_another_stop_path(etlworks: Etlworks) -> None:
    etlworks.connect(stop_path="/v2/stop/{audit_id}?flow={flow_id}")
    etlworks.flow(running=3600)

    audit_id = kill(etlworks)

    (request,) = [each for each in etlworks.sandbox.requests if each.path == f"/rest/v2/stop/{audit_id}"]
    assert (request.method, request.query) == ("POST", {"flow": [str(FLOW)]})


# --- Time-outs ------------------------------------------------------------------------------------------------------


def check_timed_out(etlworks: Etlworks, went: Try, *, at: float, stopped: bool = True) -> None:
    (run,) = etlworks.sandbox.runs()
    assert str(run.audit_id) in went.report
    assert f"/ui/flows/{FLOW}/runs/{run.audit_id}" in went.report
    assert run.stop_requested is stopped
    assert stops(etlworks) == ([[str(run.audit_id)]] if stopped else [])
    assert at <= etlworks.clock.time() - BEGINNING < at + 5


@both_modes
def test_timeout_stops_the_run_and_fails_the_task(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=7200)

    went = etlworks.task(timeout=1800, deferrable=deferrable).run()

    assert isinstance(went.error, EtlworksExecutionTimeout)
    assert "timeout (1800 s)" in went.report
    assert "accepted the stop" in went.report
    check_timed_out(etlworks, went, at=1800)


@both_modes
def test_timeout_without_cancel_on_kill_stops_nothing(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=7200)

    went = etlworks.task(timeout=1800, deferrable=deferrable, cancel_on_kill=False).run()

    assert isinstance(went.error, EtlworksExecutionTimeout)
    assert "It was left going." in went.report
    check_timed_out(etlworks, went, at=1800, stopped=False)


@both_modes
def test_execution_timeout_holds_in_both_modes(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=7200)

    went = etlworks.task(execution_timeout=timedelta(seconds=1800), deferrable=deferrable).run()

    assert went.colour == "timed out"
    assert "execution_timeout (0:30:00)" in went.report
    check_timed_out(etlworks, went, at=1790)


@both_modes
@pytest.mark.parametrize(
    ("timeout", "execution_timeout", "colour", "at"), [(600, 1800, "failed", 600), (3600, 1800, "timed out", 1790)]
)
def test_earlier_timeout_counts(
    etlworks: Etlworks, timeout: float, execution_timeout: float, colour: str, at: float, deferrable: bool
) -> None:
    etlworks.flow(running=7200)

    went = etlworks.task(
        timeout=timeout, execution_timeout=timedelta(seconds=execution_timeout), deferrable=deferrable
    ).run()

    assert went.colour == colour
    check_timed_out(etlworks, went, at=at)


@both_modes
def test_run_that_ends_at_the_deadline_is_not_a_timeout(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=1800)

    assert etlworks.task(timeout=1800, deferrable=deferrable).run().colour == "success"
    assert stops(etlworks) == []


def test_timeout_counts_from_the_task_start(etlworks: Etlworks) -> None:
    etlworks.flow(running=7200)
    etlworks.run_of_somebody_else()
    etlworks.clock.at(1000, lambda: etlworks.sandbox.finish(etlworks.sandbox.runs()[0].audit_id))

    went = etlworks.task(timeout=1800, on_already_running="wait", deferrable=True).run()

    assert isinstance(went.error, EtlworksExecutionTimeout)
    assert went.deferred is not None
    assert went.deferred.trigger.deadline == BEGINNING + 1800
    # Airflow's own limit comes later than ours, and is there in case nobody watches.
    assert timedelta(seconds=800) < went.deferred.timeout < timedelta(seconds=800 + 300)
    assert 1800 <= etlworks.clock.time() - BEGINNING < 1805


def test_no_timeout_is_passed_to_airflow_without_one(etlworks: Etlworks) -> None:
    went = etlworks.task(deferrable=True).run()

    assert went.deferred is not None
    assert went.deferred.timeout is None
    assert went.deferred.trigger.deadline is None


@both_modes
@pytest.mark.parametrize(
    "fault",
    [status(500), hang_up(carried_out=False), hang_up(carried_out=False, delay=30)],
    ids=["500", "drop", "hang"],
)
def test_failed_stop_at_the_timeout_still_fails_the_task(etlworks: Etlworks, fault: Fault, deferrable: bool) -> None:
    etlworks.connect(read_timeout=1)
    etlworks.flow(running=7200)
    etlworks.sandbox.fault("POST", STOP_PATH, fault, times=None)

    went = etlworks.task(timeout=1800, deferrable=deferrable).run()

    assert isinstance(went.error, EtlworksExecutionTimeout)
    assert "it may go on" in went.report
    assert 1800 <= etlworks.clock.time() - BEGINNING < 1830


@both_modes
def test_unreachable_server_at_the_timeout_still_fails_the_task(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=7200)
    etlworks.clock.at(900, etlworks.sandbox.stop)

    went = etlworks.task(timeout=1800, deferrable=deferrable).run()

    assert isinstance(went.error, EtlworksExecutionTimeout)
    assert "it may go on" in went.report


@both_modes
def test_run_without_a_timeout_is_logged_at_intervals(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=30 * 3600)

    assert etlworks.task(deferrable=deferrable, poll_interval=300).run().colour == "success"
    assert len(etlworks.warnings("more than a day")) == 1


def test_run_stopped_by_our_kill_may_be_retried(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600)
    task = etlworks.task(deferrable=False)
    operator = task.operator()
    etlworks.clock.at(100, operator.on_kill)

    # Not AirflowFailException: the worker may be going down, and Airflow lets the task go on until it is gone.
    with pytest.raises(EtlworksExecutionFailed):
        operator.execute(task.next_try())

    assert len(stops(etlworks)) == 1
