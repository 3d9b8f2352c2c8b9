"""The block of lines that says how a task failed: what Airflow does next, and what is shortened."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksForbidden, EtlworksUnreachable
from airflow_provider_etlworks.compat import AirflowFailException, AirflowNotFoundException, AirflowSensorTimeout
from airflow_provider_etlworks.worker.failure_report import Failure, Subject, explained, not_done, reasons, report

SUBJECT = Subject("etlworks_eu", 7, "Nightly load", 41)


class Task:
    """What a report asks of a task."""

    def __init__(self, try_number: int = 1, max_tries: int = 3, audit_id: int | None = None) -> None:
        self.lines: list[str] = []
        self.log = SimpleNamespace(error=lambda text, *args: self.lines.append(text % args))
        self.ti = SimpleNamespace(try_number=try_number, max_tries=max_tries)
        self.subject = Subject("etlworks_eu", 7, audit_id=audit_id)

    def failure_of(self, error: BaseException) -> Failure:
        return not_done("was not started", error)


@pytest.mark.parametrize(
    ("error", "try_number", "max_tries", "said"),
    [
        (EtlworksError("x"), 1, 3, "Airflow tries again, and starts a new run: this was try 1 of 4."),
        (EtlworksError("x"), 3, 3, "Airflow tries again, and starts a new run: this was try 3 of 4."),
        (EtlworksError("x"), 4, 3, "Airflow does not try again: this was the last of 4 tries."),
        (EtlworksError("x"), 1, 0, "Airflow does not try again: the task has no retries."),
        (AirflowFailException("x"), 1, 3, "Airflow does not try again: another try would end in the same way."),
        (AirflowSensorTimeout("x"), 1, 3, "Airflow does not try again: another try would end in the same way."),
    ],
)
def test_next_step_of_airflow(error: Exception, try_number: int, max_tries: int, said: str) -> None:
    failure = Failure("ended: error", ["Disk full"], "https://etlworks.example.com", "starts a new run", "Clean up.")
    assert failure.lines(SUBJECT, error, try_number, max_tries) == [
        "Flow 'Nightly load' (7), run 41 ended: error (connection 'etlworks_eu').",
        "Why: Disk full",
        "See: https://etlworks.example.com",
        said,
        "To do: Clean up.",
    ]


def test_trace_is_its_first_line_and_its_root_cause() -> None:
    trace = "EtlException: load\n\tat a.B(C.java:1)\nCaused by: IoError: x\n\tat d.E(F.java:2)\nCaused by: Disk full"
    assert reasons(trace) == ["EtlException: load", "Caused by: Disk full"]
    assert reasons("") == ["Etlworks gives no reason."]


def test_lines_are_bounded_and_harmless() -> None:
    failure = Failure("ended: error", ["x" * 5000, "forged\nline", *["y"] * 50])
    lines = failure.lines(SUBJECT, EtlworksError("x"), 1, 1)
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 300
    assert all(each.isprintable() for each in lines)


def test_error_sums_up_and_is_logged_once() -> None:
    task, error = Task(), EtlworksUnreachable("No answer. It did not reach the server.")
    raised = report(task, error)
    assert raised is error
    assert str(raised) == "Flow 7 was not started. No answer. It did not reach the server."
    assert raised.report == "\n".join(task.lines)  # type: ignore[union-attr]
    assert report(task, error) is error
    assert len(task.lines) == 5


@pytest.mark.parametrize(
    "error", [EtlworksForbidden("403", status=403), AirflowNotFoundException("The conn_id `x` isn't defined")]
)
def test_what_another_try_would_meet_again_is_final(error: Exception) -> None:
    raised = report(Task(), error)
    assert isinstance(raised, AirflowFailException)
    assert isinstance(raised, type(error))
    assert not isinstance(report(Task(audit_id=41), EtlworksForbidden("403", status=403)), AirflowFailException)


def test_errors_of_others_are_not_reported() -> None:
    task = Task()
    assert report(task, RuntimeError("The XCom backend is away.")) is None
    assert task.lines == []


def test_connection_is_named_once() -> None:
    task, error = Task(), EtlworksUnreachable("No answer.").of("etlworks_eu")
    report(task, error)
    assert "\n".join(task.lines).count("etlworks_eu") == 1


def test_explained_error_needs_no_other_words() -> None:
    task = Task()
    report(task, explained(EtlworksError("x"), Failure(": the task was killed")))
    assert task.lines[0] == "Flow 7: the task was killed (connection 'etlworks_eu')."
