"""Each end of a flow's runs is reported once: in any order, across restarts, with odd histories. Without a network."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from support.clock import FastClock
from support.effort import effort
from support.etlworks import carry_out
from support.history import FLOW, LOG, MOMENT, FlowHistories

from airflow_provider_etlworks.client.call import Page
from airflow_provider_etlworks.client.errors import EtlworksUnreachable
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.runs.checkpoint import Checkpoint
from airflow_provider_etlworks.runs.completions import CompletionTracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.client.call import Call


@pytest.fixture
def etlworks() -> FlowHistories:
    return FlowHistories()


def started_tracker(etlworks: FlowHistories, flow_id: int = FLOW) -> CompletionTracker:
    """Return a tracker that has polled once."""
    tracker = CompletionTracker(flow_id, None, LOG)
    assert etlworks.poll(tracker) == []
    etlworks.asked.clear()
    return tracker


def restarted(checkpoint: Checkpoint | None) -> CompletionTracker:
    """Return a tracker that starts with the checkpoint of an earlier process."""
    return CompletionTracker(
        FLOW, checkpoint and Checkpoint.from_json(json.loads(json.dumps(checkpoint.to_json()))), LOG
    )


# --- What is reported -----------------------------------------------------------------------------------------------


def test_first_start_reports_no_old_run(etlworks: FlowHistories) -> None:
    etlworks.run(*range(1, 10_001))
    tracker = CompletionTracker(FLOW, None, LOG)

    assert etlworks.poll(tracker) == []
    assert etlworks.asked == ["history 7 from 0"]
    assert etlworks.poll(tracker) == []
    assert etlworks.poll(restarted(tracker.checkpoint)) == []


def test_run_active_at_first_start_is_reported_at_its_end(etlworks: FlowHistories) -> None:
    etlworks.run(1, 3)
    etlworks.start(2)
    tracker = started_tracker(etlworks)
    etlworks.end(2)

    assert etlworks.poll(tracker) == [2]
    assert etlworks.poll(tracker) == []


def test_flow_without_runs_reports_its_first_run(etlworks: FlowHistories) -> None:
    tracker = started_tracker(etlworks)
    etlworks.run(500)

    assert etlworks.poll(tracker) == [500]


def test_out_of_order_ends_are_reported_once(etlworks: FlowHistories) -> None:
    tracker = started_tracker(etlworks)
    for audit_id in (1, 2, 3):
        etlworks.start(audit_id)
    reported = [etlworks.poll(tracker)]
    for audit_id in (3, 1, 2):
        etlworks.end(audit_id)
        tracker = restarted(tracker.checkpoint)
        reported.append(etlworks.poll(tracker))

    assert reported == [[], [3], [1], [2]]


def test_very_long_run_costs_one_request_a_poll(etlworks: FlowHistories) -> None:
    tracker = started_tracker(etlworks)
    etlworks.start(1)
    for audit_id in range(2, 1000):
        etlworks.run(audit_id)
        assert etlworks.poll(tracker) == [audit_id]
    assert len(json.dumps(tracker.checkpoint.to_json())) < 500
    etlworks.asked.clear()
    assert etlworks.poll(tracker) == []
    assert etlworks.asked == ["history 7 from 0", "run 1"]
    etlworks.end(1)

    assert etlworks.poll(restarted(tracker.checkpoint)) == [1]


def test_late_run_is_reported(etlworks: FlowHistories) -> None:
    tracker = started_tracker(etlworks)
    etlworks.run(*range(10, 20))
    etlworks.poll(tracker)
    etlworks.run(9)

    assert etlworks.poll(restarted(tracker.checkpoint)) == [9]


def test_stopping_run_has_not_ended(etlworks: FlowHistories) -> None:
    tracker = started_tracker(etlworks)
    etlworks.start(1)
    etlworks.runs[1] = replace(etlworks.runs[1], status="canceled")
    assert etlworks.poll(tracker) == []
    etlworks.end(1, "error")

    assert etlworks.poll(tracker) == [1]


def test_run_canceled_in_the_queue_has_ended(etlworks: FlowHistories) -> None:
    tracker = started_tracker(etlworks)
    etlworks.runs[1] = Execution(FLOW, 1, status="canceled")

    assert etlworks.poll(tracker) == [1]


def test_own_record_decides_if_history_lacks_fields(etlworks: FlowHistories) -> None:
    tracker = started_tracker(etlworks)
    etlworks.start(1)
    shown = replace(etlworks.runs[1], status="success")

    def answer(call: Call[Any]) -> Any:
        answered = etlworks.answer(call)
        return Page([shown], None) if call.path.endswith("/history") else answered

    assert carry_out(tracker.poll(), FastClock(), answer) == []
    etlworks.end(1)
    (end,) = carry_out(tracker.poll(), FastClock(), answer)
    assert end.execution.ended_at == MOMENT


def test_deleted_run_is_given_up_after_some_polls(etlworks: FlowHistories, caplog: pytest.LogCaptureFixture) -> None:
    tracker = started_tracker(etlworks)
    etlworks.start(1)
    etlworks.run(*range(2, 100))
    etlworks.poll(tracker)
    assert tracker.checkpoint is not None
    assert tracker.checkpoint.pending == {1}
    del etlworks.runs[1]
    for _ in range(5):
        assert etlworks.poll(tracker) == []

    assert tracker.checkpoint.pending == frozenset()
    assert [record.getMessage() for record in caplog.records] == [
        "Run 1 of flow 7 is gone from Etlworks; its end is not reported. Was it deleted by the server's maintenance?"
    ]
    etlworks.asked.clear()
    etlworks.poll(tracker)
    assert etlworks.asked == ["history 7 from 0"]


# --- Restarts -------------------------------------------------------------------------------------------------------


def test_history_is_read_down_to_the_watermark(etlworks: FlowHistories) -> None:
    etlworks.run(*range(1, 10_001))
    tracker = started_tracker(etlworks)
    etlworks.run(*range(10_001, 10_121))
    after = restarted(tracker.checkpoint)

    assert etlworks.poll(after) == list(range(10_001, 10_121))
    assert etlworks.asked == ["history 7 from 0", "history 7 from 49", "history 7 from 98"]


def test_partial_poll_loses_nothing(etlworks: FlowHistories) -> None:
    tracker = started_tracker(etlworks)
    etlworks.run(*range(1, 121))
    requests = count()

    def answer(call: Call[Any]) -> Any:
        return etlworks.answer(call) if next(requests) != 1 else EtlworksUnreachable("Gone")

    with pytest.raises(EtlworksUnreachable):
        carry_out(tracker.poll(), FastClock(), answer)
    assert etlworks.poll(tracker) == list(range(1, 121))


def test_ignored_offset_ends_the_reading(etlworks: FlowHistories) -> None:
    tracker = started_tracker(etlworks)
    etlworks.run(*range(1, 121))

    def answer(call: Call[Any]) -> Any:
        return etlworks.answer(replace(call, query=[("limit", "50"), ("offset", "0")]))

    ends = carry_out(tracker.poll(), FastClock(), answer)
    assert [end.execution.audit_id for end in ends] == list(range(71, 121))
    assert len(etlworks.asked) == 2


def test_hidden_runs_are_warned_about_and_reported_later(
    etlworks: FlowHistories, caplog: pytest.LogCaptureFixture
) -> None:
    etlworks.run(*range(1, 100))
    tracker = started_tracker(etlworks)
    etlworks.run(*range(101, 181))
    caplog.clear()
    tracker = restarted(tracker.checkpoint)

    def answer(call: Call[Any]) -> Any:
        return etlworks.answer(replace(call, query=[("limit", "50"), ("offset", "0")]))

    for expected in (range(131, 181), (), ()):
        completions = carry_out(tracker.poll(), FastClock(), answer)
        assert [each.execution.audit_id for each in completions] == list(expected)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "flow 7 cannot be read down to run 74" in warning
    # The server is mended, after a restart.
    assert etlworks.poll(restarted(tracker.checkpoint)) == list(range(101, 131))


def test_unreadable_gap_is_given_up(etlworks: FlowHistories, caplog: pytest.LogCaptureFixture) -> None:
    etlworks.run(1)
    tracker = started_tracker(etlworks)

    def answer(call: Call[Any]) -> Any:
        return etlworks.answer(replace(call, query=[("limit", "50"), ("offset", "0")]))

    etlworks.run(*range(100, 180))
    largest = 0
    for audit_id in range(200, 800, 10):
        etlworks.run(*range(audit_id, audit_id + 10))
        carry_out(tracker.poll(), FastClock(), answer)
        assert tracker.checkpoint is not None
        largest = max(largest, len(tracker.checkpoint.done))

    assert 500 <= largest <= 550
    assert len(tracker.checkpoint.done) <= 50
    assert len([record for record in caplog.records if "stay unreported" in record.getMessage()]) == 1
    etlworks.asked.clear()
    carry_out(tracker.poll(), FastClock(), answer)
    assert len(etlworks.asked) == 1


def test_active_runs_cause_no_warning(etlworks: FlowHistories, caplog: pytest.LogCaptureFixture) -> None:
    for audit_id in (500, 510, 520):
        etlworks.start(audit_id)
    tracker = started_tracker(etlworks)
    for _ in range(3):
        assert etlworks.poll(tracker) == []

    assert caplog.records == []
    assert etlworks.asked == ["history 7 from 0"] * 3


def test_first_start_warns_about_older_active_runs(etlworks: FlowHistories, caplog: pytest.LogCaptureFixture) -> None:
    etlworks.start(1)
    etlworks.run(*range(2, 62))
    tracker = started_tracker(etlworks)
    etlworks.end(1)

    assert etlworks.poll(tracker) == []
    assert [record.getMessage() for record in caplog.records] == [
        "Flow 7 is watched from run 12 on. If an older run is still going, its end is not reported."
    ]


def test_lost_runs_are_warned_about_once(etlworks: FlowHistories, caplog: pytest.LogCaptureFixture) -> None:
    etlworks.run(1, 2)
    tracker = started_tracker(etlworks)
    etlworks.run(*range(10, 20))
    for audit_id in (1, 2, *range(10, 15)):
        del etlworks.runs[audit_id]

    assert [etlworks.poll(tracker) for _ in range(3)] == [list(range(15, 20)), [], []]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == (
        "Run 2 of flow 7 and all before it are gone from the history, which now begins with run 15. "
        "Runs between the two that have completed are not reported."
    )


@pytest.mark.parametrize("order", ["oldest first", "no order"])
def test_unordered_history_is_read_to_its_end(order: str, caplog: pytest.LogCaptureFixture) -> None:
    etlworks = OddEtlworks(order=order)
    etlworks.start_some(300)
    etlworks.end_some(300)
    tracker = started_tracker(etlworks)
    etlworks.start_some(4)
    assert etlworks.poll(tracker) == []
    etlworks.end_some(4)

    assert len(etlworks.poll(tracker)) == 4
    assert caplog.records == []


@pytest.mark.parametrize("seed", range(20))
def test_each_end_is_reported_once_across_crashes(seed: int) -> None:
    """Runs start, end and appear in any order, and the process dies after any end that it has stored."""
    chance = random.Random(seed)  # noqa: S311  # no secret
    etlworks, tracker = FlowHistories(), CompletionTracker(FLOW, None, LOG)
    etlworks.poll(tracker)
    stored = tracker.checkpoint
    reported: list[int] = []
    going: list[int] = []
    late: list[Execution] = []
    for audit_id in range(1, 400):
        etlworks.start(audit_id)
        if chance.random() < 0.1:
            late.append(etlworks.runs.pop(audit_id))
        else:
            going.append(audit_id)
        while late and late[0].audit_id < audit_id - 15:
            run = late.pop(0)
            etlworks.runs[run.audit_id] = run
            going.append(run.audit_id)
        while len(going) > 12 or (going and chance.random() < 0.4):
            etlworks.end(going.pop(chance.randrange(len(going))))
        if chance.random() < 0.3:
            ends = carry_out(tracker.poll(), FastClock(), etlworks.answer)
            survives = chance.randrange(len(ends) + 1) if chance.random() < 0.3 else len(ends)
            for end in ends[:survives]:
                reported.append(end.execution.audit_id)
                stored = end.checkpoint
            if survives == len(ends):
                stored = tracker.checkpoint
            tracker = restarted(stored)
    reported += etlworks.poll(tracker)

    assert len(reported) == len(set(reported))
    assert set(reported) == {run.audit_id for run in etlworks.runs.values() if run.is_terminal}


ORDERS = {
    "newest first": lambda audit_id: -audit_id,
    "nearly newest first": lambda audit_id: -audit_id - 7 * audit_id % 5,
    "oldest first": lambda audit_id: audit_id,
    "no order": lambda audit_id: audit_id * 2_654_435_761 % 2**32,
}


@dataclass
class OddEtlworks(FlowHistories):
    """
    A flow whose history is as odd as may be.

    :ivar order: of the history.
    :ivar longest_page: the longest page that it gives.
    :ivar ignores_offset: whether each page is the first one.
    :ivar keeps: how many of the newest runs the history has.
    :ivar meanwhile: runs that start, and runs that are deleted, before each page but the first.
    """

    order: str = "newest first"
    longest_page: int = 200
    ignores_offset: bool = False
    keeps: int = 10_000
    meanwhile: list[tuple[int, int]] = field(default_factory=list)
    deleted: set[int] = field(default_factory=set)

    def start_some(self, number: int) -> None:
        for _ in range(number):
            # Other flows have runs, too.
            self.start(max([0, *self.runs, *self.deleted]) + 3)

    def going(self) -> list[int]:
        return [run.audit_id for run in self.runs.values() if not run.is_terminal]

    def end_some(self, number: int) -> None:
        for audit_id in self.going()[:: 2 if number % 2 else 1][:number]:
            self.end(audit_id)

    def delete_some(self, number: int) -> None:
        ended = sorted(audit_id for audit_id, run in self.runs.items() if run.is_terminal)
        for audit_id in ended[-number:] if number else []:
            del self.runs[audit_id]
            self.deleted.add(audit_id)

    def answer(self, call: Call[Any]) -> Any:
        if not call.path.endswith("/history"):
            return super().answer(call)
        query = dict(call.query)
        offset = int(query["offset"])
        if offset and self.meanwhile:
            starts, deletions = self.meanwhile.pop()
            self.start_some(starts)
            self.end_some(starts)
            self.delete_some(deletions)
        shown = sorted(sorted(self.runs)[-self.keeps :], key=ORDERS[self.order])
        begin = 0 if self.ignores_offset else offset
        page = shown[begin : begin + min(int(query["limit"]), self.longest_page)]
        return Page([self.runs[audit_id] for audit_id in page], None)


class Warnings:
    """Keeps what is logged, and knows which runs a warning is about."""

    def __init__(self) -> None:
        self.about: list[Callable[[int], bool]] = []
        self.texts: list[str] = []

    def info(self, msg: str, /, *args: Any) -> None:
        pass

    def warning(self, msg: str, /, *args: Any) -> None:
        self.texts.append(msg % args)
        if "is watched from run" in msg:
            self.about.append(lambda audit_id, first=args[1]: audit_id < first)  # type: ignore[misc]
        elif "is gone from Etlworks" in msg:
            self.about.append(lambda audit_id, gone=args[0]: audit_id == gone)  # type: ignore[misc]
        elif "are gone from the history" in msg:
            self.about.append(lambda audit_id, low=args[0], high=args[2]: low < audit_id < high)  # type: ignore[misc]
        elif "down to run" in msg:
            self.about.append(lambda audit_id, watermark=args[1]: audit_id > watermark)  # type: ignore[misc]
        else:
            assert "stay unreported" in msg

    def cover(self, audit_id: int) -> bool:
        return any(about(audit_id) for about in self.about)


STEPS = st.one_of(
    st.tuples(st.just("start"), st.integers(1, 70)),
    st.tuples(st.just("end"), st.integers(1, 70)),
    st.tuples(st.just("delete"), st.integers(1, 3)),
    st.tuples(st.just("poll"), st.just(0)),
    # The process dies after so many ends are reported and stored.
    st.tuples(st.just("poll and crash"), st.integers(0, 60)),
)


@pytest.mark.fuzzing
@settings(max_examples=effort(100, 2_000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    before=st.integers(0, 70),
    steps=st.lists(STEPS, max_size=14),
    order=st.sampled_from(["newest first"] * 3 + list(ORDERS)),
    longest_page=st.sampled_from([200, 200, 50, 30, 7, 2]),
    ignores_offset=st.booleans(),
    keeps=st.sampled_from([10_000, 10_000, 60, 10]),
    meanwhile=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=6),
)
@example(  # the history loses runs twice, and no run ends in between
    before=1, steps=[("start", 11), ("poll", 0), ("start", 11), ("end", 7)], order="newest first", longest_page=200,
    ignores_offset=False, keeps=10, meanwhile=[],
)  # fmt: skip
def test_each_end_is_reported_or_a_warning_covers_it(
    before: int,
    steps: list[tuple[str, int]],
    order: str,
    longest_page: int,
    ignores_offset: bool,
    keeps: int,
    meanwhile: list[tuple[int, int]],
) -> None:
    # Of a flow without any known run it cannot be said whether its history is whole.
    assume(before or keeps == 10_000)
    # A few runs do not show how orderly a history is.
    assume(order in ("newest first", "oldest first") or longest_page >= 30)
    etlworks = OddEtlworks(
        order=order, longest_page=longest_page, ignores_offset=ignores_offset, keeps=keeps, meanwhile=meanwhile
    )
    etlworks.start_some(before)
    etlworks.end_some(before * 2 // 3)
    log = Warnings()
    tracker = CompletionTracker(FLOW, None, log)
    old = etlworks.runs.keys() - set(etlworks.going())
    # Nobody can know of a run that was no longer in the history when it was first read: at its first page or its last.
    unknowable = set(sorted(etlworks.runs)[:-keeps])
    assert etlworks.poll(tracker) == []
    unknowable |= set(sorted(etlworks.runs)[:-keeps])
    ended_meanwhile = etlworks.runs.keys() - set(etlworks.going())
    stored = tracker.checkpoint
    reported: set[int] = set()
    in_this_life: list[int] = []
    for step, number in [*steps, ("poll", 0), ("rest", 0), ("poll", 0)]:
        if step == "rest":
            etlworks.meanwhile.clear()
        elif step == "start":
            etlworks.start_some(number)
        elif step == "end":
            etlworks.end_some(number)
        elif step == "delete":
            etlworks.delete_some(number)
        else:
            completions = carry_out(tracker.poll(), FastClock(), etlworks.answer)
            if step == "poll and crash" and number <= len(completions):
                completions = completions[:number]
                stored = completions[-1].checkpoint if completions else stored
                reported.update(each.execution.audit_id for each in completions)
                in_this_life = []
                assert stored is not None
                tracker = CompletionTracker(FLOW, Checkpoint.from_json(stored.to_json()), log)
                continue
            stored = tracker.checkpoint
            in_this_life += [each.execution.audit_id for each in completions]
            reported.update(in_this_life)
            assert len(in_this_life) == len(set(in_this_life))
            assert all(each.execution.ended_at for each in completions)

    if order in ("newest first", "nearly newest first"):
        assert not reported & old, log.texts
    ended = {run.audit_id for run in etlworks.runs.values() if run.is_terminal} - ended_meanwhile - unknowable
    assert [each for each in sorted(ended - reported) if not log.cover(each)] == [], log.texts
