"""
What a watcher polls next: a run's own record, a list that covers many runs, or a search for a run.

The queue decides. It sends nothing and never waits.

It decides at the moment when something may be sent, so nothing urgent waits behind anything less urgent. A run's own
record is polled when its interval is over, when a list reports that it ended, at a deadline, and now and then as a
resync, so a stale list can delay the report of an end, but cannot hide it. Lists are hints (see
:mod:`airflow_provider_etlworks.runs.listings`): they only move the time of a run's next poll. The interval of a run is
decided in :mod:`airflow_provider_etlworks.runs.follow`.
"""

from __future__ import annotations

import contextvars
import heapq
import logging
from collections import OrderedDict, deque
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksRateLimited, EtlworksUnauthorized
from airflow_provider_etlworks.client.metrics import NO_METRICS, Metrics
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.runs.defaults import DEFAULT_POLL_INTERVAL, TRIGGER_BUFFER
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
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
    from collections.abc import Iterable, Iterator
    from datetime import date

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.runs.listings import Days
    from airflow_provider_etlworks.runs.types import RunRef

log = logging.getLogger(__name__)

LAST_POLL_WITHIN = TRIGGER_BUFFER - 30.0
"""Seconds past its deadline that a last poll may take: the rest of Airflow's are for the stop and the event."""

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
# Seconds that a last poll may take if the deadline was missed by much: the triggerer was not there.
_LATE_LAST_POLL = 20.0
# Seconds until a last poll that failed is repeated.
_LAST_POLL_PAUSE = 5.0
# Throttling is logged again only after the demand has fallen to this share of the budget.
_RELAXED = 0.8
# The entries of a list are processed in batches of this size, and other tasks run in between.
_BATCH = 5_000


