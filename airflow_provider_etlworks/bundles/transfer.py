"""Bundles between Etlworks and files: written while they arrive, checked before they are sent."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import IO, TYPE_CHECKING, Any, Protocol

from airflow_provider_etlworks.bundles.bundle import BundleBody, BundleInspector
from airflow_provider_etlworks.bundles.manifest import Format, Manifest, instance_of
from airflow_provider_etlworks.bundles.preview import escaped, preview_of
from airflow_provider_etlworks.bundles.report import ItemAction, names_in
from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.call import Response
from airflow_provider_etlworks.client.errors import (
    EtlworksBadRequest,
    EtlworksConfigError,
    EtlworksError,
    EtlworksNotFound,
    EtlworksRefused,
    EtlworksReplyError,
)
from airflow_provider_etlworks.client.redaction import redact
from airflow_provider_etlworks.client.streaming import read_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from airflow_provider_etlworks.bundles.preview import Preview
    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.models import Flow
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.client.settings import ClientSettings
    from airflow_provider_etlworks.client.sync import EtlworksClient


class BundleFile(Protocol):
    """Where a bundle is kept: a local file, or one in an object store."""

    @property
    def path(self) -> str:
        """Its path or URL."""

    def sibling(self, ending: str) -> BundleFile:
        """Return the file whose path is this one's with ``ending`` added."""

    def open_read(self) -> AbstractContextManager[IO[bytes]]:
        """Open it for reading."""

    def read(self) -> bytes | None:
        """Read it whole; ``None`` where there is none."""

    def write(self, content: bytes) -> None:
        """Write it whole."""

    def atomic_write(self) -> AbstractContextManager[IO[bytes]]:
        """Open it for writing; what was there stays until all is written."""


MANIFEST_ENDING = ".meta.json"
PREVIEW_ENDING = ".preview.json"

# Bytes of an answer to a preview that are read; a longer one is only kept.
_LONGEST_PREVIEW = 4 * 1024 * 1024
# Flows of the target that are read to learn which connections it has.
_MOST_READ = 25


# --- Export ---------------------------------------------------------------------------------------------------------


def export_bundle(
    client: EtlworksClient, flows: Sequence[Flow], file: BundleFile, *, include_connections: bool, log: Log
) -> Manifest:
    """
    Export flows into a file, and write beside it what they are.

    :param client: the client of the instance.
    :param flows: the flows.
    :param file: where the bundle goes; an older one stays as it is until the new one is whole.
    :param include_connections: whether the connections that the flows use are in the bundle too.
    :param log: is told what happens.
    :return: what was written beside the bundle.
    :raises EtlworksReplyError: the answer is no bundle, or not a whole one.
    :raises EtlworksError: it failed.
    """
    flow_ids = [flow.id for flow in flows]
    try:
        inspected = _received(
            client, endpoints.export_flows(flow_ids, include_connections=include_connections), file, Format.IO
        )
    except (EtlworksNotFound, EtlworksBadRequest) as error:
        if error.status not in (404, 405):
            raise
        log.warning("%s Using the older export API, which always includes connections.", error)
        inspected = _received(client, endpoints.export_flows_legacy(flow_ids), file, Format.OLDER)
    now = datetime.fromtimestamp(client.clock.time(), tz=timezone.utc)
    manifest = Manifest(
        format=inspected.format.value,
        host=instance_of(client.settings),
        tenant=client.settings.tenant_id,
        exported_at=now.isoformat(timespec="seconds"),
        sha256=inspected.sha256,
        size=inspected.size,
        flow_ids=flow_ids,
        flow_names=[flow.name for flow in flows],
        include_connections=include_connections or inspected.format is Format.OLDER,
    )
    file.sibling(MANIFEST_ENDING).write(manifest.to_json())
    return manifest


def _received(client: EtlworksClient, call: Call[Any], file: BundleFile, format: Format) -> BundleInspector:  # noqa: A002  # as in Inspection
    """Write the answer to an export into a file, and check it on its way."""

    def take(pieces: Iterator[bytes]) -> BundleInspector:
        inspected = BundleInspector(format)
        with file.atomic_write() as target:
            for piece in inspected.tee(pieces):
                target.write(piece)
            if (fault := inspected.problem) is not None:
                said = redact(f"The answer to {call} is no bundle: {fault}.", client.settings.secrets)
                refused = inspected.refusal is not None
                raise EtlworksRefused(said, status=200) if refused else EtlworksReplyError(said)
        return inspected

    return client.receive(call, take)


