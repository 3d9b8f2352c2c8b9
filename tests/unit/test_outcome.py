"""What a run's record means for a task, for every status."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_etlworks.client.models import Execution, ExecutionStatus
from airflow_provider_etlworks.runs.outcome import Outcome, outcome_of, task_result
from airflow_provider_etlworks.runs.reattach import ReattachDecision, decide_reattach

NOW = datetime(2026, 5, 9, 4, 0, tzinfo=timezone.utc)


def run(status: str | None, *, ended: bool = True) -> Execution:
    return Execution(flow_id=7, audit_id=1, status=status, ended_at=NOW if ended else None)


@pytest.mark.parametrize(
    ("status", "ended", "outcome", "outcome_with_fail_on_warning"),
    [
        ("queued", False, Outcome.GOING, Outcome.GOING),
        ("running", False, Outcome.GOING, Outcome.GOING),
        ("running", True, Outcome.GOING, Outcome.GOING),
        ("success", True, Outcome.SUCCESS, Outcome.SUCCESS),
        ("success", False, Outcome.SUCCESS, Outcome.SUCCESS),
        ("warning", True, Outcome.SUCCESS, Outcome.FAILURE),
        ("error", True, Outcome.FAILURE, Outcome.FAILURE),
        ("canceled", True, Outcome.CANCELED, Outcome.CANCELED),
        ("canceled", False, Outcome.CANCELED, Outcome.CANCELED),
        ("archiving", False, Outcome.GOING, Outcome.GOING),
        ("archiving", True, Outcome.FAILURE, Outcome.FAILURE),
        (None, False, Outcome.GOING, Outcome.GOING),
        (None, True, Outcome.FAILURE, Outcome.FAILURE),
    ],
)
def test_outcome(status: str | None, ended: bool, outcome: Outcome, outcome_with_fail_on_warning: Outcome) -> None:
    assert outcome_of(run(status, ended=ended)) is outcome
    assert outcome_of(run(status, ended=ended), fail_on_warning=True) is outcome_with_fail_on_warning


def test_only_two_statuses_are_ever_green() -> None:
    green = {status for status in ExecutionStatus if outcome_of(run(status.value)) is Outcome.SUCCESS}

    assert green == {ExecutionStatus.SUCCESS, ExecutionStatus.WARNING}


@pytest.mark.parametrize(
    ("status", "retry", "cleared"),
    [
        ("running", ReattachDecision.FOLLOW, ReattachDecision.REPLACE),
        ("archiving", ReattachDecision.FOLLOW, ReattachDecision.REPLACE),
        ("success", ReattachDecision.DONE, ReattachDecision.START),
        ("warning", ReattachDecision.DONE, ReattachDecision.START),
        ("error", ReattachDecision.START, ReattachDecision.START),
        ("canceled", ReattachDecision.START, ReattachDecision.START),
    ],
)
def test_resumption(status: str, retry: ReattachDecision, cleared: ReattachDecision) -> None:
    execution = run(status, ended=False)

    assert decide_reattach(execution) is retry
    assert decide_reattach(execution, cleared=True) is cleared


@pytest.mark.parametrize("status", ["queued", "running", "success", "warning", "error", "canceled", None])
def test_stopped_run_is_never_the_result(status: str | None) -> None:
    assert decide_reattach(run(status, ended=False), stop_asked=True) is ReattachDecision.START


def test_resumption_special_cases() -> None:
    assert decide_reattach(None) is ReattachDecision.START
    assert decide_reattach(run("warning"), fail_on_warning=True) is ReattachDecision.START
    assert decide_reattach(run("running", ended=False), cleared=True, cancel_on_kill=False) is ReattachDecision.FOLLOW


def test_task_result_has_none_for_unknown_fields() -> None:
    full = Execution(
        flow_id=7,
        audit_id=1,
        status="success",
        started_at=NOW,
        ended_at=NOW + timedelta(seconds=2.5),
        records=3,
        exception="never told here",
        raw={"password": "never told here"},
    )

    assert task_result(full, "https://e/1") == {
        "flow_id": 7,
        "audit_id": 1,
        "status": "success",
        "started_at": "2026-05-09T04:00:00+00:00",
        "ended_at": "2026-05-09T04:00:02.500000+00:00",
        "duration_seconds": 2.5,
        "records": 3,
        "url": "https://e/1",
    }
    assert task_result(Execution(flow_id=7, audit_id=1), "u") == {
        **dict.fromkeys(task_result(full, "u")),
        "flow_id": 7,
        "audit_id": 1,
        "url": "u",
    }
