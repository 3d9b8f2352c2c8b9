"""One execution of ``EtlworksRunFlowOperator``: reattach to the run of an earlier try or start one, then follow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from airflow_provider_etlworks.client.endpoints import latest_execution, list_flows
from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksError, EtlworksStartUnknown
from airflow_provider_etlworks.client.flow_selection import find_by_name
from airflow_provider_etlworks.client.procedure import read_all
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.compat import AirflowSkipException
from airflow_provider_etlworks.hooks.clients import urgent_client
from airflow_provider_etlworks.hooks.etlworks import StartInDoubt
from airflow_provider_etlworks.runs.events import ExecutionEvent
from airflow_provider_etlworks.runs.follow import VISIBILITY_GRACE
from airflow_provider_etlworks.runs.outage import send, wait_out
from airflow_provider_etlworks.runs.reconcile import RunKey
from airflow_provider_etlworks.runs.start import OnAlreadyRunning, RunStarter, check_turn
from airflow_provider_etlworks.runs.types import RunRef
from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error, flat_parameters, parse_id
from airflow_provider_etlworks.worker.etlworks_schedule import check_etlworks_schedule
from airflow_provider_etlworks.worker.follow_run import RunArguments, RunTask
from airflow_provider_etlworks.worker.launch_record import LaunchRecord
from airflow_provider_etlworks.worker.state import Phase

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_etlworks.client.procedure import Procedure
    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

T = TypeVar("T")


class RunFlowArguments(RunArguments, Protocol):
    """What the task needs of its operator."""

    flow_id: int | str | None
    flow_name: str | None
    parameters: Mapping[str, Any] | None
    parameter_names: Sequence[str] | None
    run_options: Mapping[str, Any] | None
    on_already_running: str
    on_etlworks_schedule: str
    durable: bool


def find_run_at_once(hook: EtlworksHook, starter: RunStarter, watermark: int) -> int | None:
    """
    Reconcile a start in doubt at once, in as little time as a killed task has.

    Uses connections of its own and short time-outs, so that it works while a signal has interrupted another call.

    :param hook: the hook of the connection.
    :param starter: the start.
    :param watermark: the flow's newest audit id before it.
    :return: the run's audit id; ``None`` if there is none yet.
    :raises EtlworksStartUnknown: there are runs that may or may not be the start's, or they cannot be read.
    """
    impatient = replace(starter, policy=replace(starter.policy, patience=0.0))
    with urgent_client(hook.settings) as client:
        return client.run(impatient.reconcile(watermark, starter.key, grace=0.0))


class RunFlowTask(RunTask):
    """One execution of ``EtlworksRunFlowOperator``."""

    _operator: RunFlowArguments
    _starter: RunStarter

    def __init__(self, operator: RunFlowArguments, context: Context) -> None:
        super().__init__(operator, context, durable=operator.durable)

    def run_when_free(self, event: Any) -> dict[str, Any]:
        """
        Start the flow after the triggerer has waited for the end of another run.

        :param event: what the trigger reported about that run.
        """
        reported = ExecutionEvent.from_payload(event)
        self.subject = replace(self.subject, flow_id=reported.flow_id)
        check_turn(RunRef(reported.flow_id, reported.audit_id), reported.followed)
        return self.run(is_first=False)

    def run(self, *, is_first: bool = True) -> dict[str, Any]:
        """
        Start the flow, or reattach to the run of an earlier try, and follow the run.

        :param is_first: ``False`` after this try has waited for another run.
        """
        with fail_without_retry_on_config_error():
            parameters = flat_parameters(self._operator.parameters, self._operator.parameter_names)
            options = self._checked_options()
            if isinstance(self._operator.flow_name, str):
                self.subject = replace(self.subject, flow_name=self._operator.flow_name)
            flow_id = self._find_flow_id()
            self.subject = replace(self.subject, flow_id=flow_id)
            self._starter = self._make_starter(flow_id, parameters, options)
        try:
            run, is_ours = self._reattach(is_first=is_first) or self._start(is_first=is_first)
        except Exception as error:  # also errors that nobody foresees: a start in doubt must not become a second start
            is_unknown = not isinstance(error, EtlworksError) or isinstance(error, EtlworksStartUnknown)
            # With a record, the retry reconciles before it starts anything.
            if self.state.phase is not Phase.STARTING or (self._records.is_durable and not is_unknown):
                raise
            raise StartInDoubt(str(error), candidates=getattr(error, "candidates", ())) from error
        return self._follow(run, is_ours=is_ours)

    def _find_in_flight_run(self) -> RunRef | None:
        try:
            audit_id = find_run_at_once(self.hook, self._starter, self.state.watermark)
        except EtlworksStartUnknown as error:
            self.log.warning("The task was killed while it started flow %s. %s", self._starter.flow_id, error)
            return None
        return None if audit_id is None else RunRef(self._starter.flow_id, audit_id)

    # --- Before the run -------------------------------------------------------------------------------------------

    def _checked_options(self) -> dict[str, Any]:
        options = self._operator.run_options
        if options is None:
            return {}
        if not isinstance(options, Mapping):
            raise EtlworksConfigError(
                f"run_options is a {type(options).__name__}; it must be a mapping, such as a dict."
            )
        return dict(options)

    def _find_flow_id(self) -> int:
        name = self._operator.flow_name
        if name is None:
            return parse_id("flow_id", self._operator.flow_id, " For a name, use flow_name.")
        if not isinstance(name, str) or not name.strip():
            raise EtlworksConfigError(f"flow_name is {name!r}; it must be the name of a flow.")
        flows = self._run_with_start_priority(wait_out(lambda: read_all(list_flows()), self._outage()))
        flow = find_by_name(name, flows)
        self.log.info("Flow %r has the id %s.", flow.name, flow.id)
        return flow.id

    def _run_with_start_priority(self, procedure: Procedure[T]) -> T:
        """Run something that must be done before the run is there, reads included."""
        return self.hook.client.run(procedure, priority=Priority.START)

    def _make_starter(self, flow_id: int, parameters: dict[str, str], options: dict[str, Any]) -> RunStarter:
        operator, ti = self._operator, self._context["ti"]
        names = ("dag_id", "task_id", "run_id", "map_index", "try_number")
        return RunStarter(
            flow_id=flow_id,
            clock=self.hook.client.clock,
            log=self.log,
            parameters=parameters,
            options=options,
            user=self.hook.settings.login,
            policy=self._policy(),
            on_already_running=OnAlreadyRunning(operator.on_already_running),
            save_intent=self._save_intent,
            is_only_starter=operator.on_already_running == "fail" and not options and getattr(ti, "map_index", -1) < 0,
            outage=self._outage(f"Flow {flow_id} is not started yet"),
            before_waiting=self._wait_in_triggerer,
            run_key_parameter=self.hook.settings.run_key_parameter,
            run_key="/".join(str(getattr(ti, name, "")) for name in names),
            metrics=self.metrics,
        )

    # --- The run of an earlier try --------------------------------------------------------------------------------

    def _reattach(self, *, is_first: bool) -> tuple[RunRef, bool] | None:
        """Return the run that an earlier try started, and whether it is ours, if it is to be followed."""
        if not self._operator.durable:
            return None
        if not self._records.is_durable:
            # A run that began while this try waited may be anybody's.
            return self._find_in_history() if is_first else None
        record = self._records.load()
        if record is None or record.flow_id != self._starter.flow_id or self._is_elsewhere(record):
            return None
        audit_id = record.audit_id if record.audit_id is not None else self._reconcile(record)
        if audit_id is None:
            return None
        run = RunRef(record.flow_id, audit_id)
        return (run, record.is_ours) if self._should_follow(record, run) else None

    def _reconcile(self, record: LaunchRecord) -> int | None:
        """Search for the run of a start in doubt: the try that sent it was lost."""
        self.log.info("An earlier try may have started flow %s; searching for its run.", record.flow_id)
        self.metrics.start_in_doubt()
        self.state.starting(record.watermark)
        grace = max(0.0, VISIBILITY_GRACE - (self._starter.clock.time() - record.asked_at))
        parameter = self.hook.settings.run_key_parameter
        key = RunKey(parameter, record.run_key) if parameter and record.run_key else None
        try:
            audit_id = self._run_with_start_priority(self._starter.reconcile(record.watermark, key, grace=grace))
        except EtlworksStartUnknown as error:
            if not (error.candidates and self._was_cleared(record)):
                raise
            self.log.warning("%s The task was cleared, so the flow is started again.", error)
            audit_id = None
        if audit_id is None:
            self.log.info("The earlier try started no run that is known.")
            self.state.idle()
        return audit_id

    def _find_in_history(self) -> tuple[RunRef, bool] | None:
        """Recognize the run of an earlier try by the server's history: the best there is before Airflow 3.3."""
        if self._context["ti"].try_number <= 1:
            return None
        starter = self._starter
        outage = self._outage("An earlier try may have started a run, which is searched for")
        newest = self._run_with_start_priority(wait_out(lambda: send(latest_execution(starter.flow_id)), outage))
        began = self._context["dag_run"].start_date
        if newest is None or newest.is_terminal or not starter.is_candidate(newest):
            return None
        if newest.started_at is None or began is None or newest.started_at < began:
            return None
        self.log.warning(
            "Run %s has been going since this DAG run began. It is assumed to be an earlier try's, and is followed.",
            newest.audit_id,
        )
        return self._accept(RunRef(starter.flow_id, newest.audit_id)), True

    # --- The start ------------------------------------------------------------------------------------------------

    def _start(self, *, is_first: bool) -> tuple[RunRef, bool]:
        """Start the flow; return the run, and whether it is ours."""
        starter = self._starter
        if is_first:
            with fail_without_retry_on_config_error():
                policy = self._operator.on_etlworks_schedule
                check_etlworks_schedule(policy, starter.flow_id, self.hook, self._context, self.log)
        names = ", ".join(sorted(starter.parameters)) or "none"
        self.log.info("Starting flow %s at %s; parameters: %s.", starter.flow_id, self.hook.settings.root_url, names)
        started = self._run_with_start_priority(starter.start())
        if started is None:
            raise AirflowSkipException(f"Flow {starter.flow_id} is already running; on_already_running is 'skip'.")
        run = self._accept(RunRef(starter.flow_id, started.audit_id), is_ours=started.is_ours)
        if not started.is_ours:
            # Our own start did nothing; a retry goes on with this run.
            self._records.save(replace(self._new_record(run.audit_id), audit_id=run.audit_id, is_ours=False))
        return run, started.is_ours

    def _wait_in_triggerer(self, other: RunRef) -> None:
        """Defer until a run in the way has ended, if the task is deferrable."""
        if self._operator.deferrable:
            self.log.info("Run %s occupies the flow. Waiting for its end in the triggerer.", other.audit_id)
            self._defer(other, "execute_when_free", {}, cancel_on_kill=False)

    def _save_intent(self, watermark: int | None) -> None:
        """Record that a start is about to be sent; ``None``: that nothing was started."""
        if watermark is not None:
            self._abort_if_killed()
            self._records.save(self._new_record(watermark))
            self.state.starting(watermark)
        if watermark is None or self.state.killed:
            self.state.idle()
            self._records.clear()
        self._abort_if_killed()

    def _new_record(self, watermark: int) -> LaunchRecord:
        return LaunchRecord(
            self._starter.flow_id,
            watermark,
            asked_at=self.hook.client.clock.time(),
            max_tries=self._context["ti"].max_tries,
            run_key=self._starter.key.value if self._starter.key else None,
            root_url=self.hook.settings.root_url,
        )
