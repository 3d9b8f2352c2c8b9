"""Bodies of requests and responses, in chunks: many are too long for the memory."""

from __future__ import annotations

import zlib
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksReplyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


CHUNK_SIZE = 65_536
"""Bytes that are held in memory at a time."""


class Body(Protocol):
    """
    A request's body in chunks. Each iteration begins at its start, since a request may have to be sent again.

    Only the sync client can send it: reading a file would block the event loop of the async one.
    """

    def __len__(self) -> int:
        """Return its length in bytes."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield its chunks."""


class Source(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int, /) -> bytes:
        """Read the next bytes."""

    def seek(self, offset: int, /) -> Any:
        """Move to a position in it."""


def read_chunks(source: Source) -> Iterator[bytes]:
    """
    Read a file from its start, in chunks.

    :raises EtlworksError: it cannot be read. A request that sends it stays incomplete, so it has no effect.
    """
    try:
        source.seek(0)
        while chunk := source.read(CHUNK_SIZE):
            yield chunk
    except Exception as error:  # each object store has its own exceptions
        raise EtlworksError(
            f"The file cannot be read: {type(error).__name__}: {error}", retryable=True, not_processed=True
        ) from error


class FileBody:
    """
    A file as the body of a request.

    :param source: the file, open for reading.
    :param size: its length in bytes.
    """

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._size = size

    def __len__(self) -> int:
        """Return the length of the file in bytes."""
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        """
        Yield the file in chunks, from its start.

        :raises EtlworksError: it cannot be read, or its length has changed.
        """
        read = 0
        for chunk in read_chunks(self._source):
            read += len(chunk)
            if read > self._size:
                break
            yield chunk
        if read != self._size:
            raise EtlworksError(
                f"The file had {self._size} bytes, and its length changed before it was sent.", not_processed=True
            )


def head_of(chunks: Iterable[bytes], size: int) -> str:
    """
    Return the beginning of a text that arrives in chunks.

    :param chunks: the text, cut anywhere. What follows the beginning is not read.
    :param size: the bytes to read, rounded up to a whole chunk.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= size:
            break
    return head.decode("utf-8", "replace")


MAX_ERROR_BYTES = 262_144
"""Bytes that are read of an error response; the rest is not needed."""

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


class ResponseBody:
    """
    Decompresses the body of a response, and ends it at the size limit of its call. Both transports read through it.

    :param request: method and path of the call, for messages.
    :param max_bytes: the longest body that the call allows.
    :param status: the response's HTTP status.
    :param headers: its headers.
    :ivar is_complete: whether enough was read: of an error response, only the beginning is.
    """

    def __init__(self, request: str, max_bytes: int, status: int, headers: Mapping[str, str]) -> None:
        self.is_complete = False
        self._request = request
        self._max_bytes = max_bytes
        self._is_error = not 200 <= status < 300
        self._remaining = MAX_ERROR_BYTES if self._is_error else max_bytes
        encoding = headers.get("Content-Encoding", "").strip().lower()
        self._encoding = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}.get(encoding)
        self._decompressor: Any = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """
        Take the next bytes from the wire, and yield the bytes of the body.

        :raises EtlworksReplyError: the body is longer than the call allows.
        :raises zlib.error: the body is not compressed as its header claims.
        """
        for chunk in self._decompress(data) if self._encoding else (data,):
            if len(chunk) > self._remaining:
                if not self._is_error:
                    raise EtlworksReplyError(
                        f"The response to {self._request} is longer than {self._max_bytes} bytes. "
                        "The server may have processed the request."
                    )
                self.is_complete = True
                yield chunk[: self._remaining]
                return
            self._remaining -= len(chunk)
            yield chunk

    def finish(self) -> None:
        """
        Check the end of the body.

        :raises zlib.error: the compressed data is cut off.
        """
        if self._decompressor is not None and not self._decompressor.eof:
            raise zlib.error("the compressed data is cut off")

    def _decompress(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._decompressor is None or self._decompressor.eof:
                is_next_member = self._encoding == "gzip" and data.startswith(b"\x1f\x8b")
                if not data or (self._decompressor is not None and not is_next_member):
                    # Some servers send bytes after the end.
                    return
                self._decompressor = zlib.decompressobj(self._window(data))
            # In chunks, since a few bytes may become gigabytes.
            chunk = self._decompressor.decompress(data, CHUNK_SIZE)
            if chunk:
                yield chunk
            data = self._decompressor.unconsumed_tail or self._decompressor.unused_data
            if not data and len(chunk) < CHUNK_SIZE:
                return

    def _window(self, data: bytes) -> int:
        if self._encoding == "gzip":
            return _GZIP
        # Some servers send "deflate" without the header that it needs.
        return _ZLIB if data[0] & 0x0F == zlib.DEFLATED else _RAW


LONGEST_LINE = 2_000
"""Bytes at which :func:`tail_lines` cuts a line."""


def tail_lines(chunks: Iterable[bytes], count: int) -> list[str]:
    """
    Return the last lines of a text that arrives in chunks.

    :param chunks: the text, cut anywhere.
    :param count: how many lines to keep.
    :return: at most ``count`` lines, each cut at :data:`LONGEST_LINE` bytes.
    """
    lines: deque[bytes] = deque(maxlen=count)
    rest = b""
    for chunk in chunks:
        *complete, rest = (rest + chunk).split(b"\n")
        lines.extend(line[:LONGEST_LINE] for line in complete)
        rest = rest[:LONGEST_LINE]
    if rest:
        lines.append(rest)
    return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]
