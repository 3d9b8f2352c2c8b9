"""What is polled next, and what an answer changes: decisions of the poll queue, without an event loop or a network."""

from __future__ import annotations

import logging
import random
from datetime import datetime, timedelta, timezone

import pytest
from support.clock import BEGINNING, VirtualClock

from airflow_provider_etlworks.client.errors import EtlworksUnreachable, api_error
from airflow_provider_etlworks.client.metrics import NO_METRICS, Metrics
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.runs.find import RunSelector, RunWaiter, SearchPoller
from airflow_provider_etlworks.runs.follow import Ending, FollowResult, RunPoller
from airflow_provider_etlworks.runs.listings import DayListing, FlowHistoryListing
from airflow_provider_etlworks.runs.poll_queue import (
    LAST_POLL_WITHIN,
    ListingItem,
    PolledItem,
    PollQueue,
    RunItem,
    SearchItem,
    Subscriber,
)
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

Item = PolledItem[Subscriber] | ListingItem[Subscriber]

Name = int | str | DayListing | FlowHistoryListing

REFUSED = api_error("GET /x", 403, "Administrators only")
TODAY = DayListing(datetime.fromtimestamp(BEGINNING, timezone.utc).date())
YESTERDAY = DayListing(TODAY.day - timedelta(days=1))  # type: ignore[operator]


class Queue:
    """A queue at a time that the test sets, and short ways to use it. Run 1 is of flow 1, and so on."""

    def __init__(
        self, requests_per_minute: int = 300, *, with_lists: bool = False, metrics: Metrics = NO_METRICS
    ) -> None:
        self.clock = VirtualClock()
        self.queue: PollQueue[Subscriber] = PollQueue(self.clock, requests_per_minute, metrics)
        if not with_lists:
            self.queue.breaker.record_failure(TODAY, REFUSED)

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def push(self, audit_id: int, *, poll_interval: float = 10.0, within: float | None = None) -> Item:
        """Subscribe to a run, with a deadline so many seconds from now."""
        deadline = None if within is None else self.clock.time() + within
        policy = PollPolicy(poll_interval=poll_interval, deadline=deadline)
        poller = RunPoller(audit_id, policy, clock=self.clock, log=logging.getLogger("task"))
        self.subscriber = Subscriber(poller)
        return self.queue.push(RunRef(audit_id, audit_id), self.subscriber, self.now)

    def search(self, flow_id: int, *, poll_interval: float = 60.0, is_urgent: bool = False) -> Item:
        """Search for the newest run of a flow."""
        policy = PollPolicy(poll_interval=poll_interval)
        waiter = RunWaiter(RunSelector(flow_id), policy, clock=self.clock, log=logging.getLogger("task"))
        self.subscriber = Subscriber(SearchPoller(waiter))
        return self.queue.push_search(flow_id, None, self.subscriber, self.now, is_urgent=is_urgent)

    def urgency(self) -> Priority | None:
        return self.queue.urgency(self.now)

    def pick(self) -> Item | None:
        return self.queue.pick(self.now)

    def picked(self) -> list[Name]:
        """Pick whatever is due now: audit ids, and lists. All of it stays in flight."""
        return [name_of(item) for item in iter(self.pick, None)]

    def sleep(self) -> float:
        """Let time pass until the queue says that something is due, and return for how long."""
        due = min(self.queue.next_wakeup(self.now), self.queue.next_deadline())
        seconds = max(0.0, due - self.now)
        self.clock.sleep(seconds)
        return seconds

    def record(self, item: Item, status: str = "running") -> list[Ending]:
        """Answer a poll of a run."""
        assert isinstance(item, RunItem)
        item.in_flight = False
        execution = Execution(item.flow_id, item.audit_id, status=status)
        return [result.ending for _, result in self.queue.on_record(item, execution, self.now)]

    def fail(self, item: Item, error: Exception) -> list[FollowResult]:
        """Fail a poll of a run."""
        assert isinstance(item, RunItem)
        assert isinstance(error, (EtlworksUnreachable, type(api_error("GET /x", 401, ""))))
        item.in_flight = False
        return [result for _, result in self.queue.on_error(item, error, self.now)]

    def list(self, item: Item, runs: dict[int, bool], error: Exception | None = None) -> None:
        """Answer a read of a list: audit ids, and whether they are going."""
        assert isinstance(item, ListingItem)
        item.in_flight = False
        if error is None:
            entries = [((audit_id, audit_id), going) for audit_id, going in runs.items()]
            for _ in self.queue.on_listing(item, self.now, entries):
                pass
        self.queue.after_listing(item, self.now, self.now, error)