def back_up(
    client: EtlworksClient, bundle: OpenBundle, flows: Sequence[Flow], file: BundleFile, *, log: Log
) -> Manifest | None:
    """
    Export what the import of a bundle will overwrite.

    :param client: the client of the target.
    :param bundle: the bundle.
    :param flows: all flows of the target.
    :param file: where the backup goes.
    :param log: is told what happens.
    :return: what was written beside the backup; ``None`` where there is nothing to overwrite.
    :raises EtlworksConfigError: it is not known what the bundle overwrites, or the backup would overwrite the bundle.
    :raises EtlworksError: it failed.
    """
    if bundle.manifest is None:
        raise EtlworksConfigError(
            f"Nothing beside {bundle.path!r} says which flows are in it, so what it overwrites cannot be backed "
            "up. Nothing was sent. Keep its .meta.json beside it, or leave backup_path out."
        )
    if file.path == bundle.path:
        raise EtlworksConfigError(f"backup_path is {file.path!r}, the bundle's own path; it must be another one.")
    overwritten = [flow for flow in flows if flow.name in set(bundle.flow_names)]
    if not overwritten:
        log.info("Nothing to back up: the target has none of the bundle's flows.")
        return None
    # Without connections where the import brings none: rolling them back could only spoil their credentials.
    backup = export_bundle(client, overwritten, file, include_connections=bundle.manifest.include_connections, log=log)
    log.info("Backed up %s flows to %s, SHA-256 %s.", len(overwritten), file.path, backup.sha256)
    return backup


# --- A bundle that is to be sent ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenBundle:
    """
    A bundle that was checked, and is open to be sent.

    :ivar path: where it is.
    :ivar inspected: its format, length and hash.
    :ivar manifest: what is known of it; ``None`` where nothing was written beside it.
    :ivar body: it, as a request's body.
    """

    path: str
    inspected: BundleInspector
    manifest: Manifest | None
    body: BundleBody

    @property
    def flow_names(self) -> list[str]:
        """The names of its flows, as far as known."""
        return self.manifest.flow_names if self.manifest else []

    def preview_call(self) -> Call[Any]:
        """Return the call that asks what its import would change."""
        if self.inspected.format is Format.OLDER:
            return endpoints.preview_import_legacy(self.body)
        return endpoints.preview_import(self.body)

    def import_call(self) -> Call[Any]:
        """Return the call that imports it."""
        if self.inspected.format is Format.OLDER:
            return endpoints.import_bundle_legacy(self.body)
        return endpoints.import_bundle(self.body)

    @contextmanager
    def explained(self, call: Call[Any]) -> Iterator[None]:
        """Explain what it means where the target does not know the call for this bundle's format."""
        try:
            yield
        except (EtlworksNotFound, EtlworksBadRequest) as error:
            if error.status not in (404, 405):
                raise
            raise EtlworksConfigError(
                f"{error} The bundle is of the format {self.inspected.format.value!r}, and an Etlworks without {call} "
                "cannot import it. Source and target may be of different releases."
            ) from error


@contextmanager
def open_bundle(file: BundleFile, expected_sha256: str | None) -> Iterator[OpenBundle]:
    """
    Check a bundle, and open it to be sent.

    :param file: where it is.
    :param expected_sha256: the hash that it must have.
    :raises EtlworksConfigError: there is none, it is none, or it is another one than expected.
    """
    with ExitStack() as stack:
        try:
            source = stack.enter_context(file.open_read())
        except FileNotFoundError as error:
            raise EtlworksConfigError(f"There is no bundle at {file.path!r}. Export one there first.") from error
        manifest = _manifest_beside(file)
        inspected = BundleInspector(Format(manifest.format) if manifest else None)
        for piece in read_chunks(source):
            inspected.feed(piece)
        if expected_sha256 is not None and inspected.sha256 != expected_sha256:
            raise EtlworksConfigError(
                f"The bundle at {file.path!r} is not the expected one: its SHA-256 is {inspected.sha256}, expected is "
                f"{expected_sha256}. Nothing was sent. It was changed or exported anew; preview and approve it again."
            )
        if manifest is not None and manifest.sha256 != inspected.sha256:
            raise EtlworksConfigError(
                f"The bundle at {file.path!r} is not the one that its {MANIFEST_ENDING} describes: its SHA-256 is "
                f"{inspected.sha256}, and not {manifest.sha256}. Nothing was sent. It was changed after its export, or "
                "its export was broken off; export again."
            )
        if (fault := inspected.problem) is not None:
            raise EtlworksConfigError(f"{file.path!r} is no bundle: {fault}.")
        yield OpenBundle(file.path, inspected, manifest, BundleBody(source, inspected))


