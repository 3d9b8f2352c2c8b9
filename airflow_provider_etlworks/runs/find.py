"""
Which run of a flow is waited for, whoever started it, and when it is over.

The sensor polls with :class:`RunWaiter` in all its modes. A poll is one procedure. The next poll needs nothing from it
but the times in :class:`ReadOutage`, which are plain numbers and can be stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.clock import growing_delays
from airflow_provider_etlworks.client.errors import (
    EtlworksError,
    EtlworksNotFound,
    EtlworksReplyError,
    EtlworksStartUnknown,
)
from airflow_provider_etlworks.client.models import Execution, ExecutionStatus
from airflow_provider_etlworks.client.procedure import SendOnce, Sleep
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_REPETITION_GRACE
from airflow_provider_etlworks.runs.follow import FATAL_ERRORS, VISIBILITY_GRACE, Ending, FollowResult

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from airflow_provider_etlworks.client.call import Page
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.procedure import Log, Procedure
    from airflow_provider_etlworks.runs.types import PollPolicy

# Seconds between two searches for the run of a message.
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 10.0


@dataclass(frozen=True)
class RunSelector:
    """
    Selects the run that is waited for: by its audit id, by its message, or the newest one that started since a time.

    :ivar flow_id: the flow.
    :ivar audit_id: the run.
    :ivar message_uuid: the message that started the run, as a listener answered.
    :ivar since: a run that started before this time never counts, even if it ends later.
    """

    flow_id: int
    audit_id: int | None = None
    message_uuid: str | None = None
    since: datetime | None = None

    def __str__(self) -> str:
        """Name the run, for logs and messages."""
        if self.audit_id is not None:
            return f"Run {self.audit_id} of flow {self.flow_id}"
        if self.message_uuid is not None:
            return f"The run of flow {self.flow_id} for message {self.message_uuid}"
        since = f" since {self.since.isoformat()}" if self.since is not None else ""
        return f"The newest run of flow {self.flow_id}{since}"

    @property
    def is_one_run(self) -> bool:
        """Whether it selects one certain run, not the newest at the time."""
        return self.audit_id is not None or self.message_uuid is not None

    def find(self) -> Procedure[Execution | None]:
        """
        Find the run.

        :return: its record; ``None`` if no run is found yet.
        :raises EtlworksError: Etlworks cannot be asked, or does not know the audit id.
        """
        if self.audit_id is not None:
            known: Execution = yield SendOnce(endpoints.get_execution(self.flow_id, self.audit_id))
            return known
        return self.choose((yield from find_newest_runs(self.flow_id, self.message_uuid)))

    def choose(self, runs: Iterable[Execution]) -> Execution | None:
        """
        Choose the run among those that a search found; ``None`` if none counts.

        :param runs: what :func:`find_newest_runs` returned.
        :raises EtlworksReplyError: a record does not say whether its run counts.
        """
        return max(filter(self._counts, runs), key=lambda run: run.audit_id, default=None)

    def _counts(self, run: Execution) -> bool:
        if self.message_uuid is not None:
            # A server that does not know the filter answers with the newest run of all.
            return run.message_uuid is not None and run.message_uuid.lower() == self.message_uuid.lower()
        if run.never_started:
            return False
        if run.started_at is None and run.is_terminal:
            raise EtlworksReplyError(
                f"Etlworks does not say when run {run.audit_id} of flow {run.flow_id} started, so we cannot decide "
                "whether it counts. Wait for it by audit_id instead."
            )
        # A queued run has still to start.
        return self.since is None or run.started_at is None or run.started_at >= self.since


def find_newest_runs(flow_id: int, message_uuid: str | None = None) -> Procedure[list[Execution]]:
    """
    Search for the newest run of a flow. All searches for a run of the flow can share the answer.

    :param flow_id: the flow.
    :param message_uuid: the message that started the run; ``None`` searches among all runs.
    :return: the newest run; if it never started, the newest page of the flow's history instead.
    :raises EtlworksError: Etlworks cannot be asked.
    """
    latest: Execution | None = yield SendOnce(endpoints.latest_execution(flow_id, message_uuid=message_uuid))
    if latest is None:
        return []
    if message_uuid is None and latest.never_started:
        page: Page[Execution] = yield SendOnce(endpoints.execution_history(flow_id).first())
        return page.items
    return [latest]


@dataclass
class ReadOutage:
    """
    The Unix times since which the run cannot be read: all that a poll needs from the polls before it.

    :ivar unreadable_since: since when every poll has failed, or returned an unknown status.
    :ivar missing_since: since when Etlworks has not known the audit id.
    """

    unreadable_since: float | None = None
    missing_since: float | None = None


@dataclass
class RunWaiter:
    """
    Polls for a run, each time its owner asks for a poll.

    :ivar selector: the run.
    :ivar policy: how often the run is polled, and when polling ends without a result.
    :ivar clock: the clock.
    :ivar log: receives a line for each change.
    :ivar repetition_grace: seconds after the end of a schedule's run in which Etlworks may still repeat it.
    :ivar outage: since when the run cannot be read.
    """

    selector: RunSelector
    policy: PollPolicy
    clock: Clock
    log: Log
    repetition_grace: float = DEFAULT_REPETITION_GRACE
    outage: ReadOutage = field(default_factory=ReadOutage)
    _reported: Any = None

    def poll(self, found: Execution | None = None) -> Procedure[FollowResult | Execution | None]:
        """
        Poll once. A failed poll never counts as the run's failure.

        :param found: the run's record, if it has just been read.
        :return: how the wait ended, if it is over; the run, if the wait goes on; ``None`` if no run is found yet.
        """
        now = self.clock.time()
        try:
            execution = yield from self._last_attempt(found)
        except EtlworksError as error:
            return self.on_error(error)
        self.outage.missing_since = None
        if execution is None:
            self.on_nothing()
            return None
        if self._is_over(execution, now):
            return FollowResult(Ending.FINISHED, execution)
        self._report((execution.audit_id, execution.status), "Run %s is %s.", execution.audit_id, execution.status)
        if execution.known_status is not None:
            self.outage.unreadable_since = None
            return execution
        reason = f"Etlworks reports an unknown status of run {execution.audit_id}: {execution.status!r}."
        return self._on_unreadable(reason, now, execution) or execution

    def on_nothing(self) -> None:
        """Record that no run is found yet."""
        self.outage.missing_since = self.outage.unreadable_since = None
        self._report((), "%s is not there yet.", self.selector)

    def on_error(self, error: EtlworksError) -> FollowResult | None:
        """Record that a poll has failed. Return how the wait ended, if it is over."""
        now = self.clock.time()
        if isinstance(error, FATAL_ERRORS):
            return FollowResult(Ending.DENIED, detail=str(error), error=error)
        if isinstance(error, EtlworksNotFound):
            since = self.outage.missing_since = self.outage.missing_since or now
            if now - since > VISIBILITY_GRACE:
                detail = f"Etlworks has no record of it. Was it deleted by the server's maintenance? {error}"
                return FollowResult(Ending.LOST_TOUCH, detail=detail, error=error)
        return self._on_unreadable(str(error), now)

    def _last_attempt(self, found: Execution | None) -> Procedure[Execution | None]:
        """Find the run, or the last run with which Etlworks repeated it."""
        execution = found if found is not None else (yield from self.selector.find())
        while execution is not None and execution.known_status is ExecutionStatus.ERROR:
            repetition = yield from self._repetition_of(execution)
            if repetition is None:
                break
            self.log.info("Etlworks repeated run %s as run %s.", execution.audit_id, repetition)
            execution = yield SendOnce(endpoints.get_execution(execution.flow_id, repetition))
        return execution

    def _repetition_of(self, execution: Execution) -> Procedure[int | None]:
        """Find the newest run that repeats this one, among the flow's newest."""
        try:
            page = yield SendOnce(endpoints.execution_history(execution.flow_id).first())
        except EtlworksError as error:
            if error.retryable:
                raise
            self.log.warning(
                "Cannot find out whether Etlworks repeated run %s; its own end counts. %s", execution.audit_id, error
            )
            return None
        # It is not documented whether a second repetition names the first run or the one before it.
        repeated = {execution.audit_id, execution.parent_audit_id} - {None}
        newer = (run.audit_id for run in page.items if run.parent_audit_id in repeated)
        return max((audit_id for audit_id in newer if audit_id > execution.audit_id), default=None)

    def _is_over(self, execution: Execution, now: float) -> bool:
        """Whether the run has ended, and Etlworks's scheduler will not repeat it any more."""
        by_schedule = execution.known_status is ExecutionStatus.ERROR and execution.is_scheduled
        if by_schedule and execution.ended_at is not None:
            # If the clocks differ by more than the grace, they say nothing.
            return abs(now - execution.ended_at.timestamp()) >= self.repetition_grace
        return execution.is_terminal

    def _on_unreadable(self, reason: str, now: float, execution: Execution | None = None) -> FollowResult | None:
        since = self.outage.unreadable_since = self.outage.unreadable_since or now
        if now - since > self.policy.patience:
            return FollowResult(Ending.LOST_TOUCH, execution, reason)
        if self._reported != reason:
            self._reported = reason
            self.log.warning("Cannot read the status, polling continues. %s", reason)
        return None

    def _report(self, subject: Any, text: str, *args: Any) -> None:
        if self._reported != subject:
            self._reported = subject
            self.log.info(text, *args)


