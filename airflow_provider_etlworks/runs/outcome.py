"""
What a run means for a task. One function decides it, and every path goes through it.

Whether a run is over is decided by :class:`~airflow_provider_etlworks.client.models.Execution`.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.models import ExecutionStatus
from airflow_provider_etlworks.client.text import shorten_trace

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.models import Execution

_LONGEST_EXCEPTION = 4_000


class Outcome(Enum):
    """What a run's record means for a task."""

    GOING = "going"
    SUCCESS = "success"
    FAILURE = "failure"
    CANCELED = "canceled"


def outcome_of(execution: Execution, *, fail_on_warning: bool = False) -> Outcome:
    """
    Say what a run's record means for a task.

    Only ``success`` counts as success, and ``warning`` unless ``fail_on_warning`` is set. A run with an unknown or
    missing status is going until its record has an end, and then it has failed.

    :param execution: the run's record.
    :param fail_on_warning: whether ``warning`` is a failure.
    """
    if not execution.is_terminal:
        return Outcome.GOING
    if execution.known_status is ExecutionStatus.SUCCESS:
        return Outcome.SUCCESS
    if execution.known_status is ExecutionStatus.WARNING and not fail_on_warning:
        return Outcome.SUCCESS
    if execution.known_status is ExecutionStatus.CANCELED:
        return Outcome.CANCELED
    return Outcome.FAILURE


def failure_message(execution: Execution, url: str) -> str:
    """
    Return a sentence: how a run ended badly, and why, if the server says it.

    :param execution: the run's last record.
    :param url: where a person sees the run.
    """
    reason = error_text(execution) or "Etlworks gives no reason."
    return f"Run {execution.audit_id} of flow {execution.flow_id} ended: {execution.status}. {reason} {url}"


def error_text(execution: Execution) -> str:
    """Return the server's text about a run's end, of a length fit for a log; empty if there is none."""
    return shorten_trace((execution.exception or "").strip(), _LONGEST_EXCEPTION)


def task_result(execution: Execution, url: str) -> dict[str, Any]:
    """
    Return a task's result: JSON-safe, times as ISO 8601 in UTC, ``None`` for what Etlworks does not say.

    :param execution: the run's last record.
    :param url: where a person sees the run.
    """
    record = execution.to_dict()
    return {
        "flow_id": execution.flow_id,
        "audit_id": execution.audit_id,
        "status": execution.status,
        "started_at": record["started_at"],
        "ended_at": record["ended_at"],
        "duration_seconds": execution.duration_seconds,
        "records": execution.records,
        "url": url,
    }
