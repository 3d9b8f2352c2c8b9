"""How fast one process may send."""

from __future__ import annotations

import heapq
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clock import BEGINNING, VirtualClock
from support.effort import effort

from airflow_provider_etlworks.client.rate_limit import WINDOW, Priority, RateLimiter
from airflow_provider_etlworks.sandbox.limits import RateLimit
from airflow_provider_etlworks.sandbox.messages import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

LIMITS = (1, 2, 10, 300)


def send(limiter: RateLimiter, clock: VirtualClock, priority: Priority = Priority.POLL) -> float:
    """Wait for the turn of a request, which is answered at once, and return its time."""
    while (delay := limiter.begin(priority)) > 0:
        clock.sleep(delay)
    sent_at = clock.now
    limiter.end()
    return sent_at


def steady_demand(limiter: RateLimiter, clock: VirtualClock, seconds: float) -> list[float]:
    """Send as fast as the rate limiter allows, and return the times."""
    times, end = [], clock.now + seconds
    while clock.now < end:
        times.append(send(limiter, clock))
    return times


def most_in_a_minute(times: list[float]) -> int:
    return max(sum(start <= sent_at < start + 60 for sent_at in times) for start in times)


@pytest.mark.parametrize("limit", LIMITS)
def test_rate_limit_holds_in_every_minute(limit: int) -> None:
    clock = VirtualClock()
    times = steady_demand(RateLimiter(limit, clock), clock, 600)
    assert most_in_a_minute(times) <= limit
    # The limit is also used: a rate limiter that sends nothing would keep it as well.
    assert len(times) >= 10 * max(1, limit - max(1, limit // 10))


@pytest.mark.parametrize("limit", LIMITS)
def test_rate_limit_holds_after_idle_times_and_bursts(limit: int) -> None:
    clock = VirtualClock()
    limiter, times = RateLimiter(limit, clock), []
    for idle in (0, 59, 60, 61, 5, 1000, 30):
        clock.sleep(idle)
        times += steady_demand(limiter, clock, 45)
    assert most_in_a_minute(times) <= limit


def test_burst_is_sent_at_once() -> None:
    clock = VirtualClock()
    times = steady_demand(RateLimiter(300, clock), clock, 1)
    # One may be late by a rounding error.
    assert 29 <= times.count(times[0]) <= 30


@pytest.mark.parametrize("now", [0.0, 1.0])
def test_rate_limit_holds_on_a_clock_near_zero(now: float) -> None:
    clock = VirtualClock(now)
    assert most_in_a_minute(steady_demand(RateLimiter(10, clock), clock, 600)) <= 10


def test_no_rate_limit() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(0, clock)
    assert [limiter.begin(Priority.POLL) for _ in range(10_000)] == [0.0] * 10_000


@pytest.mark.parametrize("limit", [0, *LIMITS])
def test_pause_holds_for_all_but_stops(limit: int) -> None:
    clock = VirtualClock()
    limiter = RateLimiter(limit, clock, jitter=lambda: 0.5)
    limiter.refuse(30)
    for priority in Priority:
        assert (limiter.begin(priority) == 0) is (priority is Priority.STOP)
    limiter.end()
    assert send(limiter, clock) == pytest.approx(clock.now)
    assert clock.now >= VirtualClock().now + 60


def test_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(300, clock)
    limiter.refuse(200)
    limiter.refuse(1)
    send(limiter, clock)
    assert clock.now >= VirtualClock().now + 200


def begin_many(limiter: RateLimiter, priority: Priority = Priority.POLL) -> int:
    """Begin requests until one must wait, and return their number."""
    begun = 0
    while limiter.begin(priority) == 0:
        begun += 1
    return begun


def test_request_counts_until_a_minute_after_its_answer() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(1, clock)
    assert limiter.begin(Priority.STOP) == 0
    clock.sleep(1000)
    assert limiter.begin(Priority.STOP) > 0
    limiter.end()
    clock.sleep(59.9)
    assert limiter.begin(Priority.STOP) > 0
    clock.sleep(0.1)
    assert limiter.begin(Priority.STOP) == 0


def test_request_that_was_not_sent_does_not_count() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(10, clock)
    for _ in range(100):
        assert limiter.begin(Priority.POLL) == 0
        limiter.give_back(Priority.POLL)


@pytest.mark.parametrize("priority", [Priority.STOP, Priority.LAST_POLL])
def test_reserve_is_for_stops_and_last_polls(priority: Priority) -> None:
    clock = VirtualClock()
    limiter = RateLimiter(100, clock)
    for _ in range(95):
        send(limiter, clock, Priority.START)
    assert limiter.begin(Priority.START) > 0
    assert begin_many(limiter, priority) == 5


def test_stops_are_not_spaced() -> None:
    assert begin_many(RateLimiter(300, VirtualClock()), Priority.STOP) == 300


def test_delay_is_short_unless_etlworks_asks_for_a_pause() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(1, clock, jitter=lambda: 0.5)
    send(limiter, clock)
    assert 0 < limiter.begin(Priority.POLL) <= 1
    limiter.refuse(30)
    assert limiter.begin(Priority.POLL) == 60


def test_lowest_limit_of_the_living_clients_counts() -> None:
    class Client:
        """Can be referred to weakly."""

    clock = VirtualClock()
    limiter = RateLimiter(0, clock)
    many, few, unlimited = Client(), Client(), Client()
    limiter.join(many, 50)
    limiter.join(few, 20)
    limiter.join(unlimited, 0)
    assert begin_many(limiter, Priority.STOP) == 20
    del few
    assert begin_many(limiter, Priority.STOP) == 30
    del many
    limiter.give_back(Priority.STOP)
    for _ in range(200):
        assert limiter.begin(Priority.POLL) == 0


def sent_in(limiter: RateLimiter, clock: VirtualClock, seconds: float) -> int:
    return len(steady_demand(limiter, clock, seconds))


@pytest.mark.parametrize("limit", [0, 180])
@pytest.mark.parametrize("used", [6, 60])
def test_refusal_halves_what_was_really_sent(limit: int, used: int) -> None:
    clock = VirtualClock()
    limiter = RateLimiter(limit, clock, jitter=lambda: 0.0)
    for _ in range(used + 1):
        clock.sleep(50 / used)
        send(limiter, clock)
    limiter.refuse(60)
    send(limiter, clock)
    # It rises already in this minute, by a tenth at most.
    assert used / 2 - 1 <= sent_in(limiter, clock, 60) <= used / 2 * 1.1 + 1


def test_share_is_halved_once_in_a_pause() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(180, clock, jitter=lambda: 0.0)
    for _ in range(41):
        clock.sleep(1)
        send(limiter, clock)
    for _ in range(10):
        limiter.refuse(60)
    send(limiter, clock)
    assert 18 <= sent_in(limiter, clock, 60) <= 23


@pytest.mark.parametrize("limit", [0, 180])
def test_share_rises_slowly_in_quiet_time(limit: int) -> None:
    clock = VirtualClock()
    limiter = RateLimiter(limit, clock, jitter=lambda: 0.0)
    for _ in range(41):
        clock.sleep(1)
        send(limiter, clock)
    limiter.refuse(60)
    clock.sleep(60)
    in_each_quarter = []
    for _ in range(6):
        in_each_quarter.append(sent_in(limiter, clock, 60))
        clock.sleep(14 * 60)
    assert in_each_quarter == sorted(in_each_quarter)
    assert in_each_quarter[0] < 25
    # The limit stays the upper bound.
    assert (150 < in_each_quarter[-1] <= 180) if limit else in_each_quarter[-1] > 180


def test_process_that_is_refused_at_its_first_request_soon_sends_much() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(300, clock, jitter=lambda: 0.0)
    send(limiter, clock)
    limiter.refuse(60)
    send(limiter, clock)
    in_each_minute = [sent_in(limiter, clock, 60) for _ in range(16)]
    assert in_each_minute[0] <= 3
    assert in_each_minute[5] >= 15
    assert in_each_minute[-1] >= 40
    # From now on, it knows that others are there.
    limiter.refuse(60)
    send(limiter, clock)
    in_each_minute = [sent_in(limiter, clock, 60) for _ in range(5)]
    assert 15 <= in_each_minute[0] <= in_each_minute[-1] <= 35


@pytest.mark.parametrize("sent_between", [0, 1, 5])
def test_share_outlives_a_time_in_which_others_use_everything(sent_between: int) -> None:
    """A refusal at once after a pause says nothing about what this process sends, and soon after it, little."""
    clock = VirtualClock()
    limiter = RateLimiter(300, clock, jitter=lambda: 0.0)
    sent_in(limiter, clock, 120)
    limiter.refuse(20)
    for _ in range(2 if sent_between else 60):
        for _ in range(sent_between + 1):
            send(limiter, clock)
        limiter.refuse(20)
    send(limiter, clock)
    assert sent_in(limiter, clock, 60) >= (10 if sent_between else 130)


def test_processes_come_back_at_their_own_moments_after_a_pause() -> None:
    moments = []
    for _ in range(200):
        clock = VirtualClock()
        limiter = RateLimiter(180, clock)
        limiter.refuse(30)
        moments.append(send(limiter, clock) - BEGINNING)
    assert min(moments) >= 30
    assert max(moments) <= 30 + WINDOW + 0.1
    in_each_third = [sum(30 + 20 * third <= moment < 50 + 20 * third for moment in moments) for third in range(3)]
    assert min(in_each_third) > 30


def test_what_a_task_sends_before_its_run_waits_less() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(300, clock, jitter=lambda: 0.0)
    for _ in range(3):
        send(limiter, clock)
        send(limiter, clock, Priority.START)
        limiter.refuse(30)
    starts = [send(limiter, clock, Priority.START) for _ in range(4)]
    assert starts[-1] - starts[0] <= 95
    polls = [send(limiter, clock, Priority.POLL) for _ in range(4)]
    assert polls[-1] - polls[0] >= 150


@pytest.mark.parametrize("limit", [180, 600])
def test_many_processes_share_a_limit_with_few_refusals(limit: int) -> None:
    """120 processes, each with a run of 40 minutes that it polls every 20 s: little is refused, little is unused."""
    minutes, clock, randomness = 40, VirtualClock(), random.Random(120)  # noqa: S311  # no secret
    server = RateLimit(limit, clock.monotonic)
    limiters = [RateLimiter(300, clock, randomness.random) for _ in range(120)]
    turns = [(clock.now + randomness.uniform(0, 30), number, Priority.START) for number in range(len(limiters))]
    heapq.heapify(turns)
    end, answered, refused = clock.now + 60 * minutes, 0, 0
    while turns[0][0] < end:
        clock.now, number, priority = heapq.heappop(turns)
        limiter, again_after = limiters[number], randomness.uniform(15, 25)
        if (delay := limiter.begin(priority)) > 0:
            again_after = delay
        else:
            try:
                server.admit()
                answered += 1
                priority = Priority.POLL
            except ApiError as error:
                limiter.refuse(float(error.headers["Retry-After"]))
                refused += 1
            limiter.end()
        heapq.heappush(turns, (clock.now + again_after, number, priority))
    assert refused <= 0.1 * (answered + refused)
    assert answered >= 0.75 * min(limit, 360) * minutes


@dataclass
class Sent:
    """A request on its way: when it began, when it is sent, received, and answered."""

    priority: Priority
    send_at: float
    received_at: float
    ends_at: float
    retry_after: float | None


seconds = st.one_of(st.just(0.0), st.floats(0, 2), st.floats(0, 90))
requests = st.tuples(
    seconds, st.sampled_from(Priority), seconds, seconds, seconds, st.one_of(st.none(), st.none(), st.floats(0, 100))
)


@pytest.mark.fuzzing
@settings(max_examples=effort(300, 3_000), deadline=None)
@given(limit=st.integers(0, 12), plan=st.lists(requests, max_size=60), jitter=st.floats(0, 1))
def test_any_delays_of_loop_and_server(
    limit: int, plan: list[tuple[float, Priority, float, float, float, float | None]], jitter: float
) -> None:
    """Whatever is late: never more than the limit in 60 s, and nothing but stops inside a Retry-After."""
    clock = VirtualClock(1000.0)
    limiter = RateLimiter(limit, clock, jitter=lambda: jitter)
    events: list[tuple[float, int, str, Sent]] = []
    numbers = count()
    received: list[float] = []
    silent_until = 0.0

    def happen_until(moment: float) -> None:
        nonlocal silent_until
        while events and events[0][0] <= moment:
            clock.now, _, what, sent = heapq.heappop(events)
            if what == "send":
                if limiter.is_paused(sent.priority):
                    limiter.give_back(sent.priority)
                    continue
                assert sent.priority is Priority.STOP or clock.now >= silent_until
                received.append(sent.received_at)
                heapq.heappush(events, (sent.ends_at, next(numbers), "end", sent))
            else:
                if sent.retry_after is not None:
                    limiter.refuse(sent.retry_after)
                    silent_until = max(silent_until, clock.now + sent.retry_after)
                limiter.end()
        clock.now = moment

    for pause, priority, loop, way, back, retry_after in plan:
        happen_until(clock.now + pause)
        if limiter.begin(priority) == 0:
            at = clock.now + loop
            sent = Sent(priority, at, at + way, at + way + back, retry_after)
            heapq.heappush(events, (at, next(numbers), "send", sent))
    happen_until(clock.now + 1000)
    if limit:
        for start in received:
            assert sum(start <= moment < start + 60 for moment in received) <= limit
    # Nothing is left over: the whole limit is free again.
    clock.sleep(1000)
    assert begin_many(limiter, Priority.STOP) == limit if limit else limiter.begin(Priority.STOP) == 0


STEPS: dict[str, Callable[[RateLimiter], object]] = {
    "begin": lambda limiter: limiter.begin(Priority.POLL),
    "begin that waits": lambda limiter: limiter.begin(Priority.FIRST_POLL),
    "end": lambda limiter: limiter.end(),
    "give_back": lambda limiter: limiter.give_back(Priority.POLL),
    "refuse": lambda limiter: limiter.refuse(30),
}


@pytest.mark.parametrize("step", STEPS)
def test_signal_handler_may_send_at_any_point(step: str) -> None:
    """A handler that interrupts a method anywhere sends a stop; both are counted, and neither waits."""

    def prepared() -> RateLimiter:
        limiter = RateLimiter(20, VirtualClock(), jitter=lambda: 0.5)
        for _ in range(19 if step == "begin that waits" else 3):
            limiter.begin(Priority.STOP)
        if step == "begin that waits":
            for _ in range(19):
                limiter.end()
        return limiter

    def used(limiter: RateLimiter) -> int:
        limiter.clock.now += 200 if step == "refuse" else 0  # type: ignore[attr-defined]
        return 20 - begin_many(limiter, Priority.STOP)

    # Python 3.12 reports opcodes only to a tracer that is set after some frame has asked for them.
    sys._getframe().f_trace_opcodes = True
    alone = prepared()
    STEPS[step](alone)
    expected = used(alone)
    interrupted = 0
    for point in count():
        limiter, events, handled = prepared(), 0, False

        def handler(limiter: RateLimiter) -> None:
            assert limiter.begin(Priority.STOP) == 0
            limiter.end()

        def trace(frame: FrameType, event: str, _: object, limiter: RateLimiter = limiter, point: int = point) -> Any:
            nonlocal events, handled
            if frame.f_globals.get("__name__") != RateLimiter.__module__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and not handled:
                if events == point:
                    handled = True
                    sys.settrace(None)
                    handler(limiter)
                    sys.settrace(trace)
                events += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            STEPS[step](limiter)
        finally:
            sys.settrace(before)
        if not handled:
            break
        interrupted += 1
        # The stop of the handler counts, if the last minute is not over.
        assert used(limiter) == expected + (step != "refuse")
    assert interrupted > 20


def test_threads_share_the_limit() -> None:
    limiter = RateLimiter(1000, VirtualClock())
    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(lambda _: sum(limiter.begin(Priority.STOP) == 0 for _ in range(500)), range(8)))
        assert sum(begun) == 1000
        list(pool.map(lambda _: [limiter.give_back(Priority.STOP) for _ in range(125)], range(8)))
    assert begin_many(limiter, Priority.STOP) == 1000
