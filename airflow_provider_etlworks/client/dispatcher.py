"""Which request of an event loop is sent next: a queue by priority, for the rate limit and the connections."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from itertools import count
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from airflow_provider_etlworks.client.rate_limit import Priority, RateLimiter, rate_limiter_for
from airflow_provider_etlworks.client.transport import POOL_SIZE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.settings import ClientSettings

# Connections that only stops and last polls use: the others may all hang.
_RESERVED_CONNECTIONS = 1


class _Entry(NamedTuple):
    priority: Priority
    number: int
    turn: Turn


class Turn:
    """
    The right to send one request, with a connection for it. An async context manager, which waits for it.

    An unused turn goes to the next one that waits. Make it with :meth:`Dispatcher.turn`.

    :ivar priority: its place in the queue.
    :ivar is_granted: whether a request may be sent now.
    :ivar entry: where it waits; ``None`` if it does not.
    :ivar granted: is done when the wait ends.
    """

    __slots__ = ("_dispatcher", "entry", "granted", "is_granted", "priority")

    def __init__(self, dispatcher: Dispatcher, priority: Priority) -> None:
        self.priority = priority
        self.is_granted = False
        self._dispatcher = dispatcher
        self.entry: _Entry | None = None
        self.granted: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Turn:
        await self.take()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release(sent=False)

    async def take(self) -> None:
        """Wait for the turn, if it is not granted yet, or has been used."""
        if self.is_granted or self._dispatcher.grant_at_once(self):
            return
        self.granted = asyncio.get_running_loop().create_future()
        self._dispatcher.enqueue(self)
        try:
            await self.granted
        except BaseException:
            self._dispatcher.forget(self)
            self.release(sent=False)
            raise
        finally:
            self.granted = None

    def raise_to(self, priority: Priority) -> None:
        """Let it be granted earlier, if it still waits and its priority is lower."""
        if priority < self.priority:
            self.priority = priority
            if self.entry is not None:
                self._dispatcher.enqueue(self)

    def is_paused(self) -> bool:
        """Return whether nothing must be sent although the turn is granted: a pause has begun since."""
        return self._dispatcher.rate_limiter.is_paused(self.priority)

    def release(self, *, sent: bool) -> None:
        """Give the connection back after a request, or without one. It does nothing if the turn is not granted."""
        if self.is_granted:
            self.is_granted = False
            self._dispatcher.release(self.priority, sent=sent)


class Dispatcher:
    """
    Grants turns to the requests of an event loop, in the order of their priority, first come first served.

    :param rate_limiter: counts the requests of the whole process.
    :param sleep: waits for some seconds.
    """

    def __init__(self, rate_limiter: RateLimiter, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.rate_limiter = rate_limiter
        self._sleep = sleep
        self._free_connections = POOL_SIZE
        # Entries of turns that no longer wait, or wait with another priority, are skipped.
        self._queue: list[_Entry] = []
        self._numbers = count()
        self._waiting = 0
        self._timer: asyncio.Task[None] | None = None
        self._wakes_at = 0.0

    def turn(self, priority: Priority = Priority.POLL) -> Turn:
        """Return a turn: ``async with`` waits for it, then ``client.send(call, turn=turn)`` uses it."""
        return Turn(self, priority)

    def grant_at_once(self, turn: Turn) -> bool:
        """Grant a turn if nobody waits and it may be used now."""
        if self._waiting or not self._has_connection(turn.priority) or self.rate_limiter.begin(turn.priority) > 0:
            return False
        self._free_connections -= 1
        turn.is_granted = True
        return True

    def enqueue(self, turn: Turn) -> None:
        """Let a turn wait, or wait with its new priority: among its equals, where it has been before."""
        number = next(self._numbers) if turn.entry is None else turn.entry.number
        self._waiting += turn.entry is None
        turn.entry = _Entry(turn.priority, number, turn)
        heapq.heappush(self._queue, turn.entry)
        self._grant()

    def forget(self, turn: Turn) -> None:
        """Let a turn no longer wait."""
        if turn.entry is not None:
            turn.entry = None
            self._waiting -= 1
            if len(self._queue) > 2 * self._waiting + 100:
                self._queue = [each for each in self._queue if each is each.turn.entry]
                heapq.heapify(self._queue)
            self._grant()

    def release(self, priority: Priority, *, sent: bool) -> None:
        """Take back what a turn was granted."""
        if sent:
            self.rate_limiter.end()
        else:
            self.rate_limiter.give_back(priority)
        self._free_connections += 1
        if self._waiting:
            self._grant()

    def _grant(self) -> None:
        while self._waiting:
            entry = self._queue[0]
            if entry is not entry.turn.entry:
                heapq.heappop(self._queue)
                continue
            if not self._has_connection(entry.priority):
                break
            if (delay := self.rate_limiter.begin(entry.priority)) > 0:
                self._wake_after(delay)
                return
            heapq.heappop(self._queue)
            self._waiting -= 1
            self._free_connections -= 1
            entry.turn.entry = None
            entry.turn.is_granted = True
            if entry.turn.granted is not None and not entry.turn.granted.done():
                entry.turn.granted.set_result(None)
        if not self._waiting:
            self._queue.clear()
        self._cancel_timer()

    def _has_connection(self, priority: Priority) -> bool:
        return self._free_connections > (0 if priority <= Priority.LAST_POLL else _RESERVED_CONNECTIONS)

    def _wake_after(self, delay: float) -> None:
        wakes_at = self.rate_limiter.clock.monotonic() + delay
        if self._timer is not None and self._wakes_at <= wakes_at:
            return
        self._cancel_timer()
        self._wakes_at = wakes_at
        # In an empty context, not that of the turn that waits now: the timer serves all.
        self._timer = contextvars.Context().run(asyncio.ensure_future, self._grant_later(delay))

    async def _grant_later(self, delay: float) -> None:
        await self._sleep(delay)
        self._timer = None
        self._grant()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def dispatcher_for(settings: ClientSettings, clock: Clock, sleep: Callable[[float], Awaitable[None]]) -> Dispatcher:
    """Return the dispatcher that all clients of an instance and its credentials share in this event loop."""
    dispatchers = _BY_LOOP.setdefault(asyncio.get_running_loop(), {})
    rate_limiter = rate_limiter_for(settings, clock)
    return dispatchers.setdefault(rate_limiter, Dispatcher(rate_limiter, sleep))


_BY_LOOP: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[RateLimiter, Dispatcher]] = WeakKeyDictionary()
