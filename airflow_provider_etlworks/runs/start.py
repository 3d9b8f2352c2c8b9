"""
A run starts exactly once.

A start that certainly did not reach Etlworks is repeated. One that may have is looked for, among the flow's runs that
are newer than the newest one before the start (the watermark), before anything is sent again. Where it cannot be told
apart, the start fails and names the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import (
    EtlworksAlreadyRunning,
    EtlworksError,
    EtlworksExecutionTimeout,
    EtlworksLostTouch,
    EtlworksNotFound,
    EtlworksStartRefused,
    EtlworksStartUnknown,
)
from airflow_provider_etlworks.client.models import Execution, StartStatus
from airflow_provider_etlworks.client.procedure import Sleep
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL
from airflow_provider_etlworks.runs.follow import VISIBILITY_GRACE, Ending, follow
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.procedure import Log, Procedure

_FIRST_LOOK_PAUSE = 1.0
_LONGEST_LOOK_PAUSE = 10.0
_LOOK_PAGE = 50


class OnAlreadyRunning(str, Enum):
    """What to do where another run of the flow is going."""

    FAIL = "fail"
    WAIT = "wait"
    ATTACH = "attach"
    SKIP = "skip"


@dataclass(frozen=True)
class Started:
    """
    A run that is going.

    :ivar audit_id: its id.
    :ivar is_ours: whether we started it; a run that is not ours is never stopped.
    """

    audit_id: int
    is_ours: bool = True


@dataclass(frozen=True)
class RunStarter:
    """
    A start that is to happen, and all that is needed to do it once.

    :ivar flow_id: the flow.
    :ivar clock: tells the time.
    :ivar log: is told what happens.
    :ivar parameters: the flow's parameters.
    :ivar options: parameters of the start's URL.
    :ivar user: whom we log in as, where known: a run of somebody else is not ours.
    :ivar poll_interval: seconds between two looks at a run that is in the way.
    :ivar patience: seconds for which Etlworks may be unreachable while a lost start is looked for.
    :ivar deadline: Unix time until which a run in the way is waited for; ``None`` is for ever.
    :ivar on_already_running: what to do where another run of the flow is going.
    :ivar remember: is called with the watermark before each start, and with ``None`` once it is certain that the start
        did nothing.
    """

    flow_id: int
    clock: Clock
    log: Log
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    user: str | None = None
    poll_interval: float = DEFAULT_POLL_INTERVAL
    patience: float = DEFAULT_PATIENCE
    deadline: float | None = None
    on_already_running: OnAlreadyRunning = OnAlreadyRunning.FAIL
    save_intent: Callable[[int | None], None] = lambda _: None

    def start(self) -> Procedure[Started | None]:
        """
        Start the flow, or do what ``on_already_running`` says.

        :return: the run; ``None`` where another one is going and this start is to be skipped.
        :raises EtlworksAlreadyRunning: another run is going, and that is to be an error.
        :raises EtlworksExecutionTimeout: another run was still going at the deadline.
        :raises EtlworksStartRefused: Etlworks started nothing.
        :raises EtlworksStartUnknown: the start was sent, and no run can be matched to it.
        """
        hidden_since: float | None = None
        while True:
            watermark = yield from self._newest_audit_id()
            self.save_intent(watermark)
            try:
                return Started((yield from self._once(watermark)))
            except EtlworksAlreadyRunning as error:
                self.save_intent(None)
                other = yield from self._other_run(error)
                if self.on_already_running is OnAlreadyRunning.SKIP:
                    self.log.info("%s This start is skipped.", error)
                    return None
                if other is None:
                    # It ended between the two answers, or Etlworks does not show it.
                    now = self.clock.monotonic()
                    hidden_since = now if hidden_since is None else hidden_since
                    self._check_hidden_run(error, now - hidden_since)
                    yield Sleep(self.poll_interval)
                    continue
                hidden_since = None
                if other.is_stopping or self.on_already_running is OnAlreadyRunning.WAIT:
                    yield from self._wait_for_end(other)
                elif self.on_already_running is OnAlreadyRunning.ATTACH:
                    self.log.info("Following run %s, which another start began; it is not ours.", other.audit_id)
                    return Started(other.audit_id, is_ours=False)
                else:
                    raise EtlworksAlreadyRunning(
                        f"Flow {self.flow_id} is already running: run {other.audit_id}"
                        f"{f' of {other.user}' if other.user else ''} is {other.status}. Etlworks started nothing. "
                        "Set on_already_running to 'wait', 'attach' or 'skip' if that is no error.",
                        audit_id=other.audit_id,
                    ) from error
            except EtlworksError as error:
                if error.not_processed:
                    self.save_intent(None)
                raise

    def find(self, watermark: int, grace: float = VISIBILITY_GRACE) -> Procedure[int | None]:
        """
        Look for the run of a start whose answer was lost.

        :param watermark: the newest audit id before that start.
        :param grace: seconds for which a run that is not there may still appear.
        :return: its audit id; ``None`` where no run came of it.
        :raises EtlworksStartUnknown: there are several candidates, or Etlworks cannot be asked.
        """
        began = self.clock.monotonic()
        pause = _FIRST_LOOK_PAUSE
        while True:
            waited = self.clock.monotonic() - began
            try:
                newer, hidden = yield from self._newer_runs(watermark)
            except EtlworksError as error:
                if not error.retryable or waited > self.patience:
                    raise EtlworksStartUnknown(
                        f"Flow {self.flow_id} may or may not have been started: the answer to the start was lost, and "
                        f"its runs cannot be read ({error}). Look in Etlworks for a run newer than {watermark}."
                    ) from error
                self.log.warning("Cannot look for the run yet: %s", error)
            else:
                if hidden is not None and waited >= grace:
                    raise EtlworksStartUnknown(
                        f"Flow {self.flow_id} may have been started: the answer to the start was lost, and its history "
                        f"does not tell whether run {hidden.audit_id} came of it. Nothing was sent again.",
                        candidates=[hidden.audit_id],
                    )
                candidates = [run for run in newer if self.is_candidate(run)]
                if len(newer) == len(candidates) == 1:
                    self.log.info("Found the run: its audit id is %s.", newer[0].audit_id)
                    return newer[0].audit_id
                if candidates:
                    ids = [run.audit_id for run in newer]
                    raise EtlworksStartUnknown(
                        f"Flow {self.flow_id} may have been started: the answer to the start was lost, and it cannot "
                        f"be told which of the runs {', '.join(map(str, ids))} came of it. Nothing was sent again.",
                        candidates=ids,
                    )
                if waited >= grace:
                    return None
            yield Sleep(pause)
            pause = min(pause * 1.5, _LONGEST_LOOK_PAUSE)

    def _once(self, watermark: int) -> Procedure[int]:
        lost: EtlworksError | None = None
        for _ in range(2):
            try:
                answer = yield endpoints.run_flow(self.flow_id, self.parameters, self.options)
            except EtlworksError as error:
                if error.not_processed or not error.retryable:
                    raise
                lost = error
                self.log.warning(
                    "The answer to the start was lost: %s Looking for the run before anything else.", error
                )
            else:
                if answer.status in (StartStatus.CANCELED, StartStatus.NOT_EXECUTED):
                    raise EtlworksStartRefused(self._not_started(answer.status.value, answer.exception))
                if answer.status is StartStatus.ALREADY_RUNNING and lost is None:
                    raise EtlworksAlreadyRunning(f"Flow {self.flow_id} is already running.", audit_id=answer.audit_id)
                if answer.audit_id is not None and answer.status is not StartStatus.ALREADY_RUNNING:
                    return int(answer.audit_id)
                # Either no audit id, or "already running" where that run may be the one of our first, lost start.
                found = yield from self.find(watermark)
                if found is not None:
                    return found
                if answer.status is StartStatus.ALREADY_RUNNING:
                    raise EtlworksAlreadyRunning(f"Flow {self.flow_id} is already running.", audit_id=answer.audit_id)
                if answer.status is StartStatus.FAILED:
                    raise EtlworksStartRefused(self._not_started(answer.status.value, answer.exception))
                raise EtlworksStartUnknown(
                    f"Etlworks accepted the start of flow {self.flow_id}, but gave no audit id, and no run newer than "
                    f"{watermark} can be found. Nothing was sent again."
                )
            found = yield from self.find(watermark)
            if found is not None:
                return found
            self.log.info("No run came of the lost start.")
        raise EtlworksStartUnknown(
            f"Flow {self.flow_id} was asked to start twice; both answers were lost, and no run newer than {watermark} "
            f"appeared. Nothing was sent again. The last fault: {lost}"
        )

    def _newest_audit_id(self) -> Procedure[int]:
        latest: Execution | None = yield endpoints.latest_execution(self.flow_id)
        if latest is not None:
            return latest.audit_id
        # How Etlworks says "it never ran" is not documented, so the history is asked as well.
        return max((run.audit_id for run in (yield from self._history())), default=0)

    def _newer_runs(self, watermark: int) -> Procedure[tuple[list[Execution], Execution | None]]:
        """Return the runs above the watermark, and the newest one where the history does not have it (yet)."""
        newer = [run for run in (yield from self._history()) if run.audit_id > watermark]
        if newer:
            return newer, None
        # That the history begins with the newest run is not documented either.
        latest: Execution | None = yield endpoints.latest_execution(self.flow_id)
        return [], latest if latest is not None and latest.audit_id > watermark else None

    def _history(self) -> Procedure[list[Execution]]:
        try:
            page = yield endpoints.execution_history(self.flow_id, limit=_LOOK_PAGE).first()
        except EtlworksNotFound:
            return []
        items: list[Execution] = page.items
        return items

    def is_candidate(self, run: Execution) -> bool:
        """Whether a run may come of our start: not a schedule's, and not another user's."""
        by_schedule = run.event_id is not None
        by_another = self.user is not None and run.user is not None and run.user.lower() != self.user.lower()
        return not by_schedule and not by_another

    def _other_run(self, error: EtlworksAlreadyRunning) -> Procedure[Execution | None]:
        """Return the run that is in the way, if it still is."""
        if error.audit_id is not None:
            other: Execution | None = yield endpoints.get_execution(self.flow_id, error.audit_id)
        else:
            other = yield endpoints.latest_execution(self.flow_id)
        return other if other is not None and other.occupies_flow else None

    def _wait_for_end(self, other: Execution) -> Procedure[None]:
        state = "is being stopped" if other.is_stopping else f"is {other.status}"
        self.log.info("Run %s of the flow %s; waiting for its end before starting.", other.audit_id, state)
        followed = yield from follow(
            RunRef(self.flow_id, other.audit_id),
            PollPolicy(self.poll_interval, self.patience, self.deadline),
            clock=self.clock,
            log=self.log,
            is_over=lambda run: not run.occupies_flow,
        )
        if followed.ending is Ending.DEADLINE:
            raise EtlworksExecutionTimeout(
                f"Flow {self.flow_id} was not started: run {other.audit_id}, in its way, was going at the deadline."
            )
        if followed.ending is not Ending.FINISHED:
            raise EtlworksLostTouch(
                f"Flow {self.flow_id} was not started: run {other.audit_id}, in its way, cannot be read. "
                f"{followed.detail}"
            )

    def _check_hidden_run(self, error: EtlworksAlreadyRunning, seconds: float) -> None:
        """Give up on a run that is in the way, but that Etlworks has not shown for some time."""
        if self.on_already_running is not OnAlreadyRunning.WAIT and seconds >= VISIBILITY_GRACE:
            raise EtlworksAlreadyRunning(
                f"Etlworks says that flow {self.flow_id} is already running, and shows no run that is going. "
                "It started nothing.",
                audit_id=error.audit_id,
            ) from error
        if seconds == 0:
            self.log.info("%s Etlworks does not show that run; trying again every %s s.", error, self.poll_interval)
        if self.deadline is not None and self.clock.time() >= self.deadline:
            raise EtlworksExecutionTimeout(
                f"Flow {self.flow_id} was not started before the deadline: Etlworks says that it is already running."
            ) from error

    def _not_started(self, status: int, exception: str | None) -> str:
        meaning = {2: "it was canceled", 3: "it was not executed", 5: "it failed at once"}[status]
        reason = f": {exception}" if exception else ""
        return f"Etlworks did not start flow {self.flow_id}: {meaning} (status {status}){reason}"


def read_accepted_run(flow_id: int, audit_id: int, *, clock: Clock, log: Log) -> Procedure[Execution | None]:
    """
    Read the record of a run that is known to have been accepted.

    :return: the record; ``None`` where it is gone, and not just late.
    :raises EtlworksError: it cannot be told.
    """
    began = clock.monotonic()
    pause = _FIRST_LOOK_PAUSE
    while True:
        try:
            execution: Execution = yield endpoints.get_execution(flow_id, audit_id)
        except EtlworksNotFound as error:
            if clock.monotonic() - began >= VISIBILITY_GRACE:
                return None
            log.warning("%s It may only be late; looking again.", error)
        else:
            return execution
        yield Sleep(pause)
        pause = min(pause * 1.5, _LONGEST_LOOK_PAUSE)
