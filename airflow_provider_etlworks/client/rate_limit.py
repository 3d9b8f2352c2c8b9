"""
When a request may be sent: the rate limit, the pauses that Etlworks asks for, and this process's share of the limit.

Nothing here waits, and nobody reserves a moment of the future: :meth:`RateLimiter.begin` answers "now", or "ask again
in so many seconds". So a waiter that leaves leaves no hole, and a pause that begins meanwhile holds for all.
"""

from __future__ import annotations

import math
import random
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.settings import ClientSettings

WINDOW = 60.0
"""Seconds in which the limit is counted, and within which processes come back after a ``Retry-After``."""

# Requests that ended within so many seconds of one another are counted together, until the last of them is too old.
_GRAIN = 0.5
# A waiting request asks again after this many seconds at most: another thread may have given its turn back.
_LONGEST_DELAY = 1.0
# Stops and last polls may use this part of the limit, and nobody else.
_RESERVE = 0.05
# The part of a minute's requests that may be sent at once.
_BURST = 0.1
_LEAST_SHARE = 1.0
# Seconds without a 429 in which the share doubles.
_DOUBLING = 120.0


class Priority(IntEnum):
    """Which of the waiting requests is sent first: the one with the lowest number."""

    STOP = 0
    LAST_POLL = 1
    START = 2
    REPORTED_DONE = 3
    POLL = 4
    LISTING = 5
    SEARCH = 6
    FIRST_POLL = 7


class _State:
    """
    What a rate limiter knows at one moment. It never changes: another state succeeds it.

    :ivar in_flight: requests that were sent and have no answer yet.
    :ivar ended: for the others of the last minute: when the first and the last of some ended, and how many they are.
    :ivar next_at: when the next request is due, if requests are spaced evenly.
    :ivar resume_at: until when Etlworks must not receive anything but stops.
    :ivar share: requests a minute, as of ``share_at``.
    :ivar successors: whoever wants to succeed this state appends a state; the first one does.
    """

    __slots__ = ("ended", "in_flight", "next_at", "resume_at", "share", "share_at", "successors")

    def __init__(
        self,
        in_flight: int,
        ended: tuple[_Ended, ...],
        next_at: float,
        resume_at: float,
        share: float,
        share_at: float,
    ) -> None:
        self.in_flight = in_flight
        self.ended = ended
        self.next_at = next_at
        self.resume_at = resume_at
        self.share = share
        self.share_at = share_at
        self.successors: list[_State] = []

    def used(self, now: float) -> int:
        """Return the requests that count at a moment."""
        return self.in_flight + sum(each.requests for each in self.ended if each.last > now - WINDOW)


class _Ended(NamedTuple):
    first: float
    last: float
    requests: int


