"""What the operators that follow a run share: the wait in both modes, kills, time-outs, and the task's end."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import AirflowFailException, AirflowTaskTimeout, BaseOperator, task_state_store
from airflow_provider_etlworks.links import EXECUTION_LINK_KEY, EtlworksExecutionLink

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
    from airflow_provider_etlworks.runs.follow import FollowResult
    from airflow_provider_etlworks.runs.start import Started
    from airflow_provider_etlworks.worker.launch_record import LaunchRecord, LaunchRecordStore

AUDIT_ID_KEY = "audit_id"
"""XCom key of the run's audit id, set as soon as it is known."""

TRIGGER_BUFFER = 120.0
"""Seconds after its deadline at which Airflow ends a trigger that has not done so itself."""

# Seconds before Airflow's own execution_timeout at which we act, so that a last look and a stop still fit in.
_TIMEOUT_MARGIN = 10.0


class HookMixin:
    """What every operator and sensor has: the hook of its connection, made when it is first asked for."""

    etlworks_conn_id: str

    @cached_property
    def hook(self) -> EtlworksHook:
        """The hook of this task's connection."""
        from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

        return EtlworksHook(self.etlworks_conn_id)


class RunOperator(HookMixin, BaseOperator):
    """
    The base of the operators that follow a run. Their docstrings tell what the parameters mean.

    A subclass starts a run in its ``execute``, keeps it in ``_run`` so that a kill stops it, and returns what
    ``_follow`` returns.
    """

    ui_color = "#d7ebf7"
    ui_fgcolor = "#0b3a5b"
    operator_extra_links = (EtlworksExecutionLink(),)

    flow_id: int | str | None

    def __init__(
        self,
        *,
        etlworks_conn_id: str,
        wait_for_completion: bool,
        deferrable: bool,
        poll_interval: float,
        timeout: float | None,
        patience: float,
        fail_on_warning: bool,
        cancel_on_kill: bool,
        log_lines: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.etlworks_conn_id = etlworks_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.patience = patience
        self.fail_on_warning = fail_on_warning
        self.cancel_on_kill = cancel_on_kill
        self.log_lines = log_lines
        self._run: tuple[int, int] | None = None
        self._killed = False
        self._stopped: int | None = None
        self._memory: LaunchRecordStore | None = None
        self._told: dict[str, Any] | None = None
        self._check_following()

    # --- Airflow calls these --------------------------------------------------------------------------------------

    def execute_complete(self, context: Context, event: Any = None, is_ours: bool = True) -> dict[str, Any]:
        """
        Go on after the triggerer has followed the run.

        :param event: what the trigger told.
        :param is_ours: whether this task started the run.
        """
        from airflow_provider_etlworks.runs.events import ExecutionEvent

        told = ExecutionEvent.from_payload(event)
        return self._finish(context, told.flow_id, told.audit_id, told.followed, is_ours=is_ours)

    def on_kill(self) -> None:
        """Stop the run. Airflow calls this on the worker when the task is killed or times out."""
        self._killed = True
        run = self._run or self._find_in_flight_run()
        if run is None:
            return
        flow_id, audit_id = run
        if not self.cancel_on_kill:
            url = self.hook.execution_url(flow_id, audit_id)
            self.log.info("The task was killed. Run %s goes on, since cancel_on_kill is off: %s", audit_id, url)
            return
        self._stop(flow_id, audit_id)
        if self._memory is not None:
            # Last, since a signal may have interrupted a talk with Airflow that this one then waits for.
            self._memory.update(audit_id=audit_id, stop_asked=True)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """
        Return what OpenLineage is told of the run. Its provider calls this after a failure, too.

        :param task_instance: the task instance.
        :return: ``None`` where the provider is not installed.
        """
        from airflow_provider_etlworks.worker.openlineage import lineage_of

        return lineage_of(self.flow_id, self._told)

    def _find_in_flight_run(self) -> tuple[int, int] | None:
        """Return the run of a start that was sent, and whose answer a kill cut off, where it can be told."""
        return None

    def _abort_if_killed(self) -> None:
        """Go no further once the task was killed: Airflow 3 lets it go on after :meth:`on_kill`."""
        from airflow_provider_etlworks.client.errors import EtlworksError

        if self._killed:
            raise EtlworksError("The task was killed while it started its run.")

    # --- Before it runs -------------------------------------------------------------------------------------------

    def _check_following(self) -> None:
        """Check the parameters that are not templated."""
        for name in ("poll_interval", "patience", "timeout"):
            value = getattr(self, name)
            if name == "timeout" and value is None:
                continue
            # Infinity is not JSON, so it could not be handed to a trigger.
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"{self.task_id}: {name} is {value!r}; it is a number of seconds greater than 0.")
        if isinstance(self.log_lines, bool) or not isinstance(self.log_lines, int) or self.log_lines < 0:
            raise ValueError(f"{self.task_id}: log_lines is {self.log_lines!r}; it is a whole number, 0 for none.")

    def _memory_of(self, context: Context) -> LaunchRecordStore:
        from airflow_provider_etlworks.worker.launch_record import LaunchRecordStore

        return LaunchRecordStore(task_state_store(context))

    def _is_to_be_followed(self, context: Context, remembered: LaunchRecord, audit_id: int) -> bool:
        from airflow_provider_etlworks.runs.reattach import ReattachDecision, decide_reattach
        from airflow_provider_etlworks.runs.reconcile import read_accepted_run
        from airflow_provider_etlworks.runs.types import RunRef

        client, run = self.hook.client, RunRef(remembered.flow_id, audit_id)
        execution = client.run(read_accepted_run(run, clock=client.clock, log=self.log))
        decision = decide_reattach(
            execution,
            stop_asked=remembered.stop_asked,
            cleared=remembered.max_tries != context["ti"].max_tries,
            cancel_on_kill=self.cancel_on_kill and remembered.is_ours,
            fail_on_warning=self.fail_on_warning,
        )
        state = execution.status if execution else "no longer known to Etlworks"
        if decision in (ReattachDecision.FOLLOW, ReattachDecision.DONE):
            self.log.info("An earlier try started run %s, which is %s. Following it; no new run.", audit_id, state)
            return True
        self.log.warning("An earlier try started run %s, which is %s. A new run is needed.", audit_id, state)
        if decision is ReattachDecision.REPLACE:
            self._stop(remembered.flow_id, audit_id)
        return False

    @staticmethod
    def _started(audit_id: int, *, is_ours: bool = True) -> Started:
        from airflow_provider_etlworks.runs.start import Started

        return Started(audit_id, is_ours=is_ours)

    # --- While it runs --------------------------------------------------------------------------------------------

    def _follow(self, context: Context, flow_id: int, started: Started) -> dict[str, Any]:
        from airflow_provider_etlworks.client.models import Execution
        from airflow_provider_etlworks.runs.outcome import task_result

        audit_id = started.audit_id
        url = self.hook.execution_url(flow_id, audit_id)
        self.log.info("Run %s of flow %s is accepted: %s", audit_id, flow_id, url)
        context["ti"].xcom_push(key=AUDIT_ID_KEY, value=audit_id)
        context["ti"].xcom_push(key=EXECUTION_LINK_KEY, value=url)
        self._told = task_result(Execution(flow_id=flow_id, audit_id=audit_id), url)
        if not self.wait_for_completion:
            return self._told
        deadline, _ = self._deadline(context)
        if self.deferrable and not self._has_ended_already(flow_id, audit_id):
            self._defer(flow_id, started, deadline)
        followed = self._follow_on_worker(flow_id, started, deadline)
        return self._finish(context, flow_id, audit_id, followed, is_ours=started.is_ours)

    def _has_ended_already(self, flow_id: int, audit_id: int) -> bool:
        """Look once before deferring: a short run needs no triggerer."""
        from airflow_provider_etlworks.client.endpoints import get_execution
        from airflow_provider_etlworks.client.errors import EtlworksError

        try:
            return self.hook.client.send(get_execution(flow_id, audit_id), attempts=1).is_terminal
        except EtlworksError as error:
            self.log.info("No look at the run yet: %s", error)
            return False

    def _defer(self, flow_id: int, started: Started, deadline: float | None) -> None:
        from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger

        trigger = EtlworksFlowExecutionTrigger(
            flow_id=flow_id,
            audit_id=started.audit_id,
            etlworks_conn_id=self.etlworks_conn_id,
            poll_interval=self.poll_interval,
            deadline=deadline,
            cancel_on_kill=self.cancel_on_kill and started.is_ours,
            patience=self.patience,
        )
        seconds = None if deadline is None else max(0.0, deadline - self.hook.client.clock.time()) + TRIGGER_BUFFER
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            kwargs={"is_ours": started.is_ours},
            timeout=None if seconds is None else timedelta(seconds=seconds),
        )

    def _follow_on_worker(self, flow_id: int, started: Started, deadline: float | None) -> FollowResult:
        """Follow the run on the worker, as the trigger does in the triggerer."""
        from dataclasses import replace

        from airflow_provider_etlworks.client.errors import EtlworksUnauthorized
        from airflow_provider_etlworks.runs.follow import Ending

        followed = self._watch(flow_id, started.audit_id, deadline)
        if isinstance(followed.error, EtlworksUnauthorized):
            # The password may have been changed since the connection was read.
            self.log.warning("%s Reading the connection again.", followed.detail)
            del self.hook
            followed = self._watch(flow_id, started.audit_id, deadline)
        if followed.ending is Ending.DEADLINE and started.is_ours and self.cancel_on_kill:
            followed = replace(followed, detail=self._stop(flow_id, started.audit_id))
        return followed

    def _watch(self, flow_id: int, audit_id: int, deadline: float | None) -> FollowResult:
        from airflow_provider_etlworks.runs.follow import follow
        from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

        client = self.hook.client
        followed = client.run(
            follow(
                RunRef(flow_id, audit_id),
                PollPolicy(self.poll_interval, self.patience, deadline),
                clock=client.clock,
                log=self.log,
            )
        )
        return followed.redacted(client.settings.secrets)

    def _deadline(self, context: Context) -> tuple[float | None, bool]:
        """Return the Unix time at which to give up, and whether it is ``execution_timeout`` that sets it."""
        # `airflow dags test` on Airflow 2 runs tasks that have no start.
        start = context["ti"].start_date
        began = start.timestamp() if start is not None else self.hook.client.clock.time()
        own = None if self.timeout is None else began + self.timeout
        if self.execution_timeout is None:
            return own, False
        seconds = self.execution_timeout.total_seconds()
        of_airflow = began + seconds - min(_TIMEOUT_MARGIN, seconds / 10)
        return (own, False) if own is not None and own <= of_airflow else (of_airflow, True)

    def _stop(self, flow_id: int, audit_id: int) -> str:
        self._run = None
        stopped = self.hook.stop_flow(flow_id, audit_id)
        self._stopped = audit_id
        report = self.log.info if stopped.accepted else self.log.warning
        report("%s", stopped.detail)
        return stopped.detail

    # --- After it -------------------------------------------------------------------------------------------------

    def _finish(
        self, context: Context, flow_id: int, audit_id: int, followed: FollowResult, *, is_ours: bool
    ) -> dict[str, Any]:
        """Turn the end of the watch into the task's end: one place for all paths."""
        from airflow_provider_etlworks.client.errors import EtlworksExecutionTimeout, EtlworksLostTouch
        from airflow_provider_etlworks.client.models import Execution
        from airflow_provider_etlworks.runs.follow import Ending
        from airflow_provider_etlworks.runs.outcome import Outcome, error_text, outcome_of, task_result

        self._run = None
        url = self.hook.execution_url(flow_id, audit_id)
        run = f"Run {audit_id} of flow {flow_id}"
        told = self._told = task_result(followed.execution or Execution(flow_id=flow_id, audit_id=audit_id), url)
        if followed.ending is Ending.DEADLINE:
            stop_asked = is_ours and self.cancel_on_kill
            if stop_asked:
                self._memory_of(context).update(stop_asked=True)
            by_airflow = self._deadline(context)[1]
            limit = f"execution_timeout ({self.execution_timeout})" if by_airflow else f"timeout ({self.timeout} s)"
            done = followed.detail if stop_asked else "It was left going."
            text = f"{run} was still going when {limit} was over. {done} {url}"
            raise AirflowTaskTimeout(text) if by_airflow else EtlworksExecutionTimeout(text)
        execution = followed.execution
        if followed.ending is not Ending.FINISHED or execution is None:
            raise EtlworksLostTouch(f"{run} may still be going, but cannot be followed: {followed.detail} {url}")
        outcome = outcome_of(execution, fail_on_warning=self.fail_on_warning)
        if outcome is not Outcome.SUCCESS:
            # Where we stopped it ourselves, since the worker goes down, Airflow may try again.
            self._fail(execution, url, is_final=outcome is Outcome.CANCELED and not self._killed)
        if execution.status == "warning":
            self.log.warning("%s ended with a warning. %s", run, error_text(execution))
        records = "" if execution.records is None else f", {execution.records} records"
        self.log.info("%s ended: %s%s. %s", run, execution.status, records, url)
        return told

    def _fail(self, execution: Execution, url: str, *, is_final: bool) -> None:
        from airflow_provider_etlworks.client.errors import EtlworksExecutionFailed
        from airflow_provider_etlworks.runs.outcome import failure_message

        text = failure_message(execution, url)
        self._show_log(execution)
        failed = EtlworksExecutionFailed(text, execution=execution)
        if is_final:
            raise AirflowFailException(f"{text} Not tried again, since somebody stopped it.") from failed
        raise failed

    def _show_log(self, execution: Execution) -> None:
        """Copy the end of the flow's own log; where it cannot be read, the run's failure is still what is told."""
        from airflow_provider_etlworks.client.errors import EtlworksError
        from airflow_provider_etlworks.client.redaction import redact

        if self.log_lines == 0:
            return
        try:
            text = self.hook.execution_log(execution.flow_id, execution.audit_id, last_lines=self.log_lines)
        except EtlworksError as error:
            self.log.warning("The log of run %s cannot be read: %s", execution.audit_id, error)
            return
        self.log.info("The last lines of the log of run %s:", execution.audit_id)
        for line in text.splitlines():
            self.log.info("  | %s", redact(line, self.hook.settings.secrets))
