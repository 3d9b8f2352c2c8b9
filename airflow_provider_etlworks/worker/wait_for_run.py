"""What the sensor does on a worker: select the run, poll for it or defer, and turn its end into the task's end."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_etlworks.client.errors import (
    EtlworksConfigError,
    EtlworksError,
    EtlworksExecutionFailed,
    EtlworksLostTouch,
)
from airflow_provider_etlworks.compat import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    PokeReturnValue,
    task_state_store,
)
from airflow_provider_etlworks.hooks.metrics import task_metrics
from airflow_provider_etlworks.links import AUDIT_ID_KEY, EXECUTION_LINK_KEY, LEADS_TO_START_PAGE
from airflow_provider_etlworks.runs.events import WaitEvent
from airflow_provider_etlworks.runs.find import ReadOutage, RunSelector, RunWaiter
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.runs.outcome import Outcome, error_text, outcome_of, task_result
from airflow_provider_etlworks.runs.types import PollPolicy
from airflow_provider_etlworks.triggers.sensor import EtlworksFlowSensorTrigger
from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error, parse_datetime, parse_id
from airflow_provider_etlworks.worker.deadline import trigger_timeout
from airflow_provider_etlworks.worker.failure_report import (
    Failure,
    RunCanceled,
    Subject,
    explained,
    flow_unreadable,
    lost_touch,
    not_done,
    sensor_time_out,
    watched_run_ended_badly,
)
from airflow_provider_etlworks.worker.follow_run import run_with_fresh_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

    from airflow.sdk import Context

    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
    from airflow_provider_etlworks.worker.failure_report import TaskLog


_OUTAGE_KEY = "etlworks_trouble"


class SensorArguments(Protocol):
    """The sensor's arguments, as its docstring describes them, and what Airflow's base class adds."""

    flow_id: int | str
    audit_id: int | str | None
    message_uuid: str | None
    since: Any
    selected_by: str | None
    fail_on_warning: bool
    deferrable: bool
    poke_interval: float
    timeout: float
    execution_timeout: timedelta | None
    patience: float
    repetition_grace: float
    etlworks_conn_id: str
    soft_fail: bool
    never_fail: bool
    silent_fail: bool

    @property
    def hook(self) -> EtlworksHook:
        """The hook of the task's connection. If the attribute is deleted, it is made again."""

    @property
    def reschedule(self) -> bool:
        """Whether Airflow starts a new process for each poke."""

    @property
    def log(self) -> TaskLog:
        """The task's log."""

    @property
    def defer(self) -> Callable[..., None]:
        """Ends this execution until a trigger has fired."""


