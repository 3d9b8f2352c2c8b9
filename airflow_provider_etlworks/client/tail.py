"""The end of a long text, without holding the text."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST_LINE = 2_000


def last_lines_of(pieces: Iterable[bytes], count: int) -> list[str]:
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
