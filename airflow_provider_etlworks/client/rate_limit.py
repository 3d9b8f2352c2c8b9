"""
When a request may be sent: the rate limit, the pauses that Etlworks asks for, and this process's share of the limit.

Nothing here waits, and nobody reserves a moment of the future: :meth:`RateLimiter.begin` answers "now", or "ask again
in so many seconds". So a waiter that leaves leaves no hole, and a pause that begins meanwhile holds for all.
"""

from __future__ import annotations

import math
import random
import weakref
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.settings import ClientSettings

WINDOW = 60.0
"""Seconds in which requests are counted, and within which the processes come back after a ``Retry-After``."""

# The part of a minute's requests that may be sent at once.
_BURST = 0.1
# The part of the limit that only stops and last polls use; at least one request, if the limit is not tiny.
_RESERVE = 0.05
_LEAST_LIMIT_WITH_RESERVE = 10
# Requests that end within so many seconds are counted as one group, until the last of them is too old.
_GROUP = 0.5
# A waiting request asks again after so many seconds at most: another thread may have given its turn back.
_LONGEST_DELAY = 1.0
# Less than this may be nothing to a clock that counts from 1970.
_SHORTEST_DELAY = 0.001

# Requests a minute to which a share falls at most. A task sends several before its run is there: these wait less.
_LEAST_SHARE = 1.0
_LEAST_SHARE_BEFORE_A_RUN = 2.0
# A share below this doubles in each quiet minute but the first: a process that has sent little before its first 429 may
# need much more.
_SMALL_SHARE = 20.0
# By how much a share rises in a quiet minute: so many requests a minute, or this part of the share if that is less.
_RISE = 6.0
_RISE_OF_SHARE = 0.05
# After so many quiet minutes it rises twice as fast, then three times, and so on.
_FASTER_AFTER = 10.0


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


class _Ended(NamedTuple):
    """Some requests that ended at about the same time."""

    first: float
    last: float
    requests: int


class _State(NamedTuple):
    """
    What a rate limiter knows at one moment. Another state succeeds it.

    :ivar in_flight: requests that have begun and not ended.
    :ivar ended: those that ended in the last minute, and some before that; the earliest come first.
    :ivar ended_requests: how many these are.
    :ivar next_at: when the next request is due, if requests are evenly spaced.
    :ivar resume_at: until when nothing but stops is sent.
    :ivar share: requests a minute at the end of the last pause.
    :ivar is_first: whether no share limited this process before that pause.
    :ivar successors: the states that wanted to succeed this one; the first one does.
    """

    in_flight: int
    ended: tuple[_Ended, ...]
    ended_requests: int
    next_at: float
    resume_at: float
    share: float
    is_first: bool
    successors: list[_State]

    def used(self, since: float) -> int:
        """Return how many requests are in flight, or ended after a moment."""
        used = self.in_flight + self.ended_requests
        for group in self.ended:
            if group.last > since:
                break
            used -= group.requests
        return used

    def rate(self, now: float) -> float:
        """Return the requests a minute since the last pause, or in the last minute, without one that is refused now."""
        seconds = min(now - self.resume_at, WINDOW)
        return (self.used(now - seconds) - 1) * WINDOW / max(seconds, _SHORTEST_DELAY)


