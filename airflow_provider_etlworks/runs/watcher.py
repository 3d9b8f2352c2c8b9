"""
One watcher follows any number of runs over one client: it asks once for many where it can, and never above the budget.

What is due next is asked next. A run's own record is read when its interval is over, when a list says that it ended,
at a deadline, and now and then in a slow round, so that a list that stands still loses nothing. Lists are hints (see
:mod:`airflow_provider_etlworks.runs.listings`): they only move the moment of a run's next look.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import logging
from collections import OrderedDict, deque
from datetime import datetime, timezone
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksRateLimited, EtlworksUnauthorized
from airflow_provider_etlworks.client.transport import POOL_SIZE
from airflow_provider_etlworks.runs.defaults import DEFAULT_POLL_INTERVAL
from airflow_provider_etlworks.runs.follow import Ending, FollowResult, RunPoller
from airflow_provider_etlworks.runs.listings import (
    DayListing,
    FlowHistoryListing,
    Listing,
    ListingBreaker,
    ListingPlan,
    RunKey,
    choose_listings,
    listed_runs,
    requests_a_second,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

T = TypeVar("T")

log = logging.getLogger(__name__)

# What is due within this many seconds is asked in one go: thousands of runs must not set thousands of timers.
_TICK = 0.05
_NEVER = float("-inf")
# Lists are chosen anew at least this often, and so soon after somebody came.
_CHOOSE_EVERY = 10.0
_CHOOSE_SOON = 1.0
# A list that calls a run going spares its next looks for so many of its intervals.
_COVERS = 1.5
_FRESH_ENOUGH = 0.95
# Seconds after which a list that was silent about a run is believed to know it now.
_SILENT_FOR = 900.0
# The slow round takes so much of the budget.
_SHARE_OF_SLOW_ROUND = 0.1
_BUDGET_WITHOUT_LIMIT = 300
_SLOW_ROUND_AT_LEAST = 6
# Seconds past its deadline that a last look may take.
_LAST_LOOK = 20.0
# Demand must fall so far below the budget before it is said anew that it is above it.
_RELAXED = 0.8
# So many entries of a list are taken in before others get their turn in the event loop.
_AT_A_TIME = 5_000


class _PollItem:
    """Something to be asked for again and again. ``due`` counts; older entries of it in the heap do not."""

    __slots__ = ("asking", "due", "is_open")

    def __init__(self) -> None:
        self.due = 0.0
        self.asking = False
        self.is_open = True


class _Subscriber:
    """Somebody who waits for the end of a run."""

    __slots__ = ("context", "had_last_call", "told", "watch")

    def __init__(self, watch: RunPoller) -> None:
        self.watch = watch
        self.told: asyncio.Future[FollowResult] = asyncio.get_running_loop().create_future()
        # What the watch logs belongs to the subscriber's task, which Airflow knows by its context.
        self.context = contextvars.copy_context()
        self.had_last_call = False


class _Run(_PollItem):
    """A run that somebody waits for."""

    __slots__ = (
        "audit_id",
        "call",
        "day",
        "flow_id",
        "fresh_until",
        "interval",
        "listed_at",
        "looked_at",
        "poll_interval",
        "reported_done",
        "subscribers",
        "unlisted",
    )

    def __init__(self, flow_id: int, audit_id: int, interval: float) -> None:
        super().__init__()
        self.flow_id = flow_id
        self.audit_id = audit_id
        self.call = endpoints.get_execution(flow_id, audit_id)
        self.subscribers: list[_Subscriber] = []
        self.interval = self.poll_interval = interval
        self.looked_at = self.fresh_until = self.listed_at = _NEVER
        self.reported_done = False
        self.day: int | None = None
        self.unlisted: dict[Listing, float] | None = None

    @property
    def key(self) -> RunKey:
        return self.flow_id, self.audit_id

    def is_in_history(self) -> bool:
        return not self.unlisted or FlowHistoryListing(self.flow_id) not in self.unlisted

    def settle(self, now: float, today: datetime) -> None:
        """Take in that time has passed: how often it is to be looked at, and which day's list should have it."""
        watches = [each.watch for each in self.subscribers]
        self.interval = min([watch.interval(now) for watch in watches])
        self.poll_interval = min([watch.poll_interval for watch in watches])
        if self.unlisted:
            self.unlisted = {source: until for source, until in self.unlisted.items() if until > now} or None
        if self.day is None or (self.unlisted and DayListing(self.day) in self.unlisted):
            self.day = self._likely_day(today)

    def _likely_day(self, today: datetime) -> int | None:
        execution = self.subscribers[0].watch.execution
        started = execution.started_at if execution else None
        days_ago = 0 if started is None else (today.date() - started.date()).days
        # The server's day may begin hours before ours, or after.
        for day in (days_ago, days_ago + 1, days_ago - 1):
            if day >= 0 and not (self.unlisted and DayListing(day) in self.unlisted):
                return day
        return None


