"""One watcher follows any number of runs over one client: it carries out what a poll queue decides."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING

from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.client.transport import POOL_SIZE
from airflow_provider_etlworks.runs.follow import FollowResult, RunPoller
from airflow_provider_etlworks.runs.listings import read_listing
from airflow_provider_etlworks.runs.poll_queue import ListingItem, PollQueue, RunItem, Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

log = logging.getLogger(__name__)

# Whatever is due within this many seconds is polled in one go: thousands of runs must not set thousands of timers.
_TICK = 0.05
_PAUSE_AFTER_BUG = 1.0


class _Waiter(Subscriber):
    """A subscriber, and the future that its task awaits."""

    __slots__ = ("done",)

    def __init__(self, poller: RunPoller, deadline: float | None) -> None:
        super().__init__(poller, deadline)
        self.done: asyncio.Future[FollowResult] = asyncio.get_running_loop().create_future()


class Watcher:
    """
    Follows runs over one client, in one event loop.

    :param client: sends the polls; its rate limit applies to all runs together.
    """

    def __init__(self, client: AsyncEtlworksClient) -> None:
        self.client = client
        self._clock = client.clock
        self._queue: PollQueue[_Waiter] = PollQueue(client.clock, client.settings.requests_per_minute)
        self._turn = asyncio.Lock()
        self._woken: asyncio.Future[None] | None = None
        self._wakes_at = 0.0
        self._workers: list[asyncio.Task[None]] = []

    async def follow(self, run: RunRef, policy: PollPolicy, *, log: Log) -> FollowResult:
        """
        Follow a run until it ends, as :func:`~airflow_provider_etlworks.runs.follow.follow` does.

        Two who follow the same run share one poll. The parameters are those of that function.
        """
        waiter = _Waiter(RunPoller(run.audit_id, policy, clock=self._clock, log=log), policy.deadline)
        item = self._queue.push(run, waiter, self._clock.monotonic())
        self._wake()
        if not self._workers:
            # In an empty context, not the first subscriber's: what the workers log does not belong to its task.
            empty = contextvars.Context()
            self._workers = [empty.run(asyncio.create_task, self._work()) for _ in range(POOL_SIZE)]
        try:
            return await waiter.done
        finally:
            self._queue.discard(item, waiter)

    async def close(self) -> None:
        """Stop polling."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers.clear()

    async def _work(self) -> None:
        while True:
            try:
                async with self._turn:
                    item = await self._next()
            except Exception as error:  # noqa: BLE001  # a bug of ours: nobody may wait without an end
                self._fail(self._queue.discard_all(), error)
                await self.client.sleep(_PAUSE_AFTER_BUG)
                continue
            try:
                if isinstance(item, RunItem):
                    await self._poll(item)
                else:
                    await self._read(item)
            finally:
                item.in_flight = False

    async def _next(self) -> RunItem[_Waiter] | ListingItem[_Waiter]:
        """Wait until something is due, and return it."""
        while True:
            now = self._clock.monotonic()
            self._finish(self._queue.expire(now))
            item = self._queue.pick(now)
            if item is not None:
                return item
            await self._sleep_until(self._queue.next_wakeup(now), now)

    async def _poll(self, run: RunItem[_Waiter]) -> None:
        try:
            try:
                execution = await self.client.send(run.call, attempts=1)
            except EtlworksError as error:
                results = self._queue.on_error(run, error, self._clock.monotonic())
            else:
                results = self._queue.on_record(run, execution, self._clock.monotonic())
        except Exception as error:  # noqa: BLE001  # a bug of ours: this run's subscribers get it, others are followed on
            self._fail(self._queue.discard_all([run]), error)
        else:
            self._finish(results)
            self._wake()

    async def _read(self, item: ListingItem[_Waiter]) -> None:
        asked_at = self._clock.monotonic()
        failure: Exception | None = None
        try:
            listed = await self.client.run(read_listing(item.listing, self._queue.breaker, len(item.runs)))
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

    async def _sleep_until(self, moment: float, now: float) -> None:
        """Wait until a moment, or until something is due earlier."""
        self._woken, self._wakes_at = asyncio.get_running_loop().create_future(), moment
        waiting = asyncio.ensure_future(self.client.sleep(max(moment - now, _TICK)))
        try:
            await asyncio.wait((waiting, self._woken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            self._woken = None

    def _wake(self) -> None:
        """Wake the worker that sleeps, if something is due before it would wake."""
        if self._woken is None or self._woken.done():
            return
        if self._queue.next_wakeup(self._clock.monotonic()) < self._wakes_at:
            self._woken.set_result(None)
