"""Bundles between Etlworks and files: written as they arrive, checked before they are sent."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Protocol

from airflow_provider_etlworks.bundles.bundle import BundleBody, BundleInspector
from airflow_provider_etlworks.bundles.flow_content import definitions_in
from airflow_provider_etlworks.bundles.manifest import Format, Manifest, instance_of
from airflow_provider_etlworks.bundles.preview import Preview, escaped, preview_of
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
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.models import Flow
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.client.settings import ClientSettings
    from airflow_provider_etlworks.client.sync import EtlworksClient


class BundleFile(Protocol):
    """The file of a bundle: local, or in an object store."""

    @property
    def path(self) -> str:
        """Its path or URL."""

    def sibling(self, ending: str) -> BundleFile:
        """Return the file whose path is this one's with ``ending`` added."""

    def open_read(self) -> AbstractContextManager[IO[bytes]]:
        """Open it for reading."""

    def read(self) -> bytes | None:
        """Read all of it; ``None`` if it does not exist."""

    def write(self, content: bytes) -> None:
        """Replace all of it."""

    def atomic_write(self) -> AbstractContextManager[IO[bytes]]:
        """Open it for writing; the old content stays until everything is written."""


MANIFEST_ENDING = ".meta.json"
PREVIEW_ENDING = ".preview.json"

# A longer answer to a preview is stored, but not read.
_LONGEST_PREVIEW = 4 * 1024 * 1024
# A longer bundle is not parsed, so its content cannot prove an import.
_LONGEST_PARSED = 4 * 1024 * 1024
# Each flow of the target that is read for its connections costs a request.
_MOST_READ = 100


# --- Export ---------------------------------------------------------------------------------------------------------


def export_bundle(
    client: EtlworksClient, flows: Sequence[Flow], file: BundleFile, *, include_connections: bool, log: Log
) -> Manifest:
    """
    Export flows into a file, and write their manifest next to it.

    :param client: the client of the instance.
    :param flows: the flows.
    :param file: the file of the bundle; an older bundle stays there until the new one is complete.
    :param include_connections: whether the connections that the flows use are in the bundle too.
    :param log: receives what happens.
    :return: the manifest.
    :raises EtlworksReplyError: the answer is not a complete bundle.
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
        log.warning("%s Using the legacy export API, which always includes connections.", error)
        inspected = _received(client, endpoints.export_flows_legacy(flow_ids), file, Format.LEGACY)
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
        include_connections=include_connections or inspected.format is Format.LEGACY,
    )
    file.sibling(MANIFEST_ENDING).write(manifest.to_json())
    return manifest


def _received(client: EtlworksClient, call: Call[Any], file: BundleFile, format: Format) -> BundleInspector:  # noqa: A002  # as in BundleInspector
    """Write the answer to an export into a file, and inspect it on the way."""

    def take(chunks: Iterator[bytes]) -> BundleInspector:
        inspected = BundleInspector(format)
        with file.atomic_write() as target:
            for chunk in inspected.tee(chunks):
                target.write(chunk)
            if (problem := inspected.problem) is not None:
                message = redact(f"The answer to {call} is not a bundle: {problem}.", client.settings.secrets)
                refused = inspected.refusal is not None
                raise EtlworksRefused(message, status=200) if refused else EtlworksReplyError(message)
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
    :param file: the file of the backup.
    :param log: receives what happens.
    :return: the backup's manifest; ``None`` if there is nothing to overwrite.
    :raises EtlworksConfigError: it is not known what the bundle overwrites, or the backup would overwrite the bundle.
    :raises EtlworksError: it failed.
    """
    if bundle.manifest is None:
        raise EtlworksConfigError(
            f"Nothing next to {bundle.path!r} says which flows are in it, so what it overwrites cannot be backed "
            "up. Nothing was sent. Keep its .meta.json next to it, or leave out backup_path."
        )
    if file.path == bundle.path:
        raise EtlworksConfigError(f"backup_path is {file.path!r}, the bundle's own path; it must be another one.")
    overwritten = [flow for flow in flows if flow.name in set(bundle.flow_names)]
    if not overwritten:
        log.info("Nothing to back up: the target has none of the bundle's flows.")
        return None
    # Without connections if the import brings none: rolling them back could only spoil their credentials.
    backup = export_bundle(client, overwritten, file, include_connections=bundle.manifest.include_connections, log=log)
    log.info("Backed up %s flows to %s, SHA-256 %s.", len(overwritten), file.path, backup.sha256)
    return backup