class SearchPoller:
    """
    Decides what the answers to a search mean for one sensor. A ``FINISHED`` result contains the run that counts.

    :param waiter: knows which run counts, and how long it may be unreadable.
    """

    __slots__ = ("_waiter", "execution")

    def __init__(self, waiter: RunWaiter) -> None:
        self._waiter = waiter
        self.execution: Execution | None = None

    @property
    def deadline(self) -> float | None:
        """Unix time of the last poll; ``None`` is never."""
        return self._waiter.policy.deadline

    @property
    def poll_interval(self) -> float:
        """Seconds between two searches."""
        return self._waiter.policy.poll_interval

    def interval(self, _: float) -> float:
        """Return the seconds between two searches."""
        return self.poll_interval

    def on_record(self, runs: list[Execution]) -> FollowResult | float:
        """Process what :func:`find_newest_runs` returned."""
        try:
            found = self._waiter.selector.choose(runs)
        except EtlworksError as error:
            return self.on_error(error)
        if found is not None:
            return FollowResult(Ending.FINISHED, found)
        self._waiter.on_nothing()
        return self._delay_or_result(None)

    def on_error(self, error: EtlworksError) -> FollowResult | float:
        """Process a search that failed."""
        return self._waiter.on_error(error) or self._delay_or_result(error)

    def _delay_or_result(self, error: EtlworksError | None) -> FollowResult | float:
        if self.deadline is None:
            return self.poll_interval
        remaining = self.deadline - self._waiter.clock.time()
        if remaining <= 0:
            return FollowResult(Ending.DEADLINE, detail=str(error or ""), error=error)
        return min(self.poll_interval, remaining)


