"""A promotion from one Etlworks to another as one task group: export, preview, approve, import, check, roll back."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_etlworks.compat import (
    REJECTED_BY_KEY,
    AirflowFailException,
    AirflowSkipException,
    BaseOperator,
    TaskGroup,
    approval_task,
    task_states,
)
from airflow_provider_etlworks.operators.base import HookMixin, reports_failure
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from airflow_provider_etlworks.operators.promotion import (
    EtlworksExportOperator,
    EtlworksImportOperator,
    EtlworksImportPreviewOperator,
)
from airflow_provider_etlworks.operators.schedule import EtlworksScheduleOperator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from airflow.sdk import Context

SMOKE_TIMEOUT = 3600.0
"""Seconds after which a smoke run is stopped by default: schedules may be paused all that time."""


def promote_flows(
    *,
    source_conn_id: str,
    target_conn_id: str,
    path: str,
    flow_ids: Sequence[int | str] | str | int | None = None,
    flow_names: Sequence[str] | str | None = None,
    tags: Sequence[str] | str | None = None,
    include_connections: bool = False,
    backup_path: str | None = None,
    approval: bool = True,
    approval_subject: str | None = None,
    approval_timeout: timedelta | None = None,
    approval_assigned_users: Any = None,
    approval_notifiers: Any = (),
    approval_fail_on_reject: bool = True,
    pause_schedules: bool | Sequence[int] = False,
    smoke_flow_name: str | None = None,
    smoke_parameters: Mapping[str, Any] | None = None,
    smoke_timeout: float | timedelta | None = SMOKE_TIMEOUT,
    group_id: str = "promote_flows",
    **task_group: Any,
) -> TaskGroup:
    """
    Promote flows from one Etlworks to another, with a person in the loop and a way back.

    Makes a task group of these tasks, to be used in a DAG like any other, as in ``a >> promote_flows(…) >> b``:

    ==================== =======================================================================================
    ``export_flows``     writes the bundle to ``path``
    ``preview_import``   asks the target what would change
    ``approve_import``   shows that to a person, and waits. Only with ``approval``
    ``pause_schedules``  pauses the target's schedules of these flows. Only with ``pause_schedules``
    ``import_flows``     exports what it will overwrite to ``backup_path``, then imports the bundle that was approved,
                         byte for byte
    ``smoke_test``       runs ``smoke_flow_name`` in the target. Only if it is given
    ``roll_back``        imports the backup if the smoke run failed, or the import stopped half-way; else skipped
    ``resume_schedules`` resumes what was paused, whatever happened. Only with ``pause_schedules``
    ``report_result``    green if the flows are promoted; otherwise red. Its log says what happened
    ==================== =======================================================================================

    The group's end is ``report_result``: what follows the group runs only if the flows are promoted. Its log says what
    happened, also if a task before it failed. A rejection is red and names who rejected; with
    ``approval_fail_on_reject=False``, everything after it is skipped, and the DAG run is green. A time-out of the
    approval is red. In both cases nothing is imported. An approval that has ended is not asked for again by a retry:
    clear it.

    An import in doubt is not rolled back, since it may still be going on: a person has to check the target. New flows
    stay after a roll-back, since Etlworks documents no call that deletes a flow; they are named.

    :param source_conn_id: the Airflow connection of the Etlworks to export from. (templated)
    :param target_conn_id: the Airflow connection of the Etlworks to import into. (templated)
    :param path: the path of the bundle: one that all workers share, or a URL of an object store. The bundle is
        sensitive, and is not removed. Best with ``{{ run_id }}`` in it, so that no run replaces another's bundle or
        backup. (templated)
    :param flow_ids: ids of the flows to promote, in the source. Several selections add up. (templated)
    :param flow_names: their names, exactly. (templated)
    :param tags: all flows with any of these tags. (templated)
    :param include_connections: whether the connections that the flows use are promoted too, and overwrite those of the
        same name in the target, credentials included. Without, flows use the target's own connections.
    :param backup_path: the path of the backup. Default: ``path`` with ``.backup`` added. (templated)
    :param approval: whether a person is asked. Needs Airflow 3.1 or later.
    :param approval_subject: the headline of the question. (templated)
    :param approval_timeout: how long to wait for an answer. Default: without limit.
    :param approval_assigned_users: who may answer, as ``ApprovalOperator`` takes it: ``{"id": …, "name": …}``, or a
        list of these. Default: everybody who may edit the DAG run.
    :param approval_notifiers: Airflow notifiers that ask somebody for the answer.
    :param approval_fail_on_reject: whether a rejection fails the DAG run. ``False`` skips the rest instead.
    :param pause_schedules: ``True`` for the schedules of all flows in the target that have the name of a promoted one;
        or the ids of the target's schedules. ``True`` lists them, which takes the role Editor in the target.
    :param smoke_flow_name: the flow to run in the target after the import: a promoted one, or one that checks them.
        (templated)
    :param smoke_parameters: its parameters. (templated)
    :param smoke_timeout: seconds (or a ``timedelta``) after which its run is stopped, and counts as failed;
        ``None`` means no limit.
    :param group_id: the group's id, which is also part of its tasks' ids.
    :param task_group: what else Airflow's ``TaskGroup`` takes, such as ``default_args`` with ``retries``.
    :return: the task group. The XCom of its ``report_result`` is ``{"flow_names", "sha256", "path", "backup_path",
        "approved_by", "smoke_run"}``; the last is what :class:`EtlworksRunFlowOperator` returns, or ``None``.
    :raises ValueError: the arguments cannot work together, or a person is to be asked and this Airflow cannot do that.
    """
    if smoke_flow_name is None and smoke_parameters is not None:
        raise ValueError(f"{group_id}: smoke_parameters need a smoke_flow_name.")
    if source_conn_id == target_conn_id:
        raise ValueError(f"{group_id}: source_conn_id and target_conn_id are both {source_conn_id!r}.")
    backup_path = backup_path or f"{path}.backup"
    with TaskGroup(group_id, **task_group) as group:
        export = EtlworksExportOperator(
            task_id="export_flows",
            path=path,
            flow_ids=flow_ids,
            flow_names=flow_names,
            tags=tags,
            include_connections=include_connections,
            etlworks_conn_id=source_conn_id,
        )
        preview = EtlworksImportPreviewOperator(
            task_id="preview_import",
            path=_result_of(export, "path"),
            expected_sha256=_result_of(export, "sha256"),
            note=_what_follows(smoke_flow_name),
            etlworks_conn_id=target_conn_id,
        )
        approve = pause = resume = smoke_test = None
        if approval:
            approve = _approval(
                preview,
                subject=approval_subject or f"Import flows from {source_conn_id} into {target_conn_id}?",
                timeout=approval_timeout,
                assigned_users=approval_assigned_users,
                notifiers=approval_notifiers,
                fail_on_reject=approval_fail_on_reject,
            )
        if pause_schedules is not False:
            pause, resume = _schedule_tasks(export, target_conn_id, pause_schedules)
        import_flows = EtlworksImportOperator(
            task_id="import_flows",
            path=_result_of(preview, "path"),
            expected_sha256=_result_of(preview, "sha256"),
            backup_path=backup_path,
            etlworks_conn_id=target_conn_id,
        )
        if smoke_flow_name is not None:
            smoke_test = EtlworksRunFlowOperator(
                task_id="smoke_test",
                flow_name=smoke_flow_name,
                parameters=smoke_parameters,
                timeout=smoke_timeout,
                # A run that is already going began before the import, and checks nothing.
                on_already_running="wait",
                etlworks_conn_id=target_conn_id,
            )
        roll_back = PromotionRollBackOperator(
            task_id="roll_back",
            path=backup_path,
            import_task_id=import_flows.task_id,
            etlworks_conn_id=target_conn_id,
        )
        report = PromotionReportOperator(
            task_id="report_result",
            etlworks_conn_id=target_conn_id,
            import_task_id=import_flows.task_id,
            roll_back_task_id=roll_back.task_id,
            approval_task_id=approve.task_id if approve else None,
            smoke_task_id=smoke_test.task_id if smoke_test else None,
            fail_on_reject=approval_fail_on_reject,
        )
        _chain(export, preview, approve, pause, import_flows, smoke_test, report)
        _chain(import_flows, roll_back, report)
        _chain(smoke_test, roll_back, resume)
        _chain(smoke_test or import_flows, resume)
    return group


def _chain(*tasks: BaseOperator | None) -> None:
    """Let each task follow the one before it; ``None`` is left out."""
    for upstream, downstream in pairwise(task for task in tasks if task is not None):
        upstream >> downstream


def _result_of(task: BaseOperator, name: str) -> str:
    """Return the template for one key of a task's result."""
    return f"{{{{ ti.xcom_pull(task_ids='{task.task_id}')['{name}'] }}}}"


