"""How fast one process may send."""

from __future__ import annotations

import pytest
from support.clock import VirtualClock

from airflow_provider_etlworks.client.rate_limit import Priority, RateLimiter

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
