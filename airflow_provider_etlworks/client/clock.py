"""Time, as a value that is passed in: with a clock of their own, tests take no time for hours of polling."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock(Protocol):
    """The time of day, and a time that only grows. Python's module ``time`` is a clock."""

    def time(self) -> float:
        """Seconds since the epoch: for moments that other processes know too."""

    def monotonic(self) -> float:
        """Seconds that only grow: for durations."""


SYSTEM_CLOCK: Clock = time


def growing_delays(first: float, longest: float, factor: float = 1.5) -> Iterator[float]:
    """
    Yield the delays between attempts, without end.

    :param first: the first delay, in seconds.
    :param longest: the longest delay, in seconds.
    :param factor: how many times longer each delay is than the one before it.
    """
    delay = first
    while True:
        delay = min(delay, longest)
        yield delay
        delay *= factor
