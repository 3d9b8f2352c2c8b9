"""How one run is followed to its end: when to look, what a failed look means, when to give up, what the log tells."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import (
    EtlworksBadRequest,
    EtlworksConfigError,
    EtlworksError,
    EtlworksForbidden,
    EtlworksNotFound,
    EtlworksUnauthorized,
)
from airflow_provider_etlworks.client.procedure import SendOnce, Sleep
from airflow_provider_etlworks.client.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Log, Procedure
    from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

VISIBILITY_GRACE = 60.0
"""Seconds that a 404 on the record of a run is believed to be lag."""

_LOOKS_BEFORE_GONE = 3
_LONGEST_PAUSE = 60.0
_SHARE_OF_AGE = 0.05
_EARLY = (0.9, 0.97)
_FAULT_LINES_EVERY = 60.0
_FIRST_LINE_AFTER = 60.0
_LINES_EVERY_AT_MOST = 600.0
_ALARM_AFTER = 24 * 3600.0
_LONGEST_EXCEPTION = 8_000

FATAL_ERRORS = (EtlworksUnauthorized, EtlworksForbidden, EtlworksBadRequest, EtlworksConfigError)
"""What the server would say again however often it is asked. Anything else may pass."""


class Ending(str, Enum):
    """Why the following of a run ended."""

    FINISHED = "finished"
    DEADLINE = "deadline"
    LOST_TOUCH = "lost_touch"
    DENIED = "denied"


@dataclass(frozen=True)
class FollowResult:
    """
    How the following of a run ended.

    :ivar ending: why it ended.
    :ivar execution: the run's last record that could be read.
    :ivar detail: what to tell a person.
    :ivar error: what the last look failed with, if it did.
    """

    ending: Ending
    execution: Execution | None = None
    detail: str = ""
    error: EtlworksError | None = None

    def redacted(self, secrets: Iterable[str]) -> FollowResult:
        """
        Return the same with the server's error text fit to be told: bounded, and without secrets.

        :param secrets: texts that must not be told.
        """
        if self.execution is None or self.execution.exception is None:
            return self
        said = redact(self.execution.exception[:_LONGEST_EXCEPTION], secrets)
        return replace(self, execution=replace(self.execution, exception=said))


def poll_delay(age: float, poll_interval: float) -> float:
    """
    Return the seconds until the next look at a run: an old run is asked less often than a young one.

    :param age: how long the run has been going, in seconds.
    :param poll_interval: seconds between two looks at a young run.
    :return: ``poll_interval``, or a twentieth of the age where that is longer, 60 s (or ``poll_interval``) at most.
    """
    return max(poll_interval, min(_SHARE_OF_AGE * age, _LONGEST_PAUSE))


def _is_terminal(execution: Execution) -> bool:
    return execution.is_terminal


def follow(
    run: RunRef,
    policy: PollPolicy,
    *,
    clock: Clock,
    log: Log,
    is_over: Callable[[Execution], bool] = _is_terminal,
) -> Procedure[FollowResult]:
    """
    Look at a run until it is over. A look that fails is never taken for the run's failure.

    :param run: the run.
    :param policy: how often it is polled, and when polling gives up.
    :param clock: tells the time.
    :param log: is told each change of status, and now and then that nothing changed.
    :param is_over: what to wait for.
    """
    look = SendOnce(endpoints.get_execution(run.flow_id, run.audit_id))
    watch = RunPoller(run.audit_id, policy, clock=clock, log=log, is_over=is_over)
    while True:
        try:
            execution: Execution = yield look
        except EtlworksError as error:
            verdict = watch.on_error(error)
        else:
            verdict = watch.on_record(execution)
        if isinstance(verdict, FollowResult):
            return verdict
        yield Sleep(verdict)


class RunPoller:
    """
    What is remembered between two looks at a run, what the log is told about it, and what a look means.

    It asks nothing itself: whoever looks at the run tells it what came of the look, and is told whether that is the end
    or how many seconds to wait before the next look. The parameters are those of :func:`follow`.

    :ivar execution: the run's last record that could be read.
    """

    __slots__ = (
        "_alarmed",
        "_audit_id",
        "_began",
        "_clock",
        "_complained",
        "_complaint",
        "_faults",
        "_is_over",
        "_line_gap",
        "_log",
        "_missing",
        "_missing_since",
        "_next_fault_line",
        "_next_line",
        "_policy",
        "_unreadable_since",
        "execution",
    )

    def __init__(
        self,
        audit_id: int,
        policy: PollPolicy,
        *,
        clock: Clock,
        log: Log,
        is_over: Callable[[Execution], bool] = _is_terminal,
    ) -> None:
        self.execution: Execution | None = None
        self._audit_id = audit_id
        self._clock = clock
        self._log = log
        self._policy = policy
        self._is_over = is_over
        self._complaint = ""
        self._began = clock.monotonic()
        # Not "read last at": a run that a list covers is rarely read itself, and that is no fault.
        self._unreadable_since: float | None = None
        self._missing_since: float | None = None
        self._missing = self._faults = 0
        self._next_fault_line = 0.0
        self._complained = False
        self._next_line, self._line_gap = self._began + _FIRST_LINE_AFTER, _FIRST_LINE_AFTER
        self._alarmed = False

    @property
    def poll_interval(self) -> float:
        """Seconds between two looks at the run while it is young."""
        return self._policy.poll_interval

    def interval(self, now: float) -> float:
        """
        Return the seconds between two looks at the run, at its present age.

        :param now: the present, as the clock's ``monotonic`` has it.
        """
        return poll_delay(now - self._began, self.poll_interval)

    def on_record(self, execution: Execution) -> FollowResult | float:
        """Take in a record. Return the end, or the seconds until the next look."""
        now = self._clock.monotonic()
        self._note(execution, now)
        if self._is_over(execution):
            return FollowResult(Ending.FINISHED, execution)
        # A little early, and not everybody at once.
        early: float = random.uniform(*_EARLY)  # noqa: S311  # no secret
        return self._unless_given_up(self.interval(now) * early, None)

    def on_error(self, error: EtlworksError) -> FollowResult | float:
        """Take in a look that failed. Return the end, or the seconds until the next look: more each time."""
        if isinstance(error, FATAL_ERRORS):
            return FollowResult(Ending.DENIED, self.execution, str(error), error)
        now = self._clock.monotonic()
        self._complaint = str(error)
        if self._unreadable_since is None:
            self._unreadable_since = now
        if isinstance(error, EtlworksNotFound):
            self._missing += 1
            if self._missing_since is None:
                self._missing_since = now
            if self._missing >= _LOOKS_BEFORE_GONE and now - self._missing_since >= VISIBILITY_GRACE:
                return FollowResult(Ending.LOST_TOUCH, self.execution, f"The run's record is gone. {error}", error)
        self._faults += 1
        if now >= self._next_fault_line:
            self._next_fault_line = now + _FAULT_LINES_EVERY
            self._complained = True
            self._log.warning("Cannot read the status of run %s, trying on: %s", self._audit_id, error)
        growing: float = self.poll_interval * 2 ** min(self._faults - 1, 10)
        pause = max(self.poll_interval, min(growing, _LONGEST_PAUSE))
        asked: float | None = getattr(error, "retry_after", None)
        return self._unless_given_up(max(pause, asked or 0.0), error)

    def _unless_given_up(self, pause: float, failure: EtlworksError | None) -> FollowResult | float:
        """Return the pause, cut at the deadline; or the end, where deadline or patience is over."""
        remaining = None if self._policy.deadline is None else self._policy.deadline - self._clock.time()
        if remaining is not None and remaining <= 0:
            return FollowResult(Ending.DEADLINE, self.execution, str(failure or ""), failure)
        since = self._unreadable_since
        if since is not None and self._clock.monotonic() - since > self._policy.patience:
            return FollowResult(Ending.LOST_TOUCH, self.execution, self._complaint, failure)
        return pause if remaining is None else min(pause, remaining)

    def _note(self, execution: Execution, now: float) -> None:
        """Remember a record, and tell the log what is new."""
        before, self.execution = self.execution, execution
        if self._complained:
            self._complained = False
            self._log.info("Run %s can be read again.", self._audit_id)
        self._missing_since, self._missing, self._faults = None, 0, 0
        if execution.known_status is not None:
            self._unreadable_since = None
        else:
            self._complaint = f"Etlworks gives the run a status that is not known here: {execution.status!r}."
            if self._unreadable_since is None:
                self._unreadable_since = now
        if execution.started_at is not None:
            # The server's clock may differ from ours, so its view counts only where it says "older".
            self._began = min(self._began, now - (self._clock.time() - execution.started_at.timestamp()))
        age = now - self._began
        if before is None or before.status != execution.status:
            report = self._log.info if execution.known_status else self._log.warning
            verb = "ended:" if execution.is_terminal else "is"
            report("Run %s %s %s (after %s).", self._audit_id, verb, execution.status, _spoken(age))
        elif now >= self._next_line:
            self._line_gap = min(self._line_gap * 2, _LINES_EVERY_AT_MOST)
            self._next_line = now + self._line_gap
            self._log.info("Run %s is still %s (after %s).", self._audit_id, execution.status, _spoken(age))
        if age > _ALARM_AFTER and not self._alarmed:
            self._alarmed = True
            self._log.warning("Run %s has been going for more than a day. Is it stuck?", self._audit_id)


def _spoken(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
