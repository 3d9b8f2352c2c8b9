"""
Which run of a flow is waited for, whoever started it, and when it is over.

A sensor looks in all its modes with :class:`RunWaiter`: a poll is one procedure, and keeps nothing that the next
poll needs, but for the times in :class:`ReadOutage`, which are plain numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client import endpoints
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
    from datetime import datetime

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.procedure import Log, Procedure

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 10.0


@dataclass(frozen=True)
class RunSelector:
    """
    The run that is waited for: one by its audit id, one by its message, or the newest that started since a moment.

    :ivar flow_id: the flow.
    :ivar audit_id: the run.
    :ivar message_uuid: the message that started it, as a listener answered.
    :ivar since: the moment; a run that started before it never counts, also not when it ends later.
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
        """Whether it is one certain run, not the newest at the time."""
        return self.audit_id is not None or self.message_uuid is not None

    def find(self) -> Procedure[Execution | None]:
        """
        Look for the run.

        :return: its record; ``None`` where there is none yet.
        :raises EtlworksError: Etlworks cannot be asked, or does not know the audit id.
        """
        if self.audit_id is not None:
            known: Execution = yield SendOnce(endpoints.get_execution(self.flow_id, self.audit_id))
            return known
        latest: Execution | None = yield SendOnce(
            endpoints.latest_execution(self.flow_id, message_uuid=self.message_uuid)
        )
        if latest is None or self._counts(latest):
            return latest
        if self.message_uuid is None and latest.never_started:
            page = yield SendOnce(endpoints.execution_history(self.flow_id).first())
            return max(filter(self._counts, page.items), key=lambda run: run.audit_id, default=None)
        return None

    def _counts(self, run: Execution) -> bool:
        if self.message_uuid is not None:
            # A server that does not know the filter answers with the newest run of all.
            return run.message_uuid is not None and run.message_uuid.lower() == self.message_uuid.lower()
        if run.never_started:
            return False
        if run.started_at is None and run.is_terminal:
            raise EtlworksReplyError(
                f"Etlworks does not say when run {run.audit_id} of flow {run.flow_id} started, so it cannot be told "
                "whether it counts. Wait for it by audit_id instead."
            )
        # One in the queue has still to start.
        return self.since is None or run.started_at is None or run.started_at >= self.since


@dataclass
class ReadOutage:
    """
    Since when the run cannot be read: all that a look has to know of those before it, as Unix times.

    :ivar unreadable_since: since when every look has failed, or gave a status that is not known here.
    :ivar missing_since: since when Etlworks has not known the audit id.
    """

    unreadable_since: float | None = None
    missing_since: float | None = None


