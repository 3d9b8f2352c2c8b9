"""Where a server's days begin: in any time zone, no end of a run is reported late around midnight."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clock import FastClock
from support.etlworks import carry_out
from support.history import LOG, FlowHistories

from airflow_provider_etlworks.client.errors import EtlworksBadRequest
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.runs.completion_plan import CompletionPlanner
from airflow_provider_etlworks.runs.completions import CompletionTracker
from airflow_provider_etlworks.runs.listings import DayListing, Days, _ListedFlow, _ListedRun

ZONES = ["UTC", "Pacific/Auckland", "Pacific/Honolulu", "America/New_York", "Asia/Kathmandu"]
# Days on which summer time begins or ends in Auckland or New York, and one on which it does nowhere.
DAYS = [date(2026, 4, 5), date(2026, 9, 27), date(2026, 3, 8), date(2026, 11, 1), date(2026, 6, 15)]
FLOWS = range(101, 106)
OTHER = 999
INTERVAL = 60.0


@dataclass
class ZonedHistories(FlowHistories):
    """
    An Etlworks in a time zone.

    :ivar by_date: "taken", "refused" or "ignored": what the list does with a date.
    """

    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    clock: FastClock = field(default_factory=FastClock)
    by_date: str = "taken"

    def began(self, audit_id: int, flow_id: int) -> None:
        now = datetime.fromtimestamp(self.clock.time(), timezone.utc)
        self.runs[audit_id] = Execution(flow_id, audit_id, status="success", started_at=now, ended_at=now)

    def list_of_day(self, query: dict[str, str]) -> Any:
        today = datetime.fromtimestamp(self.clock.time(), self.zone).date()
        day = today - timedelta(days=int(query.get("offset", 0)))
        if "date" in query:
            if self.by_date == "refused":
                return EtlworksBadRequest("Unknown parameter: date", status=400)
            if self.by_date == "taken":
                day = date.fromisoformat(query["date"])
        self.asked.append("day")
        flows: dict[int, list[_ListedRun | None]] = {}
        for run in self.runs.values():
            assert run.started_at is not None
            if run.started_at.astimezone(self.zone).date() == day:
                started = int(run.started_at.timestamp() * 1000)
                listed = _ListedRun(run.audit_id, status="success", started=started, ended=started)
                flows.setdefault(run.flow_id, []).append(listed)
        return [_ListedFlow(flow_id, runs) for flow_id, runs in flows.items()]


class Watching:
    """Five watched flows, from two days before a midnight on, with a run of another flow every ``every`` minutes."""

    def __init__(self, zone: str, day: date, by_date: str, every: int) -> None:
        self.clock = FastClock()
        self.etlworks = ZonedHistories(zone=ZoneInfo(zone), clock=self.clock, by_date=by_date)
        self.midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).timestamp()
        self.clock.now = self.midnight - 2 * 86_400
        self.planner = CompletionPlanner(self.clock, LOG)
        self.flows = [CompletionTracker(flow_id, None, LOG) for flow_id in FLOWS]
        self.audit_id = 0
        self.every = every * 60.0
        self.other_at = self.clock.time()
        self.poll()

    def run(self, flow_id: int) -> int:
        self.audit_id += 1
        self.etlworks.began(self.audit_id, flow_id)
        return self.audit_id

    def poll(self) -> list[int]:
        found: list[int] = []
        for tracker in carry_out(self.planner.choose(self.flows, INTERVAL), self.clock, self.etlworks.answer):
            self.planner.reads(tracker)
            found += self.etlworks.poll(tracker)
        return sorted(found)

    def pass_until(self, moment: float, step: float) -> None:
        """Let time pass, with a poll every ``step`` seconds, and nothing in the watched flows."""
        while self.clock.time() + step < moment:
            self.clock.sleep(step)
            if self.clock.time() >= self.other_at:
                self.other_at = self.clock.time() + self.every
                self.run(OTHER)
            assert self.poll() == []


@pytest.mark.parametrize("by_date", ["taken", "refused", "ignored"])
@pytest.mark.parametrize("zone", ZONES)
@settings(max_examples=4, deadline=None)
@given(
    day=st.sampled_from(DAYS),
    every=st.sampled_from([7, 55, 400]),
    offsets=st.lists(st.integers(-5_000, 5_000), min_size=1, max_size=6),
)
def test_no_end_around_midnight_is_missed_by_the_next_poll(
    zone: str, by_date: str, day: date, every: int, offsets: list[int]
) -> None:
    watching = Watching(zone, day, by_date, every)
    for position, offset in enumerate(sorted({*offsets, -1, 0, 1})):
        at = watching.midnight + offset
        watching.pass_until(at - INTERVAL, 900.0)
        watching.clock.sleep(max(0.0, at - watching.clock.time()))
        started = watching.run(FLOWS[position % len(FLOWS)])
        watching.clock.sleep(INTERVAL / 2)

        assert watching.poll() == [started]
    watching.clock.sleep(INTERVAL)
    assert watching.poll() == []


@pytest.mark.parametrize("zone", ZONES)
def test_one_list_a_poll_is_enough_once_the_days_are_known(zone: str) -> None:
    watching = Watching(zone, date(2026, 6, 15), "taken", every=7)
    watching.pass_until(watching.midnight + 6 * 3600, 400.0)
    watching.etlworks.asked.clear()
    for _ in range(20):
        watching.clock.sleep(INTERVAL)
        watching.run(OTHER)
        watching.poll()

    assert watching.etlworks.asked.count("day") == 20


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def milliseconds(*texts: str) -> list[int]:
    return [int(at(text).timestamp() * 1000) for text in texts]


def test_day_of_a_run_is_learned_from_a_list() -> None:
    clock = FastClock()
    clock.now = at("2026-06-15 20:00").timestamp()
    days = Days(clock)
    assert days.candidates(at("2026-06-15 13:00")) == [date(2026, 6, 15), date(2026, 6, 16)]
    # Auckland, 12 hours ahead of UTC.
    days.learn(date(2026, 6, 15), milliseconds("2026-06-14 12:05", "2026-06-15 11:50"))
    days.learn(date(2026, 6, 16), milliseconds("2026-06-15 12:05", "2026-06-15 19:00"))

    assert days.candidates(at("2026-06-15 15:00")) == [date(2026, 6, 16)]
    assert days.between(clock.now - 60, clock.now) == [DayListing(date(2026, 6, 16))]
    # An hour on both sides of midnight belongs to both days.
    assert set(days.candidates(at("2026-06-15 12:30"))) == {date(2026, 6, 15), date(2026, 6, 16)}
    assert set(days.candidates(at("2026-06-15 11:30"))) == {date(2026, 6, 15), date(2026, 6, 16)}


def test_contradicting_list_starts_the_learning_over() -> None:
    days = Days(FastClock())
    wide = days.candidates(at("2026-06-15 15:00"))
    days.learn(date(2026, 6, 15), milliseconds("2026-06-14 12:05", "2026-06-15 11:50"))
    days.learn(date(2026, 6, 15), milliseconds("2026-06-15 00:01", "2026-06-15 23:59"))
    assert days.candidates(at("2026-06-15 12:00")) == [date(2026, 6, 15)]
    # Twenty-five hours cannot be one day of one offset.
    days.learn(date(2026, 6, 15), milliseconds("2026-06-15 00:01", "2026-06-16 00:30"))
    assert days.candidates(at("2026-06-15 15:00")) == wide


def test_going_run_of_another_day_teaches_nothing() -> None:
    days = Days(FastClock())
    before = days.between(0.0, 86_400.0)
    days.learn(date(2026, 6, 15), milliseconds("2026-06-01 00:00"))
    assert days.between(0.0, 86_400.0) == before


def test_days_are_counted_back_if_the_server_takes_no_dates() -> None:
    clock = FastClock()
    clock.now = at("2026-06-15 20:00").timestamp()
    days = Days(clock)
    days.takes_dates = False
    assert days.between(clock.now, clock.now) == [DayListing(0), DayListing(1)]
    assert days.candidates(None) == [0, 1]
    assert days.candidates(at("2026-06-14 23:00")) == [1, 2, 0]
