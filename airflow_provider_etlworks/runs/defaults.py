"""Times of following a run: their defaults, and how they are read. DAG files import this, so it imports little."""

from __future__ import annotations

from datetime import timedelta
from numbers import Real
from typing import Any

DEFAULT_POLL_INTERVAL = 10.0
"""Seconds between two polls of a young run."""

DEFAULT_PATIENCE = 1800.0
"""Seconds for which the status of a run may be unreadable."""

DEFAULT_REPETITION_GRACE = 10.0
"""Seconds after the bad end of a schedule's run in which its repetition by Etlworks may still appear: an assumption."""


def parse_seconds(name: str, value: Any, *, zero_allowed: bool = False) -> float:
    """
    Read a duration that an author of DAGs gave.

    :param name: the argument, for the message.
    :param value: seconds, or a ``timedelta``.
    :param zero_allowed: whether 0 is valid.
    :return: seconds; a whole number stays one.
    :raises ValueError: it is something else, negative, infinite or NaN.
    """
    seconds: Any = value.total_seconds() if isinstance(value, timedelta) else value
    # Infinity is not JSON, so a trigger cannot be stored with it.
    is_number = isinstance(seconds, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= seconds < float("inf") or (seconds == 0 and not zero_allowed):
        least = "that is 0 or more" if zero_allowed else "greater than 0"
        raise ValueError(f"{name} is {value!r}; it is a number of seconds {least}, or a timedelta.")
    return seconds if isinstance(seconds, (int, float)) else float(seconds)
