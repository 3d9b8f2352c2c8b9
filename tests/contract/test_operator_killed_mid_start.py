"""A task is killed while its start is under way: what came of the start is stopped, and nothing is started later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.task import STOP_PATH, Task

from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.client.sync import EtlworksClient
from airflow_provider_etlworks.sandbox import status

if TYPE_CHECKING:
    from support.etlworks import Etlworks

    from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator


class Killed(BaseException):
    """What Airflow 2 raises in the middle of whatever a killed task does."""


def kill_when_the_start_is_sent(
    monkeypatch: pytest.MonkeyPatch, operator: EtlworksRunFlowOperator, *, goes_on: bool, after: bool = True
) -> None:
    """
    Kill the task as its start is sent.

    :param goes_on: whether the task goes on after ``on_kill``, as in Airflow 3.
    :param after: whether Etlworks has carried the start out by then.
    """
    send = EtlworksClient._send_once

    def send_and_be_killed(client, call, priority):  # type: ignore[no-untyped-def]
        if call.method != "POST" or not call.path.endswith("/run"):
            return send(client, call, priority)
        answer = send(client, call, priority) if after else None
        operator.on_kill()
        if not goes_on:
            raise Killed
        return answer if after else send(client, call, priority)

    monkeypatch.setattr(EtlworksClient, "_send_once", send_and_be_killed)


def killed_try(task: Task, operator: EtlworksRunFlowOperator, etlworks: Etlworks) -> None:
    with pytest.raises((Killed, EtlworksError)):
        operator.execute(task.next_try())
    assert [run.status for run in etlworks.sandbox.runs()] in ([], ["canceled"])


@pytest.mark.parametrize("goes_on", [False, True], ids=["Airflow 2", "Airflow 3"])
@pytest.mark.parametrize("after", [False, True], ids=["before it arrived", "after it arrived"])
def test_run_of_a_start_in_flight_is_stopped_once(
    goes_on: bool, after: bool, etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = etlworks.task()
    operator = task.operator()
    kill_when_the_start_is_sent(monkeypatch, operator, goes_on=goes_on, after=after)

    killed_try(task, operator, etlworks)

    assert etlworks.asked("POST", STOP_PATH) == etlworks.sandbox.runs_started()


def test_run_left_active_is_logged(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    task = etlworks.task(cancel_on_kill=False)
    operator = task.operator()
    kill_when_the_start_is_sent(monkeypatch, operator, goes_on=False)

    with pytest.raises(Killed):
        operator.execute(task.next_try())

    (run,) = etlworks.sandbox.runs()
    assert run.status != "canceled"
    assert f"Run {run.audit_id} goes on" in etlworks.log_text


def test_unidentified_run_is_not_stopped(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    task = etlworks.task()
    operator = task.operator()
    assert task.store is not None
    task.store.before_the_start = lambda: [etlworks.run_of_somebody_else() for _ in range(2)]
    kill_when_the_start_is_sent(monkeypatch, operator, goes_on=False, after=False)

    with pytest.raises(Killed):
        operator.execute(task.next_try())

    assert etlworks.asked("POST", STOP_PATH) == 0
    assert etlworks.warnings("killed while it started flow", "not certain which run")


def test_failed_stop_does_not_hold_a_killed_task(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    task = etlworks.task()
    operator = task.operator()
    etlworks.sandbox.fault("POST", STOP_PATH, status(503), times=None)
    kill_when_the_start_is_sent(monkeypatch, operator, goes_on=False)

    with pytest.raises(Killed):
        operator.execute(task.next_try())

    assert etlworks.warnings("it may go on")
