"""
A run starts exactly once.

Each response to a start is classified. A start that was certainly not processed may be repeated. If a start is in
doubt, we search the runs newer than the watermark before sending anything again. If that is not conclusive, the start
fails and names the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import (
    EtlworksAlreadyRunning,
    EtlworksConfigError,
    EtlworksError,
    EtlworksExecutionTimeout,
    EtlworksLostTouch,
    EtlworksNotFound,
    EtlworksStartRefused,
    EtlworksStartUnknown,
)
from airflow_provider_etlworks.client.metrics import NO_METRICS, Metrics
from airflow_provider_etlworks.client.models import FlowStart, StartStatus
from airflow_provider_etlworks.client.procedure import SendOnce, Sleep
from airflow_provider_etlworks.runs.follow import VISIBILITY_GRACE, Ending, follow
from airflow_provider_etlworks.runs.outage import wait_out
from airflow_provider_etlworks.runs.reconcile import (
    RunKey,
    SentStart,
    is_candidate,
    new_token,
    newest_audit_id,
    reconcile,
)
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_etlworks.client.call import Page
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Log, Procedure
    from airflow_provider_etlworks.runs.follow import FollowResult
    from airflow_provider_etlworks.runs.outage import OutageWait

_MOST_IN_DOUBT = 2


class OnAlreadyRunning(str, Enum):
    """What to do if another run of the flow is going."""

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


class StartVerdict(Enum):
    """What the response to a start says about it."""

    ACCEPTED = "a run was started"
    REFUSED = "nothing was started"
    BUSY = "nothing was started, since another run is going"
    IN_DOUBT = "a run may have been started"


_VERDICTS: dict[StartStatus | None, tuple[StartVerdict, StartVerdict]] = {
    # Status: with an audit id, without one.
    StartStatus.STARTED: (StartVerdict.ACCEPTED, StartVerdict.IN_DOUBT),
    StartStatus.ALREADY_RUNNING: (StartVerdict.BUSY, StartVerdict.BUSY),
    StartStatus.CANCELED: (StartVerdict.IN_DOUBT, StartVerdict.REFUSED),
    StartStatus.NOT_EXECUTED: (StartVerdict.IN_DOUBT, StartVerdict.REFUSED),
    StartStatus.SUCCEEDED: (StartVerdict.ACCEPTED, StartVerdict.IN_DOUBT),
    # It ran, and its record says how it ended.
    StartStatus.FAILED: (StartVerdict.ACCEPTED, StartVerdict.IN_DOUBT),
    None: (StartVerdict.ACCEPTED, StartVerdict.IN_DOUBT),
}
"""What each status of a FlowExecutionResponse means. ``None``: the response has no status."""

_NOT_STARTED = {
    StartStatus.CANCELED: "it was canceled",
    StartStatus.NOT_EXECUTED: "it was not executed",
    StartStatus.FAILED: "it failed at once",
}


def classify(response: FlowStart | EtlworksError, flow_id: int, watermark: int) -> StartVerdict:
    """
    Say what the response to a start, or the error instead of one, means for the start.

    :param response: the response, or the error.
    :param flow_id: the flow that was to be started. A response about another flow is in doubt.
    :param watermark: the flow's newest audit id before the start. Audit ids only grow, so a response that names an
        older run as the one it started is in doubt.
    """
    if isinstance(response, EtlworksError):
        return StartVerdict.REFUSED if response.not_processed else StartVerdict.IN_DOUBT
    if response.status is None and response.status_code is not None:
        return StartVerdict.IN_DOUBT
    with_audit_id, without = _VERDICTS[response.status]
    verdict = without if response.audit_id is None else with_audit_id
    is_about_another = response.flow_id not in (None, flow_id) or (response.audit_id or watermark + 1) <= watermark
    return StartVerdict.IN_DOUBT if verdict is StartVerdict.ACCEPTED and is_about_another else verdict


@dataclass(frozen=True)
class RunStarter:
    """
    A start of a flow, and all that is needed to do it once.

    :ivar flow_id: the flow.
    :ivar clock: reads the time.
    :ivar log: receives what happens.
    :ivar parameters: the flow's parameters.
    :ivar options: parameters of the start's URL.
    :ivar user: the login that starts; ``None`` if it is not known (API key).
    :ivar policy: ``poll_interval`` and ``deadline`` are for a run in the way, ``patience`` also for reconciling.
    :ivar on_already_running: what to do if another run of the flow is going.
    :ivar save_intent: is called with the watermark before a start is sent, and with ``None`` once it is certain that
        nothing was started. It is not called with ``None`` while a start is in doubt.
    :ivar is_only_starter: whether nobody else starts this flow: after a start in doubt, the only new run is adopted.
    :ivar run_key_parameter: the flow parameter that gets a unique key, as proof of whose run it is; ``None`` is none.
    :ivar run_key: the readable part of that key, such as DAG, task, run, map index and try.
    :ivar token: the random part of that key.
    :ivar metrics: receives each start in doubt.
    :raises EtlworksConfigError: ``parameters`` has a value for ``run_key_parameter``.
    """

    flow_id: int
    clock: Clock
    log: Log
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    user: str | None = None
    policy: PollPolicy = field(default_factory=PollPolicy)
    on_already_running: OnAlreadyRunning = OnAlreadyRunning.FAIL
    save_intent: Callable[[int | None], None] = lambda _: None
    is_only_starter: bool = False
    outage: OutageWait | None = None
    before_waiting: Callable[[RunRef], None] = lambda _: None
    run_key_parameter: str | None = None
    run_key: str = ""
    token: str = field(default_factory=new_token)
    metrics: Metrics = NO_METRICS

    def __post_init__(self) -> None:
        """Check that nothing else fills the parameter of the key."""
        if self.run_key_parameter in self.parameters:
            raise EtlworksConfigError(
                f"Parameter {self.run_key_parameter!r} is the connection's run_key_parameter, which each start fills "
                "itself. Leave it out, or give the connection the name of another parameter."
            )

    @property
    def key(self) -> RunKey | None:
        """The key that every start of this object carries; ``None`` without a ``run_key_parameter``."""
        return RunKey.unique(self.run_key_parameter, self.run_key, self.token) if self.run_key_parameter else None

    def start(self) -> Procedure[Started | None]:
        """
        Start the flow, or do what ``on_already_running`` says.

        :return: the run; ``None`` if another one is going and this start is to be skipped.
        :raises EtlworksAlreadyRunning: another run is going, and that is to be an error.
        :raises EtlworksExecutionTimeout: another run was still going at the deadline.
        :raises EtlworksStartRefused: Etlworks started nothing.
        :raises EtlworksStartUnknown: the start is in doubt, and no run can be matched to it.
        :raises EtlworksError: the start was refused, or is in doubt and would be refused again.
        """
        watermark, in_doubt, hidden_since = 0, 0, None
        while True:
            if not in_doubt:
                watermark = yield from wait_out(lambda: newest_audit_id(self.flow_id), self.outage)
                self.save_intent(watermark)
            response = yield from self._send()
            verdict = classify(response, self.flow_id, watermark)
            audit_id = response.audit_id if isinstance(response, FlowStart) else None
            if verdict is StartVerdict.ACCEPTED and audit_id is not None:
                return Started(audit_id)
            if verdict is StartVerdict.IN_DOUBT:
                in_doubt += 1
                self.metrics.start_in_doubt()
                self.log.warning(
                    "The start is in doubt: %s Searching for its run before sending again.", _said(response)
                )
            if not in_doubt:
                self.save_intent(None)
            elif (found := (yield from self.reconcile(watermark, self.key))) is not None:
                return Started(found)
            if verdict is StartVerdict.BUSY:
                other = yield from wait_out(partial(self._run_in_the_way, audit_id), self.outage)
                if not self._waits_for(other):
                    return self._instead(other)
                if other is not None and not other.is_stopping and not in_doubt:
                    self.before_waiting(RunRef(self.flow_id, other.audit_id))
                hidden_since = yield from self._wait_for_turn(other, audit_id, hidden_since)
                # The run in the way may be our own start's.
                if in_doubt and (found := (yield from self.reconcile(watermark, self.key, grace=0.0))) is not None:
                    return Started(found)
            elif not _is_worth_repeating(response):
                raise self._failure(response, watermark, in_doubt)
            elif verdict is StartVerdict.REFUSED and self.outage is not None:
                yield Sleep(self.outage.delay(response))
                self.outage.check()
            elif verdict is StartVerdict.REFUSED or in_doubt == _MOST_IN_DOUBT:
                raise self._failure(response, watermark, in_doubt)

    def reconcile(
        self, watermark: int, key: RunKey | None, *, grace: float = VISIBILITY_GRACE
    ) -> Procedure[int | None]:
        """
        Find the run of a start in doubt, of this object or of an earlier try of the same task.

        :param watermark: the flow's newest audit id before that start.
        :param key: the key that that start carried: :attr:`key` for this object's own; ``None`` if it carried none, or
            if it is not known.
        :param grace: seconds for which a run that Etlworks does not show may still appear; 0 decides after one poll.
        :return: the run's audit id; ``None`` if the start started no run.
        :raises EtlworksStartUnknown: there are runs that may or may not be the start's, or they cannot be read.
        """
        start = SentStart(self.flow_id, watermark, self.user, self.is_only_starter, key)
        return reconcile(start, clock=self.clock, log=self.log, grace=grace, patience=self.policy.patience)

    def is_candidate(self, run: Execution) -> bool:
        """Return whether a run shows no sign of another starter."""
        return is_candidate(run, self.user)

    def _send(self) -> Procedure[FlowStart | EtlworksError]:
        key = self.key
        parameters = {**self.parameters, key.parameter: key.value} if key is not None else self.parameters
        call = endpoints.run_flow(self.flow_id, parameters, self.options)
        is_again = self.outage is not None and self.outage.is_going
        try:
            response: FlowStart = yield SendOnce(call) if is_again else call
        except EtlworksError as error:
            return error
        if self.outage is not None:
            self.outage.over()
        return response

    def _failure(self, response: FlowStart | EtlworksError, watermark: int, in_doubt: int) -> EtlworksError:
        """Return the error of a start that is not sent again."""
        none_appeared = f"no run newer than {watermark} appeared. Nothing was sent again."
        if in_doubt:
            self.log.warning("The start stays in doubt, but %s", none_appeared)
        if isinstance(response, EtlworksError):
            if response.not_processed or not response.retryable:
                return response
            return EtlworksStartUnknown(
                f"Flow {self.flow_id} was asked to start twice; both starts are in doubt, and {none_appeared} "
                f"The last fault: {response}"
            )
        if response.status in _NOT_STARTED:
            reason = f": {response.exception}" if response.exception else ""
            return EtlworksStartRefused(
                f"Etlworks did not start flow {self.flow_id}: {_NOT_STARTED[response.status]} "
                f"(status {response.status_code}){reason}"
            )
        accepted = f"Etlworks accepted the start of flow {self.flow_id}, but gave no audit id of a new run"
        return EtlworksStartUnknown(f"{accepted}, and {none_appeared}")

    # --- Another run is in the way --------------------------------------------------------------------------------

    def _run_in_the_way(self, audit_id: int | None) -> Procedure[Execution | None]:
        """Return the run that occupies the flow; ``None`` if it has ended since, or if Etlworks does not show it."""
        try:
            other: Execution | None = yield (
                endpoints.latest_execution(self.flow_id)
                if audit_id is None
                else endpoints.get_execution(self.flow_id, audit_id)
            )
        except EtlworksNotFound:
            return None
        if audit_id is None and other is not None and not other.occupies_flow:
            # Runs of schedules may overlap: an older one may still be going.
            try:
                page: Page[Execution] = yield endpoints.execution_history(self.flow_id).first()
            except EtlworksError as error:
                self.log.warning("Cannot search for the run that occupies flow %s. %s", self.flow_id, error)
                return None
            going = (run for run in page.items if run.occupies_flow)
            return max(going, key=lambda run: run.audit_id, default=None)
        return other if other is not None and other.occupies_flow else None

    def _waits_for(self, other: Execution | None) -> bool:
        if self.on_already_running is OnAlreadyRunning.SKIP:
            return False
        return other is None or other.is_stopping or self.on_already_running is OnAlreadyRunning.WAIT

    def _instead(self, other: Execution | None) -> Started | None:
        """Do what ``on_already_running`` says instead of waiting for the other run."""
        if other is None or self.on_already_running is OnAlreadyRunning.SKIP:
            self.log.info("Flow %s is already running. This start is skipped.", self.flow_id)
            return None
        if self.on_already_running is OnAlreadyRunning.ATTACH:
            self.log.info("Following run %s, which another start began; it is not ours.", other.audit_id)
            return Started(other.audit_id, is_ours=False)
        since = f", since {other.started_at:%Y-%m-%d %H:%M:%S} UTC" if other.started_at is not None else ""
        raise EtlworksAlreadyRunning(
            f"Flow {self.flow_id} is already running: run {other.audit_id}"
            f"{f' of {other.user}' if other.user else ''} is {other.status}{since}. Etlworks started nothing. "
            "Set on_already_running to 'wait', 'attach' or 'skip' if that is not an error.",
            audit_id=other.audit_id,
        )

    def _wait_for_turn(
        self, other: Execution | None, audit_id: int | None, hidden_since: float | None
    ) -> Procedure[float | None]:
        """
        Wait until the flow may be free.

        :param other: the run in the way; ``None`` if Etlworks does not show it.
        :param audit_id: its audit id, if Etlworks named it.
        :param hidden_since: since when it does not show it, in seconds of the clock's ``monotonic``.
        :return: the same for the next time.
        """
        if other is not None:
            yield from self._wait_for_end(other)
            return None
        now = self.clock.monotonic()
        since = now if hidden_since is None else hidden_since
        if self.on_already_running is not OnAlreadyRunning.WAIT and now - since >= VISIBILITY_GRACE:
            raise EtlworksAlreadyRunning(
                f"Etlworks says that flow {self.flow_id} is already running, and shows no run that is going. "
                "It started nothing.",
                audit_id=audit_id,
            )
        if hidden_since is None:
            self.log.info(
                "Flow %s is already running, but Etlworks does not show that run; starting again every %s s.",
                self.flow_id,
                self.policy.poll_interval,
            )
        if self.policy.deadline is not None and self.clock.time() >= self.policy.deadline:
            raise EtlworksExecutionTimeout(
                f"Flow {self.flow_id} was not started before the deadline: Etlworks says that it is already running."
            )
        yield Sleep(self.policy.poll_interval)
        return since

    def _wait_for_end(self, other: Execution) -> Procedure[None]:
        state = "is being stopped" if other.is_stopping else f"is {other.status}"
        self.log.info("Run %s of the flow %s; waiting for its end before starting.", other.audit_id, state)
        followed = yield from follow(
            RunRef(self.flow_id, other.audit_id),
            self.policy,
            clock=self.clock,
            log=self.log,
            is_over=lambda run: not run.occupies_flow,
        )
        check_turn(RunRef(self.flow_id, other.audit_id), followed)


def check_turn(other: RunRef, followed: FollowResult) -> None:
    """
    Check that a run in the way has ended, so that the flow can be started.

    :param other: the run in the way.
    :param followed: how following it ended.
    :raises EtlworksExecutionTimeout: it was going at the deadline.
    :raises EtlworksLostTouch: it cannot be followed.
    """
    if followed.ending is Ending.DEADLINE:
        raise EtlworksExecutionTimeout(
            f"Flow {other.flow_id} was not started: run {other.audit_id}, in its way, was going at the deadline."
        )
    if followed.ending is not Ending.FINISHED:
        raise EtlworksLostTouch(
            f"Flow {other.flow_id} was not started: run {other.audit_id}, in its way, cannot be read. {followed.detail}"
        )


def _is_worth_repeating(response: FlowStart | EtlworksError) -> TypeGuard[EtlworksError]:
    """Whether a start in doubt may be sent once more if no run appears: only a fault may pass."""
    return isinstance(response, EtlworksError) and response.retryable


def _said(response: FlowStart | EtlworksError) -> str:
    if isinstance(response, EtlworksError):
        return str(response)
    return f"Etlworks answered with status {response.status_code} and audit id {response.audit_id}."