def name_of(item: Item) -> Name:
    if isinstance(item, ListingItem):
        return item.listing
    return item.audit_id if isinstance(item, RunItem) else str(item)


def with_day_listing(*audit_ids: int) -> tuple[Queue, ListingItem[Subscriber]]:
    """Return a queue with some runs, each polled once, and the list of the day that covers them, in flight."""
    queue = Queue(with_lists=True)
    for audit_id in audit_ids:
        queue.push(audit_id)
    listing = queue.pick()
    assert isinstance(listing, ListingItem)
    assert listing.listing == TODAY
    while (item := queue.pick()) is not None:
        queue.record(item)
    return queue, listing


# --- Order ----------------------------------------------------------------------------------------------------------


def test_empty_queue_picks_nothing() -> None:
    assert Queue().pick() is None


def test_run_is_due_at_once_and_after_each_interval() -> None:
    queue = Queue()
    item = queue.push(1)

    assert queue.queue.next_wakeup(queue.now) <= queue.now
    assert queue.pick() is item
    assert item.in_flight
    assert queue.pick() is None
    assert queue.record(item) == []
    assert queue.pick() is None
    began = queue.now
    while queue.pick() is None:
        assert queue.sleep() > 0
    assert 9 <= queue.now - began <= 9.7


def test_runs_are_picked_in_order() -> None:
    queue = Queue(requests_per_minute=0)
    due = {}
    for audit_id in random.Random(1).sample(range(1, 100), 99):  # noqa: S311  # no secret
        item = queue.push(audit_id, poll_interval=float(100 + audit_id))
        assert queue.pick() is item
        queue.record(item)
        due[audit_id] = item.due
    picked = []
    while len(picked) < 99:
        while (item := queue.pick()) is not None:
            assert isinstance(item, RunItem)
            assert item.due <= queue.now
            picked.append(item.audit_id)
        queue.sleep()

    assert picked == sorted(due, key=due.__getitem__)


def test_in_flight_run_is_not_picked_again() -> None:
    queue = Queue()
    item = queue.push(1)
    assert queue.pick() is item
    assert queue.push(1) is item
    queue.clock.sleep(1000)

    assert queue.picked() == []
    queue.record(item)
    queue.clock.sleep(1000)
    assert queue.picked() == [1]


def test_subscribers_share_a_poll() -> None:
    queue = Queue()
    item = queue.push(1)
    first = queue.subscriber
    assert queue.push(1) is item
    second = queue.subscriber
    assert queue.picked() == [1]

    assert isinstance(item, RunItem)
    results = queue.queue.on_record(item, Execution(1, 1, status="success"), queue.now)
    assert [subscriber for subscriber, _ in results] == [first, second]
    assert {result.ending for _, result in results} == {Ending.FINISHED}
    queue.clock.sleep(1000)
    assert queue.picked() == []


def test_run_without_subscribers_is_not_polled() -> None:
    queue = Queue()
    item = queue.push(1)
    assert isinstance(item, RunItem)
    queue.queue.discard(item, queue.subscriber)

    assert queue.picked() == []
    assert queue.push(1) is not item
    assert queue.picked() == [1]


def test_shortest_interval_of_the_subscribers_counts() -> None:
    queue = Queue()
    item = queue.push(1, poll_interval=300)
    queue.push(1, poll_interval=10)
    assert queue.picked() == [1]
    queue.record(item)

    assert item.due - queue.now < 10


