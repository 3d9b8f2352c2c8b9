"""When a call is sent again, and how fast a client may send."""

from __future__ import annotations

import logging
from email.utils import formatdate
from itertools import islice

import pytest
from support.clock import VirtualClock
from tenacity import Retrying

from airflow_provider_etlworks.client.clock import growing_delays
from airflow_provider_etlworks.client.errors import EtlworksRateLimited, EtlworksUnreachable
from airflow_provider_etlworks.client.rate_limit import RateLimiter
from airflow_provider_etlworks.client.retry import (
    LONGEST_BACKOFF,
    LONGEST_RETRY_AFTER,
    retry_after_seconds,
    tenacity_options,
)

NOW = 1_800_000_000.0
LIMITS = (1, 2, 10, 300)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("30", 30),
        (" 0 ", 0),
        (formatdate(NOW + 90, usegmt=True), 90),
        (formatdate(NOW + 90).replace(" -0000", ""), 90),
        (formatdate(NOW - 90, usegmt=True), 0),
        ("86400", LONGEST_RETRY_AFTER),
        ("9" * 500, LONGEST_RETRY_AFTER),
        (formatdate(NOW + 86_400, usegmt=True), LONGEST_RETRY_AFTER),
        (None, None),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("1.5.2", None),
        ("²", None),
        ("Fri, 99 Foo 2026 99:99:99 GMT", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, lambda: NOW) == seconds


@pytest.mark.parametrize("header", ["86400", formatdate(NOW + 86_400, usegmt=True)])
def test_shortened_retry_after_is_logged(header: str, caplog: pytest.LogCaptureFixture) -> None:
    retry_after_seconds(header, lambda: NOW)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "86400" in record.getMessage()
    assert "300" in record.getMessage()
    retry_after_seconds("300", lambda: NOW)
    assert len(caplog.records) == 1


def attempts_and_delays(error: Exception, *, idempotent: bool, attempts: int = 4) -> tuple[int, list[float]]:
    """Fail with the error each time, and return the number of attempts and the delays between them."""
    clock, count = VirtualClock(), 0

    def fail() -> None:
        nonlocal count
        count += 1
        raise error

    with pytest.raises(type(error)):
        Retrying(sleep=clock.sleep, **tenacity_options(idempotent=idempotent, attempts=attempts))(fail)
    return count, clock.slept


def test_backoff_grows_up_to_a_limit() -> None:
    longest = [0.0] * 9
    for _ in range(200):
        _, delays = attempts_and_delays(EtlworksUnreachable("gone"), idempotent=True, attempts=10)
        longest = [max(pair) for pair in zip(longest, delays, strict=True)]
    assert longest[0] < longest[1] < longest[2] < longest[3] <= LONGEST_BACKOFF
    assert max(longest) <= LONGEST_BACKOFF


def test_growing_delays_stay_at_the_longest() -> None:
    assert list(islice(growing_delays(1.0, 3.0), 5)) == [1.0, 1.5, 2.25, 3.0, 3.0]
    assert list(islice(growing_delays(5.0, 3.0, 2.0), 2)) == [3.0, 3.0]


def test_retry_after_is_obeyed_with_jitter() -> None:
    error = EtlworksRateLimited("slow down", status=429, retry_after=30)
    delays = {pause for _ in range(20) for pause in attempts_and_delays(error, idempotent=False)[1]}
    assert min(delays) >= 30
    assert max(delays) <= 30 + LONGEST_BACKOFF
    assert len(delays) > 10


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("not_processed", [True, False])
def test_call_in_doubt_is_repeated_only_if_idempotent(idempotent: bool, not_processed: bool) -> None:
    count, _ = attempts_and_delays(EtlworksUnreachable("gone", not_processed=not_processed), idempotent=idempotent)
    assert count == (4 if idempotent or not_processed else 1)


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours")])
def test_other_exceptions_are_not_repeated(error: Exception) -> None:
    assert attempts_and_delays(error, idempotent=True)[0] == 1


def steady_demand(limiter: RateLimiter, clock: VirtualClock, seconds: float) -> list[float]:
    """Send as fast as the rate limiter allows, and return the times."""
    times, end = [], clock.now + seconds
    while clock.now < end:
        for wait in limiter.delays():
            clock.sleep(wait)
        times.append(clock.now)
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
    assert [wait for _ in range(10_000) for wait in limiter.delays()] == []


@pytest.mark.parametrize("limit", [0, *LIMITS])
def test_pause_holds_for_all_waiting_requests(limit: int) -> None:
    clock = VirtualClock()
    limiter = RateLimiter(limit, clock)
    # These already wait, each for its own slot, when the pause begins.
    waiting = [limiter.delays() for _ in range(5)]
    wake_at = {number: clock.now + next(waits, 0.0) for number, waits in enumerate(waiting)}
    pause_begins = clock.now
    limiter.pause(30)
    latecomer = limiter.delays()
    waiting.append(latecomer)
    wake_at[5] = clock.now + next(latecomer, 0.0)
    # Those whose slot was now have been sent.
    sent = [wake_at.pop(number) for number in list(wake_at) if wake_at[number] == pause_begins]
    while wake_at:
        number = min(wake_at, key=lambda each: wake_at[each])
        clock.now = max(clock.now, wake_at[number])
        wait = next(waiting[number], None)
        if wait is None:
            sent.append(wake_at.pop(number))
        else:
            wake_at[number] = clock.now + wait
    after = [sent_at for sent_at in sent if sent_at > pause_begins]
    assert min(after) >= pause_begins + 30
    if limit:
        assert most_in_a_minute(sent) <= limit
        # One after the other, not all at the end of the pause.
        assert len(set(after)) == len(after)


def test_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = VirtualClock()
    limiter = RateLimiter(300, clock)
    limiter.pause(30)
    limiter.pause(1)
    assert sum(limiter.delays()) >= 30
