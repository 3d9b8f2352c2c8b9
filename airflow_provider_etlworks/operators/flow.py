"""Operators that run Etlworks flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import conf
from airflow_provider_etlworks.links import AUDIT_ID_KEY
from airflow_provider_etlworks.operators.base import RunOperator, reports_failure
from airflow_provider_etlworks.operators.listener import EtlworksHttpListenerOperator
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from airflow.sdk import Context

    from airflow_provider_etlworks.worker.run_flow import RunFlowTask

__all__ = ["AUDIT_ID_KEY", "EtlworksHttpListenerOperator", "EtlworksRunFlowOperator"]

_ON_ALREADY_RUNNING = ("fail", "wait", "attach", "skip")
_ON_ETLWORKS_SCHEDULE = ("warn", "fail", "ignore")


class EtlworksRunFlowOperator(RunOperator):
    """
    Start an Etlworks flow and, by default, wait for its run to end.

    A run is started exactly once: if a start is in doubt, its run is searched for before anything is sent again.
    The task succeeds if the run ends with ``success``, or with ``warning`` unless ``fail_on_warning`` is set, and fails
    otherwise. ``canceled`` fails without an Airflow retry, since a person stopped the run. A status that cannot be read
    is never reported as the run's failure.

    Exactly one of ``flow_id`` and ``flow_name`` is given.

    :param flow_id: the flow to run. (templated)
    :param flow_name: the flow's name, exactly; its id is looked up first. (templated)
    :param parameters: the flow's parameters, a flat mapping. Numbers become their digits, booleans ``true`` or
        ``false``, dates and times ISO 8601, UUIDs and paths their text; lists, mappings, ``None`` and NaN are refused.
        (templated)
    :param parameter_names: the only names that ``parameters`` may have once it is rendered; a text is one name. Others
        fail the task before anything is sent. In Etlworks, parameters are global variables too, which can fill in the
        settings of connections: give it if ``parameters`` comes from ``dag_run.conf``. Default: all names.
    :param run_options: parameters of the start call's URL, for options such as parallel runs of one flow, whose names
        Etlworks does not document publicly. (templated)
    :param etlworks_conn_id: the Airflow connection. (templated)
    :param wait_for_completion: ``False`` returns as soon as Etlworks accepted the run.
    :param deferrable: wait in the triggerer, without holding a worker slot. Default: Airflow's
        ``[operators] default_deferrable``.
    :param poll_interval: seconds between two polls of a young run; an old run is polled less often, at least once a
        minute. A ``timedelta`` is taken, too, for this, ``timeout`` and ``patience``.
    :param timeout: seconds, counted from the task's start, after which the run is stopped and the task fails. Default:
        no limit.
    :param patience: seconds for which the run's status may be unreadable before the task fails. The run may then
        still be going, and the message says so.
    :param fail_on_warning: whether a run that ends with ``warning`` fails the task.
    :param on_already_running: what to do if another run of the flow is going, as Etlworks allows one at a time:
        ``"fail"``; ``"wait"`` until it ends (in the triggerer, if ``deferrable``), then start ours; ``"attach"``:
        follow that run, and never stop it; ``"skip"`` the task.
    :param on_etlworks_schedule: what to do if the flow also has a schedule in Etlworks that is on, since Etlworks does
        not start its scheduled runs while ours is going: ``"warn"`` in the log, ``"fail"`` before anything is started,
        or ``"ignore"`` and do not ask. It takes one request, and the role Editor; without it, ``"warn"`` says that it
        is not known.
    :param cancel_on_kill: whether the run is stopped when the task is killed, cleared or timed out. While the task is
        deferred, this takes Airflow 3.3 or later.
    :param log_lines: how many lines of the flow's own log are copied into the task's log when the run ends badly; 0 is
        none.
    :param durable: whether a retry after a lost worker follows the run that is already going. From Airflow 3.3 on it
        is certain; before, the task can only recognize the run by the server's history.
    :return: ``{"flow_id", "audit_id", "status", "started_at", "ended_at", "duration_seconds", "records", "url"}``:
        JSON-safe, times as ISO 8601 in UTC, ``None`` for what Etlworks does not say. The audit id is also the XCom
        ``audit_id``, set as soon as the run is accepted.
    :raises EtlworksExecutionFailed: the run ended badly.
    :raises AirflowFailException: the run was canceled, or an argument, the connection, its credentials or its user's
        role cannot work: another try would not help.
    :raises AirflowSkipException: another run is going, and ``on_already_running`` is ``"skip"``.
    :raises EtlworksAlreadyRunning: another run is going; nothing was started.
    :raises EtlworksStartUnknown: the start is in doubt, and no run can be matched to it. Airflow does not retry the
        task, since that might start a second run; a task that somebody clears starts one.
    :raises EtlworksExecutionTimeout: the run was still going after ``timeout``; it was asked to stop.
    :raises AirflowTaskTimeout: the same, if ``execution_timeout`` came first.
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
        parameter_names: Sequence[str] | str | None = None,
        run_options: Mapping[str, Any] | None = None,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        wait_for_completion: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = DEFAULT_POLL_INTERVAL,
        timeout: float | timedelta | None = None,
        patience: float | timedelta = DEFAULT_PATIENCE,
        fail_on_warning: bool = False,
        on_already_running: str = "fail",
        on_etlworks_schedule: str = "warn",
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
        self.parameter_names = (parameter_names,) if isinstance(parameter_names, str) else parameter_names
        self.run_options = run_options
        self.on_already_running = on_already_running
        self.on_etlworks_schedule = on_etlworks_schedule
        self.durable = durable
        self._check_arguments()

    @reports_failure
    def execute_when_free(self, context: Context, event: Any = None) -> dict[str, Any]:
        """
        Start the run after the triggerer has waited for the end of another one: ``on_already_running="wait"``.

        :param event: what the trigger reported about the other run.
        """
        return self._begin(self._new_task(context)).run_when_free(event)

    def _new_task(self, context: Context) -> RunFlowTask:
        from airflow_provider_etlworks.worker.run_flow import RunFlowTask

        return RunFlowTask(self, context)

    def _check_arguments(self) -> None:
        """Check what is known when the DAG is parsed. Templated fields are checked once they are rendered."""
        if (self.flow_id is None) == (self.flow_name is None):
            given = "both are" if self.flow_id is not None else "neither is"
            raise ValueError(f"{self.task_id}: give exactly one of flow_id and flow_name; {given} given.")
        names = self.parameter_names
        if names is not None and not (isinstance(names, (list, tuple, set, frozenset)) and all(map(_is_name, names))):
            raise ValueError(f"{self.task_id}: parameter_names is {names!r}; it is a list of names.")
        if self.on_already_running not in _ON_ALREADY_RUNNING:
            allowed = ", ".join(map(repr, _ON_ALREADY_RUNNING))
            raise ValueError(f"{self.task_id}: on_already_running is {self.on_already_running!r}; it is {allowed}.")
        if self.on_etlworks_schedule not in _ON_ETLWORKS_SCHEDULE:
            allowed = ", ".join(map(repr, _ON_ETLWORKS_SCHEDULE))
            raise ValueError(f"{self.task_id}: on_etlworks_schedule is {self.on_etlworks_schedule!r}; it is {allowed}.")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)
