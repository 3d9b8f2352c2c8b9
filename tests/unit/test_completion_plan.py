"""Whose history is read next, with and without today's list, which may be wrong. Without a network."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from support.clock import FastClock
from support.etlworks import carry_out
from support.history import LOG, FlowHistories

from airflow_provider_etlworks.client.call import Page
from airflow_provider_etlworks.client.errors import EtlworksForbidden, EtlworksUnreachable, api_error
from airflow_provider_etlworks.runs.completion_plan import CompletionPlanner
from airflow_provider_etlworks.runs.completions import CompletionTracker

if TYPE_CHECKING:
    from collections.abc import Iterable

FLOWS = range(101, 126)


@pytest.fixture
def etlworks() -> FlowHistories:
    return FlowHistories()


class Watching:
    """Some flows that are watched, poll after poll."""

    def __init__(self, etlworks: FlowHistories, flows: Iterable[int] = FLOWS) -> None:
        self.etlworks = etlworks
        self.clock = FastClock()
        self.planner = CompletionPlanner(self.clock, LOG)
        self.flows = [CompletionTracker(flow_id, None, LOG) for flow_id in flows]
        self.poll()
        etlworks.asked.clear()

    def poll(self, interval: float = 30.0) -> list[int]:
        """Poll, and return the runs whose ends are reported."""
        reported = []
        for tracker in carry_out(self.planner.choose(self.flows, interval), self.clock, self.etlworks.answer):
            self.planner.reads(tracker)
            reported += self.etlworks.poll(tracker)
        self.clock.sleep(interval)
        return sorted(reported)

    def reported_in(self, polls: int) -> list[int]:
        return [audit_id for _ in range(polls) for audit_id in self.poll()]

    def asked_in(self, polls: int, interval: float = 30.0) -> list[str]:
        self.etlworks.asked.clear()
        for _ in range(polls):
            assert self.poll(interval) == []
        return self.etlworks.asked


def test_many_flows_share_one_request_a_poll(etlworks: FlowHistories) -> None:
    watching = Watching(etlworks)

    assert watching.asked_in(10) == ["day"] * 10
    etlworks.run(1, flow_id=103)
    etlworks.start(2, flow_id=104)
    etlworks.asked.clear()
    assert watching.poll() == [1]
    assert etlworks.asked == ["day", "history 103 from 0"]
    assert watching.asked_in(1) == ["day"]
    etlworks.end(2)
    assert watching.poll() == [2]


def test_few_flows_are_polled_by_their_histories(etlworks: FlowHistories) -> None:
    watching = Watching(etlworks, [101, 102])

    assert sorted(watching.asked_in(1)) == ["history 101 from 0", "history 102 from 0"]


def test_non_administrator_costs_a_request_a_flow(etlworks: FlowHistories, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    etlworks.day = EtlworksForbidden("Administrators only", status=403)
    watching = Watching(etlworks)

    assert sorted(watching.asked_in(1)) == [f"history {flow_id} from 0" for flow_id in FLOWS]
    etlworks.run(1, flow_id=103)
    assert watching.poll() == [1]
    assert [record.getMessage() for record in caplog.records] == [
        "Runs are followed without the list of a day's runs. Administrators only"
    ]


def test_incomplete_list_delays_an_end_and_loses_none(etlworks: FlowHistories) -> None:
    watching = Watching(etlworks)
    etlworks.day = {}
    etlworks.run(1, flow_id=103)

    assert watching.reported_in(30) == [1]
    etlworks.run(2, flow_id=103)
    # The list is not relied on for this flow for a while.
    assert watching.poll() == [2]


def test_resync_takes_a_few_requests_in_ten_minutes(etlworks: FlowHistories) -> None:
    watching = Watching(etlworks)
    asked = watching.asked_in(60)

    assert asked.count("day") == 60
    for flow_id in FLOWS:
        assert 1 <= asked.count(f"history {flow_id} from 0") <= 3


def test_stale_list_delays_an_end_and_loses_none(etlworks: FlowHistories) -> None:
    watching = Watching(etlworks)
    etlworks.start(1, flow_id=103)
    watching.poll()
    etlworks.day = etlworks.honest()
    etlworks.end(1)

    assert watching.reported_in(40) == [1]


def test_false_end_in_a_list_is_not_believed(etlworks: FlowHistories) -> None:
    watching = Watching(etlworks)
    etlworks.start(1, flow_id=103)
    etlworks.day = {(103, 1): False, (103, 99): False}
    asked = watching.asked_in(16)

    assert 2 <= asked.count("run 99") <= 6
    etlworks.end(1)
    assert watching.reported_in(30) == [1]


def test_unlisted_runs_are_read_after_midnight(etlworks: FlowHistories) -> None:
    watching = Watching(etlworks)
    etlworks.run(1, flow_id=103)
    etlworks.start(2, flow_id=104)
    assert watching.poll() == [1]
    # In the last seconds of the day.
    etlworks.run(3, flow_id=105)
    etlworks.day = {}
    assert watching.poll() == [3]
    # None of yesterday's runs is in today's list, so yesterday's is read as well.
    assert watching.asked_in(1) == ["day", "yesterday", "history 104 from 0"]
    etlworks.end(2)

    assert watching.poll() == [2]


def test_stale_history_is_corrected_by_the_runs_own_record(etlworks: FlowHistories) -> None:
    watching = Watching(etlworks)
    etlworks.start(1, flow_id=103)
    watching.poll()
    before = etlworks.runs[1]
    etlworks.end(1)
    honest = etlworks.answer
    etlworks.answer = lambda call: (  # type: ignore[method-assign]
        Page([before], None) if call.path.endswith("103/history") else honest(call)
    )

    assert watching.poll() == [1]
    assert [watching.poll() for _ in range(5)] == [[]] * 5


def test_list_is_dropped_after_two_failures(etlworks: FlowHistories) -> None:
    watching = Watching(etlworks)
    etlworks.day = EtlworksUnreachable("Timed out")
    with pytest.raises(EtlworksUnreachable):
        watching.poll()
    etlworks.run(1, flow_id=103)

    assert watching.poll() == [1]


def test_list_refusal_costs_a_request_a_flow(etlworks: FlowHistories) -> None:
    etlworks.day = api_error("GET /x", 401, "Administrators only")
    watching = Watching(etlworks)
    etlworks.run(1, flow_id=103)

    assert watching.poll() == [1]
    assert "day" not in etlworks.asked


def test_too_many_requests_do_not_discredit_the_list(etlworks: FlowHistories) -> None:
    watching = Watching(etlworks)
    etlworks.day = api_error("GET /x", 429, "")
    for _ in range(3):
        with pytest.raises(type(etlworks.day)):
            watching.poll()
    etlworks.day = None

    assert watching.asked_in(1) == ["day"]