class RateLimiter:
    """
    Decides whether a request may be sent now. Threads, event loops and signal handlers may share it.

    * A request counts from its sending until 60 s after its answer or failure. So Etlworks receives no more than the
      limit in any 60 s, however late our loop or the server is. A small part of the limit is for stops and last polls.
    * Within that, a token bucket spaces the requests: a tenth of the limit at once, the rest evenly.
    * Processes that share an organization find their shares as TCP does. A 429 halves what this process really sent,
      and quiet time raises it again. After a ``Retry-After`` each process comes back at a random moment of the minute
      that follows.

    There is no lock, since a signal handler that interrupts its owner would wait without end. Instead, each method
    computes a new state, and starts again if the state that it began with has got another successor meanwhile.

    :param requests_per_minute: the limit; 0 is none.
    :param clock: reads the time.
    :param jitter: returns a random number from 0 to 1; for tests.
    """

    def __init__(self, requests_per_minute: int, clock: Clock, jitter: Callable[[], float] = random.random) -> None:
        self.clock = clock
        self._jitter = jitter
        self._limit = requests_per_minute or math.inf
        self._limits: dict[weakref.ref[object], float] = {}
        self._state = _State(0, (), 0, -math.inf, -math.inf, math.inf, True, [])

    def join(self, client: object, requests_per_minute: int) -> None:
        """
        Let the limit of a client hold, too, while that client exists. The lowest limit counts.

        :param client: the client.
        :param requests_per_minute: its limit; 0 is none.
        """
        # The callback of a dead reference may run at any point: it only removes one key.
        self._limits[weakref.ref(client, lambda dead: self._limits.pop(dead, None))] = requests_per_minute or math.inf

    def begin(self, priority: Priority) -> float:
        """
        Begin a request, if it may be sent now. Then :meth:`end` or :meth:`give_back` must follow.

        :param priority: what the request is for.
        :return: 0 if it may be sent, and counts from now on; else the seconds after which to ask again.
        """
        while True:
            state, now = self._latest(), self.clock.monotonic()
            if now < state.resume_at and priority is not Priority.STOP:
                return max(state.resume_at - now, _SHORTEST_DELAY)
            limit = min([self._limit, *self._limits.values()])
            unreserved = limit - _reserve(limit)
            interval, slack = _spacing(_share_for(priority, state, now), unreserved)
            is_urgent = priority <= Priority.LAST_POLL
            used = state.used(now - WINDOW)
            if used >= (limit if is_urgent else unreserved):
                oldest = next((each.last for each in state.ended if each.last > now - WINDOW), now)
                return _between(oldest + WINDOW - now)
            next_at = max(state.next_at, now) + interval
            if is_urgent:
                # Those that are not spaced do not hold up the others for longer than one interval.
                next_at = max(state.next_at, min(next_at, now + slack + interval))
            # The more is used up, the shorter is a burst, or it would repeat itself whenever its minute is over.
            elif (delay := state.next_at - slack * (1 - (used / unreserved) ** 2) - now) > 0:
                return _between(delay)
            # Not with _replace(), which takes as long as all the rest.
            in_flight, ended, ended_requests, _, resume_at, share, is_first, _ = state
            new = _State(in_flight + 1, ended, ended_requests, next_at, resume_at, share, is_first, [])
            if self._succeed(state, new):
                return 0.0

    def end(self) -> None:
        """Record that a request that was sent has been answered, or has failed."""
        while True:
            state, now = self._latest(), self.clock.monotonic()
            in_flight, ended, ended_requests, next_at, resume_at, share, is_first, _ = state
            if ended and now - ended[-1].first < _GROUP:
                first, last, requests = ended[-1]
                ended = (*ended[:-1], _Ended(first, max(last, now), requests + 1))
                ended_requests += 1
            else:
                ended = (*(each for each in ended if each.last > now - WINDOW), _Ended(now, now, 1))
                ended_requests = sum([each.requests for each in ended])
            new = _State(in_flight - 1, ended, ended_requests, next_at, resume_at, share, is_first, [])
            if self._succeed(state, new):
                return

    def give_back(self, priority: Priority) -> None:
        """
        Record that a request that had begun was not sent.

        :param priority: that with which it began.
        """
        while True:
            state, now = self._latest(), self.clock.monotonic()
            limit = min([self._limit, *self._limits.values()])
            interval, _ = _spacing(_share_for(priority, state, now), limit - _reserve(limit))
            next_at = state.next_at - interval
            if self._succeed(state, state._replace(in_flight=state.in_flight - 1, next_at=next_at, successors=[])):
                return

    def refuse(self, retry_after: float | None) -> None:
        """
        Record that a request was answered with 429: pause, and halve the share, once in each pause.

        The first request after a pause changes no share: it shows that others use up the limit.

        :param retry_after: seconds that Etlworks asks to wait; ``None`` if it does not say.
        """
        offset = WINDOW * self._jitter()
        while True:
            state, now = self._latest(), self.clock.monotonic()
            share, is_first = state.share, state.is_first
            rate, before = state.rate(now), _share(state, now)
            # The first one after a pause says nothing about this process: others use up the limit.
            if now >= state.resume_at and (rate > 0 or now - state.resume_at >= WINDOW):
                is_first = before >= min([self._limit, *self._limits.values()])
                share = max(min(rate, before) / 2, _LEAST_SHARE)
            resume_at = max(state.resume_at, now + (retry_after or 0.0) + offset)
            # Evenly from then on, without a burst.
            next_at = max(state.next_at, resume_at + _spacing(share, math.inf)[1])
            new = state._replace(next_at=next_at, resume_at=resume_at, share=share, is_first=is_first, successors=[])
            if self._succeed(state, new):
                return

    def is_paused(self, priority: Priority) -> bool:
        """Return whether a request must not be sent although it has begun: a pause may have begun since."""
        return priority is not Priority.STOP and self.clock.monotonic() < self._latest().resume_at

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


def _between(delay: float) -> float:
    return min(max(delay, _SHORTEST_DELAY), _LONGEST_DELAY)


def _reserve(limit: float) -> float:
    return max(1.0, limit * _RESERVE // 1) if _LEAST_LIMIT_WITH_RESERVE <= limit < math.inf else 0.0


def _share(state: _State, now: float) -> float:
    """Return the requests a minute that this process finds fair."""
    minutes = max(0.0, now - state.resume_at) / 60.0
    if state.share == math.inf or minutes == math.inf:
        return state.share
    share = state.share
    if state.is_first and share < _SMALL_SHARE:
        minutes = max(0.0, minutes - 1)
        doubling = min(minutes, math.log2(_SMALL_SHARE / share))
        share, minutes = share * math.pow(2, doubling), minutes - doubling
    return share + min(_RISE, _RISE_OF_SHARE * share) * minutes * (1 + minutes / _FASTER_AFTER)


def _share_for(priority: Priority, state: _State, now: float) -> float:
    share = _share(state, now)
    return max(share, _LEAST_SHARE_BEFORE_A_RUN) if priority is Priority.START else share


def _spacing(share: float, limit: float) -> tuple[float, float]:
    """Return the seconds between two requests, and how much earlier the last one of a burst may be sent."""
    rate = min(share, limit)
    if rate == math.inf:
        return 0.0, math.inf
    interval = WINDOW / rate
    return interval, interval * (max(1, round(rate * _BURST / (1 - _RESERVE))) - 1)


def rate_limiter_for(settings: ClientSettings, clock: Clock) -> RateLimiter:
    """Return the rate limiter of an instance and its credentials. All its clients in this process share it."""
    # A hash, so that no secret is kept here.
    identity = hash((settings.login, settings.password, settings.tenant_id))
    return _BY_IDENTITY.setdefault((settings.root_url, identity, clock), RateLimiter(0, clock))


_BY_IDENTITY: dict[tuple[str, int, Clock], RateLimiter] = {}
