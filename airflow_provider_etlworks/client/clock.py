"""Time, as a thing that is passed in: tests bring a clock of their own, and hours of polling take none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock(Protocol):
    """Tells the time. Python's module ``time`` is one."""

    def time(self) -> float:
        """Seconds since the epoch: for moments that other processes know too."""

    def monotonic(self) -> float:
        """Seconds that only grow: for durations."""


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