def _what_follows(smoke_flow_name: str | None) -> str:
    """Say in Markdown what happens after the import."""
    if smoke_flow_name is None:
        return "If the import stops half-way, what it has overwritten is imported again from the backup."
    return (
        f"After the import, the flow “{smoke_flow_name}” runs as a smoke test. If it fails, or the import stops "
        "half-way, what was overwritten is imported again from the backup."
    )


def _approval(preview: EtlworksImportPreviewOperator, **arguments: Any) -> BaseOperator:
    try:
        return approval_task(
            task_id="approve_import",
            body=_result_of(preview, "markdown"),
            # An answer is final: a retry would ask the person again.
            retries=0,
            **arguments,
        )
    except ImportError as error:
        raise ValueError(
            f"A person can approve in Airflow 3.1 or later, with the package "
            f"apache-airflow-providers-standard, which are not available here ({error}). Set approval=False to promote "
            "without asking, or do the approval outside of this group."
        ) from error


class PromotionPauseOperator(EtlworksScheduleOperator):
    """
    Pauses the schedules of all flows that have the name of an exported flow.

    :param export_task_id: the task that exported them, from another Etlworks in which they have other ids.
    """

    def __init__(self, *, export_task_id: str, **kwargs: Any) -> None:
        super().__init__(action="pause", flow_ids=[], **kwargs)
        self.export_task_id = export_task_id

    @reports_failure
    def execute(self, context: Context) -> list[int]:
        """Find the flows in the target, and pause their schedules."""
        from airflow_provider_etlworks.worker.promote import flow_ids_named

        names = context["ti"].xcom_pull(task_ids=self.export_task_id)["flow_names"]
        self.flow_ids = flow_ids_named(set(names), self.hook, self.log)
        return super().execute(context)