class _Listing(_PollItem):
    """A list that is asked for again and again."""

    __slots__ = ("interval", "runs", "source")

    def __init__(self, source: Listing) -> None:
        super().__init__()
        self.source = source
        self.runs: list[_Run] = []
        self.interval = DEFAULT_POLL_INTERVAL


class Watcher:
    """
    Follows runs over one client, in one event loop.

    :param client: asks; its budget holds for all that is watched.
    """

    def __init__(self, client: AsyncEtlworksClient) -> None:
        self.client = client
        self._clock = client.clock
        # The run whose own record was read longest ago comes first.
        self._runs: OrderedDict[RunKey, _Run] = OrderedDict()
        self._listings: dict[Listing, _Listing] = {}
        # Apart from all that is due: they tell what is urgent.
        self._day_lists: list[_Listing] = []
        self._urgent: deque[_Run] = deque()
        self._scheduled: list[tuple[float, int, _Run | _Listing]] = []
        self._deadlines: list[tuple[float, int, _Run, _Subscriber]] = []
        self._order = count()
        self._choose_at = 0.0
        self._slow_round_at = 0.0
        self._ended_unlisted: dict[RunKey, float] = {}
        self._breaker = ListingBreaker(self._clock, log)
        self._said_stretched = False
        self._turn = asyncio.Lock()
        self._woken: asyncio.Future[None] | None = None
        self._asleep_until = 0.0
        self._workers: list[asyncio.Task[None]] = []

    async def follow(
        self,
        run: RunRef,
        policy: PollPolicy,
        *,
        log: Log,
    ) -> FollowResult:
        """
        Follow a run until it ends, as :func:`~airflow_provider_etlworks.runs.follow.follow` does.

        A run that is followed already is not asked for twice. The parameters are those of that function.
        """
        watch = RunPoller(run.audit_id, policy, clock=self._clock, log=log)
        subscriber = _Subscriber(watch)
        entered = self._enter(run.flow_id, run.audit_id, subscriber, policy.deadline)
        try:
            return await subscriber.told
        finally:
            self._leave(entered, subscriber)

    async def close(self) -> None:
        """Ask no more."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers.clear()

    # --- Who waits ------------------------------------------------------------------------------------------------

    def _enter(self, flow_id: int, audit_id: int, subscriber: _Subscriber, deadline: float | None) -> _Run:
        now = self._clock.monotonic()
        run = self._runs.get((flow_id, audit_id))
        if run is None:
            run = _Run(flow_id, audit_id, subscriber.watch.poll_interval)
            self._runs[run.key] = run
            self._runs.move_to_end(run.key, last=False)
        run.subscribers.append(subscriber)
        if deadline is not None:
            at = now + deadline - self._clock.time()
            heapq.heappush(self._deadlines, (at, next(self._order), run, subscriber))
        self._schedule(run, now)
        self._choose_by(now + _CHOOSE_SOON)
        if not self._workers:
            # Not in the context of whoever came first: what the workers log is not about its task.
            empty = contextvars.Context()
            self._workers = [empty.run(asyncio.create_task, self._work()) for _ in range(POOL_SIZE)]
        return run

    def _leave(self, run: _Run, subscriber: _Subscriber) -> None:
        if subscriber in run.subscribers:
            run.subscribers.remove(subscriber)
        if not run.subscribers and run.is_open:
            run.is_open = False
            del self._runs[run.key]

    def _end(self, run: _Run, subscriber: _Subscriber, followed: FollowResult) -> None:
        if not subscriber.told.done():
            subscriber.told.set_result(followed)
        self._leave(run, subscriber)

    # --- What is asked next ---------------------------------------------------------------------------------------

    def _schedule(self, ask: _Run | _Listing, due: float) -> None:
        ask.due = due
        if not (isinstance(ask, _Listing) and isinstance(ask.source, DayListing)):
            heapq.heappush(self._scheduled, (due, next(self._order), ask))
        self._wake_by(due)

    def _expedite(self, ask: _Run) -> None:
        """Have something asked before all that is merely due."""
        self._urgent.append(ask)
        self._wake_by(self._clock.monotonic())

    def _choose_by(self, moment: float) -> None:
        self._choose_at = min(self._choose_at, moment)
        self._wake_by(moment)

    def _wake_by(self, moment: float) -> None:
        if self._woken is not None and moment < self._asleep_until and not self._woken.done():
            self._woken.set_result(None)

    async def _work(self) -> None:
        while True:
            try:
                async with self._turn:
                    ask = await self._next()
            except Exception as error:  # noqa: BLE001  # a fault of ours: nobody may wait for ever
                self._fail_all(list(self._runs.values()), error)
                await self.client.sleep(_CHOOSE_SOON)
                continue
            ask.asking = True
            try:
                if isinstance(ask, _Run):
                    await self._look(ask)
                else:
                    await self._read(ask)
            except Exception as error:  # a fault of ours: who waits hears of it, and others are followed on
                if isinstance(ask, _Run):
                    self._fail_all([ask], error)
                else:
                    log.exception("%s cannot be made use of.", ask.source.title.capitalize())
                    self._breaker.record_failure(ask.source, error)
                    self._choose_by(self._clock.monotonic())
            finally:
                ask.asking = False

    def _fail_all(self, runs: list[_Run], error: Exception) -> None:
        for run in runs:
            for subscriber in list(run.subscribers):
                if not subscriber.told.done():
                    subscriber.told.set_exception(error)
                self._leave(run, subscriber)

    async def _next(self) -> _Run | _Listing:
        """Wait until something is to be asked, and return it."""
        while True:
            now = self._clock.monotonic()
            self._meet_deadlines(now)
            if now >= self._choose_at:
                self._choose_lists(now)
            ask = self._pick(now)
            if ask is not None:
                return ask
            await self._sleep_until(now, max(self._next_moment(now), now + _TICK))

    def _pick(self, now: float) -> _Run | _Listing | None:
        for listing in self._day_lists:
            if listing.due <= now and not listing.asking:
                return listing
        while self._urgent:
            run = self._urgent.popleft()
            if run.is_open and not run.asking:
                return run
        spared = self._stalest_covered(now)
        if spared is not None and now >= self._slow_moment(spared):
            self._slow_round_at = now
            return spared
        while self._scheduled and self._scheduled[0][0] <= now:
            due, _, ask = heapq.heappop(self._scheduled)
            if not ask.is_open or ask.asking or ask.due != due:
                continue  # another entry counts, or none
            if isinstance(ask, _Run) and ask.fresh_until > now:
                self._schedule(ask, ask.fresh_until)
                continue
            return ask
        # Nothing is due: time for the first looks at runs that only a list has told about.
        return spared if spared is not None and spared.looked_at == _NEVER else None

    def _stalest_covered(self, now: float) -> _Run | None:
        """Return the run whose own record was read longest ago, if that is because a list tells about it."""
        run = next(iter(self._runs.values()), None)
        return run if run is not None and not run.asking and run.fresh_until > now else None

    def _slow_moment(self, run: _Run) -> float:
        """Return when the slow round comes to a run."""
        budget = self.client.settings.requests_per_minute or _BUDGET_WITHOUT_LIMIT
        spacing = 60 / (_SHARE_OF_SLOW_ROUND * budget)
        return max(self._slow_round_at + spacing, run.looked_at + _SLOW_ROUND_AT_LEAST * run.interval)

    def _next_moment(self, now: float) -> float:
        moments = [self._choose_at, *(each.due for each in self._day_lists if not each.asking)]
        if self._scheduled:
            moments.append(self._scheduled[0][0])
        if self._deadlines:
            moments.append(self._deadlines[0][0])
        spared = self._stalest_covered(now)
        if spared is not None:
            moments.append(self._slow_moment(spared))
        return min(moments)

    async def _sleep_until(self, now: float, until: float) -> None:
        """Wait, unless something is to be asked before."""
        self._woken, self._asleep_until = asyncio.get_running_loop().create_future(), until
        waiting = asyncio.ensure_future(self.client.sleep(until - now))
        try:
            await asyncio.wait((waiting, self._woken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            self._woken = None

    def _meet_deadlines(self, now: float) -> None:
        """Have runs looked at whose deadline has come, and give up on those that got no answer to it."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, run, subscriber = heapq.heappop(self._deadlines)
            if subscriber.told.done():
                continue
            if subscriber.had_last_call:
                detail = f"The last look at run {run.audit_id} got no answer in time."
                self._end(run, subscriber, FollowResult(Ending.DEADLINE, subscriber.watch.execution, detail))
                continue
            subscriber.had_last_call = True
            heapq.heappush(self._deadlines, (now + _LAST_LOOK, next(self._order), run, subscriber))
            self._urgent.append(run)

    # --- A run's own record ---------------------------------------------------------------------------------------

    async def _look(self, run: _Run) -> None:
        self._runs.move_to_end(run.key)
        run.looked_at = self._clock.monotonic()
        try:
            execution = await self.client.send(run.call, attempts=1)
        except EtlworksUnauthorized as error:
            # Nobody can ask any more: one refusal is enough, for all.
            for each in list(self._runs.values()):
                self._deliver(each, RunPoller.on_error, error)
        except EtlworksError as error:
            self._deliver(run, RunPoller.on_error, error)
        else:
            self._deliver(run, RunPoller.on_record, execution)
            if execution.is_terminal and not run.reported_done:
                self._ended_unlisted[run.key] = self._clock.monotonic()

    def _deliver(self, run: _Run, take_in: Callable[[RunPoller, T], FollowResult | float], what_came: T) -> None:
        """Let everybody who waits for a run make of a look what they want."""
        pause = float("inf")
        for subscriber in list(run.subscribers):
            verdict = subscriber.context.run(take_in, subscriber.watch, what_came)
            if isinstance(verdict, FollowResult):
                self._end(run, subscriber, verdict)
            else:
                pause = min(pause, verdict)
        if run.is_open:
            self._schedule(run, self._clock.monotonic() + pause)

    # --- Lists ----------------------------------------------------------------------------------------------------

    def _choose_lists(self, now: float) -> None:
        """Choose the lists that spare the most requests."""
        self._choose_at = now + _CHOOSE_EVERY
        today = datetime.fromtimestamp(self._clock.time(), timezone.utc)
        for run in self._runs.values():
            run.settle(now, today)
        chosen = choose_listings(self._runs.values(), self._breaker.is_available)
        for source in self._listings.keys() - chosen.keys():
            self._drop(self._listings.pop(source), now)
        for source, choice in chosen.items():
            listing = self._listings.get(source)
            if listing is None:
                listing = self._listings[source] = _Listing(source)
                self._schedule(listing, now)
            listing.runs = choice.runs
            listing.interval = choice.interval * _FRESH_ENOUGH
        self._day_lists = [each for each in self._listings.values() if isinstance(each.source, DayListing)]
        self._note_demand(chosen)
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Let go of what is remembered of runs that have ended."""
        if self._ended_unlisted:
            since = now - _SILENT_FOR if self._listings else now
            self._ended_unlisted = {key: at for key, at in self._ended_unlisted.items() if at > since}
        if len(self._deadlines) > 2 * len(self._runs) + _AT_A_TIME:
            self._deadlines = [each for each in self._deadlines if not each[3].told.done()]
            heapq.heapify(self._deadlines)

    def _drop(self, listing: _Listing, now: float) -> None:
        """Do without a list: its runs are due again as if it had never spared them a look."""
        listing.is_open = False
        for run in listing.runs:
            if run.is_open and run.fresh_until > now:
                run.fresh_until = _NEVER
                self._schedule(run, max(now, run.listed_at + run.interval * _FRESH_ENOUGH))

    def _note_demand(self, chosen: dict[Listing, ListingPlan[_Run]]) -> None:
        """Say once that more is watched than the budget can ask for at the intervals wanted."""
        limit = self.client.settings.requests_per_minute
        wanted = 60 * requests_a_second(self._runs.values(), chosen.values())
        if limit and wanted > limit and not self._said_stretched:
            log.warning(
                "%d runs are watched, which takes %.0f requests a minute; the connection's requests_per_minute is %d. "
                "All intervals are %.1f times as long.",
                len(self._runs),
                wanted,
                limit,
                wanted / limit,
            )
        self._said_stretched = bool(limit) and wanted > limit * (_RELAXED if self._said_stretched else 1)

    async def _read(self, listing: _Listing) -> None:
        """Read a list, and move the next looks of the runs that it tells about."""
        source, asked_at, interval = listing.source, self._clock.monotonic(), listing.interval
        try:
            flows = await self.client.send(source.call(len(listing.runs)), attempts=1)
        except EtlworksError as error:
            # Too many requests is no fault of the list, and all wait then.
            if not isinstance(error, EtlworksRateLimited):
                self._breaker.record_failure(source, error)
                self._choose_by(asked_at)
                # If it is asked for again at all, then while it still spares its runs a look.
                interval *= _COVERS - 1
        else:
            self._breaker.record_success(source)
            await self._take_in(listing, asked_at, listed_runs(flows))
        now = self._clock.monotonic()
        # A list that takes long is asked for less often.
        self._schedule(listing, max(asked_at + interval, 2 * now - asked_at))

    async def _take_in(self, listing: _Listing, asked_at: float, mentioned: Iterator[tuple[RunKey, bool]]) -> None:
        for taken, (key, going) in enumerate(mentioned):
            if taken % _AT_A_TIME == 0:
                await asyncio.sleep(0)
            run = self._runs.get(key)
            if run is not None:
                self._take_hint(run, listing, asked_at, going=going)
            elif going and self._ended_unlisted.get(key, asked_at) < asked_at:
                self._breaker.record_stale(listing.source, key[1])
                self._choose_by(asked_at)
                return
        silent = [run for run in listing.runs if run.is_open and run.listed_at != asked_at]
        for run in silent:
            run.unlisted = {**(run.unlisted or {}), listing.source: asked_at + _SILENT_FOR}
        if silent:
            self._choose_by(asked_at)

    def _take_hint(self, run: _Run, listing: _Listing, asked_at: float, *, going: bool) -> None:
        run.listed_at = asked_at
        if isinstance(listing.source, DayListing):
            run.day = listing.source.days_ago
        if going:
            run.fresh_until = asked_at + _COVERS * max(run.interval, listing.interval)
            return
        run.fresh_until = asked_at
        # Once: a list that is wrong about a run must not have it read again and again.
        if not run.reported_done:
            run.reported_done = True
            self._expedite(run)
