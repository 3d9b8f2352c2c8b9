"""
What a watcher polls next: a run's own record, or a list that covers many runs. It decides, sends nothing, never waits.

Whatever is due next is polled next. A run's own record is polled when its interval is over, when a list reports that it
ended, at a deadline, and now and then as a resync, so that a stale list delays an end and loses none. Lists are hints
(see :mod:`airflow_provider_etlworks.runs.listings`): they only move the time of a run's next poll.
"""

from __future__ import annotations

import contextvars
import heapq
import logging
from collections import OrderedDict, deque
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksRateLimited, EtlworksUnauthorized
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
    requests_a_second,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import date

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.runs.listings import Days
    from airflow_provider_etlworks.runs.types import RunRef

T = TypeVar("T")

log = logging.getLogger(__name__)

_NEVER = float("-inf")
# Lists are chosen again at least this often, and this soon after a new subscriber.
_CHOOSE_EVERY = 10.0
_CHOOSE_SOON = 1.0
# A list that reports a run as going replaces its polls for this many of its intervals.
_COVERS = 1.5
_FRESH_ENOUGH = 0.95
# Seconds after which a list that did not contain a run is expected to contain it.
_UNLISTED_FOR = 900.0
# The resync takes this share of the budget, and polls a run at most once in this many of its intervals.
_RESYNC_SHARE = 0.1
_RESYNC_INTERVALS = 6
_BUDGET_WITHOUT_LIMIT = 300
# Seconds past its deadline that the last poll may take.
_LAST_POLL = 20.0
# Throttling is logged again only after the demand has fallen to this share of the budget.
_RELAXED = 0.8
# The entries of a list are processed in batches of this size, and other tasks run in between.
_BATCH = 5_000


class PollItem:
    """
    Something that is polled again and again.

    :ivar due: when it is polled next; entries of the heap with another time are outdated.
    :ivar in_flight: whether it is being polled now.
    :ivar is_open: whether it is still needed.
    """

    __slots__ = ("due", "in_flight", "is_open")

    def __init__(self) -> None:
        self.due = 0.0
        self.in_flight = False
        self.is_open = True


class Subscriber:
    """
    Somebody who waits for the end of a run.

    :param poller: decides what a poll means for this subscriber.
    :param deadline: Unix time of the last poll; ``None`` is never.
    """

    __slots__ = ("context", "deadline", "had_last_poll", "poller")

    def __init__(self, poller: RunPoller, deadline: float | None = None) -> None:
        self.poller = poller
        self.deadline = deadline
        # What the poller logs belongs to the subscriber's task, which Airflow knows by its context.
        self.context = contextvars.copy_context()
        self.had_last_poll = False


SubscriberT = TypeVar("SubscriberT", bound=Subscriber)


class RunItem(PollItem, Generic[SubscriberT]):
    """
    A run with subscribers.

    :ivar call: reads its own record.
    """

    __slots__ = (
        "audit_id",
        "call",
        "day",
        "flow_id",
        "fresh_until",
        "interval",
        "listed_at",
        "poll_interval",
        "polled_at",
        "reported_done",
        "subscribers",
        "unlisted",
    )

    def __init__(self, run: RunRef, interval: float) -> None:
        super().__init__()
        self.flow_id = run.flow_id
        self.audit_id = run.audit_id
        self.call = endpoints.get_execution(run.flow_id, run.audit_id)
        self.subscribers: list[SubscriberT] = []
        self.interval = self.poll_interval = interval
        self.polled_at = self.fresh_until = self.listed_at = _NEVER
        self.reported_done = False
        self.day: date | int | None = None
        self.unlisted: dict[Listing, float] | None = None

    @property
    def key(self) -> RunKey:
        """Its flow id and audit id."""
        return self.flow_id, self.audit_id

    def is_in_history(self) -> bool:
        """Whether its flow's history is expected to contain it."""
        return not self.unlisted or FlowHistoryListing(self.flow_id) not in self.unlisted

    def update(self, now: float, days: Days) -> None:
        """Recompute, as time has passed, how often it is polled, and which day's list should contain it."""
        pollers = [each.poller for each in self.subscribers]
        self.interval = min([poller.interval(now) for poller in pollers])
        self.poll_interval = min([poller.poll_interval for poller in pollers])
        if self.unlisted:
            self.unlisted = {source: until for source, until in self.unlisted.items() if until > now} or None
        is_outdated = isinstance(self.day, int) == days.takes_dates
        if self.day is None or is_outdated or (self.unlisted and DayListing(self.day) in self.unlisted):
            self.day = self._likely_day(days)

    def _likely_day(self, days: Days) -> date | int | None:
        execution = self.subscribers[0].poller.execution
        candidates = days.candidates(execution.started_at if execution else None)
        return next((day for day in candidates if not (self.unlisted and DayListing(day) in self.unlisted)), None)


