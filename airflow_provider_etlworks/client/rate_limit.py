"""How fast one client may ask: never more than its share of the organization's limit in any minute."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.settings import ClientSettings

_MINUTE = 60.0
# Requests a minute, for a minute after a server without a known limit has said that there is one: the cloud's.
_CAREFUL_RATE = 600


def rate_limiter_for(settings: ClientSettings, clock: Clock) -> RateLimiter:
    """Return the pace of a connection: one for all clients that this process has, or had, of it."""
    limit = settings.requests_per_minute
    # A hash, so that no secret is kept here.
    who = hash((settings.login, settings.password, settings.tenant_id))
    return _OF_CONNECTION.setdefault((settings.root_url, who, limit, clock), RateLimiter(limit, clock))


class RateLimiter:
    """
    Gives every request its moment.

    The first tenth of a minute's requests may go at once; what follows is spaced so that this burst and the rest
    together stay within the limit in any 60 seconds. (A bucket that starts full would allow twice as many: so do the
    rate limiters that are to be had, and none of them can be told to pause.)

    :param requests_per_minute: the limit; 0 is none.
    :param clock: tells the time.
    """

    def __init__(self, requests_per_minute: int, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._resume_at = self._careful_until = float("-inf")
        self._unlimited = requests_per_minute == 0
        requests_per_minute = requests_per_minute or _CAREFUL_RATE
        burst = max(1, requests_per_minute // 10)
        self._interval = _MINUTE / max(requests_per_minute - burst, 1)
        self._slack = self._interval * (burst - 1)
        self._next = 0.0

    def delays(self) -> Iterator[float]:
        """Yield the seconds to wait before a request may go: none, once, or again where a pause came in between."""
        while True:
            wait, moment = self._reserve()
            if wait > 0:
                yield wait
            if moment >= self._resume_at:
                return

    def _reserve(self) -> tuple[float, float]:
        """Take the next free moment, and return the seconds until then and the moment."""
        with self._lock:
            now = self._clock.monotonic()
            earliest = max(now, self._resume_at)
            if self._unlimited and now >= self._careful_until:
                return 0.0, now
            slot = max(self._next, earliest - self._slack)
            self._next = slot + self._interval
            moment = max(earliest, slot)
            return moment - now, moment

    def pause(self, seconds: float) -> None:
        """Send nothing for some seconds, as a ``Retry-After`` asks; then go on evenly, without a burst."""
        with self._lock:
            self._resume_at = max(self._resume_at, self._clock.monotonic() + seconds)
            self._careful_until = self._resume_at + _MINUTE
            self._next = max(self._next, self._resume_at)


_OF_CONNECTION: dict[tuple[str, int, int, Clock], RateLimiter] = {}
