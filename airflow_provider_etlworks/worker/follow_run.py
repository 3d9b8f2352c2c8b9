"""One execution of a task that starts a run and follows it: reattach, follow, defer, stop, and the task's end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from airflow_provider_etlworks.client.endpoints import get_execution
from airflow_provider_etlworks.client.errors import (
    EtlworksAlreadyRunning,
    EtlworksConfigError,
    EtlworksError,
    EtlworksExecutionFailed,
    EtlworksExecutionTimeout,
    EtlworksLostTouch,
    EtlworksStartUnknown,
    EtlworksUnauthorized,
)
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.client.redaction import redact
from airflow_provider_etlworks.client.text import visible
from airflow_provider_etlworks.compat import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowTaskTimeout,
    task_state_store,
)
from airflow_provider_etlworks.hooks.metrics import task_metrics
from airflow_provider_etlworks.links import AUDIT_ID_KEY, EXECUTION_LINK_KEY, LEADS_TO_START_PAGE
from airflow_provider_etlworks.runs.events import ExecutionEvent
from airflow_provider_etlworks.runs.follow import Ending, FollowResult, follow
from airflow_provider_etlworks.runs.outage import OutageWait, wait_out
from airflow_provider_etlworks.runs.outcome import Outcome, error_text, outcome_of, task_result
from airflow_provider_etlworks.runs.reattach import ReattachDecision, decide_reattach
from airflow_provider_etlworks.runs.reconcile import read_accepted_run
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger
from airflow_provider_etlworks.worker.deadline import Deadline, trigger_timeout
from airflow_provider_etlworks.worker.failure_report import (
    Failure,
    RunCanceled,
    Subject,
    already_running,
    explained,
    killed_before_its_run,
    lost_touch,
    not_done,
    run_ended_badly,
    start_in_doubt,
    time_out,
)
from airflow_provider_etlworks.worker.launch_record import LaunchRecord, LaunchRecordStore
from airflow_provider_etlworks.worker.state import Phase, RunState

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from airflow.sdk import Context

    from airflow_provider_etlworks.client.procedure import Procedure
    from airflow_provider_etlworks.client.sync import EtlworksClient
    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
    from airflow_provider_etlworks.worker.failure_report import TaskLog

SeenT = TypeVar("SeenT")


class HasHook(Protocol):
    """An operator or a sensor: it has the hook of its connection, and makes a new hook if that attribute is deleted."""

    @property
    def hook(self) -> EtlworksHook:
        """The hook of its connection."""

    @property
    def log(self) -> TaskLog:
        """The task's log."""


class RunArguments(HasHook, Protocol):
    """What a task that follows a run needs of its operator."""

    etlworks_conn_id: str
    wait_for_completion: bool
    deferrable: bool
    poll_interval: float
    timeout: float | None
    patience: float
    fail_on_warning: bool
    cancel_on_kill: bool
    log_lines: int
    execution_timeout: timedelta | None

    @property
    def defer(self) -> Callable[..., None]:
        """Airflow's method that ends this execution until a trigger has fired."""


def run_with_fresh_connection(task: HasHook, procedure: Callable[[EtlworksClient], Procedure[SeenT]]) -> SeenT:
    """
    Run a procedure. If the credentials are refused, read the connection again and run it once more.

    :param task: the operator or sensor; its ``hook`` is replaced.
    :param procedure: makes the procedure for a client. A result other than a ``FollowResult`` is returned as it is.
    """
    seen = task.hook.client.run(procedure(task.hook.client))
    if isinstance(seen, FollowResult) and isinstance(seen.error, EtlworksUnauthorized):
        # The password may have been changed since the connection was read.
        task.log.warning("%s Reading the connection again.", seen.detail)
        before = task.hook
        del task.hook
        try:
            again = task.hook.client.run(procedure(task.hook.client))
        except (AirflowNotFoundException, EtlworksConfigError) as error:
            # A person has deleted the connection, or broken it: the refusal is still what is known of the run.
            task.log.warning("%s", error)
            task.__dict__["hook"] = before
            return seen
        return replace(again, execution=again.execution or seen.execution) if isinstance(again, FollowResult) else again
    return seen