@dataclass
class RunWaiter:
    """
    Looks for a run, as often as it is told to.

    :ivar awaited: the run.
    :ivar clock: tells the time.
    :ivar log: is told what is new.
    :ivar patience: seconds for which the run may be unreadable.
    :ivar repetition_grace: seconds after the end of a schedule's run in which Etlworks may still repeat it.
    :ivar trouble: since when the run cannot be read.
    """

    awaited: RunSelector
    clock: Clock
    log: Log
    patience: float = DEFAULT_PATIENCE
    repetition_grace: float = DEFAULT_REPETITION_GRACE
    trouble: ReadOutage = field(default_factory=ReadOutage)
    _told: Any = None

    def poll(self, ended: Execution | None = None) -> Procedure[FollowResult | Execution | None]:
        """
        Look once. A look that fails is never taken for the run's failure.

        :param ended: the record of a run that was found before and has ended since, where there is one.
        :return: how the wait ended, where it is over; the run, where it goes on; ``None`` where there is none yet.
        """
        now = self.clock.time()
        try:
            execution = yield from self._last_attempt(ended)
        except EtlworksError as error:
            return self._failed(error, now)
        self.trouble.missing_since = None
        if execution is None:
            self.trouble.unreadable_since = None
            self._tell((), "%s is not there yet.", self.awaited)
            return None
        if self._is_over(execution, now):
            return FollowResult(Ending.FINISHED, execution)
        self._tell((execution.audit_id, execution.status), "Run %s is %s.", execution.audit_id, execution.status)
        if execution.known_status is not None:
            self.trouble.unreadable_since = None
            return execution
        said = f"Etlworks gives run {execution.audit_id} a status that is not known here: {execution.status!r}."
        return self._unreadable(said, now, execution) or execution

    def _last_attempt(self, ended: Execution | None) -> Procedure[Execution | None]:
        """Find the run, or what Etlworks's own retries have made of it."""
        # Where the newest run is waited for, there may be a newer one by now.
        execution = ended if ended is not None and self.awaited.is_one_run else (yield from self.awaited.find())
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
            self.log.warning("Whether Etlworks repeated run %s cannot be told: %s", execution.audit_id, error)
            return None
        # Whether a second repetition names the first run or the one before it, is not documented.
        repeated = {execution.audit_id, execution.parent_audit_id} - {None}
        newer = (run.audit_id for run in page.items if run.parent_audit_id in repeated)
        return max((audit_id for audit_id in newer if audit_id > execution.audit_id), default=None)

    def _is_over(self, execution: Execution, now: float) -> bool:
        """Whether the run has ended, and not just so that Etlworks's scheduler may still repeat it."""
        by_schedule = execution.known_status is ExecutionStatus.ERROR and execution.event_id is not None
        if by_schedule and execution.ended_at is not None:
            # Where the clocks differ by more than that, they say nothing.
            return abs(now - execution.ended_at.timestamp()) >= self.repetition_grace
        return execution.is_terminal

    def _failed(self, error: EtlworksError, now: float) -> FollowResult | None:
        if isinstance(error, FATAL_ERRORS):
            return FollowResult(Ending.DENIED, detail=str(error), error=error)
        if isinstance(error, EtlworksNotFound):
            since = self.trouble.missing_since = self.trouble.missing_since or now
            if now - since > VISIBILITY_GRACE:
                detail = f"Etlworks has no record of it. {error}"
                return FollowResult(Ending.LOST_TOUCH, detail=detail, error=error)
        return self._unreadable(str(error), now)

    def _unreadable(self, complaint: str, now: float, execution: Execution | None = None) -> FollowResult | None:
        since = self.trouble.unreadable_since = self.trouble.unreadable_since or now
        if now - since > self.patience:
            return FollowResult(Ending.LOST_TOUCH, execution, complaint)
        if self._told != complaint:
            self._told = complaint
            self.log.warning("Cannot read the status, trying on: %s", complaint)
        return None

    def _tell(self, news: Any, text: str, *args: Any) -> None:
        if self._told != news:
            self._told = news
            self.log.info(text, *args)


def wait_until_found(
    lookout: RunWaiter,
    *,
    poll_interval: float,
    deadline: float | None = None,
    pause: float = 0.0,
    ended: Execution | None = None,
) -> Procedure[FollowResult | Execution]:
    """
    Look until the run is there, or the wait is over. A run that still goes is given back one interval later, so that
    whoever follows it can look at once.

    :param poll_interval: seconds between two looks.
    :param deadline: Unix time at which to look a last time; ``None`` is never.
    :param pause: seconds until the first look.
    :param ended: the record of a run that was found before and has ended since, where there is one.
    """

    def at_most(seconds: float) -> float:
        return seconds if deadline is None else max(0.0, min(seconds, deadline - lookout.clock.time()))

    yield Sleep(at_most(pause))
    while True:
        seen = yield from lookout.poll(ended)
        if isinstance(seen, FollowResult):
            return seen
        if deadline is not None and lookout.clock.time() >= deadline:
            return FollowResult(Ending.DEADLINE, seen)
        yield Sleep(at_most(poll_interval))
        if seen is not None and not seen.is_terminal:
            return seen
        ended = None


def find_message_run(
    flow_id: int, message_uuid: str, *, clock: Clock, log: Log, patience: float = DEFAULT_PATIENCE
) -> Procedure[Execution]:
    """
    Find the run that a message to a listener started. It may take a moment to appear.

    :param patience: seconds for which Etlworks may be out of reach meanwhile.
    :raises EtlworksStartUnknown: no run appeared within the grace for new runs, or Etlworks cannot be asked.
    """
    awaited = RunSelector(flow_id, message_uuid=message_uuid)
    began = clock.monotonic()
    pause = _FIRST_PAUSE
    while True:
        waited = clock.monotonic() - began
        try:
            found = yield from awaited.find()
        except EtlworksError as error:
            if not error.retryable or waited > patience:
                raise EtlworksStartUnknown(
                    f"Etlworks took message {message_uuid}, but the runs of flow {flow_id} cannot be read: {error}"
                ) from error
            log.warning("Cannot look for the run of message %s yet: %s", message_uuid, error)
        else:
            if found is not None:
                return found
            if waited >= VISIBILITY_GRACE:
                raise EtlworksStartUnknown(
                    f"Etlworks took message {message_uuid}, but shows no run of flow {flow_id} for it after "
                    f"{waited:.0f} s. Is it flow {flow_id} that listens there?"
                )
        yield Sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