def _schedule_tasks(
    export: EtlworksExportOperator, etlworks_conn_id: str, schedules: bool | Sequence[int]
) -> tuple[BaseOperator, BaseOperator]:
    """Return the setup that pauses schedules, and the teardown that resumes what it paused."""
    pause: EtlworksScheduleOperator
    if schedules is True:
        pause = PromotionPauseOperator(
            task_id="pause_schedules", export_task_id=export.task_id, etlworks_conn_id=etlworks_conn_id
        )
    else:
        pause = EtlworksScheduleOperator(
            task_id="pause_schedules", action="pause", schedule_ids=schedules, etlworks_conn_id=etlworks_conn_id
        )
    resume = EtlworksScheduleOperator(
        task_id="resume_schedules", action="resume", schedule_ids=pause.output, etlworks_conn_id=etlworks_conn_id
    )
    return pause.as_setup(), resume.as_teardown(setups=pause, on_failure_fail_dagrun=True)


class PromotionRollBackOperator(EtlworksImportOperator):
    """
    Imports the backup that an import made, if that import took place and its flows do not work.

    :param import_task_id: the import.
    """

    _about = "The roll-back"

    def __init__(self, *, import_task_id: str, **kwargs: Any) -> None:
        # The rule is also met if nothing was imported at all: then the task skips itself.
        super().__init__(allow_same_instance=True, trigger_rule="one_failed", **kwargs)
        self.import_task_id = import_task_id

    @reports_failure
    def execute(self, context: Context) -> dict[str, Any]:
        """Import the backup, or skip."""
        imported = self._import_to_undo(context)
        restored: list[str] = []
        if imported["backup_path"] is not None:
            self.path, self.expected_sha256 = imported["backup_path"], imported["backup_sha256"]
            restored = super().execute(context)["flow_names"]
        left = [name for name in imported["flow_names"] if name not in restored]
        if left:
            self.log.warning("New flows stay: %s. Etlworks documents no call that deletes a flow.", left)
        return {"path": imported["backup_path"], "restored": restored, "left": left}

    def _import_to_undo(self, context: Context) -> dict[str, Any]:
        from airflow_provider_etlworks.worker.promote import IMPORT_FAILED_KEY

        # Without the current state an XCom proves nothing: it may be left of an earlier promotion in a DAG run that was
        # cleared since.
        state = task_states(context, [self.import_task_id])[self.import_task_id]
        key = {"success": "return_value", "failed": IMPORT_FAILED_KEY}.get(state or "")
        imported = context["ti"].xcom_pull(task_ids=self.import_task_id, key=key) if key else None
        if isinstance(imported, dict):
            return imported
        if state == "success":
            raise AirflowFailException(
                f"{self.import_task_id} was marked as success, so it is not known here what it imported. If there is a "
                f"backup at {self.path}, import it with an EtlworksImportOperator."
            )
        raise AirflowSkipException("No import is known to have taken place, so there is nothing to roll back.")


