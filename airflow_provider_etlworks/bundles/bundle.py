"""
Bundles: exported flows, as one file that may be far larger than memory.

Etlworks documents two formats. The newer export API (``/v1/io/export``) returns a self-contained JSON document, the
legacy one (``/v1/flows/export``) an encrypted dump, as text. A bundle is imported byte for byte, whatever is in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from airflow_provider_etlworks.bundles.manifest import Format
from airflow_provider_etlworks.client.errors import EtlworksConfigError, error_message
from airflow_provider_etlworks.client.redaction import excerpt
from airflow_provider_etlworks.client.streaming import CHUNK_SIZE, read_chunks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_provider_etlworks.client.streaming import Source

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"


# --- A bundle that arrives ------------------------------------------------------------------------------------------


class JsonCompleteness:
    """
    Decides whether a JSON document that arrives in chunks is complete, without holding it.

    It follows strings and brackets only. It accepts documents that a parser would refuse, but none that was cut off.
    """

    def __init__(self) -> None:
        self._held = b""
        self._in_string = False
        self._depth = 0
        self._last = b""

    def feed(self, chunk: bytes) -> None:
        """Read the next chunk."""
        data = self._held + chunk
        # An escape that is cut in two waits for its second half.
        backslashes = len(data) - len(data.rstrip(b"\\"))
        self._held = b"\\" if backslashes % 2 else b""
        data = data[: len(data) - len(self._held)]
        parts = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[1 if self._in_string else 0 :: 2])
        self._in_string ^= len(parts) % 2 == 0
        self._depth += outside.count(b"{") + outside.count(b"[") - outside.count(b"}") - outside.count(b"]")
        self._last = outside.rstrip(_SPACE)[-1:] or self._last

    @property
    def is_whole(self) -> bool:
        """Whether everything that was opened is closed, and nothing follows."""
        return not (self._in_string or self._held or self._depth) and self._last in (b"}", b"]")


class BundleInspector:
    """
    Inspects a bundle chunk by chunk: its length, its hash, and whether it is a complete bundle at all.

    :param format: the expected format; ``None`` detects it: a bundle that begins like JSON is of the newer one.
    :ivar size: its length in bytes.
    :ivar dump_size: its length inside a JSON text, in bytes.
    """

    def __init__(self, format: Format | None = None) -> None:  # noqa: A002  # what users call it
        self._format = format
        self._hash = hashlib.sha256()
        self._outline = JsonCompleteness()
        self._head = b""
        self.size = 0
        self.dump_size = 0

    def feed(self, chunk: bytes) -> None:
        """Read the next chunk."""
        if len(self._head) < CHUNK_SIZE:
            self._head += chunk[: CHUNK_SIZE - len(self._head)]
        self._hash.update(chunk)
        if self.format is Format.IO:
            self._outline.feed(chunk)
        self.size += len(chunk)
        self.dump_size += len(chunk) + _ESCAPE_ADDS * (len(chunk) - len(chunk.translate(None, _TO_ESCAPE)))

    def tee(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Read the chunks, and yield them unchanged."""
        for chunk in chunks:
            self.feed(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        """The SHA-256 of all chunks so far, in hexadecimal."""
        return self._hash.hexdigest()

    @property
    def format(self) -> Format:
        """The bundle's format."""
        return self._format or (Format.IO if self._start in (b"{", b"[") else Format.LEGACY)

    @property
    def refusal(self) -> str | None:
        """The reason, if an error came instead of a bundle; else ``None``."""
        return _refusal(self._text) if self.size <= CHUNK_SIZE else None

    @property
    def problem(self) -> str | None:
        """What is wrong with the bundle; ``None`` if nothing is. Its content is not repeated."""
        head = self._text
        if not head:
            return "it is empty"
        if self._start == b"<":
            # Markup is not a bundle, so its text may be shown.
            said = excerpt(head)
            return f"it is a page of markup: {said!r}" if said else "it is a page of markup"
        if (reason := self.refusal) is not None:
            return f"it reports: {excerpt(reason)}"
        if self.format is Format.LEGACY:
            return None
        if self._start not in (b"{", b"["):
            return f"it is not a JSON object, and does not begin with one; {self.size} bytes"
        if not self._outline.is_whole:
            return f"it is cut off, or is not JSON: its brackets are not closed after {self.size} bytes"
        if self.size <= CHUNK_SIZE and not _JSON_WITH_CONTENT.search(head):
            return "it is a JSON document with nothing in it"
        return None

    @property
    def _text(self) -> bytes:
        return self._head.removeprefix(_BOM).strip(_SPACE)

    @property
    def _start(self) -> bytes:
        return self._text[:1]


_JSON_WITH_CONTENT = re.compile(rb"[^\s{}\[\]]")


def _refusal(text: bytes) -> str | None:
    """Return the reason that a JSON body gives, if it is an error instead of a bundle."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    status = body.get("status")
    is_error = isinstance(status, int) and not isinstance(status, bool) and status >= 400
    if body.get("success") is not False and not (is_error and error_message(body)):
        return None
    return error_message(body) or "no reason given"


# --- A bundle that is sent ------------------------------------------------------------------------------------------


class BundleBody:
    """
    A bundle as the body of a request: byte for byte, or inside ``{"dump": "…"}`` for the legacy API.

    The last chunk is held back until everything that was read has the inspected hash. If the bundle changed meanwhile,
    the server never receives a complete request, so it cannot act on it.

    :param source: the file, open for reading.
    :param inspected: the inspection of the same file.
    """

    def __init__(self, source: Source, inspected: BundleInspector) -> None:
        self._source = source
        self._inspected = inspected
        self._wrapping = (b'{"dump":"', b'"}') if inspected.format is Format.LEGACY else (b"", b"")

    def __len__(self) -> int:
        """Return the number of bytes of the body."""
        if self._inspected.format is Format.LEGACY:
            return len(self._wrapping[0]) + self._inspected.dump_size + len(self._wrapping[1])
        return self._inspected.size

    def __iter__(self) -> Iterator[bytes]:
        """
        Yield the body in chunks, from its start.

        :raises EtlworksConfigError: the file is not the one that was inspected. Its last chunk is not yielded.
        """
        before, after = self._wrapping
        sent, hashed, held = 0, hashlib.sha256(), b""
        for chunk in read_chunks(self._source):
            if held:
                yield before + self._encoded(held)
                before, sent = b"", sent + len(held)
            hashed.update(chunk)
            held = chunk
            if sent + len(held) > self._inspected.size:
                break
        if (sha256 := hashed.hexdigest()) != self._inspected.sha256:
            raise EtlworksConfigError(
                f"The bundle changed while it was being sent: its SHA-256 was {self._inspected.sha256}, now it is "
                f"{sha256}. The request was broken off after {sent} bytes, before its end, so that it cannot take "
                "effect. Nobody may write to the bundle's path between the export and the import."
            )
        yield before + self._encoded(held) + after

    def _encoded(self, chunk: bytes) -> bytes:
        return _escaped(chunk) if self._inspected.format is Format.LEGACY else chunk


_TO_ESCAPE = b'"\\' + bytes(range(0x20))
_ESCAPE_ADDS = len(b"\\u0022") - 1
_ESCAPED = re.compile(b"[" + re.escape(_TO_ESCAPE) + b"]")


def _escaped(chunk: bytes) -> bytes:
    """Escape bytes of UTF-8 for a JSON text; they may be cut anywhere."""
    return _ESCAPED.sub(lambda found: b"\\u%04x" % found.group()[0], chunk)