class RateLimiter:
    """
    Decides whether a request may be sent now. Threads, event loops and signal handlers may share it.

    A request counts from its sending until 60 s after its answer or failure. So Etlworks receives no more than the
    limit in any 60 s, however late our loop or the server is. Within that, a token bucket spaces the requests: a tenth
    of the limit at once, the rest evenly.

    No lock: a signal handler that interrupts a method could wait for it without end. A method computes a new state from
    the present one, and starts again if another one has become its successor meanwhile.

    :param requests_per_minute: the limit; 0 is none. It is the lowest one while several clients share this limiter.
    :param clock: reads the time.
    :param jitter: returns a random number from 0 to 1; for tests.
    """

    def __init__(
        self, requests_per_minute: int = 0, clock: Clock | None = None, jitter: Callable[[], float] = random.random
    ) -> None:
        from airflow_provider_etlworks.client.clock import SYSTEM_CLOCK

        self.clock = SYSTEM_CLOCK if clock is None else clock
        self._jitter = jitter
        self._limits: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._own_limit = requests_per_minute
        never = float("-inf")
        self._state = _State(0, (), never, never, math.inf, never)

    def begin(self, priority: Priority) -> float:
        """
        Begin a request, if it may be sent now; then :meth:`end` or :meth:`give_back` must follow.

        :param priority: whose turn it is.
        :return: 0 if it may be sent, and is counted; else seconds after which to ask again.
        """
        while True:
            state, now = self._latest(), self.clock.monotonic()
            if (delay := self._delay(state, priority, now)) > 0:
                return delay
            interval = WINDOW / self._rate(state, now)
            next_at = max(state.next_at, now) + interval
            if self._succeed(
                state,
                _State(state.in_flight + 1, state.ended, next_at, state.resume_at, state.share, state.share_at),
            ):
                return 0.0

    def end(self) -> None:
        """Record that a request that was sent has been answered, or has failed."""
        while True:
            state, now = self._latest(), self.clock.monotonic()
            ended = state.ended
            if ended and now - ended[-1].first < _GRAIN:
                first, last, count = ended[-1]
                ended = (*ended[:-1], _Ended(first, max(last, now), count + 1))
            else:
                ended = (*(each for each in ended if each.last > now - WINDOW), _Ended(now, now, 1))
            if self._succeed(
                state,
                _State(state.in_flight - 1, ended, state.next_at, state.resume_at, state.share, state.share_at),
            ):
                return

    def give_back(self) -> None:
        """Record that a request that had begun was not sent."""
        while True:
            state, now = self._latest(), self.clock.monotonic()
            next_at = state.next_at - WINDOW / self._rate(state, now)
            if self._succeed(
                state,
                _State(state.in_flight - 1, state.ended, next_at, state.resume_at, state.share, state.share_at),
            ):
                return

    def refuse(self, retry_after: float | None) -> None:
        """
        Record a 429: pause, and halve the share once.

        :param retry_after: seconds that Etlworks asks to wait. Up to a minute is added at random, so that processes
            that were refused together do not come back together.
        """
        while True:
            state, now = self._latest(), self.clock.monotonic()
            resume_at = now + (retry_after or 0.0) + WINDOW * self._jitter()
            share = state.share
            if now >= state.resume_at:
                # Without this one.
                share = max(_LEAST_SHARE, (state.used(now) - 1) / 2)
            resume_at = max(resume_at, state.resume_at)
            if self._succeed(
                state,
                _State(state.in_flight, state.ended, max(state.next_at, resume_at), resume_at, share, resume_at),
            ):
                return

    def is_paused(self, priority: Priority) -> bool:
        """Return whether a request must not be sent, although it has begun: Etlworks asked for a pause meanwhile."""
        return priority is not Priority.STOP and self.clock.monotonic() < self._latest().resume_at

    def join(self, client: object, requests_per_minute: int) -> None:
        """Let the limit of a client count for as long as the client exists."""
        self._limits[client] = requests_per_minute

    def _limit(self) -> float:
        limits = [self._own_limit, *self._limits.values()]
        return min((each for each in limits if each), default=math.inf)

    def _rate(self, state: _State, now: float) -> float:
        """Return the requests a minute that this process may send now."""
        quiet = max(0.0, now - state.share_at)
        share = state.share * 2 ** min(quiet / _DOUBLING, 60.0) if quiet < math.inf else state.share
        limit = self._limit()
        return min(share, limit - self._reserve(limit))

    @staticmethod
    def _reserve(limit: float) -> float:
        return math.floor(limit * _RESERVE) if limit < math.inf else 0.0

    @staticmethod
    def _slack(interval: float) -> float:
        if interval == 0:
            return 0.0
        return interval * (max(1, round(WINDOW / interval * _BURST / (1 - _RESERVE))) - 1)

    def _delay(self, state: _State, priority: Priority, now: float) -> float:
        if priority is not Priority.STOP and now < state.resume_at:
            return state.resume_at - now
        is_urgent = priority <= Priority.LAST_POLL
        limit = self._limit()
        most = limit if is_urgent else limit - self._reserve(limit)
        if state.used(now) >= most:
            oldest = next((each.last for each in state.ended if each.last > now - WINDOW), now)
            return max(min(oldest + WINDOW - now, _LONGEST_DELAY), 1e-6)
        if is_urgent:
            return 0.0
        interval = WINDOW / self._rate(state, now)
        return min(max(0.0, state.next_at - self._slack(interval) - now), _LONGEST_DELAY)

    def _latest(self) -> _State:
        state = self._state
        while state.successors:
            state = state.successors[0]
        return state

    def _succeed(self, state: _State, new: _State) -> bool:
        # Appending is atomic, so exactly one is the first.
        state.successors.append(new)
        if state.successors[0] is not new:
            return False
        self._state = new
        return True


def rate_limiter_for(settings: ClientSettings, clock: Clock) -> RateLimiter:
    """Return the rate limiter of an instance and its credentials. All its clients in this process share it."""
    # A hash, so that no secret is kept here.
    identity = hash((settings.login, settings.password, settings.tenant_id))
    return _BY_IDENTITY.setdefault((settings.root_url, identity, clock), RateLimiter(0, clock))


_BY_IDENTITY: dict[tuple[str, int, Clock], RateLimiter] = {}
