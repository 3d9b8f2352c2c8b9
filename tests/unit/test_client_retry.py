"""When a call is sent again."""

from __future__ import annotations

import logging
from email.utils import formatdate
from itertools import islice

import pytest
from support.clock import VirtualClock
from tenacity import Retrying

from airflow_provider_etlworks.client.clock import growing_delays
from airflow_provider_etlworks.client.errors import EtlworksRateLimited, EtlworksServerError, EtlworksUnreachable
from airflow_provider_etlworks.client.retry import (
    LONGEST_BACKOFF,
    LONGEST_RETRY_AFTER,
    retry_after_seconds,
    tenacity_options,
)

NOW = 1_800_000_000.0


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
    error = EtlworksServerError("busy", status=503, retry_after=30)
    delays = {pause for _ in range(20) for pause in attempts_and_delays(error, idempotent=True)[1]}
    assert min(delays) >= 30
    assert max(delays) <= 30 + LONGEST_BACKOFF
    assert len(delays) > 10


def test_rate_limiter_waits_after_429() -> None:
    error = EtlworksRateLimited("slow down", status=429, retry_after=30)
    assert attempts_and_delays(error, idempotent=False) == (4, [0.0, 0.0, 0.0])


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("not_processed", [True, False])
def test_call_in_doubt_is_repeated_only_if_idempotent(idempotent: bool, not_processed: bool) -> None:
    count, _ = attempts_and_delays(EtlworksUnreachable("gone", not_processed=not_processed), idempotent=idempotent)
    assert count == (4 if idempotent or not_processed else 1)


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours")])
def test_other_exceptions_are_not_repeated(error: Exception) -> None:
    assert attempts_and_delays(error, idempotent=True)[0] == 1
