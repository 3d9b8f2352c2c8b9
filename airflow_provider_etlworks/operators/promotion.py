"""Operators that move flows from one Etlworks to another: export, preview, import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import BaseOperator
from airflow_provider_etlworks.operators.base import HookMixin, reports_failure
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context


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

    The bundle is written in chunks, however large it is, to a temporary file next to ``path``, is checked, and is then
    moved into place: an export that breaks leaves an older bundle as it is. An answer that is not a complete bundle (a
    page of HTML, nothing, a bundle that is cut off) is refused. Next to the bundle, ``<path>.meta.json`` says where it
    comes from and what is in it. Local files are readable by their owner only, since a bundle is sensitive.

    Several selections add up; at least one is given. A flow that is selected twice is exported once.

    :param path: the path of the bundle: local, or a URL of an object store that ObjectStoragePath takes, such as
        ``s3://aws_default@bucket/etlworks/bundle.json``. (templated)
    :param flow_ids: ids of flows; also a list that an upstream task returned, or its text. (templated)
    :param flow_names: names of flows, exactly. (templated)
    :param tags: all flows with any of these tags. (templated)
    :param include_connections: whether the connections that the flows use are in the bundle too. The legacy export API
        always includes them.
    :param etlworks_conn_id: the Airflow connection. (templated)
    :return: ``{"path", "sha256", "bytes", "flow_ids", "flow_names", "format"}``. ``format`` is ``"io"``, or ``"older"``
        if the server only has the legacy export API.
    :raises AirflowFailException: an argument or the connection cannot work, or the selection names a flow that is not
        there, names two, or is empty: another try would not help.
    :raises EtlworksReplyError: the answer is not a complete bundle.
    """

    _about = "The export"
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

    @reports_failure
    def execute(self, context: Context) -> dict[str, Any]:
        """Export the flows."""
        from airflow_provider_etlworks.worker.promote import ExportTask

        return ExportTask(
            hook=self.hook,
            log=self.log,
            path=self.path,
            flow_ids=self.flow_ids,
            flow_names=self.flow_names,
            tags=self.tags,
            include_connections=self.include_connections,
        ).run()


class EtlworksImportPreviewOperator(_BundleOperator):
    """
    Ask an Etlworks what importing a bundle would change, and show it to people. Changes nothing.

    The raw answer is written to ``<path>.preview.json``, not into the XCom. Only the shape that Etlworks documents is
    read; everything else is shown as unclear, never as "nothing changes". Whether a flow is new or replaced is decided
    by the target's own list of flows. A connection is missing if the flows need it, the bundle does not bring it, and
    no flow of the target uses it.

    :param path: the bundle, as :class:`EtlworksExportOperator` wrote it. (templated)
    :param expected_sha256: refuse a bundle with another SHA-256, before anything is sent. (templated)
    :param note: Markdown that the people's version shows below the changes, such as what happens after the import.
    :param etlworks_conn_id: the Airflow connection of the target. (templated)
    :return: a dict of bounded size: ``path``, ``sha256``, ``preview_path``, ``format``; ``new``, ``replaced``,
        ``kept``, ``failed``, ``unclear`` and ``missing_others``: lists of ``{"kind", "name"}``, 50 of each at most;
        ``missing_connections``: names, 50 at most; ``counts``: the whole length of each of these lists, by its name;
        ``shape_known``: whether all of the answer has the documented shape; and ``markdown``: all of it for people,
        8,000 characters at most, with every name escaped.
    :raises AirflowFailException: an argument or the connection cannot work, or the bundle does not exist or is not the
        expected one: another try would not help.
    """

    _about = "The preview"
    template_fields: Sequence[str] = ("path", "expected_sha256", "etlworks_conn_id")

    def __init__(
        self,
        *,
        path: str,
        expected_sha256: str | None = None,
        note: str | None = None,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(path=path, etlworks_conn_id=etlworks_conn_id, **kwargs)
        self.expected_sha256 = expected_sha256
        self.note = note
        self._required = _given(expected_sha256=expected_sha256)

    @reports_failure
    def execute(self, context: Context) -> dict[str, Any]:
        """Ask for the preview."""
        from airflow_provider_etlworks.worker.promote import PreviewTask

        return PreviewTask(
            hook=self.hook,
            log=self.log,
            path=self.path,
            expected_sha256=self.expected_sha256,
            note=self.note,
            required=self._required,
        ).run()


class EtlworksImportOperator(_BundleOperator):
    """
    Import a bundle, byte for byte, once.

    An import that may have been applied is never sent again. If its answer is lost, or its worker, the import is in
    doubt and is reconciled with the target: it was applied if all flows of the bundle changed, and each shows our login
    as the one who changed it, or has the bundle's content. Without that proof the task fails for good and names both
    possibilities. To import again after you have checked the target, clear the task.

    :param path: the bundle, as :class:`EtlworksExportOperator` wrote it. (templated)
    :param expected_sha256: the SHA-256 that was approved; any other bundle is refused. It is checked before sending,
        and again over the very bytes that are sent. (templated)
    :param backup_path: first export to this path what the import will overwrite: the target's flows with the names that
        are in the bundle, with the connections that they use if the bundle has connections. Without this backup nothing
        is imported. It is not an error if there is nothing to overwrite. (templated)
    :param allow_same_instance: import also into the very instance and tenant that the bundle comes from (a roll-back
        from a backup does), or a bundle without its ``.meta.json``, whose origin is not known.
    :param etlworks_conn_id: the Airflow connection of the target. (templated)
    :return: ``{"path", "sha256", "bytes", "format", "flow_ids", "flow_names", "items", "told_by", "backup_path",
        "backup_sha256"}``. ``flow_names`` are the bundle's, ``flow_ids`` the target's ids of the flows with these
        names, as far as they are known; ``items``: what the answer lists, 100 at most, as ``{"kind", "id", "name",
        "status"}``, with the answer's own word as ``status``; ``told_by``: ``"answer"``, or ``"target"`` if the answer
        was lost and the target proves that the import was applied; the backup's are ``None`` without a backup. If
        Etlworks answered that the import failed, in part or as a whole, ``{"backup_path", "backup_sha256",
        "flow_names"}`` is the XCom ``import_failed``.
    :raises AirflowFailException: another try would not help: an argument or the connection cannot work; the bundle is
        not the approved one, or comes from the target itself; Etlworks refused it, or imported only a part; or nothing
        proves whether it was applied.
    :raises EtlworksError: nothing was imported, and another try may help.
    """

    _about = "The import"
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
        self._required = _given(expected_sha256=expected_sha256, backup_path=backup_path)

    @reports_failure
    def execute(self, context: Context) -> dict[str, Any]:
        """Import the bundle."""
        from airflow_provider_etlworks.worker.promote import ImportTask

        return ImportTask(
            context=context,
            hook=self.hook,
            log=self.log,
            path=self.path,
            expected_sha256=self.expected_sha256,
            backup_path=self.backup_path,
            allow_same_instance=self.allow_same_instance,
            required=self._required,
        ).run()


def _given(**arguments: Any) -> list[str]:
    return [name for name, value in arguments.items() if value is not None]