class WaitForRunTask:
    """
    One execution of the sensor on a worker: the whole wait, or the part before or after the triggerer.

    :param sensor: the sensor.
    :param context: the task's context.
    """

    def __init__(self, sensor: SensorArguments, context: Context) -> None:
        self._sensor = sensor
        self._context = context
        self.log = sensor.log
        self.subject = Subject(sensor.etlworks_conn_id)
        self._seen: Execution | None = None
        self._waiter: RunWaiter | None = None
        self._pushed: int | None = None

    @property
    def ti(self) -> Any:
        """Airflow's task instance."""
        return self._context["ti"]

    def failure_of(self, error: BaseException) -> Failure:
        """Say how the wait failed, if Airflow or Etlworks ended it."""
        if isinstance(error, (AirflowSensorTimeout, AirflowTaskTimeout)):
            return self._time_out("")
        return not_done("is not waited for", error)

    def _time_out(self, detail: str) -> Failure:
        seconds, by_airflow = self._limit()
        limit = f"{'execution_timeout' if by_airflow else 'timeout'} ({seconds:.0f} s)"
        url = None
        if self._seen is not None:
            url = self._sensor.hook.execution_url(self._seen.flow_id, self._seen.audit_id)
        return sensor_time_out(self._selector(), limit, self._seen, detail, url)

    def run(self, poke_until_done: Callable[[Context], Any]) -> Any:
        """
        Wait for the run: on the worker, or in the triggerer after a first poll.

        :param poke_until_done: the loop of Airflow's sensors, which calls ``poke``.
        :return: the task's result.
        """
        with self.skip_if_asked():
            if not self._sensor.deferrable:
                return poke_until_done(self._context)
            poked = self.poke()
            return poked.xcom_value if isinstance(poked, PokeReturnValue) else self._defer()

    def poke(self) -> bool | PokeReturnValue:
        """Poll once. Return ``False`` if the wait goes on, else the task's result."""
        polled = self._poll()
        if isinstance(polled, FollowResult):
            return PokeReturnValue(is_done=True, xcom_value=self._finish(polled))
        if polled is not None:
            self._push(polled)
        return False

    def complete(self, event: Any) -> dict[str, Any]:
        """
        Finish after the triggerer has waited for the run.

        :param event: what the trigger reported.
        :return: the task's result.
        """
        with self.skip_if_asked():
            return self._finish(WaitEvent.from_payload(event).followed)

    @contextmanager
    def skip_if_asked(self) -> Iterator[None]:
        """Skip the task if ``soft_fail`` or ``never_fail`` asks for it: Airflow does so in some modes only."""
        try:
            yield
        except (AirflowSensorTimeout, AirflowTaskTimeout, AirflowFailException, EtlworksError) as error:
            is_failure = not isinstance(error, EtlworksError) or isinstance(error, EtlworksExecutionFailed)
            if self._sensor.never_fail or (self._sensor.soft_fail and is_failure):
                failure: Failure | None = getattr(error, "failure", None)
                why = str(error) if failure is None else " ".join([f"{error} {failure.what}.", *failure.why])
                raise AirflowSkipException(why) from error
            raise

    # --- Before the wait ------------------------------------------------------------------------------------------

    def _selector(self) -> RunSelector:
        sensor = self._sensor
        flow_id = parse_id("flow_id", sensor.flow_id)
        if sensor.selected_by == "audit_id":
            return RunSelector(flow_id, audit_id=parse_id("audit_id", sensor.audit_id))
        if sensor.selected_by == "message_uuid":
            uuid = sensor.message_uuid.strip() if isinstance(sensor.message_uuid, str) else ""
            # A character that is not printable may be one that Airflow's database refuses, with the whole trigger.
            if not uuid or not uuid.isprintable():
                raise EtlworksConfigError(
                    f"message_uuid is {sensor.message_uuid!r}; it must be the messageUuid of a listener's answer."
                )
            return RunSelector(flow_id, message_uuid=uuid)
        since = sensor.since if sensor.selected_by == "since" else _data_start(self._context)
        return RunSelector(flow_id, since=parse_datetime("since", since))

    def _limit(self) -> tuple[float, bool]:
        """Return the seconds that a deferred wait may take, and whether ``execution_timeout`` sets them."""
        timeout, execution_timeout = float(self._sensor.timeout), self._sensor.execution_timeout
        if execution_timeout is not None and execution_timeout.total_seconds() < timeout:
            return execution_timeout.total_seconds(), True
        return timeout, False

    # --- The wait -------------------------------------------------------------------------------------------------

    def _poll(self) -> FollowResult | Execution | None:
        with fail_without_retry_on_config_error():
            waiter = self._waiter = self._waiter or self._new_waiter()
            self.subject = replace(self.subject, flow_id=waiter.selector.flow_id)
            before = replace(waiter.outage)
            polled = run_with_fresh_connection(self._sensor, lambda _: waiter.poll())
        if waiter.outage != before:
            self._save_outage(waiter.outage)
        return polled.redacted(self._sensor.hook.settings.secrets) if isinstance(polled, FollowResult) else polled

    def _new_waiter(self) -> RunWaiter:
        return RunWaiter(
            self._selector(),
            PollPolicy(self._sensor.poke_interval, self._sensor.patience),
            clock=self._sensor.hook.client.clock,
            log=self._sensor.log,
            repetition_grace=self._sensor.repetition_grace,
            outage=self._load_outage(),
        )

    def _load_outage(self) -> ReadOutage:
        """Return the outage that earlier pokes saw: a rescheduled task has a new process for each poke."""
        store = task_state_store(self._context) if self._sensor.reschedule else None
        stored = store.get(_OUTAGE_KEY) if store is not None else None
        return ReadOutage(**stored) if isinstance(stored, dict) else ReadOutage()

    def _save_outage(self, outage: ReadOutage) -> None:
        store = task_state_store(self._context) if self._sensor.reschedule else None
        if store is not None:
            store.set(_OUTAGE_KEY, asdict(outage))

    def _defer(self) -> None:
        selector = self._selector()
        now = self._sensor.hook.client.clock.time()
        start = self._context["ti"].start_date
        deadline = (start.timestamp() if start is not None else now) + self._limit()[0]
        self._sensor.defer(
            trigger=EtlworksFlowSensorTrigger(
                flow_id=selector.flow_id,
                audit_id=selector.audit_id,
                message_uuid=selector.message_uuid,
                since=None if selector.since is None else selector.since.isoformat(),
                etlworks_conn_id=self._sensor.etlworks_conn_id,
                poll_interval=self._sensor.poke_interval,
                deadline=deadline,
                patience=self._sensor.patience,
                repetition_grace=self._sensor.repetition_grace,
                root_url=self._sensor.hook.settings.root_url,
            ),
            method_name="execute_complete",
            timeout=trigger_timeout(deadline, now),
        )

    # --- After it -------------------------------------------------------------------------------------------------

    def _finish(self, followed: FollowResult) -> dict[str, Any]:
        """Turn the end of the wait into the task's end: one place for all modes."""
        log, execution = self._sensor.log, followed.execution
        if execution is not None:
            self._push(execution)
        selector = self._selector()
        self.subject = replace(self.subject, flow_id=selector.flow_id)
        if followed.ending is Ending.DEADLINE:
            error = AirflowTaskTimeout if self._limit()[1] else AirflowSensorTimeout
            raise explained(error(str(selector)), self._time_out(followed.detail))
        if followed.ending is not Ending.FINISHED or execution is None:
            is_denied = followed.ending is Ending.DENIED
            task_metrics(self._sensor.etlworks_conn_id).lost_touch()
            lost = flow_unreadable if execution is None else lost_touch
            failure = lost(followed.detail, self._where(execution), is_denied=is_denied)
            raise explained(EtlworksLostTouch(str(selector)), failure)
        url = self._where(execution)
        outcome = outcome_of(execution, fail_on_warning=self._sensor.fail_on_warning)
        if outcome is not Outcome.SUCCESS:
            # With silent_fail, Airflow would treat any other error as a failed poke, and go on.
            is_final = outcome is Outcome.CANCELED or self._sensor.silent_fail
            kind = RunCanceled if is_final else EtlworksExecutionFailed
            raise explained(kind(str(selector), execution=execution), watched_run_ended_badly(execution, url))
        if execution.status == "warning":
            log.warning("Run %s ended with a warning. %s", execution.audit_id, error_text(execution))
        log.info("Run %s of flow %s ended: %s. %s", execution.audit_id, execution.flow_id, execution.status, url)
        return task_result(execution, url)

    def _where(self, execution: Execution | None) -> str:
        hook = self._sensor.hook
        return (
            hook.settings.root_url if execution is None else hook.execution_url(execution.flow_id, execution.audit_id)
        )

    def _push(self, execution: Execution) -> None:
        """Push the run's audit id and its link, as soon as the run is known."""
        self._seen = execution
        name = execution.flow_name or self.subject.flow_name
        self.subject = replace(self.subject, flow_id=execution.flow_id, flow_name=name, audit_id=execution.audit_id)
        if self._pushed == execution.audit_id:
            return
        self._pushed = execution.audit_id
        url = self._sensor.hook.execution_url(execution.flow_id, execution.audit_id)
        self._context["ti"].xcom_push(key=AUDIT_ID_KEY, value=execution.audit_id)
        self._context["ti"].xcom_push(key=EXECUTION_LINK_KEY, value=url)
        if self._sensor.hook.settings.ui_url is None:
            self.log.info(LEADS_TO_START_PAGE, execution.audit_id)


def _data_start(context: Context) -> Any:
    """Return the time from which a DAG run's data is. On Airflow 3 not every run has a data interval."""
    run = context["dag_run"]
    return context.get("data_interval_start") or context.get("logical_date") or run.start_date