def test_refused_credentials_end_every_run_at_once() -> None:
    queue = Queue()
    items = [queue.push(audit_id) for audit_id in range(1, 6)]
    assert queue.pick() is items[0]

    results = queue.fail(items[0], api_error("GET /x", 401, "Key expired"))
    assert [result.ending for result in results] == [Ending.DENIED] * 5
    assert queue.picked() == []


def test_failed_poll_delays_the_next_one_more_each_time() -> None:
    queue = Queue()
    item = queue.push(1)
    delays = []
    for _ in range(4):
        while queue.pick() is None:
            queue.sleep()
        assert queue.fail(item, EtlworksUnreachable("Connection refused.")) == []
        delays.append(item.due - queue.now)

    assert delays == [10, 20, 40, 60]


# --- Deadlines ------------------------------------------------------------------------------------------------------


def test_deadline_makes_a_run_urgent_and_the_last_poll_decides() -> None:
    queue = Queue()
    item = queue.push(1, poll_interval=300, within=100)
    began = queue.now
    assert queue.picked() == [1]
    queue.record(item)
    while not item.in_flight:
        queue.sleep()
        assert queue.queue.expire(queue.now) == []
        queue.pick()

    assert queue.now - began == pytest.approx(100, abs=0.01)
    assert queue.record(item) == [Ending.DEADLINE]


def test_last_poll_comes_before_due_polls() -> None:
    queue = Queue()
    for audit_id in range(1, 50):
        queue.push(audit_id)
    queue.push(99, within=0.5)
    queue.clock.sleep(0.5)
    assert queue.queue.next_wakeup(queue.now) <= queue.now
    queue.queue.expire(queue.now)

    assert queue.picked()[0] == 99


def test_deadline_is_met_although_the_last_poll_gets_no_answer() -> None:
    queue = Queue()
    item = queue.push(1, within=100)
    subscriber = queue.subscriber
    assert queue.pick() is item
    queue.clock.sleep(100)
    assert queue.queue.expire(queue.now) == []
    queue.clock.sleep(LAST_POLL_WITHIN - 1)
    assert queue.queue.expire(queue.now) == []
    assert queue.queue.next_deadline() == queue.now + 1
    queue.clock.sleep(1)

    ((who, result),) = queue.queue.expire(queue.now)
    assert who is subscriber
    assert result.ending is Ending.DEADLINE
    assert "got no answer" in result.detail
    assert queue.queue.expire(queue.now + 1000) == []


def test_deadline_of_one_subscriber_leaves_the_other_waiting() -> None:
    queue = Queue()
    item = queue.push(1, within=5)
    queue.push(1)
    queue.clock.sleep(5)
    queue.queue.expire(queue.now)
    assert queue.pick() is item

    assert queue.record(item) == [Ending.DEADLINE]
    assert item.is_open
    assert queue.queue.expire(queue.now + 100) == []


def test_poll_sent_before_the_deadline_is_not_the_last() -> None:
    queue = Queue()
    item = queue.push(1, within=5)
    assert queue.pick() is item
    queue.clock.sleep(5)
    queue.queue.expire(queue.now)

    assert queue.picked() == []
    assert queue.record(item) == []
    queue.queue.expire(queue.now)
    assert queue.picked() == [1]
    assert queue.record(item) == [Ending.DEADLINE]


def test_poll_that_is_answered_after_the_deadline_counts() -> None:
    queue = Queue()
    item = queue.push(1, within=5)
    assert queue.pick() is item
    queue.clock.sleep(5 + LAST_POLL_WITHIN - 1)
    queue.queue.expire(queue.now)

    assert queue.record(item, "success") == [Ending.FINISHED]


