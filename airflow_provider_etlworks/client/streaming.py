"""Bodies of requests and of answers that are too long to hold: they pass in chunks."""

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
    A request's body in pieces. Each iteration gives it from its start, since a request may have to be sent again.

    The sync client sends it. The async one does not: reading a file would hold its event loop.
    """

    def __len__(self) -> int:
        """Return how many bytes it has."""

    def __iter__(self) -> Iterator[bytes]:
        """Give it in pieces."""


class Source(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int, /) -> bytes:
        """Read the next bytes."""

    def seek(self, offset: int, /) -> Any:
        """Go to a place in it."""


def read_chunks(source: Source) -> Iterator[bytes]:
    """
    Read a file from its start, in pieces.

    :raises EtlworksError: it cannot be read. A request that is sent it has no end then, so it does not take effect.
    """
    try:
        source.seek(0)
        while piece := source.read(CHUNK_SIZE):
            yield piece
    except Exception as error:  # each object store has errors of its own
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
        """Return how many bytes the file has."""
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        """
        Give the file in pieces, from its start.

        :raises EtlworksError: it cannot be read, or has another length by now.
        """
        given = 0
        for piece in read_chunks(self._source):
            given += len(piece)
            if given > self._size:
                break
            yield piece
        if given != self._size:
            raise EtlworksError(
                f"The file had {self._size} bytes, and has another length now that it is being sent.",
                not_processed=True,
            )


def head_of(pieces: Iterable[bytes], size: int) -> str:
    """
    Return the beginning of a text that arrives in pieces.

    :param pieces: the text, cut anywhere. What follows the beginning is not read.
    :param size: the bytes to read, rounded up to a whole piece.
    """
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= size:
            break
    return head.decode("utf-8", "replace")


LONGEST_LINE = 2_000


def tail_lines(pieces: Iterable[bytes], count: int) -> list[str]:
    """
    Return the last lines of a text that arrives in pieces.

    :param pieces: the text, cut anywhere.
    :param count: how many lines to keep.
    :return: at most ``count`` lines, each cut at :data:`LONGEST_LINE` bytes.
    """
    lines: deque[bytes] = deque(maxlen=count)
    rest = b""
    for piece in pieces:
        *complete, rest = (rest + piece).split(b"\n")
        lines.extend(line[:LONGEST_LINE] for line in complete)
        rest = rest[:LONGEST_LINE]
    if rest:
        lines.append(rest)
    return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]
