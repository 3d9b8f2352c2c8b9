"""What the promotion tasks do on a worker: export a bundle, preview its import, import it once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_etlworks.bundles.import_once import BundleImport, Imported, flow_versions, named
from airflow_provider_etlworks.bundles.preview import one_line
from airflow_provider_etlworks.bundles.transfer import (
    PREVIEW_ENDING,
    back_up,
    export_bundle,
    introduction,
    open_bundle,
    preview_import,
)
from airflow_provider_etlworks.client.errors import (
    EtlworksConfigError,
    EtlworksError,
    EtlworksImportFailed,
    EtlworksImportUnknown,
)
from airflow_provider_etlworks.client.flow_selection import select_flows
from airflow_provider_etlworks.compat import AirflowFailException, task_state_store
from airflow_provider_etlworks.runs.outage import OutageWait, perform, wait_out
from airflow_provider_etlworks.runs.types import PollPolicy
from airflow_provider_etlworks.storage import stored_file
from airflow_provider_etlworks.worker.arguments import (
    fail_without_retry_on_config_error,
    parse_ids,
    parse_names,
    parse_sha256,
)
from airflow_provider_etlworks.worker.launch_record import ImportRecord, ImportRecordStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from airflow.sdk import Context

    from airflow_provider_etlworks.bundles.transfer import OpenBundle
    from airflow_provider_etlworks.client.models import Flow
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
    from airflow_provider_etlworks.storage import StoredFile

T = TypeVar("T")

IMPORT_FAILED_KEY = "import_failed"
"""XCom key of an import that Etlworks refused, or carried out in part: the backup that undoes it."""

_WHAT_TO_DO = (
    "If they are the bundle's, mark this task as success. If they are not, and nothing is still being imported, clear "
    "the task to import once more."
)
_NOT_EXPORTED = "Nothing is exported yet"
# Items that an import's result lists.
_MOST_ITEMS = 100
_LONGEST_STATUS = 40
# Enough of a hash to compare by eye. The whole one is in the results, and is what the import checks.
_SHORT_HASH = 12
# Seconds by which the clocks of Airflow and Etlworks may differ.
_CLOCK_SKEW = 300.0


@dataclass(frozen=True)
class ExportTask:
    """One execution of an export. The fields are the operator's parameters, after rendering."""

    hook: EtlworksHook
    log: Log
    path: Any
    flow_ids: Any
    flow_names: Any
    tags: Any
    include_connections: bool

    def run(self) -> dict[str, Any]:
        """Export the flows, and return the operator's result."""
        with fail_without_retry_on_config_error():
            file = stored_file("path", self.path)
            flows = select_flows(
                wait_out_outage(self.hook, self.log, lambda: list(self.hook.list_flows()), _NOT_EXPORTED),
                ids=[] if self.flow_ids is None else parse_ids("flow_ids", self.flow_ids),
                names=[] if self.flow_names is None else parse_names("flow_names", self.flow_names),
                tags=[] if self.tags is None else parse_names("tags", self.tags),
            )
            export = partial(
                export_bundle,
                self.hook.bundle_client,
                flows,
                file,
                include_connections=self.include_connections,
                log=self.log,
            )
            manifest = wait_out_outage(self.hook, self.log, export, _NOT_EXPORTED)
        self.log.info(
            "Exported %s flows (%s) to %s: %s bytes, SHA-256 %s.",
            len(manifest.flow_ids),
            named(manifest.flow_names),
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


@dataclass(frozen=True)
class PreviewTask:
    """
    One execution of a preview. The fields are the operator's parameters, after rendering.

    :ivar required: the names of the parameters that were given, and so must not be ``None`` after rendering.
    """

    hook: EtlworksHook
    log: Log
    path: Any
    expected_sha256: Any
    note: str | None
    required: Sequence[str]

    def run(self) -> dict[str, Any]:
        """Ask for the preview, and return the operator's result."""
        with fail_without_retry_on_config_error():
            _check_rendered(self, self.required)
            file = stored_file("path", self.path)
            with open_bundle(file, parse_sha256("expected_sha256", self.expected_sha256)) as bundle:
                raw = file.sibling(PREVIEW_ENDING)
                ask = partial(preview_import, self.hook.client, self.hook.bundle_client, bundle, raw, log=self.log)
                preview = wait_out_outage(self.hook, self.log, ask, "The import is not previewed yet")
                closing = [self.note] if self.note else []
                closing += [f"SHA-256: {bundle.inspected.sha256[:_SHORT_HASH]}…"]
                markdown = preview.markdown(introduction(bundle, self.hook.settings), raw.path, closing)
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


@dataclass(frozen=True)
class ImportTask:
    """
    One execution of an import. The fields are the operator's parameters, after rendering.

    :ivar required: the names of the parameters that were given, and so must not be ``None`` after rendering.
    """

    context: Context
    hook: EtlworksHook
    log: Log
    path: Any
    expected_sha256: Any
    backup_path: Any
    allow_same_instance: bool
    required: Sequence[str]

    def run(self) -> dict[str, Any]:
        """Import the bundle, once over all tries of the task, and return the operator's result."""
        with fail_without_retry_on_config_error():
            _check_rendered(self, self.required)
            file = stored_file("path", self.path)
            backup_file = None if self.backup_path is None else stored_file("backup_path", self.backup_path)
            with open_bundle(file, parse_sha256("expected_sha256", self.expected_sha256)) as bundle:
                self._check_origin(bundle)
                try:
                    # An import that Etlworks may have processed never ends with a retryable error.
                    imported, record = wait_out_outage(
                        self.hook, self.log, lambda: self._import(bundle, backup_file), "Nothing is imported yet"
                    )
                # The next try would import once more, or fail in the same way.
                except EtlworksImportFailed as error:
                    raise AirflowFailException(str(error)) from error
                except EtlworksImportUnknown as error:
                    raise AirflowFailException(f"{error} {_WHAT_TO_DO}") from error
        return self._result(bundle, imported, record)

    # --- Before the import ----------------------------------------------------------------------------------------

    def _check_origin(self, bundle: OpenBundle) -> None:
        if self.allow_same_instance:
            return
        manifest = bundle.manifest
        if manifest is None:
            raise EtlworksConfigError(
                f"Nothing next to {bundle.path!r} says which instance it comes from; it may be the target. Keep its "
                ".meta.json next to it, or set allow_same_instance=True."
            )
        if manifest.is_from(self.hook.settings):
            raise EtlworksConfigError(
                f"The bundle comes from {manifest.host}, the very instance that it is to be imported into. Nothing was "
                "sent. If that is meant, or these are two tenants whose connections do not both name their tenant_id, "
                "set allow_same_instance=True."
            )

    def _check_target_untouched(self, importing: BundleImport, flows: Sequence[Flow]) -> None:
        """
        Make sure that no earlier try of this task has imported, as far as that is possible before Airflow 3.3.

        :raises EtlworksImportUnknown: an earlier try may have imported the bundle.
        """
        began = self.context["dag_run"].start_date
        if self.context["ti"].try_number <= 1 or began is None:
            return
        since = began.timestamp() - _CLOCK_SKEW
        # If it is not known which flows the bundle has, each flow may be in it.
        names = set(importing.flow_names) or {flow.name for flow in flows}
        changed = [
            flow.name
            for flow in flows
            if flow.name in names and (flow.modified_at is None or flow.modified_at.timestamp() >= since)
        ]
        if changed:
            raise EtlworksImportUnknown(
                "An earlier try of this task may have imported the bundle, or not: since this DAG run began, these "
                f"flows changed in the target: {named(changed)}. Nothing was sent again. Check them in Etlworks."
            )

    # --- The import -----------------------------------------------------------------------------------------------

    def _import(self, bundle: OpenBundle, backup_file: StoredFile | None) -> tuple[Imported, ImportRecord]:
        """Import the bundle, unless an earlier try of this task did."""
        client, store = self.hook.bundle_client, ImportRecordStore(task_state_store(self.context))
        earlier = store.load()

        def save_intent(sent: bool) -> None:
            if sent:
                store.save(record)
            elif earlier is not None:
                # This import certainly did nothing, but the earlier one may have: its record comes back.
                store.save(earlier)
            else:
                store.clear()

        importing = BundleImport(
            call=bundle.import_call(),
            flow_names=bundle.flow_names,
            clock=client.clock,
            log=self.log,
            user=self.hook.settings.login,
            definitions=lambda: bundle.definitions,
            save_intent=save_intent,
            secrets=self.hook.settings.secrets,
        )
        if earlier is not None and earlier.sha256 == bundle.inspected.sha256:
            if earlier.max_tries == self.context["ti"].max_tries:
                return self._resume(importing, earlier, store), earlier
            self.log.warning("This task was cleared after it had sent its import. Importing once more.")
        flows = list(self.hook.list_flows())
        if not store.is_durable:
            self._check_target_untouched(importing, flows)
        backup = None
        if backup_file is not None:
            backup = back_up(client, bundle, flows, backup_file, log=self.log)
        record = ImportRecord(
            sha256=bundle.inspected.sha256,
            before=flow_versions(flows, bundle.flow_names),
            max_tries=self.context["ti"].max_tries,
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
                imported = client.run(importing.import_once(record.before))
            except EtlworksImportFailed as error:
                store.save(replace(record, failure=str(error)))
                self._push_failure(record, bundle.flow_names)
                raise
        # Whatever fails from here on, such as storing the result, must not lead to a second import.
        store.save(replace(record, told_by=_told_by(imported)))
        return imported, record

    def _resume(self, importing: BundleImport, earlier: ImportRecord, store: ImportRecordStore) -> Imported:
        """Return what an earlier try of this task imported. That try sent the same bundle."""
        if earlier.failure is not None:
            self._push_failure(earlier, importing.flow_names)
            raise EtlworksImportFailed(earlier.failure)
        if earlier.told_by is not None:
            self.log.info("An earlier try imported this bundle. Nothing is sent again.")
            return Imported(by_answer=earlier.told_by == "answer")
        self.log.warning("An earlier try sent this import. Reconciling with the target; nothing is sent again.")
        why = "the task ended before the answer came"
        imported = self.hook.bundle_client.run(importing.reconcile(earlier.before, why))
        store.save(replace(earlier, told_by=_told_by(imported)))
        return imported

    def _push_failure(self, record: ImportRecord, flow_names: Sequence[str]) -> None:
        undo = {"backup_path": record.backup_path, "backup_sha256": record.backup_sha256}
        self.context["ti"].xcom_push(key=IMPORT_FAILED_KEY, value={**undo, "flow_names": flow_names})

    # --- After the import -----------------------------------------------------------------------------------------

    def _result(self, bundle: OpenBundle, imported: Imported, record: ImportRecord) -> dict[str, Any]:
        for remark in imported.remarks[:_MOST_ITEMS]:
            self.log.warning("Etlworks took the import, and remarks: %s", remark)
        self.log.info(
            "Imported %s from %s into %s. Backup: %s.",
            named(bundle.flow_names) if bundle.flow_names else "the bundle",
            bundle.path,
            self.hook.settings.root_url,
            record.backup_path or "none, as nothing was overwritten or none was asked for",
        )
        return {
            "path": bundle.path,
            "sha256": bundle.inspected.sha256,
            "bytes": bundle.inspected.size,
            "format": bundle.inspected.format.value,
            "flow_ids": self._flow_ids(bundle.flow_names),
            "flow_names": bundle.flow_names,
            "items": [
                {
                    "kind": item.kind,
                    "id": item.id,
                    "name": one_line(item.name),
                    "status": one_line(item.status, _LONGEST_STATUS) or item.action.value,
                }
                for item in imported.items[:_MOST_ITEMS]
            ],
            "told_by": _told_by(imported),
            "backup_path": record.backup_path,
            "backup_sha256": record.backup_sha256,
        }

    def _flow_ids(self, flow_names: Sequence[str]) -> list[int]:
        """Return the ids that the imported flows have in the target, as far as it lists them."""
        try:
            ids: Mapping[str, int] = {flow.name: flow.id for flow in self.hook.list_flows()}
        except EtlworksError as error:
            self.log.warning("The bundle was imported; the flows' ids in the target cannot be read: %s", error)
            return []
        if absent := [name for name in flow_names if name not in ids]:
            self.log.warning("Etlworks took the import, but does not list these flows: %s", named(absent))
        return [ids[name] for name in flow_names if name in ids]


def wait_out_outage(hook: EtlworksHook, log: Log, action: Callable[[], T], goal: str) -> T:
    """
    Do something, and do it again while Etlworks is busy or unreachable.

    :param hook: the hook of the task's connection.
    :param log: the task's log.
    :param action: what is done. One that fails with a retryable error may be repeated.
    :param goal: what waits for Etlworks, for messages.
    """
    client = hook.client
    outage = OutageWait(PollPolicy(), clock=client.clock, log=log, goal=goal)
    return client.run(wait_out(lambda: perform(action), outage))


def flow_ids_named(names: Collection[str], hook: EtlworksHook, log: Log) -> list[int]:
    """
    Return the ids of the flows that have these names.

    :param names: the names.
    :param hook: the hook of the task's connection.
    :param log: the task's log.
    """
    with fail_without_retry_on_config_error():
        flows = wait_out_outage(hook, log, lambda: list(hook.list_flows()), "No schedule is paused yet")
    return [flow.id for flow in flows if flow.name in names]


def _told_by(imported: Imported) -> str:
    return "answer" if imported.by_answer else "target"


def _check_rendered(task: PreviewTask | ImportTask, required: Sequence[str]) -> None:
    """Refuse to go on without a check or a backup that was asked for, but that a template rendered to nothing."""
    for name in required:
        if getattr(task, name) is None:
            raise EtlworksConfigError(f"{name} was given, and is None once it is rendered. Did the task before run?")
