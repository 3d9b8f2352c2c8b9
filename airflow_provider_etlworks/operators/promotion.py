"""Operators that move flows from one Etlworks to another: export, preview, import."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.compat import BaseOperator
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from airflow_provider_etlworks.hooks.etlworks import EtlworksHook


class _BundleOperator(BaseOperator):
    """What the three operators share: a bundle's path, and the connection."""

    ui_color = "#e3ecd8"
    ui_fgcolor = "#2f4a1d"

    def __init__(self, *, path: str, etlworks_conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.etlworks_conn_id = etlworks_conn_id

    @cached_property
    def hook(self) -> EtlworksHook:
        """The hook of this task's connection."""
        from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

        return EtlworksHook(self.etlworks_conn_id)


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
    :raises EtlworksBundleError: the answer is no bundle, or not a whole one.
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
        raise NotImplementedError


class EtlworksImportPreviewOperator(_BundleOperator):
    """
    Ask an Etlworks what importing a bundle would change, and say it for people. Changes nothing.

    The raw answer is written to ``<path>.preview.json``, not into the XCom. Its shape is not documented by Etlworks:
    what can be read of it is told, what cannot is said to be unknown, and never taken for "nothing changes".

    :param path: the bundle, as :class:`EtlworksExportOperator` wrote it. (templated)
    :param expected_sha256: refuse a bundle with another SHA-256, before anything is sent. (templated)
    :param etlworks_conn_id: the Airflow connection of the target. (templated)
    :return: a dict of bounded size: ``path``, ``sha256``, ``preview_path``, ``format``; ``new``, ``replaced``,
        ``kept`` and ``unclear``: lists of ``{"kind", "name"}``, 50 of each at most; ``missing_connections``: names,
        50 at most; ``counts``: the whole length of each of these lists, by its name; ``shape_known``: whether the
        answer could be read; and ``markdown``: all of it for people, 8,000 characters at most, with every name
        escaped.
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

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask for the preview."""
        raise NotImplementedError


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
        are in the bundle. Without this backup nothing is imported. Nothing to overwrite is no error. (templated)
    :param allow_same_instance: import also into the very instance and tenant that the bundle comes from (a roll-back
        from a backup does), or where a bundle without its ``.meta.json`` does not say where it comes from.
    :param etlworks_conn_id: the Airflow connection of the target. (templated)
    :return: ``{"path", "sha256", "bytes", "format", "flow_ids", "flow_names", "items", "told_by", "backup_path",
        "backup_sha256"}``. ``flow_names`` are the bundle's, ``flow_ids`` the target's ids of the flows with these
        names, as far as known; ``items``: what the server said of each thing, 100 at most, as ``{"kind", "id", "name",
        "status"}``; ``told_by``: ``"answer"``, or ``"target"`` where the answer was lost and the target shows that it
        was applied; the backup's are ``None`` where none was asked for or nothing was there to overwrite.
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

    def execute(self, context: Context) -> dict[str, Any]:
        """Import the bundle."""
        raise NotImplementedError
