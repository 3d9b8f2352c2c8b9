"""The rate limit that all clients of an organization share."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from airflow_provider_etlworks.sandbox.messages import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 60.0


class RateLimit:
    """
    Admits a number of requests in any 60 seconds.

    :param per_minute: The number; 0 or None means no limit.
    :param clock: Returns the time in seconds.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._admitted: deque[float] = deque()

    def admit(self) -> None:
        """Count a request; 429 with ``Retry-After`` above the limit. Refused requests are not counted."""
        if not self._per_minute:
            return
        now = self._clock()
        while self._admitted and self._admitted[0] <= now - WINDOW:
            self._admitted.popleft()
        if len(self._admitted) >= self._per_minute:
            wait = max(1, math.ceil(self._admitted[0] + WINDOW - now))
            limit = f"The organization's limit of {self._per_minute} requests a minute is reached"
            raise ApiError(429, limit, {"Retry-After": str(wait)})
        self._admitted.append(now)
