"""Time is passed in: tests bring their own clock, so hours of polling take no time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock(Protocol):
    """Reads the time. Python's module ``time`` is one."""

    def time(self) -> float:
        """Return the seconds since the epoch, for moments that other processes share."""

    def monotonic(self) -> float:
        """Return seconds that only grow, for durations."""


SYSTEM_CLOCK: Clock = time


def growing_delays(first: float, longest: float, factor: float = 1.5) -> Iterator[float]:
    """
    Yield the delays of a back-off, without end.

    :param first: seconds before the first repetition.
    :param longest: seconds that no delay exceeds.
    :param factor: how much longer each delay is than the one before.
    """
    delay = first
    while True:
        yield min(delay, longest)
        delay = min(delay * factor, longest)
