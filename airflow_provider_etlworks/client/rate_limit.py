"""How fast one client may send: never more than its share of the organization's rate limit in any minute."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.settings import ClientSettings

_MINUTE = 60.0
# Requests a minute, for a minute after an unlimited connection received a Retry-After: the cloud's rate limit.
_CAREFUL_RATE = 600


def rate_limiter_for(settings: ClientSettings, clock: Clock) -> RateLimiter:
    """Return the rate limiter of a connection. All its clients in this process, past and present, share it."""
    limit = settings.requests_per_minute
    # A hash, so that no secret is kept here.
    identity = hash((settings.login, settings.password, settings.tenant_id))
    return _BY_CONNECTION.setdefault((settings.root_url, identity, limit, clock), RateLimiter(limit, clock))


class RateLimiter:
    """
    Gives every request the time at which it may be sent.

    The first tenth of a minute's requests may go at once; the rest is spaced so that this burst and the rest together
    stay within the limit in any 60 seconds. (A token bucket that starts full would allow twice as many. So do the
    published rate limiters, and none of them can be paused.)

    :param requests_per_minute: the rate limit; 0 is none.
    :param clock: reads the time.
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
        self._next_slot = 0.0

    def delays(self) -> Iterator[float]:
        """Yield the seconds to wait before a request may be sent: none, one, or more if a pause began meanwhile."""
        while True:
            delay, send_at = self._reserve()
            if delay > 0:
                yield delay
            if send_at >= self._resume_at:
                return

    def _reserve(self) -> tuple[float, float]:
        """Take the next free slot, and return the seconds until then and its time."""
        with self._lock:
            now = self._clock.monotonic()
            earliest = max(now, self._resume_at)
            if self._unlimited and now >= self._careful_until:
                return 0.0, now
            slot = max(self._next_slot, earliest - self._slack)
            self._next_slot = slot + self._interval
            send_at = max(earliest, slot)
            return send_at - now, send_at

    def pause(self, seconds: float) -> None:
        """Send nothing for some seconds, as a ``Retry-After`` asks; then continue evenly, without a burst."""
        with self._lock:
            self._resume_at = max(self._resume_at, self._clock.monotonic() + seconds)
            self._careful_until = self._resume_at + _MINUTE
            self._next_slot = max(self._next_slot, self._resume_at)


_BY_CONNECTION: dict[tuple[str, int, int, Clock], RateLimiter] = {}
