"""
What the log of a failed task says last: one block of short lines, each of them a log line of its own.

Airflow opens the log of a failed task at its end. So the block is logged before anything is raised, and answers what
failed, why, where to look, what Airflow does next, and what to do. The exception that is raised then has no cause, so
that its traceback is Airflow's own, and sums up the block in one line, which is all that a callback or an e-mail has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from airflow_provider_etlworks.client.errors import (
    EtlworksAlreadyRunning,
    EtlworksBadRequest,
    EtlworksConfigError,
    EtlworksError,
    EtlworksExecutionFailed,
    EtlworksExecutionTimeout,
    EtlworksForbidden,
    EtlworksImportUnknown,
    EtlworksNotFound,
    EtlworksRateLimited,
    EtlworksRedirected,
    EtlworksReplyError,
    EtlworksServerError,
    EtlworksStartRefused,
    EtlworksUnauthorized,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.procedure import Log
from airflow_provider_etlworks.client.text import cut, is_trace, visible
from airflow_provider_etlworks.compat import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowTaskTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.runs.find import RunSelector

ErrorT = TypeVar("ErrorT", bound=BaseException)

_LONGEST_LINE = 300
_LONGEST_END = 120
_LONGEST_SUMMARY = 2_000
_MOST_REASONS = 6
_REPORTED = (EtlworksError, AirflowFailException, AirflowNotFoundException, AirflowSensorTimeout, AirflowTaskTimeout)
_KILLED = ("Somebody marked or cleared the task, or its worker was shut down.",)
_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z])")


class TaskLog(Log, Protocol):
    """The log of a task."""

    def error(self, msg: str, /, *args: Any) -> Any:
        """Log what went wrong."""


class Denied(AirflowFailException, EtlworksUnauthorized):
    """``EtlworksUnauthorized`` that Airflow does not retry: the next try would have the same credentials."""


class RoleMissing(AirflowFailException, EtlworksForbidden):
    """``EtlworksForbidden`` that Airflow does not retry: the next try would have the same role."""


class ConnectionMissing(AirflowFailException, AirflowNotFoundException):
    """``AirflowNotFoundException`` that Airflow does not retry: the connection has to be created first."""


class RunCanceled(AirflowFailException, EtlworksExecutionFailed):
    """``EtlworksExecutionFailed`` that Airflow does not retry: somebody stopped the run."""


@dataclass(frozen=True)
class Subject:
    """
    What a task is about.

    :ivar conn_id: the Airflow connection.
    :ivar flow_id: the flow; ``None`` if it is not known, or if the task is about several.
    :ivar flow_name: its name, if it is known.
    :ivar audit_id: the run, if there is one.
    :ivar task: what the task does, if it is not about one flow, such as ``The import``.
    """

    conn_id: str
    flow_id: int | None = None
    flow_name: str | None = None
    audit_id: int | None = None
    task: str = "The task"

    def __str__(self) -> str:
        """Name it: ``Flow 'Nightly load' (7), run 8721934``."""
        if self.flow_id is None and self.flow_name is None:
            return self.task
        name = "" if self.flow_name is None else f" {visible(self.flow_name)!r}"
        number = "" if self.flow_id is None else f" ({self.flow_id})" if name else f" {self.flow_id}"
        return f"Flow{name}{number}" + ("" if self.audit_id is None else f", run {self.audit_id}")


@dataclass(frozen=True)
class Failure:
    """
    How a task failed, for people.

    :ivar what: what happened to the subject, such as ``was not started``; after a colon, if it does not begin with a
        verb.
    :ivar why: the reasons, a line each, in Etlworks's own words where it has some.
    :ivar where: the address at which a person sees more; ``None`` if there is none.
    :ivar then: what another try does, such as ``starts a new run``; empty if it just tries again.
    :ivar to_do: what a person does.
    :ivar is_final: why Airflow does not try again, if the failure is final by its nature.
    :ivar keeps_message: whether the error keeps its own message, which sums up the failure already.
    """

    what: str
    why: Sequence[str] = ()
    where: str | None = None
    then: str = ""
    to_do: str = ""
    is_final: str = "another try would end in the same way"
    keeps_message: bool = False

    def headline(self, subject: Subject) -> str:
        """Return what happened to the subject, without a full stop."""
        return f"{subject}{'' if self.what.startswith(':') else ' '}{self.what}"

    def summary(self, subject: Subject) -> str:
        """Return what happened to the subject, why, and where to look, in one line."""
        why = visible(" ".join(self._reasons(subject)))
        parts = [f"{self.headline(subject)}.", cut(why, _LONGEST_SUMMARY), *([self.where] if self.where else [])]
        return " ".join(part for part in parts if part)

    def lines(self, subject: Subject, error: BaseException, try_number: int, max_tries: int) -> list[str]:
        """
        Return the block's lines.

        :param subject: what the task is about.
        :param error: what is raised.
        :param try_number: Airflow's number of this try, from 1.
        :param max_tries: Airflow's number of retries.
        """
        lines = [f"{self.headline(subject)} (connection {subject.conn_id!r})."]
        for number, reason in enumerate(self._reasons(subject)[:_MOST_REASONS]):
            # The first line names the connection.
            text = visible(reason).replace(f"Connection {subject.conn_id!r}: ", "")
            lines.append(_keep_both_ends(f"{'     ' if number else 'Why: '}{text}"))
        if self.where is not None:
            lines.append(f"See: {self.where}")
        lines.append(self._next(error, try_number, max_tries))
        if self.to_do:
            lines.append(f"To do: {self.to_do}")
        return lines

    def _reasons(self, subject: Subject) -> list[str]:
        """Return the reasons, without a repetition of the headline."""
        repeated = f"Flow {subject.flow_id} {self.what}: "
        return [
            reason[len(repeated) :][:1].upper() + reason[len(repeated) + 1 :] if reason.startswith(repeated) else reason
            for reason in self.why
        ]

    def _next(self, error: BaseException, try_number: int, max_tries: int) -> str:
        # Airflow retries neither of these.
        if isinstance(error, (AirflowFailException, AirflowSensorTimeout)):
            return f"Airflow does not try again: {self.is_final}."
        if max_tries == 0:
            return "Airflow does not try again: the task has no retries."
        if try_number > max_tries:
            return f"Airflow does not try again: this was the last of {max_tries + 1} tries."
        then = f", and {self.then}" if self.then else ""
        return f"Airflow tries again{then}: this was try {try_number} of {max_tries + 1}."


def _keep_both_ends(line: str) -> str:
    """Shorten a line in its middle: the reason may be at its end, such as after an SQL statement."""
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: _LONGEST_LINE - _LONGEST_END]} … {line[3 - _LONGEST_END :]}"


def explained(error: ErrorT, failure: Failure) -> ErrorT:
    """Attach to an error how its task failed, for :func:`report`."""
    error.failure = failure  # type: ignore[attr-defined]
    return error


def sentences(text: str) -> list[str]:
    """Return a text as lines, a sentence each. A text of several lines keeps them, and so do parentheses."""
    found: list[str] = []
    for line in text.splitlines():
        for number, part in enumerate(_SENTENCE.split(line.strip())):
            if number and found[-1].count("(") > found[-1].count(")"):
                found[-1] += f" {part}"
            elif part:
                found.append(part)
    return found


def reasons(text: str) -> list[str]:
    """
    Return Etlworks's own words about a failure: of a Java trace its first line, and its root cause.

    :param text: the error text of a run's record; may be empty.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ["Etlworks gives no reason."]
    if not is_trace(text):
        return lines
    causes = [line for line in lines if line.startswith("Caused by:")]
    return [lines[0], *causes[-1:]]