def _manifest_beside(file: BundleFile) -> Manifest | None:
    beside = file.sibling(MANIFEST_ENDING)
    text = beside.read()
    if text is None:
        return None
    try:
        return Manifest.from_json(text)
    except EtlworksConfigError as error:
        raise EtlworksConfigError(f"{beside.path!r} cannot be used: {error}") from error


# --- Preview --------------------------------------------------------------------------------------------------------


def ask_for_preview(client: EtlworksClient, bundle: OpenBundle, file: BundleFile) -> Any:
    """
    Ask what importing a bundle would change, and keep the raw answer.

    :param client: the client of the target.
    :param bundle: the bundle.
    :param file: where the raw answer goes.
    :return: the answer, read as JSON; ``None`` where it is too long to be read.
    :raises EtlworksError: it failed.
    """
    call = bundle.preview_call()

    def take(pieces: Iterator[bytes]) -> Any:
        kept = bytearray()
        with file.atomic_write() as target:
            for piece in pieces:
                target.write(piece)
                kept += piece[: max(0, _LONGEST_PREVIEW + 1 - len(kept))]
            if len(kept) > _LONGEST_PREVIEW:
                return None
            return call.result(Response(200, {}, bytes(kept)), client.settings.secrets)

    with bundle.explained(call):
        return client.receive(call, take)


def preview_import(
    client: EtlworksClient, bundle_client: EtlworksClient, bundle: OpenBundle, file: BundleFile, *, log: Log
) -> Preview:
    """
    Work out what importing a bundle would change. Changes nothing.

    :param client: the client of the target.
    :param bundle_client: the same, with time for what takes the target minutes.
    :param bundle: the bundle.
    :param file: where the raw answer goes.
    :param log: is told what could not be read.
    :raises EtlworksError: it failed.
    """
    answer = ask_for_preview(bundle_client, bundle, file)
    flows = list(client.iterate(endpoints.list_flows()))
    target_flows = [flow.name for flow in flows]
    preview = preview_of(answer, flow_names=bundle.flow_names, target_flows=target_flows, target_connections=[])
    doubtful = (*preview.missing_connections, *preview.of(ItemAction.UNCLEAR))
    if not any(item.kind == "connection" for item in doubtful):
        return preview
    touched = {item.name for item in preview.items if item.kind == "flow"}
    return preview_of(
        answer,
        flow_names=bundle.flow_names,
        target_flows=target_flows,
        target_connections=_connections_of([flow for flow in flows if flow.name in touched], client, log),
    )


def _connections_of(flows: Sequence[Flow], client: EtlworksClient, log: Log) -> set[str]:
    """Return the names of the connections that some of these flows use."""
    names: set[str] = set()
    for flow in flows[:_MOST_READ]:
        try:
            names.update(names_in(client.send(endpoints.get_flow(flow.id)).raw.get("connections")))
        except EtlworksError as error:
            log.warning("Which connections flow %s uses cannot be read: %s", flow.id, error)
    return names


def introduction(bundle: OpenBundle, settings: ClientSettings) -> str:
    """
    Say in Markdown which bundle is to be imported, and into which instance.

    :param bundle: the bundle.
    :param settings: the target's.
    """
    manifest = bundle.manifest
    said = [f"Import into **{escaped(instance_of(settings))}**: {bundle.inspected.size} bytes."]
    said += [f"SHA-256: {bundle.inspected.sha256}."]
    if manifest is None:
        said += ["Where the bundle comes from is not known: nothing is written beside it."]
    else:
        said += [f"Exported from {escaped(manifest.host)} at {escaped(manifest.exported_at)}."]
        if manifest.is_from(settings):
            said += ["**That is the very instance that it is to be imported into.**"]
        if not manifest.include_connections:
            said += ["The bundle brings no connections: all that its flows use must be in the target."]
    return " ".join(said)
