"""Operators that run Etlworks flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import AirflowSkipException, conf
from airflow_provider_etlworks.operators.base import AUDIT_ID_KEY, RunOperator
from airflow_provider_etlworks.operators.listener import EtlworksHttpListenerOperator
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from airflow_provider_etlworks.runs.start import RunStarter, Started
    from airflow_provider_etlworks.worker.launch_record import LaunchRecord, LaunchRecordStore

__all__ = ["AUDIT_ID_KEY", "EtlworksHttpListenerOperator", "EtlworksRunFlowOperator", "flat_parameters"]

_ON_ALREADY_RUNNING = ("fail", "wait", "attach", "skip")


class EtlworksRunFlowOperator(RunOperator):
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
        super().__init__(
            etlworks_conn_id=etlworks_conn_id,
            wait_for_completion=wait_for_completion,
            deferrable=deferrable,
            poll_interval=poll_interval,
            timeout=timeout,
            patience=patience,
            fail_on_warning=fail_on_warning,
            cancel_on_kill=cancel_on_kill,
            log_lines=log_lines,
            **kwargs,
        )
        self.flow_id = flow_id
        self.flow_name = flow_name
        self.parameters = parameters
        self.run_options = run_options
        self.on_already_running = on_already_running
        self.durable = durable
        self._in_flight: tuple[RunStarter, int] | None = None
        self._check_arguments()

    # --- Airflow calls these --------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the flow, and follow its run."""
        from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error

        with fail_without_retry_on_config_error():
            parameters = flat_parameters(self.parameters)
            options = self._checked_options()
            flow_id = self._find_flow_id()
            start = self._start_request(context, flow_id, parameters, options)
        memory = self._memory = self._memory_of(context)
        started = self._reattach(context, memory, start) or self._start(context, memory, start)
        return self._follow(context, flow_id, started)

    def _find_in_flight_run(self) -> tuple[int, int] | None:
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
        from airflow_provider_etlworks.worker.arguments import parse_id

        if self.flow_name is not None:
            if not isinstance(self.flow_name, str) or not self.flow_name.strip():
                raise EtlworksConfigError(f"flow_name is {self.flow_name!r}; it must be the name of a flow.")
            flow = self.hook.find_flow(self.flow_name)
            self.log.info("Flow %r has the id %s.", flow.name, flow.id)
            return flow.id
        return parse_id("flow_id", self.flow_id, " For a name, use flow_name.")

    # --- The start ------------------------------------------------------------------------------------------------

    def _start_request(
        self, context: Context, flow_id: int, parameters: dict[str, str], options: dict[str, Any]
    ) -> RunStarter:
        from airflow_provider_etlworks.runs.start import OnAlreadyRunning, RunStarter
        from airflow_provider_etlworks.runs.types import PollPolicy

        memory, ti = self._memory_of(context), context["ti"]

        def save_intent(watermark: int | None) -> None:
            self._abort_if_killed()
            if watermark is None:
                self._in_flight = None
                memory.clear()
            else:
                memory.save(self._remembered(context, flow_id, watermark))
                self._in_flight = (start, watermark)
                self._abort_if_killed()

        start = RunStarter(
            flow_id=flow_id,
            clock=self.hook.client.clock,
            log=self.log,
            parameters=parameters,
            options=options,
            user=self.hook.settings.login,
            policy=PollPolicy(self.poll_interval, self.patience, self._deadline(context)[0]),
            on_already_running=OnAlreadyRunning(self.on_already_running),
            save_intent=save_intent,
            is_only_starter=self.on_already_running == "fail" and not options and getattr(ti, "map_index", -1) < 0,
            run_key_parameter=self.hook.settings.run_key_parameter,
            run_key="/".join(
                str(getattr(ti, name, "")) for name in ("dag_id", "task_id", "run_id", "map_index", "try_number")
            ),
        )
        return start

    def _remembered(self, context: Context, flow_id: int, watermark: int, **known: Any) -> LaunchRecord:
        from airflow_provider_etlworks.worker.launch_record import LaunchRecord

        return LaunchRecord(
            flow_id, watermark, self.hook.client.clock.time(), max_tries=context["ti"].max_tries, **known
        )

    def _memory_of(self, context: Context) -> LaunchRecordStore:
        from airflow_provider_etlworks.worker.launch_record import LaunchRecordStore

        return super()._memory_of(context) if self.durable else LaunchRecordStore(None)

    def _reattach(self, context: Context, memory: LaunchRecordStore, start: RunStarter) -> Started | None:
        """Return the run that an earlier try of this task started, where it is to be followed."""
        if not self.durable:
            return None
        if not memory.is_durable:
            return self._run_in_history(context, start)
        remembered = memory.load()
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

    def _run_of_lost_start(self, memory: LaunchRecordStore, remembered: LaunchRecord, start: RunStarter) -> int | None:
        """Look for the run of a start whose worker was lost before it knew the audit id."""
        from airflow_provider_etlworks.runs.follow import VISIBILITY_GRACE

        self.log.info("An earlier try may have started flow %s; looking for its run.", start.flow_id)
        grace = VISIBILITY_GRACE - (start.clock.time() - remembered.asked_at)
        audit_id = self.hook.client.run(start.reconcile(remembered.watermark, None, grace=max(0.0, grace)))
        if audit_id is None:
            self.log.info("No run came of it.")
        else:
            memory.update(audit_id=audit_id)
        return audit_id

    def _run_in_history(self, context: Context, start: RunStarter) -> Started | None:
        """Recognize the run of an earlier try by the server's history: the best there is before Airflow 3.3."""
        if context["ti"].try_number <= 1:
            return None
        newest, began = self.hook.get_execution(start.flow_id), context["dag_run"].start_date
        if newest is None or newest.is_terminal or not start.is_candidate(newest):
            return None
        if newest.started_at is None or began is None or newest.started_at < began:
            return None
        self.log.warning(
            "Run %s has been going since this DAG run began; taking it for the run of an earlier try.", newest.audit_id
        )
        self._run = (start.flow_id, newest.audit_id)
        return self._started(newest.audit_id)

    def _start(self, context: Context, memory: LaunchRecordStore, start: RunStarter) -> Started:
        names = ", ".join(sorted(start.parameters)) or "none"
        self.log.info("Starting flow %s at %s; parameters: %s.", start.flow_id, self.hook.settings.root_url, names)
        started = self.hook.client.run(start.start())
        if started is None:
            raise AirflowSkipException(f"Flow {start.flow_id} is already running; on_already_running is 'skip'.")
        audit_id = started.audit_id
        self._in_flight = None
        if started.is_ours:
            self._run = (start.flow_id, audit_id)
            memory.update(audit_id=audit_id)
            if self._killed and self._stopped != audit_id:
                self.on_kill()
            self._abort_if_killed()
        else:
            # Our own start did nothing and is forgotten; what a retry goes on with is this run.
            memory.save(self._remembered(context, start.flow_id, audit_id, audit_id=audit_id, is_ours=False))
        return started


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