# --- How a run ended ------------------------------------------------------------------------------------------------


def run_ended_badly(execution: Execution, url: str, *, killed: bool = False) -> Failure:
    """Return the failure of a run that Etlworks reports as ended badly."""
    why = reasons(execution.exception or "")
    if execution.status == "canceled" and killed:
        return Failure(
            "ended: canceled, since the task was killed",
            _KILLED,
            url,
            "starts a new run, unless somebody has set the task's state",
            "Nothing, if that was meant. Clear the task to run the flow again.",
        )
    if execution.status == "canceled":
        return Failure(
            "ended: canceled",
            why if execution.exception else ["A person or a program stopped the run in Etlworks."],
            url,
            to_do="Ask who stopped it. Clear the task to run the flow again.",
            is_final="somebody stopped the run on purpose",
        )
    if execution.status == "warning":
        advice = "Read the flow's log. If warnings are fine for this flow, leave out fail_on_warning."
        return Failure("ended: warning, and fail_on_warning is set", why, url, "starts a new run", advice)
    advice = "Read the end of the flow's log above, and repair the flow or what it needs."
    return Failure(f"ended: {execution.status}", why, url, "starts a new run", advice)


def lost_touch(detail: str, url: str, *, is_denied: bool) -> Failure:
    """
    Return the failure of a task whose run cannot be followed any more.

    :param detail: why not.
    :param url: where a person sees the run.
    :param is_denied: whether reading it is refused.
    """
    advice = "Check the run in Etlworks. Do not start the flow by hand before the run has ended."
    if is_denied:
        advice = "Correct the connection or its user's role; the next try, or a cleared task, finds the run."
    return Failure(
        "may still be going, but cannot be followed",
        sentences(detail),
        url,
        "follows the run if it is still going",
        advice,
    )