class Poller(Protocol):
    """
    Decides what a poll means for one subscriber.

    :ivar execution: the run's last record, if there was one.
    """

    execution: Execution | None

    @property
    def deadline(self) -> float | None:
        """Unix time of the last poll; ``None`` is never."""

    @property
    def poll_interval(self) -> float:
        """Seconds between two polls of a young run."""

    def interval(self, now: float) -> float:
        """Return the seconds between two polls at present."""

    def on_record(self, answer: Any) -> FollowResult | float:
        """Process an answer. Return the result, or the seconds until the next poll."""

    def on_error(self, error: EtlworksError) -> FollowResult | float:
        """Process a poll that failed. Return the result, or the seconds until the next poll."""


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
    Somebody who waits for the end of a run, or for the run.

    :param poller: decides what a poll means for this subscriber.
    :ivar deadline: when the last poll is due, by the clock's ``monotonic``.
    :ivar gives_up_at: when the wait for the last poll ends; ``None`` before the deadline.
    :ivar is_waiting: whether the queue knows it, and has no result for it yet.
    """

    __slots__ = ("context", "deadline", "gives_up_at", "is_waiting", "poller")

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        # What the poller logs belongs to the subscriber's task, which Airflow knows by its context.
        self.context = contextvars.copy_context()
        self.deadline = float("inf")
        self.gives_up_at: float | None = None
        self.is_waiting = True


SubscriberT = TypeVar("SubscriberT", bound=Subscriber)


class PolledItem(PollItem, Generic[SubscriberT]):
    """
    Something with subscribers: a run, or a search for one.

    :ivar subscribers: those who wait.
    :ivar poll_interval: seconds between two polls, while the run is young.
    :ivar polled_at: when it was polled last.
    :ivar needs_last_poll: whether the deadline of a subscriber has come.
    :ivar reported_done: whether a list reports the run as ended.
    """

    __slots__ = ("needs_last_poll", "poll_interval", "polled_at", "reported_done", "subscribers")

    def __init__(self, poll_interval: float) -> None:
        super().__init__()
        self.subscribers: list[SubscriberT] = []
        self.poll_interval = poll_interval
        self.polled_at = _NEVER
        self.needs_last_poll = self.reported_done = False


class SearchItem(PolledItem[SubscriberT]):
    """
    A search for a run of a flow.

    :ivar flow_id: the flow.
    :ivar message_uuid: the message that started the run; ``None`` searches the newest run.
    """

    __slots__ = ("flow_id", "message_uuid")

    def __init__(self, flow_id: int, message_uuid: str | None, poll_interval: float) -> None:
        super().__init__(poll_interval)
        self.flow_id = flow_id
        self.message_uuid = message_uuid

    def __str__(self) -> str:
        """Name the search, for messages."""
        return f"search for a run of flow {self.flow_id}"


class RunItem(PolledItem[SubscriberT]):
    """
    A run with subscribers.

    :ivar call: reads its own record.
    """

    __slots__ = ("audit_id", "call", "day", "flow_id", "fresh_until", "interval", "listed_at", "unlisted")

    def __init__(self, run: RunRef, poll_interval: float) -> None:
        super().__init__(poll_interval)
        self.flow_id = run.flow_id
        self.audit_id = run.audit_id
        self.call = endpoints.get_execution(run.flow_id, run.audit_id)
        self.interval = poll_interval
        self.fresh_until = self.listed_at = _NEVER
        self.day: date | int | None = None
        self.unlisted: dict[Listing, float] | None = None

    def __str__(self) -> str:
        """Name the run's poll, for messages."""
        return f"last poll of run {self.audit_id}"

    @property
    def key(self) -> RunKey:
        """Its flow id and audit id."""
        return self.flow_id, self.audit_id

    def is_in_history(self) -> bool:
        """Whether its flow's history is expected to contain it."""
        return not self.unlisted or FlowHistoryListing(self.flow_id) not in self.unlisted

    def update(self, now: float, days: Days) -> None:
        """Recompute, as time has passed, how often it is polled, and which day's list should contain it."""
        self.interval = min([each.poller.interval(now) for each in self.subscribers])
        self.poll_interval = min([each.poller.poll_interval for each in self.subscribers])
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
    :ivar most_pages: how many of its pages are read at a time, at most.
    """

    __slots__ = ("interval", "listing", "most_pages", "runs")

    def __init__(self, listing: Listing) -> None:
        super().__init__()
        self.listing = listing
        self.runs: list[RunItem[SubscriberT]] = []
        self.interval = DEFAULT_POLL_INTERVAL
        self.most_pages = 1


class PollQueue(Generic[SubscriberT]):
    """
    Decides what is polled when, and what each answer means. One call in, one answer out: it never waits.

    ``now`` is the clock's ``monotonic``. Results are pairs of a subscriber and its result; the queue has forgotten the
    subscriber by then.

    :param clock: gives the time.
    :param requests_per_minute: the budget for everything that is polled; 0 means no limit.
    :param metrics: receives how much slower than configured runs are polled.
    :ivar breaker: which kinds of list can be used at present.
    """

    def __init__(self, clock: Clock, requests_per_minute: int, metrics: Metrics = NO_METRICS) -> None:
        self.breaker = ListingBreaker(clock, log)
        self._clock = clock
        self._limit = requests_per_minute
        self._metrics = metrics
        # The run whose own record was read longest ago comes first.
        self._runs: OrderedDict[RunKey, RunItem[SubscriberT]] = OrderedDict()
        self._searches: dict[tuple[int, str | None], SearchItem[SubscriberT]] = {}
        self._listings: dict[Listing, ListingItem[SubscriberT]] = {}
        self._day_listings: list[ListingItem[SubscriberT]] = []
        self._last_polls: deque[PolledItem[SubscriberT]] = deque()
        self._urgent: deque[PolledItem[SubscriberT]] = deque()
        self._scheduled: list[tuple[float, int, RunItem[SubscriberT] | ListingItem[SubscriberT]]] = []
        self._due_searches: list[tuple[float, int, SearchItem[SubscriberT]]] = []
        # When last polls are due, and when the wait for a last poll ends.
        self._deadlines: list[tuple[float, int, PolledItem[SubscriberT], SubscriberT]] = []
        self._giving_up: list[tuple[float, int, PolledItem[SubscriberT], SubscriberT]] = []
        self._paused_until = _NEVER
        self._order = count()
        self._choose_at = 0.0
        self._resynced_at = 0.0
        self._ended_unlisted: dict[RunKey, float] = {}
        self._is_throttled = False

    # --- Who waits ------------------------------------------------------------------------------------------------

    def push(self, run: RunRef, subscriber: SubscriberT, now: float, *, after: float = 0.0) -> RunItem[SubscriberT]:
        """
        Add a subscriber to a run's polls. Subscribers of the same run share one poll.

        :param after: seconds until the first poll: its record has just been read.
        """
        item = self._runs.get((run.flow_id, run.audit_id))
        is_new = item is None
        if item is None:
            item = RunItem(run, subscriber.poller.poll_interval)
            self._runs[item.key] = item
            self._runs.move_to_end(item.key, last=False)
        self._subscribe(item, subscriber, now)
        if is_new:
            # Now, not for thousands of runs at once when lists are chosen: that would hold the event loop.
            item.update(now, self.breaker.days)
        if is_new or item.due > now + after:
            self._schedule(item, now + after)
        self._choose_by(now + _CHOOSE_SOON)
        return item

    def push_search(
        self, flow_id: int, message_uuid: str | None, subscriber: SubscriberT, now: float, *, is_urgent: bool = False
    ) -> SearchItem[SubscriberT]:
        """
        Add a subscriber to a search. Subscribers with the same search share its answers.

        :param is_urgent: whether this answer decides at once: it counts like a run that a list reports as ended.
        """
        item = self._searches.get((flow_id, message_uuid))
        if item is None:
            item = self._searches[flow_id, message_uuid] = SearchItem(
                flow_id, message_uuid, subscriber.poller.poll_interval
            )
        self._subscribe(item, subscriber, now)
        item.poll_interval = min(item.poll_interval, subscriber.poller.poll_interval)
        self._schedule(item, now)
        if is_urgent:
            self._urgent.append(item)
        return item

    def _subscribe(self, item: PolledItem[SubscriberT], subscriber: SubscriberT, now: float) -> None:
        item.subscribers.append(subscriber)
        deadline = subscriber.poller.deadline
        if deadline is not None:
            subscriber.deadline = now + deadline - self._clock.time()
            heapq.heappush(self._deadlines, (subscriber.deadline, next(self._order), item, subscriber))

    def discard(self, item: PolledItem[SubscriberT], subscriber: SubscriberT) -> None:
        """Forget a subscriber. An item without subscribers is not polled any more."""
        if subscriber.is_waiting:
            subscriber.is_waiting = False
            item.subscribers.remove(subscriber)
        if not item.subscribers and item.is_open:
            item.is_open = False
            if isinstance(item, RunItem):
                del self._runs[item.key]
            elif isinstance(item, SearchItem):
                del self._searches[item.flow_id, item.message_uuid]

    def discard_all(self, items: Iterable[PolledItem[SubscriberT]] | None = None) -> list[SubscriberT]:
        """Forget all subscribers, or those of some items, and return them."""
        left = [(item, each) for item in (self._all_polled() if items is None else items) for each in item.subscribers]
        for item, subscriber in left:
            self.discard(item, subscriber)
        return [subscriber for _, subscriber in left]

    def _all_polled(self) -> list[PolledItem[SubscriberT]]:
        return [*self._runs.values(), *self._searches.values()]

    # --- What is polled next --------------------------------------------------------------------------------------

    def pick(self, now: float) -> PolledItem[SubscriberT] | ListingItem[SubscriberT] | None:
        """
        Return what to poll now, marked as in flight; ``None`` if nothing is due.

        In this order:

        1. last polls: those who wait for them have little time left, and those that a list reports as ended come first;
        2. the list of a day's runs: a few requests a minute, which report what is urgent;
        3. runs that a list reports as ended;
        4. the resync: the run whose own record was read longest ago, for a tenth of the budget;
        5. what has been due longest: runs, histories of flows, and, one interval later, searches. So each is polled
           at some time, however many others there are;
        6. runs that only a list has reported on.
        """
        self.refresh(now)
        found = self._find(now)
        if found is None:
            return None
        priority, item = found
        item.in_flight = True
        if isinstance(item, PolledItem):
            item.polled_at = now
            item.needs_last_poll = False
            if priority is Priority.REPORTED_DONE:
                self._urgent.popleft()
        if isinstance(item, RunItem):
            self._runs.move_to_end(item.key)
            if priority is Priority.POLL and item.fresh_until > now:
                self._resynced_at = now
        return item

    def refresh(self, now: float) -> None:
        """Choose the lists again, if it is time."""
        if now >= self._choose_at:
            self._choose_listings(now)

    def urgency(self, now: float) -> Priority | None:
        """Return the priority of what :meth:`pick` would return now; ``None`` if nothing is due."""
        found = self._find(now)
        return None if found is None else found[0]

    def next_wakeup(self, now: float) -> float:
        """Return when :meth:`refresh` or :meth:`pick` next has something to do; perhaps in the past."""
        if self._urgent or self._last_polls:
            return now
        moments = [self._choose_at, *(each.due for each in self._day_listings if not each.in_flight)]
        if self._scheduled:
            moments.append(self._scheduled[0][0])
        if self._due_searches:
            moments.append(self._due_searches[0][0])
        covered = self._stalest_covered(now)
        if covered is not None:
            moments.append(self._resync_due(covered))
        return min(moments)

    def next_deadline(self) -> float:
        """Return when :meth:`expire` next has something to do; perhaps in the past."""
        for heap in (self._deadlines, self._giving_up):
            while heap and not heap[0][3].is_waiting:
                heapq.heappop(heap)
        at = self._deadlines[0][0] if self._deadlines else float("inf")
        if self._giving_up:
            gives_up_at = self._giving_up[0][0]
            at = min(at, gives_up_at if gives_up_at > self._paused_until else _NEVER)
        return at

    def expire(self, now: float) -> list[tuple[SubscriberT, FollowResult]]:
        """
        Schedule the last polls of runs whose deadline has come, and give up on last polls without an answer.

        A last poll has the time until Airflow ends the trigger, less what the stop and the event need. If Etlworks asks
        us to send nothing for longer than that, we give up at once.
        """
        while self._deadlines and self._deadlines[0][0] <= now:
            at, _, item, subscriber = heapq.heappop(self._deadlines)
            if not subscriber.is_waiting:
                continue
            if subscriber.gives_up_at is None:
                subscriber.gives_up_at = max(at + LAST_POLL_WITHIN, now + _LATE_LAST_POLL)
                heapq.heappush(self._giving_up, (subscriber.gives_up_at, next(self._order), item, subscriber))
            self._need_last_poll(item)
        given_up = []
        while self._giving_up and self._giving_up[0][0] <= max(now, self._paused_until):
            _, _, item, subscriber = heapq.heappop(self._giving_up)
            if not subscriber.is_waiting:
                continue
            detail = f"The {item} got no answer in time."
            if item.reported_done:
                detail += " A list reports it as ended."
            given_up.append((subscriber, FollowResult(Ending.DEADLINE, subscriber.poller.execution, detail)))
            self.discard(item, subscriber)
        return given_up

    def _need_last_poll(self, item: PolledItem[SubscriberT]) -> None:
        item.needs_last_poll = True
        if item.reported_done:
            self._last_polls.appendleft(item)
        else:
            self._last_polls.append(item)

    def _find(self, now: float) -> tuple[Priority, PolledItem[SubscriberT] | ListingItem[SubscriberT]] | None:
        """Return what is polled now, and its priority. Outdated entries are removed."""
        while self._last_polls:
            last = self._last_polls[0]
            # An item in flight returns to the queue if its answer decides nothing.
            if last.is_open and last.needs_last_poll and not last.in_flight:
                return Priority.LAST_POLL, last
            self._last_polls.popleft()
        for listing in self._day_listings:
            if listing.due <= now and not listing.in_flight:
                return Priority.REPORTED_DONE, listing
        while self._urgent:
            urgent = self._urgent[0]
            if urgent.is_open and not urgent.in_flight:
                return Priority.REPORTED_DONE, urgent
            self._urgent.popleft()
        covered = self._stalest_covered(now)
        if covered is not None and now >= self._resync_due(covered):
            return Priority.POLL, covered
        search = self._top_search(now)
        while self._scheduled and self._scheduled[0][0] <= now:
            due, _, item = self._scheduled[0]
            if not item.is_open or item.in_flight or item.due != due:
                heapq.heappop(self._scheduled)  # outdated
            elif isinstance(item, RunItem) and item.fresh_until > now:
                heapq.heappop(self._scheduled)
                self._schedule(item, item.fresh_until)
            elif search is not None and search.due + search.poll_interval < due:
                return Priority.POLL, search
            else:
                return Priority.POLL, item
        if search is not None:
            return Priority.SEARCH, search
        # Nothing is due: time for the first poll of a run that only a list has reported on.
        return (Priority.FIRST_POLL, covered) if covered is not None and covered.polled_at == _NEVER else None

    def _top_search(self, now: float) -> SearchItem[SubscriberT] | None:
        while self._due_searches and self._due_searches[0][0] <= now:
            due, _, item = self._due_searches[0]
            if item.is_open and not item.in_flight and item.due == due:
                return item
            heapq.heappop(self._due_searches)
        return None

    def _schedule(self, item: PollItem, due: float) -> None:
        item.due = due
        if isinstance(item, SearchItem):
            heapq.heappush(self._due_searches, (due, next(self._order), item))
        elif isinstance(item, RunItem) or (isinstance(item, ListingItem) and not isinstance(item.listing, DayListing)):
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

    # --- Answers --------------------------------------------------------------------------------------------------

    def on_record(
        self, item: RunItem[SubscriberT], execution: Execution, now: float
    ) -> list[tuple[SubscriberT, FollowResult]]:
        """Process a run's own record, and return the results of the subscribers for whom that is the end."""
        item.in_flight = False
        if execution.is_terminal and not item.reported_done:
            self._ended_unlisted[item.key] = now
        return self._deliver(item, "on_record", execution, now)

    def on_search(
        self, item: SearchItem[SubscriberT], runs: list[Execution], now: float
    ) -> list[tuple[SubscriberT, FollowResult]]:
        """Process the answer to a search, and return the results of the subscribers who need no other."""
        item.in_flight = False
        return self._deliver(item, "on_record", runs, now)

    def on_error(
        self, item: PolledItem[SubscriberT], error: EtlworksError, now: float
    ) -> list[tuple[SubscriberT, FollowResult]]:
        """Process a poll that failed, and return the results of the subscribers for whom that is the end."""
        item.in_flight = False
        self._note_pause(error, now)
        # Refused credentials concern everybody: one refusal is enough.
        items = self._all_polled() if isinstance(error, EtlworksUnauthorized) else [item]
        return [result for each in items for result in self._deliver(each, "on_error", error, now)]

    def _deliver(
        self, item: PolledItem[SubscriberT], handler: Literal["on_record", "on_error"], answer: Any, now: float
    ) -> list[tuple[SubscriberT, FollowResult]]:
        """Let each subscriber's poller decide what an answer means."""
        results = []
        pause = float("inf")
        for subscriber in list(item.subscribers):
            verdict = subscriber.context.run(getattr(subscriber.poller, handler), answer)
            if isinstance(verdict, FollowResult) and verdict.ending is Ending.DEADLINE:
                verdict = self._once_more(item, subscriber, verdict, now)
            if isinstance(verdict, FollowResult):
                results.append((subscriber, verdict))
                self.discard(item, subscriber)
            else:
                pause = min(pause, verdict)
        if item.is_open:
            self._schedule(item, now + pause)
        return results

    def _once_more(
        self, item: PolledItem[SubscriberT], subscriber: SubscriberT, result: FollowResult, now: float
    ) -> FollowResult | float:
        """Return the seconds until one more last poll, if a poll does not count as the last one; else the result."""
        if result.error is None and item.polled_at >= subscriber.deadline:
            return result
        # It was sent before the deadline, or it failed, and the time for the last poll is not over.
        # The wall clock may have jumped: the poller decides by it, and it must not decide again and again.
        subscriber.deadline = min(subscriber.deadline, now)
        again_at = now if result.error is None else max(now + _LAST_POLL_PAUSE, self._paused_until)
        if subscriber.gives_up_at is not None and again_at >= subscriber.gives_up_at:
            return result
        heapq.heappush(self._deadlines, (again_at, next(self._order), item, subscriber))
        return again_at - now

    def _note_pause(self, error: Exception | None, now: float) -> None:
        if isinstance(error, EtlworksRateLimited) and error.retry_after is not None:
            self._paused_until = max(self._paused_until, now + error.retry_after)

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
        item.in_flight = False
        interval = item.interval
        self._note_pause(error, now)
        # Too many requests are not a fault of the list, and everything waits then.
        if error is not None and not isinstance(error, EtlworksRateLimited):
            self._choose_by(asked_at)
            # The next read must come while the list still covers its runs.
            interval *= _COVERS - 1
        # A slow list is read less often.
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
        # Once only: a list that is wrong about a run must not cause a poll each time it is read.
        if not run.reported_done:
            run.reported_done = True
            self._urgent.append(run)
            if run.needs_last_poll:
                self._need_last_poll(run)

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
            item.most_pages = plan.most_pages
            item.interval = plan.interval * _FRESH_ENOUGH
        self._day_listings = [each for each in self._listings.values() if isinstance(each.listing, DayListing)]
        self._report_throttling(chosen)
        self._forget_ended(now)

    def _drop(self, item: ListingItem[SubscriberT], now: float) -> None:
        """Stop reading a list: its runs are due again as if it had never covered them."""
        item.is_open = False
        for run in item.runs:
            if run.is_open and run.fresh_until > now:
                run.fresh_until = _NEVER
                self._schedule(run, max(now, run.listed_at + run.interval * _FRESH_ENOUGH))

    def _report_throttling(self, chosen: dict[Listing, ListingPlan[RunItem[SubscriberT]]]) -> None:
        """Warn once if the runs need more requests than the budget allows."""
        wanted = 60 * requests_a_second(self._runs.values(), chosen.values())
        self._metrics.throttled(max(1.0, wanted / self._limit) if self._limit else 1.0)
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
        if len(self._deadlines) > 2 * (len(self._runs) + len(self._searches)) + _BATCH:
            self._deadlines = [each for each in self._deadlines if each[3].is_waiting]
            heapq.heapify(self._deadlines)
