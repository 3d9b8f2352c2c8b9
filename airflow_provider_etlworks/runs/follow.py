"""How one run is followed to its end: when to poll, what a failed poll means, when to stop polling, what is logged."""

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
"""Seconds for which a 404 on the record of a run counts as lag."""

_POLLS_BEFORE_GONE = 3
_LONGEST_DELAY = 60.0
_LONGEST_DELAY_OF_OLD_RUN = 600.0
_SHARE_OF_AGE = 0.05
_DAY = 24 * 3600.0
_JITTER = (0.9, 0.97)
_FAULT_LINE_EVERY = 60.0
_FIRST_HEARTBEAT = 60.0
_LONGEST_HEARTBEAT = 600.0
_STUCK_AFTER = _DAY

FATAL_ERRORS = (EtlworksUnauthorized, EtlworksForbidden, EtlworksBadRequest, EtlworksConfigError)
"""The server would answer these again, however often it is asked. Any other error may pass."""


class Ending(str, Enum):
    """Why following a run ended."""

    FINISHED = "finished"
    DEADLINE = "deadline"
    LOST_TOUCH = "lost_touch"
    DENIED = "denied"


@dataclass(frozen=True)
class FollowResult:
    """
    How following a run ended.

    :ivar ending: why it ended.
    :ivar execution: the run's last record that could be read.
    :ivar detail: an explanation for people.
    :ivar error: the error of the last poll, if it failed.
    """

    ending: Ending
    execution: Execution | None = None
    detail: str = ""
    error: EtlworksError | None = None

    def redacted(self, secrets: Iterable[str]) -> FollowResult:
        """
        Return the same without what looks like a secret in the server's error text.

        The client has removed the known secrets from the whole record. A person reads this text, so
        everything that looks like a secret is removed as well.

        :param secrets: texts that must not be shown.
        """
        if self.execution is None or self.execution.exception is None:
            return self
        text = redact(self.execution.exception, secrets)
        return replace(self, execution=replace(self.execution, exception=text))