def time_out(limit: str, detail: str, url: str, *, stop_asked: bool) -> Failure:
    """
    Return the failure of a task whose run was still going at the deadline.

    :param limit: which argument set it, and its value.
    :param detail: what became of the stop.
    """
    return Failure(
        f"was still going when {limit} was over",
        sentences(detail),
        url,
        "starts a new run" if stop_asked else "follows the run if it is still going",
        f"{'Check in Etlworks that the run stops. ' if stop_asked else ''}Find out why it takes so long, or allow it "
        "more time.",
    )


def killed_before_its_run() -> Failure:
    """Return the failure of a task that Airflow killed while it started its run."""
    return Failure(
        ": the task was killed while it started its run",
        _KILLED,
        then="starts the flow, unless somebody has set the task's state",
        to_do="Nothing, if that was meant. The lines above say whether a run was stopped.",
    )


def watched_run_ended_badly(execution: Execution, url: str) -> Failure:
    """Return the failure of a sensor whose run ended badly."""
    failure = replace(run_ended_badly(execution, url), then="waits once more")
    if execution.status == "canceled":
        return replace(failure, to_do="Ask who stopped it. Clear the task to wait for another run.")
    if execution.status == "warning":
        return failure
    return replace(failure, to_do="Read the flow's log in Etlworks, and repair the flow or what it needs.")


def flow_unreadable(detail: str, url: str, *, is_denied: bool) -> Failure:
    """
    Return the failure of a sensor that cannot ask Etlworks for the run that it waits for.

    :param detail: why not.
    :param url: the address of the instance.
    :param is_denied: whether reading is refused.
    """
    what = "the connection or its user's role" if is_denied else "whether Etlworks can be reached from the workers"
    return Failure(
        ": whether it has run cannot be read",
        sentences(detail),
        url,
        "waits once more",
        f"{'Correct' if is_denied else 'Check'} {what}, and clear the task.",
    )


def sensor_time_out(selector: RunSelector, limit: str, seen: Execution | None, detail: str, url: str | None) -> Failure:
    """
    Return the failure of a sensor whose time is over.

    :param selector: the run that was waited for.
    :param limit: which argument ended the wait, and its value.
    :param seen: the last record of the run; ``None`` if none was seen.
    :param detail: why it could not be read at last, if so.
    :param url: where a person sees the run.
    """
    if seen is None:
        since = "" if selector.since is None else f" since {selector.since:%Y-%m-%d %H:%M:%S} UTC"
        return Failure(
            f": no run{since} was seen before {limit} was over",
            sentences(detail),
            to_do="Check in Etlworks whether the flow ran, and whether the sensor waits for the right run.",
            is_final="a sensor that has waited for its whole timeout is not retried",
        )
    return Failure(
        f"had not ended when {limit} was over",
        [f"Its last status was {seen.status}.", *sentences(detail)],
        url,
        to_do="Find out why it takes so long, or give the sensor more time.",
        is_final="a sensor that has waited for its whole timeout is not retried",
    )


# --- Nothing was started, or nobody knows ---------------------------------------------------------------------------


def already_running(error: EtlworksAlreadyRunning, url: str | None) -> Failure:
    """Return the failure of a start that met another run of the flow."""
    return Failure(
        "was not started, since another run of it is going",
        sentences(str(error))[:1],
        url,
        "starts a new run if the flow is free then",
        "Wait for that run, or set on_already_running to 'wait', 'attach' or 'skip'.",
    )


def start_in_doubt(error: BaseException, url: str) -> Failure:
    """Return the failure of a start of which nobody knows whether it started a run."""
    return Failure(
        "may or may not have been started",
        sentences(str(error)),
        url,
        "looks for the run before it starts another one",
        "Compare the runs in Etlworks with this task. If one is the task's, wait for its end and mark the task; else "
        "clear the task.",
        is_final="that might start a second run",
    )