# --- A bundle that is to be sent ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenBundle:
    """
    A bundle that was checked, and is open to be sent.

    :ivar path: its path or URL.
    :ivar inspected: its format, length and hash.
    :ivar manifest: its manifest; ``None`` if there is none.
    :ivar body: the bundle as the body of a request.
    """

    path: str
    inspected: BundleInspector
    manifest: Manifest | None
    body: BundleBody

    @property
    def flow_names(self) -> list[str]:
        """The names of its flows; empty if they are not known."""
        return self.manifest.flow_names if self.manifest else []

    @cached_property
    def definitions(self) -> Mapping[str, Mapping[str, Any]]:
        """Its flows by name; empty if it is a dump, too long to parse, or of a shape that is not known."""
        if self.inspected.format is Format.LEGACY or self.inspected.size > _LONGEST_PARSED:
            return {}
        try:
            return definitions_in(b"".join(self.body))
        except EtlworksConfigError:  # another bundle has taken its place
            return {}

    def preview_call(self) -> Call[Any]:
        """Return the call that previews its import."""
        if self.inspected.format is Format.LEGACY:
            return endpoints.preview_import_legacy(self.body)
        return endpoints.preview_import(self.body)

    def import_call(self) -> Call[Any]:
        """Return the call that imports it."""
        if self.inspected.format is Format.LEGACY:
            return endpoints.import_bundle_legacy(self.body)
        return endpoints.import_bundle(self.body)

    @contextmanager
    def explained(self, call: Call[Any]) -> Iterator[None]:
        """Explain the error of a target that does not have the call for this bundle's format."""
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

    :param file: the file of the bundle.
    :param expected_sha256: the hash that it must have; ``None`` takes any.
    :raises EtlworksConfigError: the file does not exist, is not a bundle, or is not the expected one.
    """
    with ExitStack() as stack:
        try:
            source = stack.enter_context(file.open_read())
        except FileNotFoundError as error:
            raise EtlworksConfigError(f"The bundle {file.path!r} does not exist. Export it first.") from error
        manifest = _manifest_beside(file)
        inspected = BundleInspector(Format(manifest.format) if manifest else None)
        for chunk in read_chunks(source):
            inspected.feed(chunk)
        if expected_sha256 is not None and inspected.sha256 != expected_sha256:
            raise EtlworksConfigError(
                f"The bundle at {file.path!r} is not the expected one: its SHA-256 is {inspected.sha256}, expected is "
                f"{expected_sha256}. Nothing was sent. It was changed or exported again; preview and approve it again."
            )
        if manifest is not None and manifest.sha256 != inspected.sha256:
            raise EtlworksConfigError(
                f"The bundle at {file.path!r} is not the one that its {MANIFEST_ENDING} describes: its SHA-256 is "
                f"{inspected.sha256}, and not {manifest.sha256}. Nothing was sent. It was changed after its export, or "
                "its export was broken off; export again."
            )
        if (problem := inspected.problem) is not None:
            raise EtlworksConfigError(f"{file.path!r} is not a bundle: {problem}.")
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
    Ask what importing a bundle would change, and store the raw answer.

    :param client: the client of the target.
    :param bundle: the bundle.
    :param file: the file of the raw answer.
    :return: the answer, read as JSON; ``None`` if it is too long to be read.
    :raises EtlworksError: it failed.
    """
    call = bundle.preview_call()

    def take(chunks: Iterator[bytes]) -> Any:
        kept = bytearray()
        with file.atomic_write() as target:
            for chunk in chunks:
                target.write(chunk)
                kept += chunk[: max(0, _LONGEST_PREVIEW + 1 - len(kept))]
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
    :param bundle_client: a client of the target that waits minutes for an answer.
    :param bundle: the bundle.
    :param file: the file of the raw answer.
    :param log: receives what could not be read.
    :raises EtlworksError: it failed.
    """
    answer = ask_for_preview(bundle_client, bundle, file)
    flows = list(client.iterate(endpoints.list_flows()))
    known: dict[str, Any] = {"flow_names": bundle.flow_names, "target_flows": {flow.name for flow in flows}}
    preview = preview_of(answer, **known)
    doubtful = {item.name for item in preview.of(ItemAction.UNCLEAR) if item.kind == "connection"}
    if not doubtful:
        return preview
    touched = {item.name for item in preview.items if item.kind == "flow"}
    # The flows that are to be replaced are the likeliest to use these connections.
    flows.sort(key=lambda flow: flow.name not in touched)
    found, is_complete = _connections_of(flows, client, doubtful, log)
    return preview_of(answer, **known, target_connections=found, all_connections_known=is_complete)


def _connections_of(flows: Sequence[Flow], client: EtlworksClient, wanted: set[str], log: Log) -> tuple[set[str], bool]:
    """Read the connections that flows use until all wanted ones are found; return also whether all flows were read."""
    names: set[str] = set()
    is_complete = len(flows) <= _MOST_READ
    for flow in flows[:_MOST_READ]:
        if wanted <= names:
            break
        try:
            names.update(names_in(client.send(endpoints.get_flow(flow.id)).raw.get("connections")))
        except EtlworksError as error:
            is_complete = False
            log.warning("The connections of flow %s cannot be read, and stay unclear: %s", flow.id, error)
    return names, is_complete


def introduction(bundle: OpenBundle, settings: ClientSettings) -> str:
    """
    Describe in Markdown which bundle is to be imported, and into which instance.

    :param bundle: the bundle.
    :param settings: the settings of the target's connection.
    """
    manifest = bundle.manifest
    text = [f"Import into **{escaped(instance_of(settings))}**: {bundle.inspected.size} bytes."]
    if manifest is None:
        text += ["Where the bundle comes from is not known: nothing is written next to it."]
    else:
        text += [f"Exported from {escaped(manifest.host)} at {escaped(manifest.exported_at)}."]
        if manifest.is_from(settings):
            text += ["**That is the very instance that it is to be imported into.**"]
        if not manifest.include_connections:
            text += ["The bundle brings no connections: all that its flows use must be in the target."]
    return " ".join(text)
