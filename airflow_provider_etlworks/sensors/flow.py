"""The sensor that waits for a flow's run, whoever starts it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
    task_state_store,
)
from airflow_provider_etlworks.links import AUDIT_ID_KEY, EXECUTION_LINK_KEY, EtlworksExecutionLink
from airflow_provider_etlworks.operators.base import HookMixin
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_REPETITION_GRACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from airflow.sdk import Context

    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.runs.find import ReadOutage, RunSelector, RunWaiter
    from airflow_provider_etlworks.runs.follow import FollowResult

_TROUBLE_KEY = "etlworks_trouble"


class EtlworksFlowExecutionSensor(HookMixin, BaseSensorOperator):
    """
    Wait for a run of a flow that Etlworks, a person or another task starts.

    The run is the one with ``audit_id``, the one that a message to a listener started (``message_uuid``), or else the
    newest one that started at or after ``since``. ``success`` ends the wait well, ``warning`` too unless
    ``fail_on_warning`` is set; ``error`` and ``canceled`` fail the task at once. A run that Etlworks itself repeated is
    followed to its last attempt. A look that fails is never taken for the run's failure.

    The modes ``poke`` and ``reschedule``, and ``deferrable``, have the same result. ``soft_fail`` skips the task where
    the run ended badly or the time is over, ``never_fail`` wherever it would fail, in each mode and in each Airflow.
    ``silent_fail`` lets looks go on that would end the wait, such as a refused one (403); not while deferred.

    :param flow_id: the flow. (templated)
    :param audit_id: the run's audit id. (templated)
    :param message_uuid: the id that a listener answered with. (templated)
    :param since: ISO 8601 text or a datetime; without a zone it is UTC. A run that started before it never counts, also
        not when it ends later. Default: the start of the data interval, else the logical date, else the start of the
        DAG run. (templated)
    :param fail_on_warning: whether a run that ends with ``warning`` fails the task.
    :param deferrable: wait in the triggerer, without holding a worker slot. Default: Airflow's
        ``[operators] default_deferrable``. A task that is deferred looks at ``poke_interval``, or less often at an old
        run; ``mode``, ``exponential_backoff`` and ``max_wait`` then mean nothing.
    :param patience: seconds for which the status may be unreadable before the task gives up. With
        ``mode="reschedule"``, Airflow keeps no note of it from poke to poke before 3.3; the sensor's ``timeout`` alone
        ends such a wait there.
    :param repetition_grace: seconds after the ``error`` of a schedule's run in which Etlworks may still repeat it.
        Where the schedule has "Retry on failure", make it longer than its delay between retries. Default 10.
    :param etlworks_conn_id: the Airflow connection. (templated)
    :param kwargs: those of every sensor: ``poke_interval`` (60 s), ``timeout`` (7 days, counted from the first start),
        ``mode``, ``soft_fail`` and so on.
    :return: ``{"flow_id", "audit_id", "status", "started_at", "ended_at", "duration_seconds", "records", "url"}``, as
        ``EtlworksRunFlowOperator`` returns it. The audit id is also the XCom ``audit_id``.
    :raises EtlworksExecutionFailed: the run ended badly.
    :raises AirflowFailException: the run was canceled, or an argument or the connection cannot work: another try would
        not help.
    :raises AirflowSensorTimeout: the run had not ended when ``timeout`` was over.
    :raises EtlworksLostTouch: the status could not be read for longer than ``patience``, or reading it is refused (401,
        403); the run may still be going.
    """

    template_fields: Sequence[str] = ("flow_id", "audit_id", "message_uuid", "since", "etlworks_conn_id")
    ui_color = "#d7ebf7"
    ui_fgcolor = "#0b3a5b"
    operator_extra_links = (EtlworksExecutionLink(),)

    def __init__(
        self,
        *,
        flow_id: int | str,
        audit_id: int | str | None = None,
        message_uuid: str | None = None,
        since: datetime | str | None = None,
        fail_on_warning: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        patience: float = DEFAULT_PATIENCE,
        repetition_grace: float = DEFAULT_REPETITION_GRACE,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.flow_id = flow_id
        self.audit_id = audit_id
        self.message_uuid = message_uuid
        self.since = since
        self.fail_on_warning = fail_on_warning
        self.deferrable = deferrable
        self.patience = patience
        self.repetition_grace = repetition_grace
        self.etlworks_conn_id = etlworks_conn_id
        self._given = [name for name in ("audit_id", "message_uuid", "since") if getattr(self, name) is not None]
        self._lookout: RunWaiter | None = None
        self._pushed: int | None = None
        self._check_arguments()

    # --- Airflow calls these --------------------------------------------------------------------------------------

    def execute(self, context: Context) -> Any:
        """Wait for the run: on the worker, or in the triggerer after a first look."""
        self._lookout = None
        with self._skipping_where_asked():
            if not self.deferrable:
                return super().execute(context)
            poked = self.poke(context)
            if isinstance(poked, PokeReturnValue):
                return poked.xcom_value
            return self._defer(context)

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Look once: ``False`` where the wait goes on, else the task's result."""
        from airflow_provider_etlworks.runs.follow import FollowResult

        seen = self._look(context)
        if isinstance(seen, FollowResult):
            return PokeReturnValue(is_done=True, xcom_value=self._finish(context, seen))
        if seen is not None:
            self._tell(context, seen)
        return False

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """
        Go on after the triggerer has waited for the run.

        :param event: what the trigger told.
        """
        from airflow_provider_etlworks.runs.events import WaitEvent

        with self._skipping_where_asked():
            return self._finish(context, WaitEvent.from_payload(event).followed)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the triggerer, also where Airflow itself ended the wait."""
        with self._skipping_where_asked():
            return super().resume_execution(next_method, next_kwargs, context)

    # --- Before the wait ------------------------------------------------------------------------------------------

    def _check_arguments(self) -> None:
        """Check what is known when the DAG is parsed. Templated fields are checked once they are rendered."""
        if len(self._given) > 1:
            raise ValueError(f"{self.task_id}: give one of audit_id, message_uuid and since, not {self._given}.")
        for name in ("poke_interval", "patience", "repetition_grace"):
            value = getattr(self, name)
            least = "0 or more" if name == "repetition_grace" else "greater than 0"
            # Infinity is not JSON, so it could not be handed to a trigger.
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
            if not is_number or (value == 0 and name != "repetition_grace"):
                raise ValueError(f"{self.task_id}: {name} is {value!r}; it is a number of seconds, {least}.")

    def _awaited(self, context: Context) -> RunSelector:
        from airflow_provider_etlworks.client.errors import EtlworksConfigError
        from airflow_provider_etlworks.runs.find import RunSelector
        from airflow_provider_etlworks.worker.arguments import parse_datetime, parse_id

        flow_id = parse_id("flow_id", self.flow_id)
        if "audit_id" in self._given:
            return RunSelector(flow_id, audit_id=parse_id("audit_id", self.audit_id))
        if "message_uuid" in self._given:
            if not isinstance(self.message_uuid, str) or not self.message_uuid.strip():
                raise EtlworksConfigError(
                    f"message_uuid is {self.message_uuid!r}; it must be the messageUuid of a listener's answer."
                )
            return RunSelector(flow_id, message_uuid=self.message_uuid.strip())
        return RunSelector(flow_id, since=parse_datetime("since", self.since if self._given else _beginning(context)))

    def _new_lookout(self, context: Context) -> RunWaiter:
        from airflow_provider_etlworks.runs.find import RunWaiter

        return RunWaiter(
            self._awaited(context),
            clock=self.hook.client.clock,
            log=self.log,
            patience=self.patience,
            repetition_grace=self.repetition_grace,
            trouble=self._trouble_before(context),
        )

    # --- The wait -------------------------------------------------------------------------------------------------

    def _look(self, context: Context) -> FollowResult | Execution | None:
        from dataclasses import replace

        from airflow_provider_etlworks.client.errors import EtlworksUnauthorized
        from airflow_provider_etlworks.runs.follow import FollowResult
        from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error

        with fail_without_retry_on_config_error():
            lookout = self._lookout = self._lookout or self._new_lookout(context)
            before = replace(lookout.trouble)
            seen = self.hook.client.run(lookout.poll())
            if isinstance(seen, FollowResult) and isinstance(seen.error, EtlworksUnauthorized):
                # The password may have been changed since the connection was read.
                self.log.warning("%s Reading the connection again.", seen.detail)
                del self.hook
                seen = self.hook.client.run(lookout.poll())
        if lookout.trouble != before:
            self._keep_trouble(context, lookout.trouble)
        return seen.redacted(self.hook.settings.secrets) if isinstance(seen, FollowResult) else seen

    def _trouble_before(self, context: Context) -> ReadOutage:
        """Return the trouble of earlier pokes: a task that is rescheduled remembers nothing itself."""
        from airflow_provider_etlworks.runs.find import ReadOutage

        store = task_state_store(context) if self.reschedule else None
        kept = store.get(_TROUBLE_KEY) if store is not None else None
        return ReadOutage(**kept) if isinstance(kept, dict) else ReadOutage()

    def _keep_trouble(self, context: Context, trouble: ReadOutage) -> None:
        from dataclasses import asdict

        store = task_state_store(context) if self.reschedule else None
        if store is not None:
            store.set(_TROUBLE_KEY, asdict(trouble))

    def _defer(self, context: Context) -> None:
        from airflow_provider_etlworks.triggers.sensor import EtlworksFlowSensorTrigger
        from airflow_provider_etlworks.worker.deadline import trigger_timeout

        awaited = self._awaited(context)
        seconds, _ = self._limit
        now = self.hook.client.clock.time()
        start = context["ti"].start_date
        deadline = (start.timestamp() if start is not None else now) + seconds
        self.defer(
            trigger=EtlworksFlowSensorTrigger(
                flow_id=awaited.flow_id,
                audit_id=awaited.audit_id,
                message_uuid=awaited.message_uuid,
                since=None if awaited.since is None else awaited.since.isoformat(),
                etlworks_conn_id=self.etlworks_conn_id,
                poll_interval=self.poke_interval,
                deadline=deadline,
                patience=self.patience,
                repetition_grace=self.repetition_grace,
            ),
            method_name="execute_complete",
            timeout=trigger_timeout(deadline, now),
        )

    @property
    def _limit(self) -> tuple[float, bool]:
        """Seconds that a deferred wait may take, and whether it is ``execution_timeout`` that sets them."""
        if self.execution_timeout is not None and self.execution_timeout.total_seconds() < self.timeout:
            return self.execution_timeout.total_seconds(), True
        return float(self.timeout), False

    # --- After it -------------------------------------------------------------------------------------------------

    def _finish(self, context: Context, followed: FollowResult) -> dict[str, Any]:
        """Turn the end of the wait into the task's end: one place for all modes."""
        from airflow_provider_etlworks.client.errors import EtlworksExecutionFailed, EtlworksLostTouch
        from airflow_provider_etlworks.runs.follow import Ending
        from airflow_provider_etlworks.runs.outcome import Outcome, error_text, failure_message, outcome_of, task_result

        execution = followed.execution
        if execution is not None:
            self._tell(context, execution)
        if followed.ending is Ending.DEADLINE:
            seconds, by_airflow = self._limit
            limit = f"{'execution_timeout' if by_airflow else 'timeout'} ({seconds:.0f} s)"
            text = f"{self._awaited(context)} had not ended when {limit} was over. {followed.detail}".strip()
            raise AirflowTaskTimeout(text) if by_airflow else AirflowSensorTimeout(text)
        if followed.ending is not Ending.FINISHED or execution is None:
            raise EtlworksLostTouch(f"{self._awaited(context)} cannot be read: {followed.detail}")
        url = self.hook.execution_url(execution.flow_id, execution.audit_id)
        outcome = outcome_of(execution, fail_on_warning=self.fail_on_warning)
        if outcome is not Outcome.SUCCESS:
            failed = EtlworksExecutionFailed(failure_message(execution, url), execution=execution)
            # Airflow would take any other error for a look that failed, and look on with silent_fail.
            if outcome is Outcome.CANCELED or self.silent_fail:
                raise AirflowFailException(str(failed)) from failed
            raise failed
        if execution.status == "warning":
            self.log.warning("Run %s ended with a warning. %s", execution.audit_id, error_text(execution))
        self.log.info("Run %s of flow %s ended: %s. %s", execution.audit_id, execution.flow_id, execution.status, url)
        return task_result(execution, url)

    def _tell(self, context: Context, execution: Execution) -> None:
        """Push the run's audit id and its link, as soon as there is one."""
        if self._pushed == execution.audit_id:
            return
        self._pushed = execution.audit_id
        url = self.hook.execution_url(execution.flow_id, execution.audit_id)
        context["ti"].xcom_push(key=AUDIT_ID_KEY, value=execution.audit_id)
        context["ti"].xcom_push(key=EXECUTION_LINK_KEY, value=url)

    @contextmanager
    def _skipping_where_asked(self) -> Iterator[None]:
        """Skip the task where ``soft_fail`` or ``never_fail`` asks for it: Airflow does so in some modes only."""
        from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksExecutionFailed

        try:
            yield
        except (AirflowSensorTimeout, AirflowTaskTimeout, AirflowFailException, EtlworksError) as error:
            is_failure = not isinstance(error, EtlworksError) or isinstance(error, EtlworksExecutionFailed)
            if self.never_fail or (self.soft_fail and is_failure):
                raise AirflowSkipException(str(error)) from error
            raise


def _beginning(context: Context) -> Any:
    """Return the moment from which a DAG run's data is; on Airflow 3 not every run has a data interval."""
    run = context["dag_run"]
    return context.get("data_interval_start") or context.get("logical_date") or run.start_date
