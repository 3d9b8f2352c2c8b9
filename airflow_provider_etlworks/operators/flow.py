"""Operators that run Etlworks flows."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL
from airflow_provider_etlworks.compat import (
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseOperator,
    conf,
    task_state_store,
)
from airflow_provider_etlworks.links import EXECUTION_LINK_KEY, EtlworksExecutionLink
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from airflow_provider_etlworks.client.following import Followed
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.starting import Start, Started
    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
    from airflow_provider_etlworks.operators.memory import Memory, RememberedStart

AUDIT_ID_KEY = "audit_id"
"""XCom key of the run's audit id, set as soon as Etlworks accepted the run."""

_ON_ALREADY_RUNNING = ("fail", "wait", "attach", "skip")
_LONGEST_EXCEPTION = 4_000
# Seconds before Airflow's own execution_timeout at which we act, so that a last look and a stop still fit in.
_TIMEOUT_MARGIN = 10.0
# Seconds after the deadline at which Airflow ends a trigger that has not done so itself.
_TRIGGER_BUFFER = 120.0


class EtlworksRunFlowOperator(BaseOperator):
    """
    Start an Etlworks flow and, unless told otherwise, wait for its run to end.

    A run is started exactly once: where the answer to the start is lost, the run is looked for before anything is sent
    again. ``success`` is green, ``warning`` too unless ``fail_on_warning`` is set, all else is red. ``canceled`` fails
    without an Airflow retry, since a person stopped the run. A status that cannot be read is never taken for the run's
    failure.

    Exactly one of ``flow_id`` and ``flow_name`` is given.

    :param flow_id: the flow to run. (templated)
    :param flow_name: the flow's name, exactly; its id is looked up first. (templated)
    :param parameters: the flow's parameters, a flat mapping. Numbers become their digits, booleans ``true`` or
        ``false``, dates ISO 8601; lists, mappings and ``None`` are refused. (templated)
    :param run_options: parameters of the start call's URL, for options such as parallel runs of one flow, whose names
        Etlworks does not document publicly. (templated)
    :param etlworks_conn_id: the Airflow connection. (templated)
    :param wait_for_completion: ``False`` returns as soon as Etlworks accepted the run.
    :param deferrable: wait in the triggerer, without holding a worker slot. Default: Airflow's
        ``[operators] default_deferrable``.
    :param poll_interval: seconds between two looks at the run; an old run is looked at less often, every 60 s at most.
    :param timeout: seconds, counted from the task's start, after which the run is stopped and the task fails. Default:
        no limit.
    :param patience: seconds for which the run's status may be unreadable before the task gives up watching. The run may
        then still be going, and the task says so.
    :param fail_on_warning: whether a run that ends with ``warning`` fails the task.
    :param on_already_running: what to do where another run of the flow is going, as Etlworks allows one at a time:
        ``"fail"``; ``"wait"`` until it ends, then start ours; ``"attach"``: follow that run, and never stop it;
        ``"skip"`` the task.
    :param cancel_on_kill: whether the run is stopped when the task is killed, cleared or timed out. While the task is
        deferred, this takes Airflow 3.3 or later.
    :param log_lines: how many lines of the flow's own log are copied into the task's log when the run ends badly; 0 is
        none.
    :param durable: whether a retry after a lost worker follows the run that is already going. From Airflow 3.3 on it
        is certain; before, the run is recognized by the server's history as well as possible.
    :return: ``{"flow_id", "audit_id", "status", "started_at", "ended_at", "duration_seconds", "records", "url"}``:
        JSON-safe, times as ISO 8601 in UTC, ``None`` where Etlworks does not say. The audit id is also the XCom
        ``audit_id``, set as soon as the run is accepted.
    :raises EtlworksExecutionFailed: the run ended badly.
    :raises AirflowFailException: the run was canceled, or an argument or the connection cannot work: another try would
        not help.
    :raises AirflowSkipException: another run is going, and ``on_already_running`` is ``"skip"``.
    :raises EtlworksAlreadyRunning: another run is going; nothing was started.
    :raises EtlworksStartUnknown: the start was sent, no answer came, and no run can be matched to it.
    :raises EtlworksExecutionTimeout: the run was still going after ``timeout``; it was asked to stop.
    :raises AirflowTaskTimeout: the same, where ``execution_timeout`` came first.
    :raises EtlworksLostTouch: the status could not be read for longer than ``patience``; the run may still be going.
    """

    template_fields: Sequence[str] = ("flow_id", "flow_name", "parameters", "run_options", "etlworks_conn_id")
    template_fields_renderers = {"parameters": "json", "run_options": "json"}  # noqa: RUF012  # as BaseOperator has it
    ui_color = "#d7ebf7"
    ui_fgcolor = "#0b3a5b"
    operator_extra_links = (EtlworksExecutionLink(),)

    def __init__(
        self,
        *,
        flow_id: int | str | None = None,
        flow_name: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        run_options: Mapping[str, Any] | None = None,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        wait_for_completion: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        timeout: float | None = None,
        patience: float = DEFAULT_PATIENCE,
        fail_on_warning: bool = False,
        on_already_running: str = "fail",
        cancel_on_kill: bool = True,
        log_lines: int = 200,
        durable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.flow_id = flow_id
        self.flow_name = flow_name
        self.parameters = parameters
        self.run_options = run_options
        self.etlworks_conn_id = etlworks_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.patience = patience
        self.fail_on_warning = fail_on_warning
        self.on_already_running = on_already_running
        self.cancel_on_kill = cancel_on_kill
        self.log_lines = log_lines
        self.durable = durable
        self._run: tuple[int, int] | None = None
        self._in_flight: tuple[Start, int] | None = None
        self._killed = False
        self._stopped: int | None = None
        self._memory: Memory | None = None
        self._check_arguments()

    @cached_property
    def hook(self) -> EtlworksHook:
        """The hook of this task's connection."""
        from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

        return EtlworksHook(self.etlworks_conn_id)

    # --- Airflow calls these --------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the flow, and follow its run."""
        from airflow_provider_etlworks.operators.arguments import hopeless_tries_fail_for_good

        with hopeless_tries_fail_for_good():
            parameters = flat_parameters(self.parameters)
            options = self._checked_options()
            flow_id = self._find_flow_id()
            start = self._start_request(context, flow_id, parameters, options)
        memory = self._memory = self._memory_of(context)
        started = self._earlier_run(context, memory, start) or self._start(context, memory, start)
        return self._follow(context, flow_id, started)

    def execute_complete(self, context: Context, event: Any = None, is_ours: bool = True) -> dict[str, Any]:
        """
        Go on after the triggerer has followed the run.

        :param event: what the trigger told.
        :param is_ours: whether this task started the run.
        """
        from airflow_provider_etlworks.triggers.events import ExecutionEvent

        told = ExecutionEvent.from_payload(event)
        return self._conclude(context, told.flow_id, told.audit_id, told.followed, is_ours=is_ours)

    def on_kill(self) -> None:
        """Stop the run. Airflow calls this on the worker when the task is killed or times out."""
        self._killed = True
        run = self._run or self._run_of_start_in_flight()
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
            self._memory.add(audit_id=audit_id, stop_asked=True)

    def _run_of_start_in_flight(self) -> tuple[int, int] | None:
        """Return the run of a start that was sent, and whose answer the kill cut off."""
        from airflow_provider_etlworks.client.errors import EtlworksStartUnknown

        if self._in_flight is None:
            return None
        start, watermark = self._in_flight
        self._in_flight = None
        try:
            audit_id = self.hook.find_run(start, watermark)
        except EtlworksStartUnknown as error:
            self.log.warning("The task was killed while it started flow %s. %s", start.flow_id, error)
            return None
        return None if audit_id is None else (start.flow_id, audit_id)

    # --- Before the run -------------------------------------------------------------------------------------------

    def _check_arguments(self) -> None:
        """Check what is known when the DAG is parsed. Templated fields are checked once they are rendered."""
        if (self.flow_id is None) == (self.flow_name is None):
            given = "both are" if self.flow_id is not None else "neither is"
            raise ValueError(f"{self.task_id}: give exactly one of flow_id and flow_name; {given} given.")
        if self.on_already_running not in _ON_ALREADY_RUNNING:
            allowed = ", ".join(map(repr, _ON_ALREADY_RUNNING))
            raise ValueError(f"{self.task_id}: on_already_running is {self.on_already_running!r}; it is {allowed}.")
        for name in ("poll_interval", "patience", "timeout"):
            value = getattr(self, name)
            if name == "timeout" and value is None:
                continue
            # Infinity is not JSON, so it could not be handed to a trigger.
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"{self.task_id}: {name} is {value!r}; it is a number of seconds greater than 0.")
        if isinstance(self.log_lines, bool) or not isinstance(self.log_lines, int) or self.log_lines < 0:
            raise ValueError(f"{self.task_id}: log_lines is {self.log_lines!r}; it is a whole number, 0 for none.")

    def _checked_options(self) -> dict[str, Any]:
        from collections.abc import Mapping

        from airflow_provider_etlworks.client.errors import EtlworksConfigError

        if self.run_options is None:
            return {}
        if not isinstance(self.run_options, Mapping):
            raise EtlworksConfigError(
                f"run_options is a {type(self.run_options).__name__}; it must be a mapping, such as a dict."
            )
        return dict(self.run_options)

    def _find_flow_id(self) -> int:
        from airflow_provider_etlworks.client.errors import EtlworksConfigError
        from airflow_provider_etlworks.operators.arguments import whole_number

        if self.flow_name is not None:
            if not isinstance(self.flow_name, str) or not self.flow_name.strip():
                raise EtlworksConfigError(f"flow_name is {self.flow_name!r}; it must be the name of a flow.")
            flow = self.hook.find_flow(self.flow_name)
            self.log.info("Flow %r has the id %s.", flow.name, flow.id)
            return flow.id
        return whole_number("flow_id", self.flow_id, " For a name, use flow_name.")

    # --- The start ------------------------------------------------------------------------------------------------

    def _start_request(
        self, context: Context, flow_id: int, parameters: dict[str, str], options: dict[str, Any]
    ) -> Start:
        from airflow_provider_etlworks.client.starting import OnAlreadyRunning, Start

        memory = self._memory_of(context)

        def remember(watermark: int | None) -> None:
            self._stay_killed()
            if watermark is None:
                self._in_flight = None
                memory.forget()
            else:
                memory.keep(self._remembered(context, flow_id, watermark))
                self._in_flight = (start, watermark)
                self._stay_killed()

        start = Start(
            flow_id=flow_id,
            clock=self.hook.client.clock,
            log=self.log,
            parameters=parameters,
            options=options,
            user=self.hook.settings.login,
            poll_interval=self.poll_interval,
            patience=self.patience,
            deadline=self._deadline(context)[0],
            on_already_running=OnAlreadyRunning(self.on_already_running),
            remember=remember,
        )
        return start

    def _stay_killed(self) -> None:
        """Go no further once the task was killed: Airflow 3 lets it go on after :meth:`on_kill`."""
        from airflow_provider_etlworks.client.errors import EtlworksError

        if self._killed:
            raise EtlworksError("The task was killed while it started its run.")

    def _remembered(self, context: Context, flow_id: int, watermark: int, **known: Any) -> RememberedStart:
        from airflow_provider_etlworks.operators.memory import RememberedStart

        return RememberedStart(
            flow_id, watermark, self.hook.client.clock.time(), max_tries=context["ti"].max_tries, **known
        )

    def _memory_of(self, context: Context) -> Memory:
        from airflow_provider_etlworks.operators.memory import Memory

        return Memory(task_state_store(context) if self.durable else None)

    def _earlier_run(self, context: Context, memory: Memory, start: Start) -> Started | None:
        """Return the run that an earlier try of this task started, where it is to be followed."""
        if not self.durable:
            return None
        if not memory.is_durable:
            return self._run_in_history(context, start)
        remembered = memory.recall()
        if remembered is None or remembered.flow_id != start.flow_id:
            return None
        audit_id = remembered.audit_id or self._run_of_lost_start(memory, remembered, start)
        if audit_id is None:
            return None
        if remembered.is_ours:
            # Known from here on, so that a kill in this very moment stops the right run.
            self._run = (start.flow_id, audit_id)
        if self._is_to_be_followed(context, remembered, audit_id):
            return self._started(audit_id, is_ours=remembered.is_ours)
        self._run = None
        return None

    def _run_of_lost_start(self, memory: Memory, remembered: RememberedStart, start: Start) -> int | None:
        """Look for the run of a start whose worker was lost before it knew the audit id."""
        from airflow_provider_etlworks.client.following import VISIBILITY_GRACE

        self.log.info("An earlier try may have started flow %s; looking for its run.", start.flow_id)
        grace = VISIBILITY_GRACE - (start.clock.time() - remembered.asked_at)
        audit_id = self.hook.client.converse(start.find(remembered.watermark, grace=max(0.0, grace)))
        if audit_id is None:
            self.log.info("No run came of it.")
        else:
            memory.add(audit_id=audit_id)
        return audit_id

    def _is_to_be_followed(self, context: Context, remembered: RememberedStart, audit_id: int) -> bool:
        from airflow_provider_etlworks.client.starting import confirm
        from airflow_provider_etlworks.outcome import Resumption, resumption

        client = self.hook.client
        execution = client.converse(confirm(remembered.flow_id, audit_id, clock=client.clock, log=self.log))
        decision = resumption(
            execution,
            stop_asked=remembered.stop_asked,
            cleared=remembered.max_tries != context["ti"].max_tries,
            cancel_on_kill=self.cancel_on_kill and remembered.is_ours,
            fail_on_warning=self.fail_on_warning,
        )
        state = execution.status if execution else "no longer known to Etlworks"
        if decision in (Resumption.FOLLOW, Resumption.DONE):
            self.log.info("An earlier try started run %s, which is %s. Following it; no new run.", audit_id, state)
            return True
        self.log.warning("An earlier try started run %s, which is %s. A new run is needed.", audit_id, state)
        if decision is Resumption.REPLACE:
            self._stop(remembered.flow_id, audit_id)
        return False

    def _run_in_history(self, context: Context, start: Start) -> Started | None:
        """Recognize the run of an earlier try by the server's history: the best there is before Airflow 3.3."""
        if context["ti"].try_number <= 1:
            return None
        newest, began = self.hook.get_execution(start.flow_id), context["dag_run"].start_date
        if newest is None or newest.has_ended or not start.may_be_ours(newest):
            return None
        if newest.started_at is None or began is None or newest.started_at < began:
            return None
        self.log.warning(
            "Run %s has been going since this DAG run began; taking it for the run of an earlier try.", newest.audit_id
        )
        self._run = (start.flow_id, newest.audit_id)
        return self._started(newest.audit_id)

    def _start(self, context: Context, memory: Memory, start: Start) -> Started:
        names = ", ".join(sorted(start.parameters)) or "none"
        self.log.info("Starting flow %s at %s; parameters: %s.", start.flow_id, self.hook.settings.root_url, names)
        started = self.hook.client.converse(start.carry_out())
        if started is None:
            raise AirflowSkipException(f"Flow {start.flow_id} is already running; on_already_running is 'skip'.")
        audit_id = started.audit_id
        self._in_flight = None
        if started.is_ours:
            self._run = (start.flow_id, audit_id)
            memory.add(audit_id=audit_id)
            if self._killed and self._stopped != audit_id:
                self.on_kill()
            self._stay_killed()
        else:
            # Our own start did nothing and is forgotten; what a retry goes on with is this run.
            memory.keep(self._remembered(context, start.flow_id, audit_id, audit_id=audit_id, is_ours=False))
        return started

    @staticmethod
    def _started(audit_id: int, *, is_ours: bool = True) -> Started:
        from airflow_provider_etlworks.client.starting import Started

        return Started(audit_id, is_ours=is_ours)

    # --- While it runs --------------------------------------------------------------------------------------------

    def _follow(self, context: Context, flow_id: int, started: Started) -> dict[str, Any]:
        from airflow_provider_etlworks.client.models import Execution
        from airflow_provider_etlworks.outcome import task_result

        audit_id = started.audit_id
        url = self.hook.execution_url(flow_id, audit_id)
        self.log.info("Run %s of flow %s is accepted: %s", audit_id, flow_id, url)
        context["ti"].xcom_push(key=AUDIT_ID_KEY, value=audit_id)
        context["ti"].xcom_push(key=EXECUTION_LINK_KEY, value=url)
        if not self.wait_for_completion:
            return task_result(Execution(flow_id=flow_id, audit_id=audit_id), url)
        deadline, _ = self._deadline(context)
        if self.deferrable and not self._has_ended_already(flow_id, audit_id):
            self._defer(flow_id, started, deadline)
        followed = self._follow_here(flow_id, started, deadline)
        return self._conclude(context, flow_id, audit_id, followed, is_ours=started.is_ours)

    def _has_ended_already(self, flow_id: int, audit_id: int) -> bool:
        """Look once before deferring: a short run needs no triggerer."""
        from airflow_provider_etlworks.client.endpoints import get_execution
        from airflow_provider_etlworks.client.errors import EtlworksError

        try:
            return self.hook.client.send(get_execution(flow_id, audit_id), attempts=1).has_ended
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
        seconds = None if deadline is None else max(0.0, deadline - self.hook.client.clock.time()) + _TRIGGER_BUFFER
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            kwargs={"is_ours": started.is_ours},
            timeout=None if seconds is None else timedelta(seconds=seconds),
        )

    def _follow_here(self, flow_id: int, started: Started, deadline: float | None) -> Followed:
        """Follow the run on the worker, as the trigger does in the triggerer."""
        from dataclasses import replace

        from airflow_provider_etlworks.client.errors import EtlworksUnauthorized
        from airflow_provider_etlworks.client.following import Ending

        followed = self._watch(flow_id, started.audit_id, deadline)
        if isinstance(followed.error, EtlworksUnauthorized):
            # The password may have been changed since the connection was read.
            self.log.warning("%s Reading the connection again.", followed.detail)
            del self.hook
            followed = self._watch(flow_id, started.audit_id, deadline)
        if followed.ending is Ending.DEADLINE and started.is_ours and self.cancel_on_kill:
            followed = replace(followed, detail=self._stop(flow_id, started.audit_id))
        return followed

    def _watch(self, flow_id: int, audit_id: int, deadline: float | None) -> Followed:
        from airflow_provider_etlworks.client.following import follow

        client = self.hook.client
        followed = client.converse(
            follow(
                flow_id,
                audit_id,
                clock=client.clock,
                log=self.log,
                poll_interval=self.poll_interval,
                patience=self.patience,
                deadline=deadline,
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

    def _conclude(
        self, context: Context, flow_id: int, audit_id: int, followed: Followed, *, is_ours: bool
    ) -> dict[str, Any]:
        """Turn the end of the watch into the task's end: one place for all paths."""
        from airflow_provider_etlworks.client.errors import EtlworksExecutionTimeout, EtlworksLostTouch
        from airflow_provider_etlworks.client.following import Ending
        from airflow_provider_etlworks.outcome import Outcome, outcome_of, task_result

        self._run = None
        url = self.hook.execution_url(flow_id, audit_id)
        run = f"Run {audit_id} of flow {flow_id}"
        if followed.ending is Ending.DEADLINE:
            stop_asked = is_ours and self.cancel_on_kill
            if stop_asked:
                self._memory_of(context).add(stop_asked=True)
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
            self.log.warning("%s ended with a warning. %s", run, (execution.exception or "")[:_LONGEST_EXCEPTION])
        records = "" if execution.records is None else f", {execution.records} records"
        self.log.info("%s ended: %s%s. %s", run, execution.status, records, url)
        return task_result(execution, url)

    def _fail(self, execution: Execution, url: str, *, is_final: bool) -> None:
        from airflow_provider_etlworks.client.errors import EtlworksExecutionFailed

        reason = (execution.exception or "Etlworks gives no reason.").strip()[:_LONGEST_EXCEPTION]
        text = f"Run {execution.audit_id} of flow {execution.flow_id} ended: {execution.status}. {reason} {url}"
        self._show_log(execution)
        failed = EtlworksExecutionFailed(text, execution=execution)
        if is_final:
            raise AirflowFailException(f"{text} Not tried again, since somebody stopped it.") from failed
        raise failed

    def _show_log(self, execution: Execution) -> None:
        """Copy the end of the flow's own log; where it cannot be read, the run's failure is still what is told."""
        from airflow_provider_etlworks.client.errors import EtlworksError, redact

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


def flat_parameters(parameters: Any) -> dict[str, str]:
    """
    Turn parameters into the flat map of texts that Etlworks takes.

    :param parameters: a mapping, or ``None`` for none. Numbers become their digits, booleans ``true`` or ``false``,
        dates and times ISO 8601.
    :raises EtlworksConfigError: it is no mapping, or a value is nested or ``None``; the message names the parameter.
    """
    from collections.abc import Mapping
    from datetime import date, time
    from decimal import Decimal

    from airflow_provider_etlworks.client.errors import EtlworksConfigError

    if parameters is None:
        return {}
    if not isinstance(parameters, Mapping):
        raise EtlworksConfigError(
            f"parameters is a {type(parameters).__name__}; it must be a mapping, such as {{'runDate': '2026-05-09'}}."
        )
    flat: dict[str, str] = {}
    for name, value in parameters.items():
        if not isinstance(name, str) or not name:
            raise EtlworksConfigError(f"The parameter name {name!r} must be text.")
        if isinstance(value, bool):
            flat[name] = "true" if value else "false"
        elif isinstance(value, (str, int, float, Decimal)):
            flat[name] = str(value)
        elif isinstance(value, (date, time)):
            flat[name] = value.isoformat()
        else:
            # The value is not repeated: it may be a secret.
            what = "None; leave it out, or write ''" if value is None else f"a {type(value).__name__}"
            raise EtlworksConfigError(
                f"Parameter {name!r} is {what}. Etlworks takes flat texts only; json.dumps() makes a text of anything."
            )
    return flat