def test_failed_last_poll_is_repeated_while_there_is_time() -> None:
    queue = Queue()
    item = queue.push(1, within=5)
    deadline = queue.now + 5
    results: list[FollowResult] = []
    queue.clock.sleep(5)
    failures = 0
    while not results:
        results = [result for _, result in queue.queue.expire(queue.now)]
        if queue.pick() is item:
            results += queue.fail(item, EtlworksUnreachable("Connection refused."))
            failures += 1
        queue.clock.sleep(1)

    assert results[0].ending is Ending.DEADLINE
    assert 10 <= failures <= 20
    assert deadline + LAST_POLL_WITHIN - 10 <= queue.now <= deadline + LAST_POLL_WITHIN + 2


@pytest.mark.parametrize(("retry_after", "waits"), [(30, True), (300, False)])
def test_last_poll_waits_for_a_retry_after_that_ends_in_time(retry_after: float, waits: bool) -> None:
    queue = Queue()
    item = queue.push(1, within=5)
    queue.clock.sleep(5)
    queue.queue.expire(queue.now)
    assert queue.pick() is item
    refused = api_error("GET /x", 429, "Slow down", retry_after=retry_after)

    ended = [result.ending for _, result in queue.queue.on_error(item, refused, queue.now)]

    assert ended == ([] if waits else [Ending.DEADLINE])
    if waits:
        queue.clock.sleep(retry_after - 1)
        assert queue.queue.expire(queue.now) == []
        assert queue.picked() == []
        queue.clock.sleep(1)
        assert queue.queue.expire(queue.now) == []
        assert queue.picked() == [1]
        assert queue.record(item, "success") == [Ending.FINISHED]


def test_too_long_pause_ends_all_last_polls() -> None:
    queue = Queue()
    other = queue.push(1)
    for audit_id in range(2, 6):
        queue.push(audit_id, within=5)
    assert queue.pick() is other
    queue.clock.sleep(5)
    queue.queue.expire(queue.now)
    queue.queue.on_error(other, api_error("GET /x", 429, "Slow down", retry_after=300), queue.now)

    assert queue.queue.next_deadline() <= queue.now
    assert [result.ending for _, result in queue.queue.expire(queue.now)] == [Ending.DEADLINE] * 4


def test_jump_of_the_wall_clock_causes_one_last_poll() -> None:
    queue = Queue()
    item = queue.push(1, within=3600)
    assert queue.pick() is item
    queue.record(item)
    # Only the wall clock: the queue's own times are the monotonic clock's.
    now = queue.now
    queue.clock.sleep(7200)
    assert queue.queue.on_record(item, Execution(1, 1, status="running"), now + 10) == []  # type: ignore[arg-type]
    assert queue.queue.expire(now + 10) == []
    assert queue.queue.pick(now + 10) is item

    results = queue.queue.on_record(item, Execution(1, 1, status="running"), now + 10)  # type: ignore[arg-type]
    assert [result.ending for _, result in results] == [Ending.DEADLINE]


def test_run_listed_as_ended_gets_its_last_poll_first() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    for audit_id in (4, 5, 6):
        queue.push(audit_id, within=1)
    queue.list(listing, dict.fromkeys((1, 2, 3, 4, 6), True))
    queue.clock.sleep(1)
    queue.queue.expire(queue.now)
    queue.list(listing, {4: True, 5: True, 6: False})

    assert queue.urgency() is Priority.LAST_POLL
    assert queue.picked()[:3] == [6, 4, 5]


# --- Searches and priorities ----------------------------------------------------------------------------------------


def test_each_kind_has_its_priority() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    assert queue.urgency() is None
    queue.search(50)
    assert queue.urgency() is Priority.SEARCH
    queue.push(7)
    assert queue.urgency() is Priority.POLL
    queue.list(listing, {1: False, 2: True, 3: True})
    assert queue.urgency() is Priority.REPORTED_DONE
    queue.push(8, within=0.0)
    queue.queue.expire(queue.now)
    assert queue.urgency() is Priority.LAST_POLL

    assert queue.picked() == [8, 1, 7, "search for a run of flow 50"]
    assert queue.urgency() is None


