"""Which lists are asked for: arithmetic, without a network; and what is read of a list."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import pytest
from support.clock import VirtualClock

from airflow_provider_etlworks.client.call import Response
from airflow_provider_etlworks.client.errors import EtlworksReplyError, EtlworksUnreachable, api_error
from airflow_provider_etlworks.runs.listings import (
    DayListing,
    FlowHistoryListing,
    Listing,
    ListingBreaker,
    choose_listings,
    listed_runs,
    requests_a_second,
)

TODAY, YESTERDAY = DayListing(0), DayListing(1)


@dataclass
class Run:
    flow_id: int
    day: int | None = 0
    interval: float = 10.0
    poll_interval: float = 10.0
    in_history: bool = True

    def is_in_history(self) -> bool:
        return self.in_history


def read_all(_: Listing) -> bool:
    return True


def no_administrator(source: Listing) -> bool:
    return not isinstance(source, DayListing)


def chosen(runs: list[Run], usable: Any = read_all) -> dict[Listing, float]:
    """Return the lists chosen, with their intervals."""
    return {source: choice.interval for source, choice in choose_listings(runs, usable).items()}


def old(flow_id: int, **fields: Any) -> Run:
    return Run(flow_id, interval=60.0, **fields)


@pytest.mark.parametrize(
    ("runs", "lists"),
    [
        ([], {}),
        ([Run(1)], {}),
        ([Run(1), Run(2)], {TODAY: 10}),
        ([Run(1), old(2), old(3)], {TODAY: 10}),
        ([old(1), old(2)], {TODAY: 60}),
        ([old(flow_id) for flow_id in range(1, 9)], {TODAY: 10}),
        ([Run(1), old(2)], {}),
        ([Run(1), Run(2, day=1)], {}),
        ([Run(1), Run(2), Run(3, day=1)], {TODAY: 10}),
        ([Run(1), Run(2), Run(3, day=1), Run(4, day=1)], {TODAY: 10, YESTERDAY: 10}),
        ([Run(1, day=None), Run(2, day=None)], {}),
        ([Run(1, day=None), Run(1, day=None), Run(2)], {FlowHistoryListing(1): 10}),
        ([Run(1), Run(1)], {FlowHistoryListing(1): 10}),
    ],
)
def test_cheapest_lists_are_chosen(runs: list[Run], lists: dict[Listing, float]) -> None:
    assert chosen(runs) == lists


def test_runs_of_one_flow_share_its_history() -> None:
    runs = [Run(1), Run(1), Run(2), old(3), old(3), old(3)]

    assert chosen(runs, no_administrator) == {FlowHistoryListing(1): 10, FlowHistoryListing(3): 60}
    assert chosen(runs, lambda _: False) == {}


def test_history_without_the_run_is_not_read_for_it() -> None:
    assert chosen([Run(1), Run(1, in_history=False)], no_administrator) == {}


def test_lists_never_cost_more_requests() -> None:
    """Every small set of runs of two flows, two days and two ages."""
    kinds = [Run(f, day, i) for f in (1, 2) for day in (0, 1) for i in (10.0, 60.0)]
    for first in kinds:
        for second in kinds:
            for count in range(4):
                runs = [first, *([second] * count)]
                for usable in (read_all, no_administrator):
                    choice = choose_listings(runs, usable)
                    assert requests_a_second(runs, choice.values()) <= requests_a_second(runs, ()) + 1e-9


# --- Reading --------------------------------------------------------------------------------------------------------


def read(source: DayListing | FlowHistoryListing, value: Any) -> list[Any]:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return list(listed_runs(source.call(1).read(Response(200, {}, body))))


def test_day_list_is_read() -> None:
    runs = [
        {"flowId": 1, "auditId": 10, "status": "running", "started": 1, "ended": None, "records": 0, "extra": {}},
        {"auditId": 11, "status": "success", "ended": 2},
        {"auditId": "12", "status": " Queued "},
        {"auditId": 13, "status": "running", "ended": 2},
        {"auditId": 14, "status": "archiving"},
        {"auditId": 15},
        {"auditId": 16, "status": 7},
    ]
    value = [{"flowId": 1, "name": "A", "executions": runs}, {"flowId": 2, "executions": None}, {}]

    assert read(TODAY, value) == [
        ((1, 10), True),
        ((1, 11), False),
        ((1, 12), True),
        ((1, 13), False),
        ((1, 14), False),
        ((1, 15), False),
        ((1, 16), False),
    ]


def test_history_is_read() -> None:
    assert read(FlowHistoryListing(7), [{"auditId": 1, "status": "running"}]) == [((7, 1), True)]


HOSTILE_RUNS = [
    b'null, {"auditId": 7, "status": "running"}',
    b'{}, {"auditId": null}, {"auditId": [1]}, {"auditId": {}}, {"auditId": 7, "status": "running"}',
    b'{"auditId": "%s"}, {"auditId": %s}, {"auditId": 7, "status": "running"}' % (b"9" * 5_000, b"9" * 5_000),
    b'{"auditId": 1e999, "status": "\\ud800"}, {"auditId": 7, "status": "running"}',
    b'{"auditId": 6, "user": "\xff"}, {"auditId": 7, "status": "running"}',
    '{"auditId": "²"}, {"auditId": 7, "status": "running"}'.encode("utf-16"),
    '{"auditId": 6, "user": "Müller"}, {"auditId": 7, "status": "running"}'.encode("latin-1"),
]


@pytest.mark.parametrize("runs", HOSTILE_RUNS)
def test_run_of_list_is_read_beside_unreadable_ones(runs: bytes) -> None:
    charset = "utf-16" if runs.startswith(b"\xff\xfe") else "utf-8"
    before, after = '[{"flowId": 1, "executions": [', "]}, null]"
    body = (before + runs.decode(charset, "surrogateescape") + after).encode(charset, "surrogateescape")
    headers = {"Content-Type": f"application/json; charset={charset}"}

    listed = list(listed_runs(TODAY.call(1).read(Response(200, headers, body))))

    assert ((1, 7), True) in listed
    assert not any(going for (_, audit_id), going in listed if audit_id != 7)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"<html>",
        b'[{"executions": [{"auditId": 1',
        b"\xff",
        b"[1]",
        b'[{"flowId": ' + b"[" * 100_000,
    ],
)
def test_non_list_is_refused(body: bytes) -> None:
    with pytest.raises(EtlworksReplyError, match="Expected a list of runs"):
        read(TODAY, body)


# --- Trust ----------------------------------------------------------------------------------------------------------


def test_failing_list_backs_off_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = VirtualClock()
    trust = ListingBreaker(clock, logging.getLogger("trust"))

    def times_away(error: Exception, count: int) -> list[float]:
        away = []
        for _ in range(count):
            trust.record_failure(TODAY, error)
            left_at = clock.now
            while not trust.is_available(YESTERDAY):
                clock.sleep(10)
            away.append(clock.now - left_at)
            assert trust.is_available(FlowHistoryListing(1))
        return away

    # One passing fault is no reason to do without.
    assert times_away(EtlworksUnreachable("Connection refused."), 7) == [0, 60, 120, 240, 480, 900, 900]
    assert len(caplog.records) == 1
    trust.record_success(TODAY)
    assert times_away(EtlworksUnreachable("Connection refused."), 2) == [0, 60]
    trust.record_success(TODAY)
    assert times_away(EtlworksReplyError("A page instead"), 2) == [60, 60]
    assert len(caplog.records) == 1


def test_refused_list_is_not_read_for_an_hour() -> None:
    clock = VirtualClock()
    trust = ListingBreaker(clock, logging.getLogger("trust"))
    trust.record_failure(TODAY, api_error("GET /x", 403, "Administrators only"))
    clock.sleep(3599)
    assert not trust.is_available(TODAY)
    clock.sleep(1)
    assert trust.is_available(TODAY)
