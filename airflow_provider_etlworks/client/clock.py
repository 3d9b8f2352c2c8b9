"""Time, as a thing that is passed in: tests bring a clock of their own, and hours of polling take none."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time. Python's module ``time`` is one."""

    def time(self) -> float:
        """Seconds since the epoch: for moments that other processes know too."""

    def monotonic(self) -> float:
        """Seconds that only grow: for durations."""


SYSTEM_CLOCK: Clock = time