def find_message_run(
    flow_id: int, message_uuid: str, *, clock: Clock, log: Log, patience: float = DEFAULT_PATIENCE
) -> Procedure[Execution]:
    """
    Find the run that a message to a listener started. The run may take a moment to appear.

    :param flow_id: the flow that listens.
    :param message_uuid: the message, as the listener answered.
    :param clock: the clock.
    :param log: receives a line for each failed search.
    :param patience: seconds for which Etlworks may be unreachable.
    :return: the run's record.
    :raises EtlworksStartUnknown: no run appeared within the grace for new runs, or Etlworks cannot be asked.
    """
    selector = RunSelector(flow_id, message_uuid=message_uuid)
    began = clock.monotonic()
    delays = growing_delays(_FIRST_DELAY, _LONGEST_DELAY)
    while True:
        waited = clock.monotonic() - began
        try:
            found = yield from selector.find()
        except EtlworksError as error:
            if not error.retryable or waited > patience:
                raise EtlworksStartUnknown(
                    f"Etlworks accepted message {message_uuid}, but the runs of flow {flow_id} cannot be read: {error}"
                ) from error
            log.warning("Cannot search for the run of message %s, trying on: %s", message_uuid, error)
        else:
            if found is not None:
                return found
            if waited >= VISIBILITY_GRACE:
                raise EtlworksStartUnknown(
                    f"Etlworks accepted message {message_uuid}, but shows no run of flow {flow_id} for it after "
                    f"{waited:.0f} s. Does flow {flow_id} listen there?"
                )
        yield Sleep(next(delays))
