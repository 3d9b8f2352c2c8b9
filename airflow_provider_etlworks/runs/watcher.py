"""One watcher follows any number of runs over one client: it carries out what a poll queue decides."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.client.transport import POOL_SIZE
from airflow_provider_etlworks.runs.find import SearchPoller, find_newest_runs
from airflow_provider_etlworks.runs.follow import FollowResult, RunPoller
from airflow_provider_etlworks.runs.listings import read_listing
from airflow_provider_etlworks.runs.poll_queue import (
    ListingItem,
    PolledItem,
    Poller,
    PollQueue,
    RunItem,
    SearchItem,
    Subscriber,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.dispatcher import Turn
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.client.rate_limit import Priority
    from airflow_provider_etlworks.runs.find import RunWaiter
    from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

T = TypeVar("T")

log = logging.getLogger(__name__)

# What is due within this many seconds is polled together: thousands of runs must not set thousands of timers.
_TICK = 0.05
_PAUSE_AFTER_BUG = 1.0


class _Waiter(Subscriber):
    """A subscriber, and the future that its task awaits."""

    __slots__ = ("done",)

    def __init__(self, poller: Poller) -> None:
        super().__init__(poller)
        self.done: asyncio.Future[FollowResult] = asyncio.get_running_loop().create_future()


class _Alarm:
    """
    Waits until a moment, or until something is due earlier.

    :param sleep: waits for some seconds.
    :ivar rings_at: when the wait ends.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._sleep = sleep
        self._woken: asyncio.Future[None] | None = None
        self.rings_at = 0.0

    async def wait_until(self, moment: float, now: float) -> None:
        """Wait until a moment of the monotonic clock, or until :meth:`ring` ends the wait."""
        woken = self._woken = asyncio.get_running_loop().create_future()
        self.rings_at = moment
        try:
            if moment == float("inf"):
                await woken
                return
            sleeping = asyncio.ensure_future(self._sleep(max(moment - now, _TICK)))
            try:
                await asyncio.wait((sleeping, woken), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
        finally:
            self._woken = None

    @property
    def is_set(self) -> bool:
        """Whether something waits for it."""
        return self._woken is not None

    def ring(self) -> None:
        """End the wait."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class Watcher:
    """
    Follows runs over one client, in one event loop.

    :param client: sends the polls; its rate limit applies to all runs together.
    """

    def __init__(self, client: AsyncEtlworksClient) -> None:
        self.client = client
        self._clock = client.clock
        self._queue: PollQueue[_Waiter] = PollQueue(client.clock, client.settings.requests_per_minute, client.metrics)
        # Whoever holds it waits for a turn; what to poll is chosen once the turn is there.
        self._choosing = asyncio.Lock()
        self._turn: Turn | None = None
        self._next_poll = _Alarm(client.sleep)
        self._next_deadline = _Alarm(client.sleep)
        self._workers: list[asyncio.Task[None]] = []

    async def follow(
        self, run: RunRef, policy: PollPolicy, *, log: Log, found: Execution | None = None
    ) -> FollowResult:
        """
        Follow a run until it ends, as :func:`~airflow_provider_etlworks.runs.follow.follow` does.

        Callers that follow the same run share one poll. The other parameters are those of that function.

        :param found: the run's record, if it has just been read: then the first poll comes one interval later.
        """
        poller = RunPoller(run.audit_id, policy, clock=self._clock, log=log)
        delay = 0.0 if found is None else poller.on_record(found)
        if isinstance(delay, FollowResult):
            return delay
        waiter = _Waiter(poller)
        item = self._queue.push(run, waiter, self._clock.monotonic(), after=delay)
        since = self._clock.time() if policy.started_at is None else policy.started_at
        try:
            self._begin()
            result = await waiter.done
            self.client.metrics.run_read(result.execution, self._clock.time(), since)
            return result
        finally:
            self._leave(item, waiter)

    async def search(self, sensor: RunWaiter, *, is_urgent: bool = False) -> FollowResult:
        """
        Search for the run that a sensor waits for, until there is one. Equal searches share one poll.

        :param sensor: knows which run counts.
        :param is_urgent: whether the run that the sensor followed has ended, so that this answer decides.
        :return: ``FINISHED`` with the run that counts, whether it is going or has ended; or why the search ended.
        """
        waiter, selector = _Waiter(SearchPoller(sensor)), sensor.selector
        item = self._queue.push_search(
            selector.flow_id, selector.message_uuid, waiter, self._clock.monotonic(), is_urgent=is_urgent
        )
        try:
            self._begin()
            return await waiter.done
        finally:
            self._leave(item, waiter)

    async def close(self) -> None:
        """Stop polling."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers.clear()
        self.client.metrics.throttled(1.0)

    def _begin(self) -> None:
        """Let the workers know that somebody waits."""
        self._wake()
        if not self._workers:
            # In an empty context, not the first subscriber's: what the workers log does not belong to its task.
            empty = contextvars.Context()
            work = (self._keep_deadlines, *(self._work for _ in range(POOL_SIZE)))
            self._workers = [empty.run(asyncio.create_task, each()) for each in work]

    def _leave(self, item: PolledItem[_Waiter], waiter: _Waiter) -> None:
        self._queue.discard(item, waiter)
        self._check_deadline()

    async def _keep_deadlines(self) -> None:
        """Keep the deadlines, also while all workers wait."""
        while True:
            now = self._clock.monotonic()
            try:
                self._finish(self._queue.expire(now))
                self._wake()
            except Exception as error:  # noqa: BLE001  # a bug of ours: nobody may wait without an end
                self._fail(self._queue.discard_all(), error)
                await self.client.sleep(_PAUSE_AFTER_BUG)
            await self._next_deadline.wait_until(self._queue.next_deadline(), now)

    async def _work(self) -> None:
        while True:
            try:
                async with self._choosing:
                    turn, item = await self._choose()
            except Exception as error:  # noqa: BLE001  # a bug of ours: nobody may wait without an end
                self._fail(self._queue.discard_all(), error)
                await self.client.sleep(_PAUSE_AFTER_BUG)
                continue
            try:
                if isinstance(item, ListingItem):
                    await self._read(item, turn)
                elif item is not None:
                    await self._poll(item, turn)
            finally:
                turn.release(sent=False)

    async def _choose(self) -> tuple[Turn, PolledItem[_Waiter] | ListingItem[_Waiter] | None]:
        """
        Wait until something is due and may be sent. Return the turn, and what is most urgent at that moment.

        It may be ``None``: the subscribers may have left meanwhile.
        """
        turn = self._turn = self.client.dispatcher.turn(await self._next_priority())
        try:
            await turn.take()
            return turn, self._queue.pick(self._clock.monotonic())
        except BaseException:
            turn.release(sent=False)
            raise
        finally:
            self._turn = None

    async def _next_priority(self) -> Priority:
        """Wait until something is due, and return its priority."""
        while True:
            now = self._clock.monotonic()
            self._queue.refresh(now)
            priority = self._queue.urgency(now)
            if priority is not None:
                return priority
            await self._next_poll.wait_until(self._queue.next_wakeup(now), now)

    async def _poll(self, item: PolledItem[_Waiter], turn: Turn) -> None:
        try:
            try:
                if isinstance(item, RunItem):
                    execution = await self.client.send(item.call, attempts=1, turn=turn)
                    results = self._queue.on_record(item, execution, self._clock.monotonic())
                elif isinstance(item, SearchItem):
                    searching = find_newest_runs(item.flow_id, item.message_uuid)
                    runs = await self.client.run(searching, turn=turn)
                    results = self._queue.on_search(item, runs, self._clock.monotonic())
            except EtlworksError as error:
                results = self._queue.on_error(item, error, self._clock.monotonic())
        except Exception as error:  # noqa: BLE001  # a bug of ours: this item's subscribers get it, others are served on
            self._fail(self._queue.discard_all([item]), error)
        else:
            self._finish(results)
            self._wake()

    async def _read(self, item: ListingItem[_Waiter], turn: Turn) -> None:
        asked_at = self._clock.monotonic()
        failure: Exception | None = None
        try:
            reading = read_listing(item.listing, self._queue.breaker, item.runs, item.most_pages)
            listed = await self.client.run(reading, turn=turn)
            for _ in self._queue.on_listing(item, asked_at, listed):
                await asyncio.sleep(0)
        except EtlworksError as error:
            failure = error
        except Exception as error:  # a bug of ours: runs are followed without this list
            log.exception("%s cannot be used.", item.listing.title.capitalize())
            self._queue.breaker.record_failure(item.listing, error)
            failure = error
        self._queue.after_listing(item, asked_at, self._clock.monotonic(), failure)
        self._wake()

    def _finish(self, results: Iterable[tuple[_Waiter, FollowResult]]) -> None:
        for waiter, result in results:
            if not waiter.done.done():
                waiter.done.set_result(result)

    def _fail(self, waiters: Iterable[_Waiter], error: Exception) -> None:
        for waiter in waiters:
            if not waiter.done.done():
                waiter.done.set_exception(error)

    def _wake(self) -> None:
        """Wake the worker that sleeps or waits for a turn if something is due earlier, or more urgent, than before."""
        now = self._clock.monotonic()
        self._check_deadline()
        if self._turn is None:
            if self._next_poll.is_set and self._queue.next_wakeup(now) < self._next_poll.rings_at:
                self._next_poll.ring()
        elif (priority := self._queue.urgency(now)) is not None:
            self._turn.raise_to(priority)

    def _check_deadline(self) -> None:
        if self._queue.next_deadline() != self._next_deadline.rings_at:
            self._next_deadline.ring()
