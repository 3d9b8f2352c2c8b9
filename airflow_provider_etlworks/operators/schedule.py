"""The operator that pauses and resumes Etlworks's own schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import BaseOperator
from airflow_provider_etlworks.operators.base import HookMixin, reports_failure
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context, XComArg

_ACTIONS = ("pause", "resume")


class EtlworksScheduleOperator(HookMixin, BaseOperator):
    """
    Pause or resume schedules of Etlworks.

    Around an import, as setup and teardown, it keeps flows from starting half-way. It resumes exactly the schedules
    that it paused, also if a task in between fails::

        pause = EtlworksScheduleOperator(task_id="pause", action="pause", flow_ids=[12346])
        resume = EtlworksScheduleOperator(task_id="resume", action="resume", schedule_ids=pause.output)
        pause.as_setup() >> import_flows >> resume.as_teardown(setups=pause, on_failure_fail_dagrun=True)

    All schedules are tried, also after one has failed. A pause that fails resumes what it had paused, since Airflow
    skips the teardown of a setup that failed. A resume that fails leaves on what it could resume.

    Give exactly one of ``schedule_ids`` and ``flow_ids``. Each takes a list, one id, or the text of a list. Whether a
    schedule was on before is read from the list of all schedules, which takes the role Editor. If it cannot be read,
    ``flow_ids`` cannot be used; with ``schedule_ids``, all of them count as changed.

    :param action: ``"pause"`` or ``"resume"``.
    :param schedule_ids: ids of the schedules. (templated)
    :param flow_ids: ids of flows; it selects all their schedules. (templated)
    :param etlworks_conn_id: the Airflow connection. (templated)
    :return: the ids of the schedules that it paused or resumed, without those that already were. From Airflow 3.3 on,
        schedules that an earlier try changed count too; before, the log warns that they do not.
    :raises AirflowFailException: an argument or the connection is not valid, or the schedules cannot be listed:
        another try would not help.
    :raises EtlworksError: not all schedules could be paused or resumed; the message names each of them.
    """

    template_fields: Sequence[str] = ("schedule_ids", "flow_ids", "etlworks_conn_id")
    ui_color = "#f7ecd7"
    ui_fgcolor = "#5b430b"
    _about = "The change of schedules"

    def __init__(
        self,
        *,
        action: str,
        schedule_ids: Sequence[int | str] | str | int | XComArg | None = None,
        flow_ids: Sequence[int | str] | str | int | XComArg | None = None,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.action = action
        self.schedule_ids = schedule_ids
        self.flow_ids = flow_ids
        self.etlworks_conn_id = etlworks_conn_id
        if action not in _ACTIONS:
            raise ValueError(f"{self.task_id}: action is {action!r}; it is {' or '.join(map(repr, _ACTIONS))}.")
        if (schedule_ids is None) == (flow_ids is None):
            given = "both are" if flow_ids is not None else "neither is"
            raise ValueError(f"{self.task_id}: give exactly one of schedule_ids and flow_ids; {given} given.")

    @reports_failure
    def execute(self, context: Context) -> list[int]:
        """Pause or resume the schedules."""
        from airflow_provider_etlworks.worker.switch_schedules import SwitchSchedulesTask

        return SwitchSchedulesTask(self, context).run()
