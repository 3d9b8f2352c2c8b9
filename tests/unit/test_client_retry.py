"""When a call is sent again, and how fast a client may ask."""

from __future__ import annotations

import logging
from email.utils import formatdate

import pytest
from support.client import VirtualClock
from tenacity import Retrying

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
def test_a_pause_that_is_cut_short_is_said(header: str, caplog: pytest.LogCaptureFixture) -> None:
    retry_after_seconds(header, lambda: NOW)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "86400" in record.getMessage()
    assert "300" in record.getMessage()
    retry_after_seconds("300", lambda: NOW)
    assert len(caplog.records) == 1


def tries(error: Exception, *, idempotent: bool, attempts: int = 4) -> tuple[int, list[float]]:
    """Fail with the error each time, and return how many tries there were and the pauses between them."""
    clock, count = VirtualClock(), 0

    def fail() -> None:
        nonlocal count
        count += 1
        raise error

    with pytest.raises(type(error)):
        Retrying(sleep=clock.sleep, **tenacity_options(idempotent=idempotent, attempts=attempts))(fail)
    return count, clock.slept


def test_pauses_grow_up_to_a_limit() -> None:
    longest = [0.0] * 9
    for _ in range(200):
        _, pauses = tries(EtlworksUnreachable("gone"), idempotent=True, attempts=10)
        longest = [max(pair) for pair in zip(longest, pauses, strict=True)]
    assert longest[0] < longest[1] < longest[2] < longest[3] <= LONGEST_BACKOFF
    assert max(longest) <= LONGEST_BACKOFF


def test_a_named_pause_is_kept_and_not_by_all_at_the_same_moment() -> None:
    error = EtlworksRateLimited("slow down", status=429, retry_after=30)
    pauses = {pause for _ in range(20) for pause in tries(error, idempotent=False)[1]}
    assert min(pauses) >= 30
    assert max(pauses) <= 30 + LONGEST_BACKOFF
    assert len(pauses) > 10


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("not_processed", [True, False])
def test_what_may_have_been_carried_out_is_not_repeated(idempotent: bool, not_processed: bool) -> None:
    count, _ = tries(EtlworksUnreachable("gone", not_processed=not_processed), idempotent=idempotent)
    assert count == (4 if idempotent or not_processed else 1)


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours")])
def test_a_mistake_of_ours_is_not_repeated(error: Exception) -> None:
    assert tries(error, idempotent=True)[0] == 1


def steady_demand(pace: RateLimiter, clock: VirtualClock, seconds: float) -> list[float]:
    """Send as fast as the pace allows, and return the moments."""
    moments, end = [], clock.now + seconds
    while clock.now < end:
        for wait in pace.delays():
            clock.sleep(wait)
        moments.append(clock.now)
    return moments


def most_in_a_minute(moments: list[float]) -> int:
    return max(sum(start <= moment < start + 60 for moment in moments) for start in moments)


@pytest.mark.parametrize("limit", LIMITS)
def test_the_limit_holds_in_every_minute(limit: int) -> None:
    clock = VirtualClock()
    moments = steady_demand(RateLimiter(limit, clock), clock, 600)
    assert most_in_a_minute(moments) <= limit
    # What is left of the limit is used: a pace that sends nothing would hold it, too.
    assert len(moments) >= 10 * max(1, limit - max(1, limit // 10))


@pytest.mark.parametrize("limit", LIMITS)
def test_the_limit_holds_after_idle_times_and_bursts(limit: int) -> None:
    clock = VirtualClock()
    pace, moments = RateLimiter(limit, clock), []
    for idle in (0, 59, 60, 61, 5, 1000, 30):
        clock.sleep(idle)
        moments += steady_demand(pace, clock, 45)
    assert most_in_a_minute(moments) <= limit


def test_a_few_requests_go_at_once() -> None:
    clock = VirtualClock()
    moments = steady_demand(RateLimiter(300, clock), clock, 1)
    # One may be a rounding error late.
    assert 29 <= moments.count(moments[0]) <= 30


@pytest.mark.parametrize("now", [0.0, 1.0])
def test_a_machine_that_has_just_been_started(now: float) -> None:
    clock = VirtualClock(now)
    assert most_in_a_minute(steady_demand(RateLimiter(10, clock), clock, 600)) <= 10


def test_no_limit() -> None:
    clock = VirtualClock()
    pace = RateLimiter(0, clock)
    assert [wait for _ in range(10_000) for wait in pace.delays()] == []


@pytest.mark.parametrize("limit", [0, *LIMITS])
def test_a_pause_holds_for_everybody(limit: int) -> None:
    clock = VirtualClock()
    pace = RateLimiter(limit, clock)
    # These wait already, each for a moment of its own, when the pause is called.
    waiting = [pace.delays() for _ in range(5)]
    wake_at = {number: clock.now + next(waits, 0.0) for number, waits in enumerate(waiting)}
    pause_begins = clock.now
    pace.pause(30)
    latecomer = pace.delays()
    waiting.append(latecomer)
    wake_at[5] = clock.now + next(latecomer, 0.0)
    # Those whose moment was now are gone already.
    sent = [wake_at.pop(number) for number in list(wake_at) if wake_at[number] == pause_begins]
    while wake_at:
        number = min(wake_at, key=lambda each: wake_at[each])
        clock.now = max(clock.now, wake_at[number])
        wait = next(waiting[number], None)
        if wait is None:
            sent.append(wake_at.pop(number))
        else:
            wake_at[number] = clock.now + wait
    after = [moment for moment in sent if moment > pause_begins]
    assert min(after) >= pause_begins + 30
    if limit:
        assert most_in_a_minute(sent) <= limit
        # One after the other, not all at the end of the pause.
        assert len(set(after)) == len(after)


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = VirtualClock()
    pace = RateLimiter(300, clock)
    pace.pause(30)
    pace.pause(1)
    assert sum(pace.delays()) >= 30
