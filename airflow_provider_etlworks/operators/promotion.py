"""Operators that move flows from one Etlworks to another: export, preview, import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import AirflowFailException, BaseOperator, task_state_store
from airflow_provider_etlworks.operators.base import HookMixin
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from airflow_provider_etlworks.bundles.import_once import BundleImport, Imported
    from airflow_provider_etlworks.bundles.transfer import OpenBundle
    from airflow_provider_etlworks.client.models import Flow
    from airflow_provider_etlworks.storage import StoredFile
    from airflow_provider_etlworks.worker.launch_record import ImportRecord, ImportRecordStore

IMPORT_FAILED_KEY = "import_failed"
"""XCom key under which an import that Etlworks refused, or carried out in part, tells what undoes it: the backup."""

_WHAT_TO_DO = (
    "Where they are the bundle's, mark this task as success. Where they are not, and nothing is still being imported, "
    "clear it to import once more."
)
# Things that an import's result names.
_MOST_ITEMS = 100
# Seconds by which the clocks of Airflow and Etlworks may differ.
_CLOCK_SKEW = 300.0


class _BundleOperator(HookMixin, BaseOperator):
    """What the three operators share: a bundle's path, and the connection."""

    ui_color = "#e3ecd8"
    ui_fgcolor = "#2f4a1d"

    def __init__(self, *, path: str, etlworks_conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.etlworks_conn_id = etlworks_conn_id


class EtlworksExportOperator(_BundleOperator):
    """
    Export flows as one bundle, into a file or an object store.

    The bundle is written in pieces, however large it is, to a temporary file beside ``path``, is checked, and is then
    moved into place: an export that breaks leaves an older bundle as it is. An answer that is no whole bundle (a page
    of HTML, nothing, one that is cut off) is refused. Beside the bundle, ``<path>.meta.json`` says where it comes from
    and what is in it. Local files are readable by their owner only, since a bundle is sensitive.

    Several selections add up; at least one is given. A flow that is selected twice is exported once.

    :param path: where the bundle goes: a local path, or a URL of an object store, with a connection id where
        ObjectStoragePath takes one, such as ``s3://aws_default@bucket/etlworks/bundle.json``. (templated)
    :param flow_ids: ids of flows; also a list that an upstream task returned, or its text. (templated)
    :param flow_names: names of flows, exactly. (templated)
    :param tags: all flows with any of these tags. (templated)
    :param include_connections: whether the connections that the flows use are in the bundle too. The older export API
        always includes them.
    :param etlworks_conn_id: the Airflow connection. (templated)
    :return: ``{"path", "sha256", "bytes", "flow_ids", "flow_names", "format"}``. ``format`` is ``"io"``, or ``"older"``
        where the server only has the older export API.
    :raises AirflowFailException: an argument or the connection cannot work, or the selection names a flow that is not
        there, names two, or is empty: another try would not help.
    :raises EtlworksReplyError: the answer is no bundle, or not a whole one.
    """

    template_fields: Sequence[str] = ("path", "flow_ids", "flow_names", "tags", "etlworks_conn_id")

    def __init__(
        self,
        *,
        path: str,
        flow_ids: Sequence[int | str] | str | int | None = None,
        flow_names: Sequence[str] | str | None = None,
        tags: Sequence[str] | str | None = None,
        include_connections: bool = True,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, etlworks_conn_id=etlworks_conn_id, **kwargs)
        self.flow_ids = flow_ids
        self.flow_names = flow_names
        self.tags = tags
        self.include_connections = include_connections
        if flow_ids is None and flow_names is None and tags is None:
            raise ValueError(f"{self.task_id}: give at least one of flow_ids, flow_names and tags.")

    def execute(self, context: Context) -> dict[str, Any]:
        """Export the flows."""
        from airflow_provider_etlworks.bundles.transfer import export_bundle
        from airflow_provider_etlworks.storage import stored_file
        from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error

        with fail_without_retry_on_config_error():
            file = stored_file("path", self.path)
            manifest = export_bundle(
                self.hook.bundle_client,
                self._selected_flows(),
                file,
                include_connections=self.include_connections,
                log=self.log,
            )
        self.log.info(
            "Exported %s flows to %s: %s bytes, SHA-256 %s.",
            len(manifest.flow_ids),
            file.path,
            manifest.size,
            manifest.sha256,
        )
        return {
            "path": file.path,
            "sha256": manifest.sha256,
            "bytes": manifest.size,
            "flow_ids": manifest.flow_ids,
            "flow_names": manifest.flow_names,
            "format": manifest.format,
        }

    def _selected_flows(self) -> list[Flow]:
        from airflow_provider_etlworks.client.flow_selection import select_flows
        from airflow_provider_etlworks.worker.arguments import parse_ids, parse_names

        return select_flows(
            list(self.hook.list_flows()),
            ids=[] if self.flow_ids is None else parse_ids("flow_ids", self.flow_ids),
            names=[] if self.flow_names is None else parse_names("flow_names", self.flow_names),
            tags=[] if self.tags is None else parse_names("tags", self.tags),
        )


class EtlworksImportPreviewOperator(_BundleOperator):
    """
    Ask an Etlworks what importing a bundle would change, and say it for people. Changes nothing.

    The raw answer is written to ``<path>.preview.json``, not into the XCom. Its shape is not documented by Etlworks:
    what can be read of it is told, what cannot is said to be unknown, and never taken for "nothing changes".

    :param path: the bundle, as :class:`EtlworksExportOperator` wrote it. (templated)
    :param expected_sha256: refuse a bundle with another SHA-256, before anything is sent. (templated)
    :param etlworks_conn_id: the Airflow connection of the target. (templated)
    :return: a dict of bounded size: ``path``, ``sha256``, ``preview_path``, ``format``; ``new``, ``replaced``,
        ``kept``, ``failed``, ``unclear`` and ``missing_others``: lists of ``{"kind", "name"}``, 50 of each at most;
        ``missing_connections``: names, 50 at most; ``counts``: the whole length of each of these lists, by its name;
        ``shape_known``: whether the answer could be read; and ``markdown``: all of it for people, 8,000 characters at
        most, with every name escaped.
    :raises AirflowFailException: an argument or the connection cannot work, there is no bundle, or it is another one
        than expected: another try would not help.
    """

    template_fields: Sequence[str] = ("path", "expected_sha256", "etlworks_conn_id")

    def __init__(
        self,
        *,
        path: str,
        expected_sha256: str | None = None,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, etlworks_conn_id=etlworks_conn_id, **kwargs)
        self.expected_sha256 = expected_sha256
        self._needs = _given(expected_sha256=expected_sha256)

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask for the preview."""
        from airflow_provider_etlworks.bundles.transfer import (
            PREVIEW_ENDING,
            introduction,
            open_bundle,
            preview_import,
        )
        from airflow_provider_etlworks.storage import stored_file
        from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error, parse_sha256

        with fail_without_retry_on_config_error():
            _check_rendered(self, self._needs)
            file = stored_file("path", self.path)
            with open_bundle(file, parse_sha256("expected_sha256", self.expected_sha256)) as bundle:
                raw = file.sibling(PREVIEW_ENDING)
                preview = preview_import(self.hook.client, self.hook.bundle_client, bundle, raw, log=self.log)
                markdown = preview.markdown(introduction(bundle, self.hook.settings), raw.path)
        if missing := preview.missing_connections:
            self.log.warning("%s connections are missing in the target.", len(missing))
        self.log.info("What the import would change:\n%s", markdown)
        return {
            "path": file.path,
            "sha256": bundle.inspected.sha256,
            "preview_path": raw.path,
            "format": bundle.inspected.format.value,
            **preview.summary(),
            "markdown": markdown,
        }


class EtlworksImportOperator(_BundleOperator):
    """
    Import a bundle, byte for byte, once.

    An import is never sent again where it may have been applied: where its answer is lost, the target's flows are
    looked at, and where they do not tell, the task fails for good and names both possibilities. So does a task that is
    tried again after its worker was lost in mid-import. To import after a look of your own, clear the task.

    :param path: the bundle, as :class:`EtlworksExportOperator` wrote it. (templated)
    :param expected_sha256: the SHA-256 that was approved; any other bundle is refused. It is checked before sending,
        and again over the very bytes that are sent. (templated)
    :param backup_path: first export, to here, what the import will overwrite: the target's flows with the names that
        are in the bundle, with the connections that they use if the bundle has connections. Without this backup nothing
        is imported. Nothing to overwrite is no error. (templated)
    :param allow_same_instance: import also into the very instance and tenant that the bundle comes from (a roll-back
        from a backup does), or where a bundle without its ``.meta.json`` does not say where it comes from.
    :param etlworks_conn_id: the Airflow connection of the target. (templated)
    :return: ``{"path", "sha256", "bytes", "format", "flow_ids", "flow_names", "items", "told_by", "backup_path",
        "backup_sha256"}``. ``flow_names`` are the bundle's, ``flow_ids`` the target's ids of the flows with these
        names, as far as known; ``items``: what the server said of each thing, 100 at most, as ``{"kind", "id", "name",
        "status"}``; ``told_by``: ``"answer"``, or ``"target"`` where the answer was lost and the target shows that it
        was applied; the backup's are ``None`` where none was asked for or nothing was there to overwrite. Where
        Etlworks answered that the import failed, in part or as a whole, ``{"backup_path", "backup_sha256",
        "flow_names"}`` is the XCom ``import_failed``.
    :raises AirflowFailException: another try would not help: an argument or the connection cannot work; the bundle is
        not the approved one, or comes from the target itself; Etlworks refused it, or imported only a part; or it
        cannot be told whether it was applied.
    :raises EtlworksError: nothing was imported, and another try may help.
    """

    template_fields: Sequence[str] = ("path", "expected_sha256", "backup_path", "etlworks_conn_id")

    def __init__(
        self,
        *,
        path: str,
        expected_sha256: str | None = None,
        backup_path: str | None = None,
        allow_same_instance: bool = False,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, etlworks_conn_id=etlworks_conn_id, **kwargs)
        self.expected_sha256 = expected_sha256
        self.backup_path = backup_path
        self.allow_same_instance = allow_same_instance
        self._needs = _given(expected_sha256=expected_sha256, backup_path=backup_path)

    def execute(self, context: Context) -> dict[str, Any]:
        """Import the bundle."""
        return self._import_once(context)

    def _import_once(self, context: Context) -> dict[str, Any]:
        from airflow_provider_etlworks.bundles.transfer import open_bundle
        from airflow_provider_etlworks.client.errors import EtlworksImportFailed, EtlworksImportUnknown
        from airflow_provider_etlworks.storage import stored_file
        from airflow_provider_etlworks.worker.arguments import fail_without_retry_on_config_error, parse_sha256

        with fail_without_retry_on_config_error():
            _check_rendered(self, self._needs)
            file = stored_file("path", self.path)
            backup_file = None if self.backup_path is None else stored_file("backup_path", self.backup_path)
            with open_bundle(file, parse_sha256("expected_sha256", self.expected_sha256)) as bundle:
                self._check_origin(bundle)
                try:
                    imported, note = self._import(context, bundle, backup_file)
                # Another try would import once more, or find the same.
                except EtlworksImportFailed as error:
                    raise AirflowFailException(str(error)) from error
                except EtlworksImportUnknown as error:
                    raise AirflowFailException(f"{error} {_WHAT_TO_DO}") from error
        return self._result(bundle, imported, note)

    # --- Before it ------------------------------------------------------------------------------------------------

    def _check_origin(self, bundle: OpenBundle) -> None:
        from airflow_provider_etlworks.client.errors import EtlworksConfigError

        if self.allow_same_instance:
            return
        settings, manifest = self.hook.settings, bundle.manifest
        if manifest is None:
            raise EtlworksConfigError(
                f"Nothing beside {bundle.path!r} says which instance it comes from, so it cannot be told from the "
                "target. Keep its .meta.json beside it, or set allow_same_instance=True."
            )
        if manifest.is_from(settings):
            raise EtlworksConfigError(
                f"The bundle comes from {manifest.host}, the very instance that it is to be imported into. Nothing was "
                "sent. If that is meant, or these are two tenants whose connections do not both name their tenant_id, "
                "set allow_same_instance=True."
            )

    # --- The import -----------------------------------------------------------------------------------------------

    def _import(
        self, context: Context, bundle: OpenBundle, backup_file: StoredFile | None
    ) -> tuple[Imported, ImportRecord]:
        """Carry the import out, unless an earlier try of this task did."""
        from airflow_provider_etlworks.bundles.import_once import BundleImport, flow_versions
        from airflow_provider_etlworks.bundles.transfer import back_up
        from airflow_provider_etlworks.client.errors import EtlworksImportFailed
        from airflow_provider_etlworks.worker.launch_record import ImportRecord, ImportRecordStore

        client, memory = self.hook.bundle_client, ImportRecordStore(task_state_store(context))

        def save_intent(sent: bool) -> None:
            if sent:
                memory.save(note)
            else:
                memory.clear()

        importing = BundleImport(
            call=bundle.import_call(),
            flow_names=bundle.flow_names,
            clock=client.clock,
            log=self.log,
            user=self.hook.settings.login,
            save_intent=save_intent,
        )
        if (earlier := self._earlier_import(context, memory, bundle, importing)) is not None:
            return earlier
        flows = list(self.hook.list_flows())
        if not memory.is_durable:
            self._check_target_untouched(context, importing, flows)
        backup = None
        if backup_file is not None:
            backup = back_up(client, bundle, flows, backup_file, log=self.log)
        note = ImportRecord(
            sha256=bundle.inspected.sha256,
            before=flow_versions(flows, bundle.flow_names),
            max_tries=context["ti"].max_tries,
            backup_path=backup_file.path if backup_file is not None and backup is not None else None,
            backup_sha256=backup.sha256 if backup is not None else None,
        )
        self.log.info(
            "Importing %s bytes, SHA-256 %s, into %s.",
            bundle.inspected.size,
            bundle.inspected.sha256,
            self.hook.settings.root_url,
        )
        with bundle.explained(importing.call):
            try:
                return client.run(importing.import_once(note.before)), note
            except EtlworksImportFailed:
                undo = {name: getattr(note, name) for name in ("backup_path", "backup_sha256")}
                context["ti"].xcom_push(key=IMPORT_FAILED_KEY, value={**undo, "flow_names": bundle.flow_names})
                raise

    def _earlier_import(
        self, context: Context, memory: ImportRecordStore, bundle: OpenBundle, importing: BundleImport
    ) -> tuple[Imported, ImportRecord] | None:
        """Return what an earlier try of this task imported, if it sent the same bundle and its end is not known."""
        note = memory.load()
        if note is None or note.sha256 != bundle.inspected.sha256:
            return None
        if note.max_tries != context["ti"].max_tries:
            self.log.warning("This task was cleared after it had sent its import. Importing once more.")
            return None
        self.log.warning("An earlier try sent this import. Looking in the target; nothing is repeated.")
        why = "the task ended before the answer came"
        return self.hook.bundle_client.run(importing.reconcile(note.before, why)), note

    def _check_target_untouched(self, context: Context, importing: BundleImport, flows: list[Flow]) -> None:
        """
        Make sure that no earlier try of this task has imported: all that can be done before Airflow 3.3.

        :raises EtlworksImportUnknown: one may have.
        """
        from airflow_provider_etlworks.bundles.import_once import named
        from airflow_provider_etlworks.client.errors import EtlworksImportUnknown

        began = context["dag_run"].start_date
        if context["ti"].try_number <= 1 or began is None:
            return
        since = began.timestamp() - _CLOCK_SKEW
        # Where it is not known which flows the bundle has, it may be any.
        names = set(importing.flow_names) or {flow.name for flow in flows}
        changed = [
            flow.name
            for flow in flows
            if flow.name in names and (flow.modified_at is None or flow.modified_at.timestamp() >= since)
        ]
        if changed:
            raise EtlworksImportUnknown(
                "An earlier try of this task may have imported the bundle, or not: since this DAG run began, these "
                f"flows changed in the target: {named(changed)}. Nothing was sent again. Look at them in Etlworks."
            )

    # --- After it -------------------------------------------------------------------------------------------------

    def _result(self, bundle: OpenBundle, imported: Imported, note: ImportRecord) -> dict[str, Any]:
        from airflow_provider_etlworks.bundles.import_once import named
        from airflow_provider_etlworks.bundles.report import ItemAction
        from airflow_provider_etlworks.client.errors import EtlworksError

        flow_ids: list[int] = []
        try:
            flows = list(self.hook.list_flows())
        except EtlworksError as error:
            self.log.warning("It was imported; which ids the flows have in the target cannot be read: %s", error)
        else:
            ids = {flow.name: flow.id for flow in flows}
            flow_ids = [ids[name] for name in bundle.flow_names if name in ids]
            if absent := [name for name in bundle.flow_names if name not in ids]:
                self.log.warning("Etlworks took the import, but does not list these flows: %s", named(absent))
        if missing := [item.label for item in imported.items if item.fate is ItemAction.MISSING]:
            self.log.warning("Etlworks took the import, and says that these are missing: %s", named(missing))
        self.log.info("Imported %s.", named(bundle.flow_names) if bundle.flow_names else bundle.path)
        return {
            "path": bundle.path,
            "sha256": bundle.inspected.sha256,
            "bytes": bundle.inspected.size,
            "format": bundle.inspected.format.value,
            "flow_ids": flow_ids,
            "flow_names": bundle.flow_names,
            "items": [
                {
                    "kind": item.kind,
                    "id": item.id,
                    "name": item.name[:120],
                    "status": item.status[:40] or item.fate.value,
                }
                for item in imported.items[:_MOST_ITEMS]
            ],
            "told_by": "answer" if imported.by_answer else "target",
            "backup_path": note.backup_path,
            "backup_sha256": note.backup_sha256,
        }


def _given(**arguments: Any) -> list[str]:
    return [name for name, value in arguments.items() if value is not None]


def _check_rendered(operator: Any, names: list[str]) -> None:
    """Refuse to go on without a check or a backup that was asked for, but that a template rendered to nothing."""
    from airflow_provider_etlworks.client.errors import EtlworksConfigError

    for name in names:
        if getattr(operator, name) is None:
            raise EtlworksConfigError(f"{name} was given, and is None once it is rendered. Did the task before run?")
