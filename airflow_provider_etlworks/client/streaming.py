"""Bodies of requests and responses that are too long to hold in memory: they pass in chunks."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_etlworks.client.errors import EtlworksError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CHUNK_SIZE = 65_536
"""Bytes that are held at a time."""


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
