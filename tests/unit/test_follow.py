"""How a run is followed: by hand, without a network, hours in milliseconds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pytest
from support.clock import BEGINNING, FastClock
from support.etlworks import carry_out

from airflow_provider_etlworks.client.errors import (
    EtlworksError,
    EtlworksNotFound,
    EtlworksRedirected,
    EtlworksRefused,
    EtlworksReplyError,
    EtlworksUnreachable,
    api_error,
)
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.runs.defaults import DEFAULT_POLL_INTERVAL
from airflow_provider_etlworks.runs.follow import VISIBILITY_GRACE, Ending, FollowResult, follow, poll_delay
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef

HOUR = 3600.0
GONE = EtlworksNotFound("No such run.", status=404)
DOWN = EtlworksUnreachable("Connection refused.")

Timeline = Callable[[float], Execution | EtlworksError]


@dataclass
class Story:
    """How following went: its result, and the seconds from the beginning at which the run was polled."""

    result: FollowResult
    polls: list[float]
    log: list[str]

    def lines(self, part: str) -> list[str]:
        return [line for line in self.log if part in line]


def record(status: str | None, **fields: Any) -> Execution:
    return Execution(flow_id=7, audit_id=1, status=status, **fields)


def followed(caplog: pytest.LogCaptureFixture, timeline: Timeline, **options: Any) -> Story:
    """Follow a run whose record, or the failure to read it, depends on the seconds since the beginning."""
    clock, polls = FastClock(), list[float]()
    caplog.set_level(logging.INFO)
    caplog.clear()

    def answer(_: Any) -> Execution | EtlworksError:
        polls.append(clock.time() - BEGINNING)
        assert len(polls) < 100_000, "nobody ever gives up"
        return timeline(polls[-1])

    procedure = follow(RunRef(7, 1), PollPolicy(**options), clock=clock, log=logging.getLogger("follow"))
    return Story(carry_out(procedure, clock, answer), polls, [each.getMessage() for each in caplog.records])


def running_until(seconds: float, ends: str = "success") -> Timeline:
    return lambda now: record("running" if now < seconds else ends)


def away(begin: float, end: float, fault: EtlworksError, then: Timeline) -> Timeline:
    return lambda now: fault if begin <= now < end else then(now)


# --- What a failed poll means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [3, VISIBILITY_GRACE - 5])
def test_late_record_is_waited_for(caplog: pytest.LogCaptureFixture, seconds: float) -> None:
    story = followed(caplog, away(0, seconds, GONE, running_until(100)), poll_interval=1)

    assert story.result.ending is Ending.FINISHED
    assert story.result.execution == record("success")


@pytest.mark.parametrize("poll_interval", [1, 10, 60, 300])
@pytest.mark.parametrize("gone_at", [0, 200])
def test_missing_record_is_gone_and_not_failed(
    caplog: pytest.LogCaptureFixture, gone_at: float, poll_interval: float
) -> None:
    story = followed(
        caplog, away(gone_at, HOUR, GONE, running_until(HOUR)), poll_interval=poll_interval, patience=2 * HOUR
    )

    assert story.result.ending is Ending.LOST_TOUCH
    assert "gone" in story.result.detail
    missed = [poll for poll in story.polls if poll >= gone_at]
    assert len(missed) >= 3
    assert missed[-1] - missed[0] >= VISIBILITY_GRACE


@pytest.mark.parametrize(
    "fault",
    [
        DOWN,
        EtlworksReplyError("HTML instead of JSON"),
        EtlworksRedirected("To a page that says: maintenance", status=302),
        EtlworksRefused("Not now", status=200),
        *(api_error("GET /x", code, "") for code in (408, 409, 425, 429, 500, 502, 503, 504)),
    ],
    ids=str,
)
def test_outage_within_the_patience_is_survived(caplog: pytest.LogCaptureFixture, fault: EtlworksError) -> None:
    story = followed(caplog, away(60, 60 + 1200, fault, running_until(HOUR)), patience=1800)

    assert story.result.ending is Ending.FINISHED
    assert 1 <= len(story.lines("Cannot read the status")) <= 21
    assert len(story.lines("can be read again")) == 1


def test_outage_longer_than_the_patience_loses_touch(caplog: pytest.LogCaptureFixture) -> None:
    story = followed(caplog, away(60, 9 * HOUR, DOWN, running_until(HOUR)), patience=1800)

    assert story.result.ending is Ending.LOST_TOUCH
    assert story.result.error is DOWN
    assert "Connection refused." in story.result.detail
    assert story.result.execution == record("running")
    assert 1800 <= story.polls[-1] - 60 < 1800 + 120


def test_patience_starts_again_after_each_good_poll(caplog: pytest.LogCaptureFixture) -> None:
    story = followed(
        caplog, lambda now: DOWN if now < HOUR and now % 1000 > 100 else running_until(HOUR)(now), patience=1000
    )

    assert story.result.ending is Ending.FINISHED


@pytest.mark.parametrize("code", [400, 401, 403, 405, 415])
def test_refusal_ends_following_at_once(caplog: pytest.LogCaptureFixture, code: int) -> None:
    refused = api_error("GET /x", code, "Not for you")

    story = followed(caplog, away(100, HOUR, refused, running_until(HOUR)))

    assert story.result.ending is Ending.DENIED
    assert story.result.error is refused
    assert "Not for you" in story.result.detail
    assert len([poll for poll in story.polls if poll >= 100]) == 1


@pytest.mark.parametrize("fault", [api_error("GET /x", 409, "Busy"), EtlworksRefused("Not now", status=200)])
def test_transient_error_does_not_end_following(caplog: pytest.LogCaptureFixture, fault: EtlworksError) -> None:
    story = followed(caplog, away(100, 500, fault, running_until(HOUR)))

    assert story.result.ending is Ending.FINISHED


def test_unknown_status_is_polled_and_named(caplog: pytest.LogCaptureFixture) -> None:
    recovers = followed(caplog, lambda now: record("archiving") if now < 500 else record("success"), patience=600)
    stays = followed(caplog, lambda _: record("archiving"), patience=600)

    assert recovers.result.ending is Ending.FINISHED
    assert stays.result.ending is Ending.LOST_TOUCH
    assert "'archiving'" in stays.result.detail


# --- When it polls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poll_interval", [1.0, DEFAULT_POLL_INTERVAL, 300.0])
def test_old_run_is_polled_less_often(caplog: pytest.LogCaptureFixture, poll_interval: float) -> None:
    story = followed(caplog, running_until(3 * HOUR), poll_interval=poll_interval)

    delays = [after - before for before, after in zip(story.polls, story.polls[1:], strict=False)]
    assert min(delays) >= 0.9 * poll_interval
    assert max(delays) <= max(60.0, poll_interval)
    assert delays[-1] >= max(54.0, 0.9 * poll_interval)
    assert len(delays) < 400
    assert len({round(delay, 6) for delay in delays}) > len(delays) // 2  # nobody marches in step


def test_greater_age_of_a_run_counts(caplog: pytest.LogCaptureFixture) -> None:
    began = datetime.fromtimestamp(BEGINNING - 5 * HOUR, tz=timezone.utc)
    story = followed(caplog, lambda now: record("running" if now < 1000 else "success", started_at=began))

    assert story.polls[1] >= 50


@pytest.mark.parametrize(
    ("age", "interval", "delay"),
    [
        (0, 10, 10),
        (199, 10, 10),
        (400, 10, 20),
        (24 * HOUR, 10, 60),
        (24 * HOUR, 300, 300),
        (48 * HOUR, 10, 120),
        (48 * HOUR, 300, 300),
        (240 * HOUR, 10, 600),
        (1e9, 10, 600),
        (1e9, 900, 900),
    ],
)
def test_poll_delay(age: float, interval: float, delay: float) -> None:
    assert poll_delay(age, interval) == delay


@pytest.mark.parametrize("server_is_ahead_by", [-72 * HOUR, 3 * HOUR])
def test_own_start_counts_whatever_the_servers_clock_says(
    caplog: pytest.LogCaptureFixture, server_is_ahead_by: float
) -> None:
    began = datetime.fromtimestamp(BEGINNING + server_is_ahead_by, tz=timezone.utc)
    running = record("running", started_at=began)
    young = followed(caplog, lambda _: running, started_at=BEGINNING, deadline=BEGINNING + 99)
    old = followed(caplog, lambda _: running, started_at=BEGINNING - HOUR, deadline=BEGINNING + 299)

    assert 9 <= young.polls[1] <= 10
    assert 54 <= old.polls[1] <= 60


def test_run_that_starts_while_it_is_followed_is_young(caplog: pytest.LogCaptureFixture) -> None:
    began = datetime.fromtimestamp(BEGINNING - 48 * HOUR, tz=timezone.utc)
    story = followed(
        caplog,
        lambda now: record("queued") if now < 20 else record("running", started_at=began),
        deadline=BEGINNING + 99,
    )

    delays = [after - before for before, after in zip(story.polls, story.polls[1:], strict=False)]
    assert max(delays) <= 10


def test_failed_polls_back_off_and_respect_retry_after(caplog: pytest.LogCaptureFixture) -> None:
    story = followed(caplog, away(0, 1000, DOWN, running_until(1000)), poll_interval=2)
    asked = followed(
        caplog, away(0, 1, api_error("GET /x", 429, "", retry_after=200), running_until(10)), poll_interval=2
    )

    delays = [after - before for before, after in zip(story.polls, story.polls[1:], strict=False)]
    assert delays[:6] == [2, 4, 8, 16, 32, 60]
    assert asked.polls[1] == 200


# --- When it ends ---------------------------------------------------------------------------------------------------


def test_deadline_brings_a_last_poll(caplog: pytest.LogCaptureFixture) -> None:
    in_time = followed(caplog, running_until(95), deadline=BEGINNING + 95)
    late = followed(caplog, running_until(96), deadline=BEGINNING + 95)
    unreadable = followed(caplog, lambda _: DOWN, deadline=BEGINNING + 95)
    past = followed(caplog, running_until(HOUR), deadline=BEGINNING - 1)

    assert in_time.result.ending is Ending.FINISHED
    assert late.result.ending is Ending.DEADLINE
    assert late.result.execution == record("running")
    assert in_time.polls[-1] == late.polls[-1] == 95
    assert unreadable.result.ending is Ending.DEADLINE
    assert "Connection refused." in unreadable.result.detail
    assert past.result.ending is Ending.DEADLINE
    assert past.polls == [0]


@pytest.mark.parametrize("was_read", [False, True])
def test_record_that_was_read_before_is_deleted_by_maintenance(
    caplog: pytest.LogCaptureFixture, was_read: bool
) -> None:
    gone = api_error("GET /x", 404, "")
    story = followed(caplog, lambda now: record("running") if was_read and now < 60 else gone)

    assert story.result.ending is Ending.LOST_TOUCH
    assert story.result.detail.startswith("The run's record is gone.")
    assert ("deleted by the server's maintenance" in story.result.detail) == was_read


def test_stuck_run_names_the_task_that_clears_it(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = followed(caplog, running_until(25 * HOUR)).lines("more than a day")

    assert "crashed" in line
    assert "Clean running state" in line


def test_endless_run_is_logged_at_intervals(caplog: pytest.LogCaptureFixture) -> None:
    story = followed(caplog, running_until(49 * HOUR))

    assert len(story.lines("more than a day")) == 1
    assert 49 * 6 - 30 <= len(story.lines("is still running")) <= 49 * 6 + 10


def test_each_change_of_status_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def timeline(now: float) -> Execution:
        return record("queued" if now < 20 else "running" if now < 40 else "error")

    story = followed(caplog, timeline)

    assert [line.split(" (")[0] for line in story.log] == ["Run 1 is queued", "Run 1 is running", "Run 1 ended: error"]
    assert "(after 0 s)" in story.log[0]
    assert "(after 4" in story.log[2]
