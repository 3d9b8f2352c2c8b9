"""What a retry does about the run of the try before it: follow it, take it, start anew, or say that it cannot tell."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import BEGINNING
from support.task import FLOW, HISTORY_PATH, RECORD_PATH, RUN_PATH, STOP_PATH

from airflow_provider_etlworks.client.errors import (
    EtlworksError,
    EtlworksExecutionTimeout,
    EtlworksServerError,
    EtlworksStartUnknown,
    EtlworksUnauthorized,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.sandbox import SandboxFlow, hang_up, status

if TYPE_CHECKING:
    from support.etlworks import Etlworks
    from support.task import Task

    from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator

both_modes = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])


class WorkerLost(BaseException):
    """The worker is killed: nothing of the operator runs any more, not even on_kill."""


def lose_the_worker(etlworks: Etlworks, task: Task, after: float = 0.0) -> int:
    """Make a try whose worker is lost some seconds after the start; return the audit id of its run."""
    before = etlworks.sandbox.runs_started()

    def die() -> None:
        raise WorkerLost

    etlworks.clock.at(etlworks.clock.time() - BEGINNING + after, die)
    with pytest.raises(WorkerLost):
        task.operator().execute(task.next_try())
    assert etlworks.sandbox.runs_started() == before + 1
    return etlworks.sandbox.runs()[-1].audit_id


def lose_the_worker_before_the_answer(etlworks: Etlworks, task: Task, *, carried_out: bool = True) -> None:
    """Make a try whose worker is lost between sending the start and reading its answer."""
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up(carried_out=carried_out))

    def die(*_: Any, **__: Any) -> None:
        raise WorkerLost

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("airflow_provider_etlworks.runs.start.RunStarter.reconcile", die)
        with pytest.raises(WorkerLost):
            task.operator().execute(task.next_try())


# --- With Airflow's task state store --------------------------------------------------------------------------------


@both_modes
def test_active_run_is_followed(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=600, records=3)
    task = etlworks.task(deferrable=False)
    audit_id = lose_the_worker(etlworks, task, after=100)

    task.arguments["deferrable"] = deferrable
    went = task.run()

    assert went.colour == "success"
    assert went.result is not None
    assert went.result["audit_id"] == audit_id
    assert task.xcoms["audit_id"] == audit_id
    assert etlworks.sandbox.runs_started() == 1
    assert "no new run" in etlworks.log_text


@both_modes
@pytest.mark.parametrize(
    ("ends", "fail_on_warning", "runs"),
    [
        ("success", False, 1),
        ("warning", False, 1),
        ("warning", True, 2),
        ("error", False, 2),
        ("canceled", False, 2),
    ],
)
def test_successful_run_is_the_result_and_others_are_replaced(
    etlworks: Etlworks, ends: str, fail_on_warning: bool, runs: int, deferrable: bool
) -> None:
    etlworks.flow(running=600)
    task = etlworks.task(deferrable=False, fail_on_warning=fail_on_warning)
    first = lose_the_worker(etlworks, task, after=100)
    etlworks.sandbox.finish(first, ends)

    task.arguments["deferrable"] = deferrable
    went = task.run()

    assert went.colour == "success"
    assert etlworks.sandbox.runs_started() == runs
    assert went.result is not None
    assert (went.result["audit_id"] == first) == (runs == 1)
    if runs == 2:
        assert etlworks.warnings(str(first), ends, "A new run is needed")


def test_failed_run_and_its_retry_are_two_runs(etlworks: Etlworks) -> None:
    etlworks.flow(ends="error")
    task = etlworks.task()
    task.run()
    etlworks.flow(ends="success")

    assert task.run().colour == "success"
    assert etlworks.sandbox.runs_started() == 2


def test_missing_run_is_replaced_after_the_patience(etlworks: Etlworks) -> None:
    etlworks.flow(running=600)
    task = etlworks.task()
    first = lose_the_worker(etlworks, task, after=100)
    etlworks.sandbox.finish(first)
    etlworks.sandbox.forget(first)
    began = etlworks.clock.time()

    went = task.run()

    assert went.colour == "success"
    assert etlworks.sandbox.runs_started() == 2
    assert etlworks.sandbox.runs()[1].accepted - began >= 60
    assert etlworks.warnings(str(first), "no longer known to Etlworks", "A new run is needed")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(status(500), EtlworksServerError), (status(401), EtlworksUnauthorized), (hang_up(), EtlworksUnreachable)],
)
def test_unreadable_run_fails_the_try_and_starts_nothing(etlworks: Etlworks, fault: Any, kind: type[Exception]) -> None:
    etlworks.flow(running=3600)
    task = etlworks.task(patience=300)
    first = lose_the_worker(etlworks, task, after=100)
    etlworks.sandbox.fault("GET", RECORD_PATH, fault, times=None)

    refused = task.run()
    etlworks.sandbox.clear_faults()
    followed = task.run()

    assert refused.colour == "failed"
    assert isinstance(refused.error, kind)
    assert followed.result is not None
    assert followed.result["audit_id"] == first
    assert etlworks.sandbox.runs_started() == 1


def test_start_of_a_lost_worker_is_found(etlworks: Etlworks) -> None:
    etlworks.flow(running=600)
    etlworks.task(wait_for_completion=False).run()
    etlworks.clock.sleep(700)
    task = etlworks.task()
    lose_the_worker_before_the_answer(etlworks, task)

    went = task.run()

    assert went.colour == "success"
    assert went.result is not None
    assert went.result["audit_id"] == etlworks.sandbox.runs()[-1].audit_id
    assert etlworks.sandbox.runs_started() == 2
    assert task.run().result == went.result


@pytest.mark.parametrize("place", ["record", "log"])
@pytest.mark.parametrize("carried_out", [True, False])
def test_retry_reconciles_with_the_key_of_the_lost_try(etlworks: Etlworks, carried_out: bool, place: str) -> None:
    etlworks.connect(run_key_parameter="airflowRun")
    etlworks.echo_parameters(place)
    etlworks.flow(running=0)
    # A mapped task: without the key, nothing tells its run from the other's.
    task, other = etlworks.task(parameters={"part": "0"}), etlworks.task(parameters={"part": "1"})
    task.map_index, other.map_index = 0, 1
    lose_the_worker_before_the_answer(etlworks, task, carried_out=carried_out)
    key = json.loads(task.store.kept["etlworks_start"])["run_key"]  # type: ignore[union-attr]
    of_other = other.run().result
    etlworks.tries.clear()

    went = task.run()

    runs = {run.audit_id: run.parameters for run in etlworks.sandbox.runs()}
    assert went.result is not None
    assert of_other is not None
    assert len(runs) == 2
    assert runs[went.result["audit_id"]]["part"] == "0"
    assert (runs[went.result["audit_id"]]["airflowRun"] == key) is carried_out
    assert runs[of_other["audit_id"]]["part"] == "1"


@pytest.mark.parametrize("later", [0, 3600])
def test_unprocessed_start_is_made_by_the_retry(etlworks: Etlworks, later: float) -> None:
    task = etlworks.task()
    lose_the_worker_before_the_answer(etlworks, task, carried_out=False)
    etlworks.clock.sleep(later)
    began = etlworks.clock.time()

    went = task.run()

    assert went.colour == "success"
    (run,) = etlworks.sandbox.runs()
    # A run that nobody saw within the grace is not waited for again.
    assert (run.accepted - began >= 50) == (later == 0)


def test_unresolved_start_fails_each_try(etlworks: Etlworks) -> None:
    etlworks.flow(running=0)
    task = etlworks.task()
    lose_the_worker_before_the_answer(etlworks, task)
    etlworks.run_of_somebody_else()

    for _ in range(2):
        went = task.run()
        assert went.colour == "failed for good"
        assert isinstance(went.error, EtlworksStartUnknown)
        assert sorted(went.error.candidates) == [run.audit_id for run in etlworks.sandbox.runs()]
    assert etlworks.asked("POST", RUN_PATH) == 1


@pytest.mark.parametrize("store", [True, False])
def test_start_in_doubt_is_not_retried(etlworks: Etlworks, store: bool) -> None:
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up(carried_out=False), times=None)

    went = etlworks.task(store=store).run()

    assert went.colour == "failed for good"
    assert isinstance(went.error, EtlworksStartUnknown)
    assert "Airflow does not try again: that might start a second run." in went.report


@pytest.mark.parametrize("store", [True, False])
def test_unforeseen_error_after_the_start_is_a_start_in_doubt(
    etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch, store: bool
) -> None:
    def broken(*_: Any) -> Any:
        raise RecursionError("too deep")

    monkeypatch.setattr("airflow_provider_etlworks.client.models.FlowStart.from_json", broken)

    went = etlworks.task(store=store).run()

    assert went.colour == "failed for good"
    assert isinstance(went.error, EtlworksStartUnknown)
    assert etlworks.asked("POST", RUN_PATH) == 1


def test_cleared_task_in_doubt_runs_the_flow_again(etlworks: Etlworks) -> None:
    etlworks.flow(running=0)
    task = etlworks.task()
    lose_the_worker_before_the_answer(etlworks, task)
    other = etlworks.run_of_somebody_else()
    assert task.run().colour == "failed for good"
    task.clear()

    went = task.run()

    assert went.colour == "success"
    assert went.result is not None
    assert [went.result["audit_id"]] == went.accepted
    assert etlworks.warnings("The task was cleared, so the flow is started again", str(other))


def test_cleared_task_starts_nothing_if_nothing_is_readable(etlworks: Etlworks) -> None:
    task = etlworks.task(patience=60)
    lose_the_worker_before_the_answer(etlworks, task)
    task.clear()
    etlworks.sandbox.fault("GET", HISTORY_PATH, status(503), times=None)

    assert task.run().colour == "failed for good"
    assert etlworks.asked("POST", RUN_PATH) == 1


@pytest.mark.parametrize("goes_on", [False, True], ids=["Airflow 2", "Airflow 3"])
def test_kill_while_a_start_is_reconciled_stops_its_run(etlworks: Etlworks, goes_on: bool) -> None:
    etlworks.flow(running=3600)
    task = etlworks.task()
    lose_the_worker_before_the_answer(etlworks, task)
    operator = task.operator()
    etlworks.sandbox.fault("GET", HISTORY_PATH, status(503))

    def kill() -> None:
        operator.on_kill()
        if not goes_on:
            raise WorkerLost

    etlworks.clock.at(etlworks.clock.time() - BEGINNING + 0.5, kill)
    with pytest.raises(EtlworksError if goes_on else WorkerLost):
        operator.execute(task.next_try())

    (stop,) = [each for each in etlworks.sandbox.requests if each.path == STOP_PATH]
    assert stop.query == {"auditId": [str(etlworks.sandbox.runs()[0].audit_id)]}


def test_failing_xcom_backend_loses_no_run(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    etlworks.flow(running=600)
    task = etlworks.task()
    context = task.next_try()

    def broken(key: str, value: Any) -> None:
        raise ConnectionError("The XCom backend is away.")

    context["ti"].xcom_push = broken
    with pytest.raises(ConnectionError):
        task.operator().execute(context)

    assert task.run().colour == "success"
    assert etlworks.sandbox.runs_started() == 1


def test_task_of_another_flow_does_not_adopt_the_run(etlworks: Etlworks) -> None:
    etlworks.sandbox.add_flow(SandboxFlow(8, "Another", running=5))
    etlworks.flow(running=600)
    task = etlworks.task()
    lose_the_worker(etlworks, task, after=10)
    task.arguments["flow_id"] = 8  # a template that gives another value now

    went = task.run()

    assert went.result is not None
    assert went.result["flow_id"] == 8


# --- A cleared task asks for a new run ------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["success", "warning", "error"])
def test_clearing_a_task_that_has_ended_runs_the_flow_again(etlworks: Etlworks, ends: str) -> None:
    etlworks.flow(ends=ends)
    task = etlworks.task()
    task.run()
    task.clear()
    etlworks.flow(ends="success")

    assert task.run().colour == "success"
    assert etlworks.sandbox.runs_started() == 2
    assert etlworks.asked("POST", STOP_PATH) == 0


@pytest.mark.parametrize(("cancel_on_kill", "runs"), [(True, 2), (False, 1)])
def test_clearing_a_task_whose_run_is_going_replaces_that_run(
    etlworks: Etlworks, cancel_on_kill: bool, runs: int
) -> None:
    etlworks.flow(running=600)
    task = etlworks.task(cancel_on_kill=cancel_on_kill)
    first = lose_the_worker(etlworks, task, after=100)
    task.clear()

    went = task.run()

    assert went.colour == "success"
    assert etlworks.sandbox.runs_started() == runs
    assert etlworks.sandbox.runs()[0].stop_requested is cancel_on_kill
    assert etlworks.asked("POST", STOP_PATH) == (1 if cancel_on_kill else 0)
    assert went.result is not None
    assert (went.result["audit_id"] == first) == (runs == 1)


def test_stopped_run_is_never_the_result(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600, streaming=True)
    task = etlworks.task(timeout=120)
    first = task.run()
    assert isinstance(first.error, EtlworksExecutionTimeout)
    etlworks.flow(running=30)

    second = task.run()

    assert etlworks.sandbox.runs()[0].status == "success"
    assert second.result is not None
    assert second.result["audit_id"] == etlworks.sandbox.runs()[1].audit_id


# --- A run that was only followed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [None, "success"])
def test_retry_resumes_the_attached_run(etlworks: Etlworks, ends: str | None) -> None:
    etlworks.flow(running=600)
    other = etlworks.run_of_somebody_else()
    task = etlworks.task(on_already_running="attach")

    def die() -> None:
        raise WorkerLost

    etlworks.clock.at(100, die)
    with pytest.raises(WorkerLost):
        task.operator().execute(task.next_try())
    if ends:
        etlworks.sandbox.finish(other, ends)
    task.arguments["timeout"] = 60 if ends is None else None

    went = task.run()

    assert etlworks.sandbox.runs_started() == 1
    assert str(other) in str(went.error or went.result)
    assert went.colour == ("success" if ends else "failed")
    assert etlworks.asked("POST", STOP_PATH) == 0


# --- Without a store: Airflow before 3.3, or durable=False ----------------------------------------------------------


@both_modes
def test_active_run_of_earlier_try_is_found_before_3_3(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=600)
    task = etlworks.task(store=False)
    first = lose_the_worker(etlworks, task, after=100)

    task.arguments["deferrable"] = deferrable
    went = task.run()

    assert went.result is not None
    assert went.result["audit_id"] == first
    assert etlworks.sandbox.runs_started() == 1
    assert etlworks.warnings(str(first), "assumed to be an earlier try's")


@pytest.mark.parametrize("try_number", [1, 2])
def test_run_from_before_the_dag_run_is_not_taken_before_3_3(etlworks: Etlworks, try_number: int) -> None:
    etlworks.flow(running=600)
    other = etlworks.run_of_somebody_else()
    etlworks.clock.sleep(10)
    task = etlworks.task(store=False)
    task.try_number = try_number - 1

    went = task.run()

    assert went.colour == "failed"
    assert f"already running: run {other}" in went.report


def test_before_airflow_3_3_the_first_try_takes_nobodys_run(etlworks: Etlworks) -> None:
    etlworks.flow(running=600)
    task = etlworks.task(store=False)
    etlworks.clock.sleep(10)
    etlworks.run_of_somebody_else()

    assert "already running" in task.run().report


def test_before_airflow_3_3_a_run_of_somebody_else_is_not_taken(etlworks: Etlworks) -> None:
    etlworks.connect(login="sandbox", password="sandbox")
    etlworks.flow(running=600)
    task = etlworks.task(store=False)
    task.try_number = 1
    etlworks.clock.sleep(10)
    etlworks.run_of_somebody_else()

    assert "already running" in task.run().report


def test_before_airflow_3_3_a_run_that_has_ended_is_not_taken(etlworks: Etlworks) -> None:
    etlworks.flow(ends="error")
    task = etlworks.task(store=False)
    task.run()
    etlworks.flow(ends="success")

    assert task.run().colour == "success"
    assert etlworks.sandbox.runs_started() == 2


@pytest.mark.parametrize("store", [True, False])
def test_non_durable_task_starts_a_run_each_try(etlworks: Etlworks, store: bool) -> None:
    etlworks.flow(running=600)
    task = etlworks.task(store=store, durable=False, on_already_running="wait")
    first = lose_the_worker(etlworks, task, after=100)

    went = task.run()

    assert went.result is not None
    assert went.result["audit_id"] != first
    assert etlworks.sandbox.runs_started() == 2
    assert not etlworks.sandbox.runs()[0].stop_requested
    assert str(first) in etlworks.log_text
    if task.store is not None:
        assert task.store.kept == {}


# --- A kill while the earlier run is being looked up ----------------------------------------------------------------


@pytest.mark.parametrize("moment", ["while its record is read", "while it is followed"])
def test_kill_stops_the_run_of_the_earlier_try(etlworks: Etlworks, moment: str) -> None:
    etlworks.flow(running=3600)
    task = etlworks.task()
    first = lose_the_worker(etlworks, task, after=100)
    operator = task.operator()
    if moment == "while its record is read":
        etlworks.sandbox.fault("GET", RECORD_PATH, status(404))
    kill_while_it_sleeps(etlworks, operator, 5)

    with pytest.raises(WorkerLost):
        operator.execute(task.next_try())

    (stop,) = [each for each in etlworks.sandbox.requests if each.path == STOP_PATH]
    assert stop.query == {"auditId": [str(first)]}
    assert json.loads(task.store.kept["etlworks_start"])["stop_asked"] is True  # type: ignore[union-attr]
    etlworks.flow(running=5)
    assert task.run().colour == "success"
    assert etlworks.sandbox.runs_started() == 2


def kill_while_it_sleeps(etlworks: Etlworks, operator: EtlworksRunFlowOperator, seconds: float) -> None:
    """Do as Airflow does when a task is killed: call on_kill from the signal, and end the process."""

    def kill() -> None:
        operator.on_kill()
        raise WorkerLost

    etlworks.clock.at(etlworks.clock.time() - BEGINNING + seconds, kill)


def test_nothing_is_stopped_if_nothing_was_started(etlworks: Etlworks) -> None:
    etlworks.flow(running=600)
    etlworks.run_of_somebody_else()
    task = etlworks.task(on_already_running="wait")
    operator = task.operator()
    kill_while_it_sleeps(etlworks, operator, 50)

    with pytest.raises(WorkerLost):
        operator.execute(task.next_try())

    assert etlworks.asked("POST", STOP_PATH) == 0
    assert [run.flow_id for run in etlworks.sandbox.runs()] == [FLOW]
