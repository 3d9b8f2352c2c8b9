"""The sensor that waits for a flow's run, whoever starts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.values import parse_seconds
from airflow_provider_etlworks.compat import BaseSensorOperator, conf
from airflow_provider_etlworks.links import EtlworksExecutionLink
from airflow_provider_etlworks.operators.base import HookMixin, reports_failure
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_REPETITION_GRACE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from airflow.sdk import Context

    from airflow_provider_etlworks.compat import PokeReturnValue
    from airflow_provider_etlworks.worker.wait_for_run import WaitForRunTask


class EtlworksFlowExecutionSensor(HookMixin, BaseSensorOperator):
    """
    Wait for a run of a flow that Etlworks, a person or another task starts.

    The run is the one with ``audit_id``, the one that a message to a listener started (``message_uuid``), or else the
    newest one that started at or after ``since``. The task succeeds if the run ends with ``success``, or with
    ``warning`` unless ``fail_on_warning`` is set; it fails at once on ``error`` and ``canceled``. If Etlworks itself
    repeats the run, the last attempt counts. A failed poll never counts as the run's failure.

    The modes ``poke`` and ``reschedule``, and ``deferrable``, have the same result. With ``soft_fail`` the task is
    skipped if the run ended badly or the time is over, with ``never_fail`` whenever it would fail, in each mode and in
    each Airflow. With ``silent_fail`` polling goes on after a poll that would end the wait, such as a refused one
    (403); not while deferred.

    :param flow_id: the flow. (templated)
    :param audit_id: the run's audit id. (templated)
    :param message_uuid: the id that a listener answered with. (templated)
    :param since: ISO 8601 text or a datetime; without a zone it is UTC. A run that started before it never counts, even
        if it ends later. Default: the start of the data interval, else the logical date, else the start of the DAG run.
        (templated)
    :param fail_on_warning: whether a run that ends with ``warning`` fails the task. Default ``False``.
    :param deferrable: wait in the triggerer, without holding a worker slot. Default: Airflow's
        ``[operators] default_deferrable``. A deferred task is polled every ``poke_interval``, an old run less often;
        ``mode``, ``exponential_backoff`` and ``max_wait`` have no effect then.
    :param patience: seconds (or a ``timedelta``) for which the status may be unreadable before the task fails.
        Default 1800. With ``mode="reschedule"``, Airflow before 3.3 cannot store since when it is unreadable; only the
        sensor's ``timeout`` ends such a wait there.
    :param repetition_grace: seconds (or a ``timedelta``) after the ``error`` of a schedule's run in which Etlworks may
        still repeat it. If the schedule has "Retry on failure", make it longer than its delay between retries.
        Default 10.
    :param etlworks_conn_id: the Airflow connection. (templated)
    :param kwargs: those of every sensor: ``poke_interval`` (60 s), ``timeout`` (7 days, counted from the first start),
        ``mode``, ``soft_fail`` and so on.
    :return: ``{"flow_id", "audit_id", "status", "started_at", "ended_at", "duration_seconds", "records", "url"}``, as
        ``EtlworksRunFlowOperator`` returns it. The audit id is also the XCom ``audit_id``.
    :raises EtlworksExecutionFailed: the run ended badly.
    :raises AirflowFailException: the run was canceled, or an argument or the connection is not valid: another try would
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
        patience: float | timedelta = DEFAULT_PATIENCE,
        repetition_grace: float | timedelta = DEFAULT_REPETITION_GRACE,
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
        self.patience = parse_seconds(f"{self.task_id}: patience", patience)
        self.repetition_grace = parse_seconds(f"{self.task_id}: repetition_grace", repetition_grace, allow_zero=True)
        self.etlworks_conn_id = etlworks_conn_id
        given = [name for name in ("audit_id", "message_uuid", "since") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{self.task_id}: give one of audit_id, message_uuid and since, not {given}.")
        self.selected_by = given[0] if given else None
        """The argument that selects the run. Its value may become ``None`` when it is rendered."""
        parse_seconds(f"{self.task_id}: poke_interval", self.poke_interval)

    @reports_failure
    def execute(self, context: Context) -> Any:
        """Wait for the run: on the worker, or in the triggerer after a first poll."""
        return self._new_task(context).run(super().execute)

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Poll once. Return ``False`` if the wait goes on, else the task's result."""
        return (self._execution or self._new_task(context)).poke()

    @reports_failure
    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """
        Finish after the triggerer has waited for the run.

        :param event: what the trigger reported.
        """
        return self._new_task(context).complete(event)

    @reports_failure
    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the triggerer, also if Airflow itself ended the wait."""
        with self._new_task(context).skip_if_asked():
            return super().resume_execution(next_method, next_kwargs, context)

    def _new_task(self, context: Context) -> WaitForRunTask:
        from airflow_provider_etlworks.worker.wait_for_run import WaitForRunTask

        execution = self._execution = WaitForRunTask(self, context)
        return execution