def test_first_poll_of_a_covered_run_has_the_lowest_priority() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    queue.push(4)
    queue.list(listing, {1: True, 2: True, 3: True, 4: True})
    for audit_id in (1, 2, 3):
        queue.queue._runs.move_to_end((audit_id, audit_id))
    # Not yet: it is also the first one of the resync.
    assert queue.urgency() is Priority.POLL
    queue.queue._resynced_at = queue.now

    assert queue.urgency() is Priority.FIRST_POLL


def test_searches_and_polls_share_a_budget_that_is_too_small() -> None:
    queue = Queue()
    for number in range(1, 101):
        queue.push(number)
        queue.search(1000 + number)
    polls = searches = 0
    for _ in range(6000):
        item = queue.pick()
        if isinstance(item, RunItem):
            polls += 1
            queue.record(item)
        elif isinstance(item, SearchItem):
            searches += 1
            queue.queue.on_search(item, [], queue.now)
        queue.clock.sleep(0.5)

    assert polls > 2 * searches
    assert searches > 500


def test_searches_for_the_same_run_share_an_answer() -> None:
    queue = Queue()
    item = queue.search(7)
    first = queue.subscriber
    assert queue.search(7) is item
    second = queue.subscriber
    assert queue.search(8) is not item
    assert len(queue.picked()) == 2

    assert isinstance(item, SearchItem)
    results = queue.queue.on_search(item, [Execution(7, 1, status="running")], queue.now)
    assert [subscriber for subscriber, _ in results] == [first, second]
    assert not item.is_open


def test_urgent_search_comes_before_due_polls() -> None:
    queue = Queue()
    queue.push(1)
    queue.search(7, is_urgent=True)

    assert queue.urgency() is Priority.REPORTED_DONE
    assert queue.picked() == ["search for a run of flow 7", 1]


def test_abandoned_queue_asks_for_nothing() -> None:
    queue = Queue()
    items = [queue.push(1), queue.push(2, within=0.0), queue.search(7, is_urgent=True)]
    queue.queue.expire(queue.now)
    for item in items:
        assert isinstance(item, PolledItem)
        queue.queue.discard(item, item.subscribers[0])

    assert queue.urgency() is None
    assert queue.picked() == []
    assert queue.queue.expire(queue.now + 1000) == []


# --- Lists ----------------------------------------------------------------------------------------------------------


def test_fresh_list_replaces_polls() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    queue.list(listing, {1: True, 2: True, 3: True})
    reads = 0
    began = queue.now
    while queue.now < began + 50:
        while (item := queue.pick()) is not None:
            assert item is listing
            reads += 1
            queue.list(listing, {1: True, 2: True, 3: True})
        queue.clock.sleep(0.5)

    assert 4 <= reads <= 6


def test_run_ended_by_a_list_is_urgent_once() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    queue.list(listing, {1: True, 2: False, 3: True})

    assert queue.queue.next_wakeup(queue.now) <= queue.now
    item = queue.pick()
    assert item is not None
    assert name_of(item) == 2
    assert queue.record(item) == []
    queue.list(listing, {1: True, 2: False, 3: True})
    assert queue.picked() == []


def test_list_comes_before_urgent_runs() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    queue.list(listing, {1: False, 2: True, 3: True})
    listing.due = queue.now

    assert queue.picked() == [TODAY, 1]


def test_run_missing_from_a_list_is_polled() -> None:
    queue, listing = with_day_listing(1, 2, 3, 4)
    queue.list(listing, {1: True, 2: True, 3: True})
    polled = set()
    until = queue.now + 30
    while queue.now < until:
        while (item := queue.pick()) is not None:
            if isinstance(item, ListingItem):
                queue.list(item, {1: True, 2: True, 3: True})
            else:
                polled.add(item.audit_id)
                queue.record(item)
        queue.clock.sleep(0.5)

    assert polled == {4}