class PromotionReportOperator(HookMixin, BaseOperator):
    """
    Ends a promotion: green if the flows are promoted, otherwise red. It says what happened.

    :param etlworks_conn_id: the target, for the report of a failure.
    :param import_task_id: the import.
    :param roll_back_task_id: the roll-back.
    :param approval_task_id: the approval; ``None`` if there is none.
    :param smoke_task_id: the smoke run; ``None`` if there is none.
    :param fail_on_reject: whether a rejection fails the task instead of skipping it.
    """

    _about = "The promotion"

    def __init__(
        self,
        *,
        etlworks_conn_id: str,
        import_task_id: str,
        roll_back_task_id: str,
        approval_task_id: str | None,
        smoke_task_id: str | None,
        fail_on_reject: bool = True,
        **kwargs: Any,
    ) -> None:
        # It runs whatever happened before, to say what that was.
        super().__init__(trigger_rule="all_done", **kwargs)
        self.etlworks_conn_id = etlworks_conn_id
        self.import_task_id = import_task_id
        self.roll_back_task_id = roll_back_task_id
        self.approval_task_id = approval_task_id
        self.smoke_task_id = smoke_task_id
        self.fail_on_reject = fail_on_reject

    @reports_failure
    def execute(self, context: Context) -> dict[str, Any]:
        """Return what was promoted, or fail and say what happened instead."""
        last = self.smoke_task_id or self.import_task_id
        states = task_states(context, [self.import_task_id, self.roll_back_task_id, last])
        culprit = self.import_task_id if states[self.import_task_id] == "failed" else last
        if states[self.roll_back_task_id] == "success":
            raise AirflowFailException(self._failure(culprit, self._result_of(context, self.roll_back_task_id)))
        if states[self.roll_back_task_id] == "failed" and states[last] != "success":
            self._fail_without_roll_back(context, culprit, states)
        if states[last] != "success":
            self._end_without_import(context, culprit, states)
        imported = self._result_of(context, self.import_task_id) or {}
        self.log.info(
            "Promoted %s from %s. Backup: %s.",
            ", ".join(imported.get("flow_names") or ["the bundle"]),
            imported.get("path"),
            imported.get("backup_path") or "none",
        )
        return {
            **{name: imported.get(name) for name in ("flow_names", "sha256", "path", "backup_path")},
            "approved_by": self._approver(context),
            "smoke_run": self._result_of(context, self.smoke_task_id),
        }

    def _fail_without_roll_back(self, context: Context, culprit: str, states: Mapping[str, str | None]) -> NoReturn:
        key = "return_value" if states[self.import_task_id] == "success" else "import_failed"
        imported = context["ti"].xcom_pull(task_ids=self.import_task_id, key=key)
        backup = imported.get("backup_path") if isinstance(imported, dict) else None
        raise AirflowFailException(
            f"The flows are not promoted: {culprit} failed, and so did {self.roll_back_task_id}; their logs say why. "
            "The target may have the new flows, the old ones, or some of each. "
            f"The backup: {backup or 'none is known'}."
        )

    def _end_without_import(self, context: Context, culprit: str, states: Mapping[str, str | None]) -> NoReturn:
        """Say why nothing was imported, or that it is not known whether anything was."""
        rejected = None
        if self.approval_task_id is not None and states[self.import_task_id] != "failed":
            rejected = context["ti"].xcom_pull(task_ids=self.approval_task_id, key=REJECTED_BY_KEY)
        if rejected is not None:
            text = f"Rejected by {rejected}, nothing was imported."
            if self.fail_on_reject:
                raise AirflowFailException(text)
            self.log.warning("%s", text)
            raise AirflowSkipException(text)
        if states[culprit] == "failed":
            raise AirflowFailException(f"The flows are not promoted: {culprit} failed; its log says why.")
        raise AirflowFailException("Nothing was imported: a task before the import did not succeed; its log says why.")

    @staticmethod
    def _failure(culprit: str | None, rolled_back: Mapping[str, Any]) -> str:
        restored, left = rolled_back["restored"], rolled_back["left"]
        parts = [f"The flows are not promoted: {culprit} failed; its log says why."]
        if restored:
            parts.append(f"Rolled back from {rolled_back['path']}: {', '.join(restored)}.")
        if left:
            parts.append(
                f"New, and perhaps still there, as Etlworks documents no call that deletes a flow: {', '.join(left)}."
            )
        return " ".join(parts)

    def _approver(self, context: Context) -> str | None:
        answer = self._result_of(context, self.approval_task_id)
        person = answer.get("responded_by_user") if isinstance(answer, dict) else None
        return person.get("name") if isinstance(person, dict) else None

    @staticmethod
    def _result_of(context: Context, task_id: str | None) -> Any:
        return None if task_id is None else context["ti"].xcom_pull(task_ids=task_id)