def poll_delay(age: float, poll_interval: float) -> float:
    """
    Return the seconds until the next poll of a run: an old run is polled less often than a young one.

    :param age: how long the run has been going, in seconds.
    :param poll_interval: seconds between two polls of a young run.
    :return: ``poll_interval``, or a twentieth of the age if that is longer: at most 60 s, or 60 s for each day that the
        run has been going, and never more than 10 minutes (or ``poll_interval``).
    """
    growing = _SHARE_OF_AGE * age
    if growing <= poll_interval:
        return poll_interval
    longest = min(max(_LONGEST_DELAY, _LONGEST_DELAY * age / _DAY), _LONGEST_DELAY_OF_OLD_RUN)
    return max(poll_interval, min(growing, longest))


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
    Poll a run until it is over. A poll that fails does not mean that the run failed.

    :param run: the run.
    :param policy: how often it is polled, and when polling ends without a result.
    :param clock: gives the time.
    :param log: receives a line per change of status, and a heartbeat now and then.
    :param is_over: whether a record means that the wait is over; default: that the run is.
    :return: how it ended; no error is raised.
    """
    poll = SendOnce(endpoints.get_execution(run.flow_id, run.audit_id))
    poller = RunPoller(run.audit_id, policy, clock=clock, log=log, is_over=is_over)
    while True:
        try:
            execution: Execution = yield poll
        except EtlworksError as error:
            verdict = poller.on_error(error)
        else:
            verdict = poller.on_record(execution)
        if isinstance(verdict, FollowResult):
            return verdict
        yield Sleep(verdict)


class RunPoller:
    """
    Keeps what is known between two polls of a run, logs what is new, and decides what each poll means.

    It sends nothing. Its caller polls the run, passes the record or the error, and receives the result or the seconds
    until the next poll. The parameters are those of :func:`follow`.

    :ivar execution: the run's last record that could be read.
    """

    __slots__ = (
        "_audit_id",
        "_began",
        "_clock",
        "_faults",
        "_heartbeat",
        "_is_over",
        "_log",
        "_missing",
        "_missing_since",
        "_next_fault_line",
        "_next_heartbeat",
        "_outage",
        "_outage_logged",
        "_policy",
        "_stuck_logged",
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
        self._outage = ""
        self._began = clock.monotonic()
        if policy.started_at is not None:
            self._began -= max(0.0, clock.time() - policy.started_at)
        # Not the time of the last read: a run that a list covers is rarely read itself, and that is not an outage.
        self._unreadable_since: float | None = None
        self._missing_since: float | None = None
        self._missing = self._faults = 0
        self._next_fault_line = 0.0
        self._outage_logged = False
        self._next_heartbeat, self._heartbeat = self._began + _FIRST_HEARTBEAT, _FIRST_HEARTBEAT
        self._stuck_logged = False

    @property
    def deadline(self) -> float | None:
        """Unix time of the last poll; ``None`` is never."""
        return self._policy.deadline

    @property
    def poll_interval(self) -> float:
        """Seconds between two polls of the run while it is young."""
        return self._policy.poll_interval

    def interval(self, now: float) -> float:
        """
        Return the seconds between two polls of the run, at its present age.

        :param now: the clock's ``monotonic``.
        """
        return poll_delay(now - self._began, self.poll_interval)

    def on_record(self, execution: Execution) -> FollowResult | float:
        """Process a record. Return the result, or the seconds until the next poll."""
        now = self._clock.monotonic()
        self._remember(execution, now)
        if self._is_over(execution):
            return FollowResult(Ending.FINISHED, execution)
        # A little early, and at a random moment, so that polls spread.
        early: float = random.uniform(*_JITTER)  # noqa: S311  # no secret
        return self._delay_or_result(self.interval(now) * early, None)

    def on_error(self, error: EtlworksError) -> FollowResult | float:
        """Process a poll that failed. Return the result, or the seconds until the next poll: more each time."""
        if isinstance(error, FATAL_ERRORS):
            return FollowResult(Ending.DENIED, self.execution, str(error), error)
        now = self._clock.monotonic()
        self._outage = str(error)
        if self._unreadable_since is None:
            self._unreadable_since = now
        if isinstance(error, EtlworksNotFound):
            self._missing += 1
            if self._missing_since is None:
                self._missing_since = now
            if self._missing >= _POLLS_BEFORE_GONE and now - self._missing_since >= VISIBILITY_GRACE:
                is_old = self.execution is not None or now - self._began > _STUCK_AFTER
                why = "The run's record is gone." + (" Was it deleted by the server's maintenance?" if is_old else "")
                return FollowResult(Ending.LOST_TOUCH, self.execution, f"{why} {error}", error)
        self._faults += 1
        if now >= self._next_fault_line:
            self._next_fault_line = now + _FAULT_LINE_EVERY
            self._outage_logged = True
            self._log.warning("Cannot read the status of run %s; polling continues. %s", self._audit_id, error)
        growing: float = self.poll_interval * 2 ** min(self._faults - 1, 10)
        delay = max(self.poll_interval, min(growing, _LONGEST_DELAY))
        retry_after: float | None = getattr(error, "retry_after", None)
        return self._delay_or_result(max(delay, retry_after or 0.0), error)

    def _delay_or_result(self, delay: float, failure: EtlworksError | None) -> FollowResult | float:
        """Return the delay, cut at the deadline; or the result, if the deadline or the patience is over."""
        remaining = None if self._policy.deadline is None else self._policy.deadline - self._clock.time()
        if remaining is not None and remaining <= 0:
            return FollowResult(Ending.DEADLINE, self.execution, str(failure or ""), failure)
        since = self._unreadable_since
        if since is not None and self._clock.monotonic() - since > self._policy.patience:
            return FollowResult(Ending.LOST_TOUCH, self.execution, self._outage, failure)
        return delay if remaining is None else min(delay, remaining)

    def _remember(self, execution: Execution, now: float) -> None:
        """Keep a record, and log what is new."""
        before, self.execution = self.execution, execution
        if self._outage_logged:
            self._outage_logged = False
            self._log.info("Run %s can be read again.", self._audit_id)
        self._missing_since, self._missing, self._faults = None, 0, 0
        if execution.known_status is not None:
            self._unreadable_since = None
        else:
            self._outage = f"The run has a status that is not known here: {execution.status!r}."
            if self._unreadable_since is None:
                self._unreadable_since = now
        if before is None and execution.started_at is not None and self._policy.started_at is None:
            # The server's clock may differ from ours. So it counts only for a run that somebody else started before we
            # first saw it, and only if it makes the run older.
            self._began = min(self._began, now - (self._clock.time() - execution.started_at.timestamp()))
        age = now - self._began
        if before is None or before.status != execution.status:
            report = self._log.info if execution.known_status else self._log.warning
            verb = "ended:" if execution.is_terminal else "is"
            report("Run %s %s %s (after %s).", self._audit_id, verb, execution.status, _duration(age))
        elif now >= self._next_heartbeat:
            self._heartbeat = min(self._heartbeat * 2, _LONGEST_HEARTBEAT)
            self._next_heartbeat = now + self._heartbeat
            self._log.info("Run %s is still %s (after %s).", self._audit_id, execution.status, _duration(age))
        if age > _STUCK_AFTER and not self._stuck_logged and not execution.is_terminal:
            self._stuck_logged = True
            self._log.warning(
                "Run %s has been going for more than a day. Is it stuck? A server that crashed leaves runs that say "
                '"running" until an administrator starts the maintenance task "Clean running state".',
                self._audit_id,
            )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