_NOT_DONE: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (AirflowNotFoundException, "Create the connection in Airflow (Admin, Connections), of the type etlworks."),
    (EtlworksConfigError, "Correct the argument or the connection, and clear the task."),
    (EtlworksUnauthorized, "Put a valid API key, or login and password, into the connection, and clear the task."),
    (EtlworksForbidden, "Give the connection's user the role that the call needs, and clear the task."),
    (EtlworksNotFound, "Check the id, and the connection's Host and tenant_id."),
    (EtlworksRateLimited, "Lower requests_per_minute in the connection, or ask Etlworks for a higher limit."),
    (EtlworksUnreachable, "Check the connection's Host and Port, and the network between the workers and Etlworks."),
    (EtlworksServerError, "Ask the administrator of the Etlworks instance whether it is down."),
    (EtlworksRedirected, "Correct the connection's Host, and clear the task."),
    (EtlworksBadRequest, "Correct what Etlworks refuses: an argument of the task, or a setting of the connection."),
    (EtlworksReplyError, "Check whether the connection's Host is an Etlworks, and not a proxy or a sign-in page."),
    (EtlworksExecutionTimeout, "Find out what holds it up, or allow it more time."),
    (EtlworksStartRefused, "Check in Etlworks whether the flow can run at all."),
)


def not_done(what: str, error: BaseException, where: str | None = None) -> Failure:
    """
    Return the failure of a task that has done nothing.

    :param what: what was not done, such as ``was not started``.
    :param error: the reason.
    :param where: the address at which a person sees more.
    """
    cause = error.__cause__ if type(error) is AirflowFailException and error.__cause__ is not None else error
    to_do = next((advice for kinds, advice in _NOT_DONE if isinstance(cause, kinds)), "")
    failure = Failure(what, sentences(str(error)), where, to_do=to_do)
    if isinstance(cause, EtlworksImportUnknown):
        return replace(failure, is_final="that might import the bundle twice")
    return failure


class TaskReport:
    """
    What a report asks of a task that is not about one run, such as an export.

    :param operator: the operator.
    :param context: the task's context.
    :param about: what the task does, such as ``The export``.
    """

    def __init__(self, operator: Any, context: Any, about: str) -> None:
        self.log: TaskLog = operator.log
        self.ti = context.get("ti")
        self.subject = Subject(operator.etlworks_conn_id, task=about)

    def failure_of(self, error: BaseException) -> Failure:
        """Say that the task failed, why, and what was done. The error keeps its own words, which name the task."""
        return replace(not_done("failed", error), keeps_message=True)


_WITHOUT_RETRY: dict[type[BaseException], type[BaseException]] = {
    AirflowNotFoundException: ConnectionMissing,
    EtlworksForbidden: RoleMissing,
    EtlworksUnauthorized: Denied,
}


# --- The report -----------------------------------------------------------------------------------------------------


class Reports(Protocol):
    """One execution of an operator or a sensor: it knows what it is about, and how it failed."""

    @property
    def log(self) -> TaskLog:
        """The task's log."""

    @property
    def ti(self) -> Any:
        """Airflow's task instance."""

    @property
    def subject(self) -> Subject:
        """What the task is about, as far as it is known."""

    def failure_of(self, error: BaseException) -> Failure:
        """Say how the task failed, if the place that raised did not say so."""


def report(task: Reports, error: BaseException) -> BaseException | None:
    """
    Log how a task failed.

    :param task: the execution of the operator or sensor.
    :param error: what ended it.
    :return: what to raise ``from None``; ``None`` for an error that is not ours, which is to be raised as it is.
    """
    if not isinstance(error, _REPORTED):
        return None
    if not hasattr(error, "report"):
        failure: Failure = getattr(error, "failure", None) or task.failure_of(error)
        subject = task.subject
        # A run of an earlier try is worth another try: it may still be going.
        final = _without_retry(error) if subject.audit_id is None else error
        tries = getattr(task.ti, "try_number", 1), getattr(task.ti, "max_tries", 0)
        lines = failure.lines(subject, final, *tries)
        for line in lines:
            task.log.error("%s", line)
        if not failure.keeps_message:
            final.args = (failure.summary(subject),)
        final.report = "\n".join(lines)  # type: ignore[attr-defined]
        error = final
    return error.with_traceback(None)


def _without_retry(error: BaseException) -> BaseException:
    """Return an error that Airflow does not retry, if another try would meet the same credentials or connection."""
    kind = _WITHOUT_RETRY.get(type(error))
    if kind is None:
        return error
    final = kind.__new__(kind, *error.args)
    final.__dict__.update(error.__dict__)
    final.args = error.args
    return final