class ListingItem(PollItem, Generic[SubscriberT]):
    """
    A list that covers runs.

    :ivar listing: the list.
    :ivar runs: the runs that it should contain.
    :ivar interval: seconds between two reads of it.
    """

    __slots__ = ("interval", "listing", "runs")

    def __init__(self, listing: Listing) -> None:
        super().__init__()
        self.listing = listing
        self.runs: list[RunItem[SubscriberT]] = []
        self.interval = DEFAULT_POLL_INTERVAL


class PollQueue(Generic[SubscriberT]):
    """
    Decides what is polled when, and what each answer means. One call in, one answer out: it never waits.

    Where a method takes ``now``, that is the clock's ``monotonic``. Results come back as pairs of a subscriber, which
    the queue has forgotten by then, and its result.

    :param clock: gives the time.
    :param requests_per_minute: the budget for everything that is polled; 0 means no limit.
    :ivar breaker: which kinds of list can be used at present.
    """

    def __init__(self, clock: Clock, requests_per_minute: int) -> None:
        self.breaker = ListingBreaker(clock, log)
        self._clock = clock
        self._limit = requests_per_minute
        # The run whose own record was read longest ago comes first.
        self._runs: OrderedDict[RunKey, RunItem[SubscriberT]] = OrderedDict()
        self._listings: dict[Listing, ListingItem[SubscriberT]] = {}
        # Not in the heap: they come before everything else, since they report what is urgent.
        self._day_listings: list[ListingItem[SubscriberT]] = []
        self._urgent: deque[RunItem[SubscriberT]] = deque()
        self._scheduled: list[tuple[float, int, RunItem[SubscriberT] | ListingItem[SubscriberT]]] = []
        self._deadlines: list[tuple[float, int, RunItem[SubscriberT], SubscriberT]] = []
        self._order = count()
        self._choose_at = 0.0
        self._resynced_at = 0.0
        self._ended_unlisted: dict[RunKey, float] = {}
        self._is_throttled = False

    # --- Who waits ------------------------------------------------------------------------------------------------

    def push(self, run: RunRef, subscriber: SubscriberT, now: float) -> RunItem[SubscriberT]:
        """Have a run polled, for one more subscriber. Subscribers of the same run share one poll."""
        item = self._runs.get((run.flow_id, run.audit_id))
        if item is None:
            item = RunItem(run, subscriber.poller.poll_interval)
            self._runs[item.key] = item
            self._runs.move_to_end(item.key, last=False)
        item.subscribers.append(subscriber)
        if subscriber.deadline is not None:
            at = now + subscriber.deadline - self._clock.time()
            heapq.heappush(self._deadlines, (at, next(self._order), item, subscriber))
        self._schedule(item, now)
        self._choose_by(now + _CHOOSE_SOON)
        return item

    def discard(self, item: RunItem[SubscriberT], subscriber: SubscriberT) -> None:
        """Forget a subscriber; the last one's run is not polled any more."""
        if subscriber in item.subscribers:
            item.subscribers.remove(subscriber)
        if not item.subscribers and item.is_open:
            item.is_open = False
            del self._runs[item.key]

    def discard_all(self, items: Iterable[RunItem[SubscriberT]] | None = None) -> list[SubscriberT]:
        """Forget all subscribers, or those of some runs, and return them."""
        left = [(item, each) for item in list(items or self._runs.values()) for each in item.subscribers]
        for item, subscriber in left:
            self.discard(item, subscriber)
        return [subscriber for _, subscriber in left]

    # --- What is polled next --------------------------------------------------------------------------------------

    def pick(self, now: float) -> RunItem[SubscriberT] | ListingItem[SubscriberT] | None:
        """
        Return what to poll now, marked as in flight; ``None`` if nothing is due.

        In this order: lists of a day, urgent runs, the resync, whatever is due, runs that were never polled themselves.
        """
        if now >= self._choose_at:
            self._choose_listings(now)
        item = self._next_due(now)
        if item is not None:
            item.in_flight = True
            if isinstance(item, RunItem):
                self._runs.move_to_end(item.key)
                item.polled_at = now
        return item

    def next_wakeup(self, now: float) -> float:
        """Return when :meth:`pick` or :meth:`expire` may next have an answer; perhaps in the past."""
        if self._urgent:
            return now
        moments = [self._choose_at, *(each.due for each in self._day_listings if not each.in_flight)]
        if self._scheduled:
            moments.append(self._scheduled[0][0])
        if self._deadlines:
            moments.append(self._deadlines[0][0])
        covered = self._stalest_covered(now)
        if covered is not None:
            moments.append(self._resync_due(covered))
        return min(moments)

    def expire(self, now: float) -> list[tuple[SubscriberT, FollowResult]]:
        """Have runs polled a last time if a deadline has come, and give up on those without an answer to that."""
        given_up = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, item, subscriber = heapq.heappop(self._deadlines)
            if subscriber not in item.subscribers:
                continue
            if subscriber.had_last_poll:
                detail = f"The last poll of run {item.audit_id} got no answer in time."
                given_up.append((subscriber, FollowResult(Ending.DEADLINE, subscriber.poller.execution, detail)))
                self.discard(item, subscriber)
                continue
            subscriber.had_last_poll = True
            heapq.heappush(self._deadlines, (now + _LAST_POLL, next(self._order), item, subscriber))
            self._urgent.append(item)
        return given_up

    def _next_due(self, now: float) -> RunItem[SubscriberT] | ListingItem[SubscriberT] | None:
        for listing in self._day_listings:
            if listing.due <= now and not listing.in_flight:
                return listing
        while self._urgent:
            run = self._urgent.popleft()
            if run.is_open and not run.in_flight:
                return run
        covered = self._stalest_covered(now)
        if covered is not None and now >= self._resync_due(covered):
            self._resynced_at = now
            return covered
        while self._scheduled and self._scheduled[0][0] <= now:
            due, _, item = heapq.heappop(self._scheduled)
            if not item.is_open or item.in_flight or item.due != due:
                continue  # outdated
            if isinstance(item, RunItem) and item.fresh_until > now:
                self._schedule(item, item.fresh_until)
                continue
            return item
        # Nothing is due: time for the first poll of a run that only a list has reported on.
        return covered if covered is not None and covered.polled_at == _NEVER else None

    def _schedule(self, item: RunItem[SubscriberT] | ListingItem[SubscriberT], due: float) -> None:
        item.due = due
        if not (isinstance(item, ListingItem) and isinstance(item.listing, DayListing)):
            heapq.heappush(self._scheduled, (due, next(self._order), item))

    def _choose_by(self, moment: float) -> None:
        self._choose_at = min(self._choose_at, moment)

    def _stalest_covered(self, now: float) -> RunItem[SubscriberT] | None:
        """Return the run whose own record was read longest ago, if that is because a list covers it."""
        run = next(iter(self._runs.values()), None)
        return run if run is not None and not run.in_flight and run.fresh_until > now else None

    def _resync_due(self, run: RunItem[SubscriberT]) -> float:
        spacing = 60 / (_RESYNC_SHARE * (self._limit or _BUDGET_WITHOUT_LIMIT))
        return max(self._resynced_at + spacing, run.polled_at + _RESYNC_INTERVALS * run.interval)

    # --- A run's own record ---------------------------------------------------------------------------------------

    def on_record(
        self, item: RunItem[SubscriberT], execution: Execution, now: float
    ) -> list[tuple[SubscriberT, FollowResult]]:
        """Process a run's own record, and return the results of the subscribers for whom that is the end."""
        if execution.is_terminal and not item.reported_done:
            self._ended_unlisted[item.key] = now
        return self._deliver(item, RunPoller.on_record, execution, now)

    def on_error(
        self, item: RunItem[SubscriberT], error: EtlworksError, now: float
    ) -> list[tuple[SubscriberT, FollowResult]]:
        """Process a poll that failed, and return the results of the subscribers for whom that is the end."""
        # Refused credentials concern all runs: one refusal is enough.
        items = list(self._runs.values()) if isinstance(error, EtlworksUnauthorized) else [item]
        return [result for each in items for result in self._deliver(each, RunPoller.on_error, error, now)]

    def _deliver(
        self, item: RunItem[SubscriberT], handle: Callable[[RunPoller, T], FollowResult | float], answer: T, now: float
    ) -> list[tuple[SubscriberT, FollowResult]]:
        """Let each subscriber's poller decide what an answer means."""
        results = []
        pause = float("inf")
        for subscriber in list(item.subscribers):
            verdict = subscriber.context.run(handle, subscriber.poller, answer)
            if isinstance(verdict, FollowResult):
                results.append((subscriber, verdict))
                self.discard(item, subscriber)
            else:
                pause = min(pause, verdict)
        if item.is_open:
            self._schedule(item, now + pause)
        return results

    # --- Lists ----------------------------------------------------------------------------------------------------

    def on_listing(
        self, item: ListingItem[SubscriberT], asked_at: float, listed: Iterable[tuple[RunKey, bool]]
    ) -> Iterator[None]:
        """
        Move the next polls of the runs that a list contains.

        :param asked_at: when the list was asked for.
        :param listed: the runs in it, and whether it reports them as going.
        :return: yields between batches of entries, so that the caller can let others work.
        """
        for position, (key, going) in enumerate(listed):
            if position % _BATCH == 0:
                yield
            run = self._runs.get(key)
            if run is not None:
                self._on_listed(run, item, asked_at, going=going)
            elif going and self._ended_unlisted.get(key, asked_at) < asked_at:
                self.breaker.record_stale(item.listing, key[1])
                self._choose_by(asked_at)
                return
        missing = [run for run in item.runs if run.is_open and run.listed_at != asked_at]
        for run in missing:
            run.unlisted = {**(run.unlisted or {}), item.listing: asked_at + _UNLISTED_FOR}
        if missing:
            self._choose_by(asked_at)

    def after_listing(
        self, item: ListingItem[SubscriberT], asked_at: float, now: float, error: Exception | None = None
    ) -> None:
        """
        Schedule the next read of a list.

        :param error: why it could not be read or used, if so.
        """
        interval = item.interval
        # Too many requests are not a fault of the list, and everything waits then.
        if error is not None and not isinstance(error, EtlworksRateLimited):
            self._choose_by(asked_at)
            # If it is read again at all, then while it still covers its runs.
            interval *= _COVERS - 1
        # A list that takes long is read less often.
        self._schedule(item, max(asked_at + interval, 2 * now - asked_at))

    def _on_listed(
        self, run: RunItem[SubscriberT], item: ListingItem[SubscriberT], asked_at: float, *, going: bool
    ) -> None:
        run.listed_at = asked_at
        if isinstance(item.listing, DayListing):
            run.day = item.listing.day
        if going:
            run.fresh_until = asked_at + _COVERS * max(run.interval, item.interval)
            return
        run.fresh_until = asked_at
        # Once: a list that is wrong about a run must not have it polled again and again.
        if not run.reported_done:
            run.reported_done = True
            self._urgent.append(run)

    def _choose_listings(self, now: float) -> None:
        """Choose the lists that save the most requests."""
        self._choose_at = now + _CHOOSE_EVERY
        for run in self._runs.values():
            run.update(now, self.breaker.days)
        chosen = choose_listings(self._runs.values(), self.breaker.is_available)
        for listing in self._listings.keys() - chosen.keys():
            self._drop(self._listings.pop(listing), now)
        for listing, plan in chosen.items():
            item = self._listings.get(listing)
            if item is None:
                item = self._listings[listing] = ListingItem(listing)
                self._schedule(item, now)
            item.runs = plan.runs
            item.interval = plan.interval * _FRESH_ENOUGH
        self._day_listings = [each for each in self._listings.values() if isinstance(each.listing, DayListing)]
        self._log_throttling(chosen)
        self._forget_ended(now)

    def _drop(self, item: ListingItem[SubscriberT], now: float) -> None:
        """Stop reading a list: its runs are due again as if it had never covered them."""
        item.is_open = False
        for run in item.runs:
            if run.is_open and run.fresh_until > now:
                run.fresh_until = _NEVER
                self._schedule(run, max(now, run.listed_at + run.interval * _FRESH_ENOUGH))

    def _log_throttling(self, chosen: dict[Listing, ListingPlan[RunItem[SubscriberT]]]) -> None:
        """Warn once if the runs need more requests than the budget allows."""
        wanted = 60 * requests_a_second(self._runs.values(), chosen.values())
        if self._limit and wanted > self._limit and not self._is_throttled:
            log.warning(
                "%d runs are watched, which takes %.0f requests a minute; the connection's requests_per_minute is %d. "
                "Polling is throttled: each run is polled %.1f times less often than configured.",
                len(self._runs),
                wanted,
                self._limit,
                wanted / self._limit,
            )
        self._is_throttled = bool(self._limit) and wanted > self._limit * (_RELAXED if self._is_throttled else 1)

    def _forget_ended(self, now: float) -> None:
        """Remove what is kept about runs that have ended."""
        if self._ended_unlisted:
            since = now - _UNLISTED_FOR if self._listings else now
            self._ended_unlisted = {key: at for key, at in self._ended_unlisted.items() if at > since}
        if len(self._deadlines) > 2 * len(self._runs) + _BATCH:
            self._deadlines = [each for each in self._deadlines if each[3] in each[2].subscribers]
            heapq.heapify(self._deadlines)