def test_refused_list_returns_its_runs() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    queue.list(listing, {1: True, 2: True, 3: True})
    queue.clock.sleep(10)
    assert queue.pick() is listing
    queue.queue.breaker.record_failure(listing.listing, REFUSED)
    queue.list(listing, {}, REFUSED)
    polled: set[object] = set()
    began = queue.now
    while len(polled) < 3:
        polled |= set(queue.picked())
        queue.clock.sleep(0.5)

    assert polled == {1, 2, 3}
    assert queue.now - began <= 12


def test_stale_list_is_not_used() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    queue.list(listing, {1: True, 2: True, 3: True})
    run = queue.queue._runs[1, 1]
    assert queue.record(run, "success") == [Ending.FINISHED]
    queue.clock.sleep(10)
    queue.list(listing, {1: True, 2: True, 3: True})

    assert not queue.queue.breaker.is_available(TODAY)


def test_slow_list_is_read_less_often() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    asked_at = queue.now
    queue.clock.sleep(55)
    queue.queue.after_listing(listing, asked_at, queue.now)

    assert listing.due - queue.now == pytest.approx(55)


def test_reading_a_list_yields_to_others() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    others = [((8, audit_id), False) for audit_id in range(40_000)]

    assert len(list(queue.queue.on_listing(listing, queue.now, others))) == 8


# --- Resync ---------------------------------------------------------------------------------------------------------


def test_resync_polls_stalest_runs_first() -> None:
    audit_ids = range(1, 31)
    queue, listing = with_day_listing(*audit_ids)
    going = dict.fromkeys(audit_ids, True)
    queue.list(listing, going)
    began, polls = queue.now, []
    while queue.now < began + 180:
        while (item := queue.pick()) is not None:
            if isinstance(item, ListingItem):
                queue.list(item, going)
            else:
                polls.append((queue.now, item.audit_id))
                queue.record(item)
        queue.clock.sleep(0.5)

    # Thirty a minute: a tenth of the budget.
    assert 60 <= len(polls) <= 90
    assert {audit_id for _, audit_id in polls} == set(audit_ids)
    order = [audit_id for _, audit_id in polls]
    assert order[30:60] == order[:30]
    assert polls[0][0] - began >= 6 * 10 - 10


def test_never_polled_run_fills_idle_time() -> None:
    queue, listing = with_day_listing(1, 2, 3)
    queue.push(4)
    queue.list(listing, {1: True, 2: True, 3: True, 4: True})

    assert queue.picked() == [4]


# --- Throttling -----------------------------------------------------------------------------------------------------


def test_throttling_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue(requests_per_minute=60)
    for audit_id in range(1, 41):
        queue.push(audit_id)
    for _ in range(5):
        queue.picked()
        queue.clock.sleep(10)

    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == (
        "40 runs are watched, which takes 240 requests a minute; the connection's requests_per_minute is 60. "
        "Polling is throttled: each run is polled 4.0 times less often than configured."
    )


@pytest.mark.parametrize(("requests_per_minute", "factor"), [(60, 4.0), (300, 1.0), (0, 1.0)])
def test_throttle_factor_is_reported_while_runs_are_watched(requests_per_minute: int, factor: float) -> None:
    reported: list[float] = []

    class Factors(Metrics):
        def throttled(self, factor: float) -> None:
            reported.append(factor)

    queue = Queue(requests_per_minute, metrics=Factors())
    for audit_id in range(1, 41):
        queue.push(audit_id)
    for _ in range(5):
        queue.picked()
        queue.clock.sleep(10)

    assert reported == pytest.approx([factor] * 5)


def test_list_of_the_start_day_is_read() -> None:
    queue = Queue(with_lists=True)
    for audit_id in (1, 2):
        queue.push(audit_id)
    yesterday = datetime.fromtimestamp(queue.clock.time() - 86_400, timezone.utc)
    for item in list(iter(queue.pick, None)):
        if isinstance(item, RunItem):
            execution = Execution(item.flow_id, item.audit_id, status="running", started_at=yesterday)
            queue.queue.on_record(item, execution, queue.now)
        else:
            # The list of today knows nothing of them.
            queue.list(item, {})
    queue.clock.sleep(11)

    assert queue.picked()[0] == YESTERDAY