class RunTask(ABC):
    """
    One execution of an operator. A subclass starts the run.

    :ivar metrics: receives what happens to the run.
    :ivar state: where the execution stands.
    :ivar result: the task's result as far as it is known; ``None`` until the run is known.
    """

    def __init__(self, operator: RunArguments, context: Context, *, durable: bool = True) -> None:
        self._operator = operator
        self._context = context
        self._records = LaunchRecordStore(task_state_store(context) if durable else None)
        self.log = operator.log
        self.metrics = task_metrics(operator.etlworks_conn_id)
        self.state = RunState()
        self._started_at: float | None = None
        self.ti = context["ti"]
        self.subject = Subject(operator.etlworks_conn_id, task="The flow")
        self.result: dict[str, Any] | None = None

    @property
    def hook(self) -> EtlworksHook:
        """The hook of the task's connection."""
        return self._operator.hook

    # --- What a failure report asks ---------------------------------------------------------------------------------

    def failure_of(self, error: BaseException) -> Failure:
        """Say how the start failed."""
        if isinstance(error, EtlworksAlreadyRunning):
            flow_id, other = self.subject.flow_id, error.audit_id
            url = None if flow_id is None or other is None else self.hook.execution_url(flow_id, other)
            return already_running(error, url)
        if isinstance(error, EtlworksStartUnknown):
            return start_in_doubt(error, self.hook.settings.root_url)
        flow_id, audit_id = self.subject.flow_id, self.subject.audit_id
        if flow_id is None or audit_id is None:
            return not_done("was not started", error)
        failure = not_done("of an earlier try may still be going, and cannot be read", error)
        url = self.hook.execution_url(flow_id, audit_id)
        return replace(failure, where=url, then="asks for that run once more")

    # --- What the operator calls ----------------------------------------------------------------------------------

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Start the run, and follow it."""

    def complete(self, event: Any, *, is_ours: bool, root_url: str | None) -> dict[str, Any]:
        """
        Finish after the triggerer has followed the run.

        :param event: what the trigger reported.
        :param is_ours: whether this task started the run.
        :param root_url: the address of the run's instance; ``None`` if it is not known.
        """
        reported = ExecutionEvent.from_payload(event)
        run = RunRef(reported.flow_id, reported.audit_id)
        return self._finish(run, reported.followed, is_ours=is_ours, root_url=root_url)

    def kill(self) -> None:
        """Stop the run, if this task started it. A signal handler calls this; a second call stops nothing again."""
        self.state.killed = True
        run = self.state.own_run
        if run is None and self.state.phase is Phase.STARTING:
            run = self._find_in_flight_run()
        if run is None:
            return
        if not self._operator.cancel_on_kill:
            url = self.hook.execution_url(run.flow_id, run.audit_id)
            self.log.info("The task was killed. Run %s goes on, since cancel_on_kill is off: %s", run.audit_id, url)
            return
        if run != self.state.stop_requested:
            self._stop(run)
        # Last: the signal may have interrupted a request to Airflow, and this request would wait for that one.
        self._records.update(audit_id=run.audit_id, stop_asked=True)

    @abstractmethod
    def _find_in_flight_run(self) -> RunRef | None:
        """Return the run of a start that a kill interrupted, if it can be found at once."""

    # --- Before the run -------------------------------------------------------------------------------------------

    def _abort_if_killed(self) -> None:
        """End a task that was killed: Airflow 3 lets it go on after :meth:`kill`."""
        if self.state.killed:
            raise explained(EtlworksError("The task was killed."), killed_before_its_run())

    def _outage(self, goal: str = "Nothing is started yet") -> OutageWait:
        """Return how to wait for a busy or unreachable Etlworks before the run is started."""
        clock = self.hook.client.clock
        return OutageWait(self._policy(), clock=clock, log=self.log, goal=goal, check=self._abort_if_killed)

    def _accept(self, run: RunRef, *, is_ours: bool = True) -> RunRef:
        """Record that the run is known, so that a kill stops it if it is ours. If the task was killed, stop it now."""
        self.state.running(run, is_ours=is_ours)
        self.subject = replace(self.subject, flow_id=run.flow_id, audit_id=run.audit_id)
        self._started_at = self.hook.client.clock.time() if is_ours else None
        self._records.update(audit_id=run.audit_id)
        if self.state.killed:
            self.kill()
        self._abort_if_killed()
        return run

    def _was_cleared(self, record: LaunchRecord) -> bool:
        """Whether somebody cleared the task since the record was saved: that asks for a new run."""
        return record.max_tries != self._context["ti"].max_tries

    def _is_elsewhere(self, record: LaunchRecord) -> bool:
        """
        Return whether the run of an earlier try is on another instance than the connection names now.

        An equal audit id there is another run, so it is neither followed nor stopped.

        :raises AirflowFailException: it is, and no person has cleared the task since.
        """
        here = self.hook.settings.root_url
        if record.root_url in (None, here):
            return False
        what = f"Run {record.audit_id}" if record.audit_id is not None else "The start"
        text = (
            f"{what} of an earlier try is at {record.root_url}; the connection {self._operator.etlworks_conn_id!r} now "
            f"names {here}."
        )
        if not self._was_cleared(record):
            raise AirflowFailException(
                f"{text} It can neither be followed nor replaced from here, so nothing was started. Check it there; "
                "clear the task to start the flow at the new address."
            )
        self.log.warning("%s It is left alone. The task was cleared, so the flow is started at the new address.", text)
        return True

    def _should_follow(self, record: LaunchRecord, run: RunRef) -> bool:
        """Decide whether the run of an earlier try is followed. If it is to be replaced, stop it."""
        self._accept(run, is_ours=record.is_ours)
        self._started_at = record.asked_at if record.is_ours else None
        client = self.hook.client
        outage = self._outage(f"An earlier try started {run}, which may still be going")
        execution = client.run(
            wait_out(lambda: read_accepted_run(run, clock=client.clock, log=self.log), outage),
        )
        decision = decide_reattach(
            execution,
            stop_asked=record.stop_asked,
            cleared=self._was_cleared(record),
            cancel_on_kill=self._operator.cancel_on_kill and record.is_ours,
            fail_on_warning=self._operator.fail_on_warning,
        )
        status = execution.status if execution else "no longer known to Etlworks"
        if decision in (ReattachDecision.FOLLOW, ReattachDecision.DONE):
            self.log.info("An earlier try started run %s, which is %s. Following it; no new run.", run.audit_id, status)
            return True
        self.log.warning("An earlier try started run %s, which is %s. A new run is needed.", run.audit_id, status)
        if decision is ReattachDecision.REPLACE:
            self._stop(run)
        self.subject = replace(self.subject, audit_id=None)
        self.state.idle()
        return False

    # --- While it runs --------------------------------------------------------------------------------------------

    def _follow(self, run: RunRef, *, is_ours: bool = True) -> dict[str, Any]:
        """Push the run's id and link, and follow it to its end: here, or in the triggerer."""
        url = self.hook.execution_url(run.flow_id, run.audit_id)
        self.log.info("Run %s of flow %s is accepted: %s", run.audit_id, run.flow_id, url)
        if self.hook.settings.ui_url is None:
            self.log.info(LEADS_TO_START_PAGE, run.audit_id)
        self._context["ti"].xcom_push(key=AUDIT_ID_KEY, value=run.audit_id)
        self._context["ti"].xcom_push(key=EXECUTION_LINK_KEY, value=url)
        self.result = task_result(Execution(flow_id=run.flow_id, audit_id=run.audit_id), url)
        if not self._operator.wait_for_completion:
            return self.result
        if self._operator.deferrable and not self._has_ended(run):
            resumed_with = {"is_ours": is_ours, "root_url": self.hook.settings.root_url}
            cancel_on_kill = self._operator.cancel_on_kill and is_ours
            self._defer(run, "execute_complete", resumed_with, cancel_on_kill=cancel_on_kill)
        return self._finish(run, self._follow_on_worker(run, is_ours=is_ours), is_ours=is_ours)

    def _has_ended(self, run: RunRef) -> bool:
        """Poll once before deferring: a short run needs no triggerer."""
        try:
            return self.hook.client.send(get_execution(run.flow_id, run.audit_id), attempts=1).is_terminal
        except EtlworksError as error:
            self.log.info("Run %s cannot be read yet; the triggerer goes on. %s", run.audit_id, error)
            return False

    def _defer(self, run: RunRef, method_name: str, kwargs: dict[str, Any], *, cancel_on_kill: bool) -> None:
        """End this execution until the triggerer has followed a run; the operator's method then goes on."""
        operator, deadline = self._operator, self._deadline().at
        self._operator.defer(
            trigger=EtlworksFlowExecutionTrigger(
                flow_id=run.flow_id,
                audit_id=run.audit_id,
                etlworks_conn_id=operator.etlworks_conn_id,
                poll_interval=operator.poll_interval,
                deadline=deadline,
                cancel_on_kill=cancel_on_kill,
                patience=operator.patience,
                root_url=self.hook.settings.root_url,
                started_at=self._started_at,
            ),
            method_name=method_name,
            kwargs=kwargs,
            timeout=trigger_timeout(deadline, self.hook.client.clock.time()),
        )

    def _follow_on_worker(self, run: RunRef, *, is_ours: bool) -> FollowResult:
        """Follow the run on the worker, as the trigger does in the triggerer."""
        policy, clock = self._policy(), self.hook.client.clock
        since = clock.time() if policy.started_at is None else policy.started_at
        followed = run_with_fresh_connection(
            self._operator, lambda client: follow(run, policy, clock=client.clock, log=self.log)
        )
        self.metrics.run_read(followed.execution, clock.time(), since)
        if followed.ending is Ending.DEADLINE and is_ours and self._operator.cancel_on_kill:
            followed = replace(followed, detail=self._stop(run))
        return followed.redacted(self.hook.settings.secrets)

    def _policy(self) -> PollPolicy:
        operator = self._operator
        return PollPolicy(operator.poll_interval, operator.patience, self._deadline().at, self._started_at)

    def _deadline(self) -> Deadline:
        # `airflow dags test` on Airflow 2 runs tasks that have no start.
        start = self._context["ti"].start_date
        began = start.timestamp() if start is not None else self.hook.client.clock.time()
        return Deadline.earliest(began, self._operator.timeout, self._operator.execution_timeout)

    def _stop(self, run: RunRef) -> str:
        stopped = self.hook.stop_flow(run.flow_id, run.audit_id)
        # Only now: a signal during the request sends it again, which is better than not at all.
        self.state.stop_requested = run
        report = self.log.info if stopped.accepted else self.log.warning
        report("%s", stopped.detail)
        return stopped.detail

    # --- After it -------------------------------------------------------------------------------------------------

    def _finish(
        self, run: RunRef, followed: FollowResult, *, is_ours: bool, root_url: str | None = None
    ) -> dict[str, Any]:
        """Turn the result of following the run into the task's end: one place for all paths."""
        self.state.done()
        is_here = self._is_still_at(root_url)
        # The connection's own ui_url, and its log, may be those of another run with an equal id.
        url = self.hook.execution_url(run.flow_id, run.audit_id) if is_here else str(root_url)
        execution = followed.execution
        name = f"Run {run.audit_id} of flow {run.flow_id}"
        flow_name = (execution.flow_name if execution else None) or self.subject.flow_name
        self.subject = replace(self.subject, flow_id=run.flow_id, flow_name=flow_name, audit_id=run.audit_id)
        self.result = task_result(execution or Execution(flow_id=run.flow_id, audit_id=run.audit_id), url)
        if followed.ending is Ending.DEADLINE:
            stop_asked = is_ours and self._operator.cancel_on_kill
            if stop_asked:
                self._records.update(stop_asked=True)
            deadline = self._deadline()
            done = followed.detail if stop_asked else "It was left going."
            failure = time_out(deadline.limit, done, url, stop_asked=stop_asked)
            raise explained(AirflowTaskTimeout() if deadline.by_airflow else EtlworksExecutionTimeout(name), failure)
        if followed.ending is not Ending.FINISHED or execution is None:
            is_denied = followed.ending is Ending.DENIED
            self.metrics.lost_touch()
            raise explained(EtlworksLostTouch(name), lost_touch(followed.detail, url, is_denied=is_denied))
        outcome = outcome_of(execution, fail_on_warning=self._operator.fail_on_warning)
        if outcome is not Outcome.SUCCESS:
            if is_here:
                self._show_log(execution)
            else:
                self.log.warning(
                    "The connection names another instance by now, or is gone, so the run's log is not read."
                )
            # If we stopped it ourselves, since the worker goes down, Airflow may try again.
            is_final = outcome is Outcome.CANCELED and not self.state.killed
            kind = RunCanceled if is_final else EtlworksExecutionFailed
            failure = run_ended_badly(execution, url, killed=self.state.killed)
            raise explained(kind(name, execution=execution), failure)
        if execution.status == "warning":
            self.log.warning("%s ended with a warning. %s", name, error_text(execution))
        records = "" if execution.records is None else f", {execution.records} records"
        self.log.info("%s ended: %s%s. %s", name, execution.status, records, url)
        return self.result

    def _is_still_at(self, root_url: str | None) -> bool:
        """Return whether the connection still names the instance that has the run."""
        if root_url is None:
            return True
        try:
            return root_url == self.hook.settings.root_url
        except (AirflowNotFoundException, EtlworksConfigError):
            return False

    def _show_log(self, execution: Execution) -> None:
        """Copy the end of the flow's own log. If the log cannot be read, the run's failure is still reported."""
        if self._operator.log_lines == 0:
            return
        try:
            text = self.hook.execution_log(execution.flow_id, execution.audit_id, last_lines=self._operator.log_lines)
        except EtlworksError as error:
            self.log.warning("The log of run %s cannot be read: %s", execution.audit_id, error)
            return
        self.log.info("The last lines of the log of run %s:", execution.audit_id)
        for line in text.splitlines():
            self.log.info("  | %s", visible(redact(line, self.hook.settings.secrets), "\t"))
