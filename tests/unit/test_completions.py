"""Every end of a flow's runs, once: in any order, across restarts, with lists that lie. Without a network."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.task import FastClock, carry_out

from airflow_provider_etlworks.client.call import Page
from airflow_provider_etlworks.client.errors import EtlworksForbidden, EtlworksNotFound, EtlworksUnreachable
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.runs.checkpoint import Checkpoint
from airflow_provider_etlworks.runs.completion_plan import CompletionPlanner
from airflow_provider_etlworks.runs.completions import CompletionTracker
from airflow_provider_etlworks.runs.listings import _ListedFlow, _ListedRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_etlworks.client.call import Call

FLOW = 7
MOMENT = datetime(2026, 5, 9, tzinfo=timezone.utc)
LOG = logging.getLogger("endings")


@dataclass
class Etlworks:
    """
    The runs of some flows, and what was asked.

    :ivar day: what today's list says: by flow and audit id, whether the run is going. Default: the truth.
    """

    runs: dict[int, Execution] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    day: dict[tuple[int, int], bool] | Exception | None = None
    broken: Exception | None = None

    def start(self, audit_id: int, flow_id: int = FLOW) -> None:
        self.runs[audit_id] = Execution(flow_id, audit_id, status="running", started_at=MOMENT)

    def end(self, audit_id: int, status: str = "success") -> None:
        self.runs[audit_id] = replace(self.runs[audit_id], status=status, ended_at=MOMENT)

    def run(self, *audit_ids: int, flow_id: int = FLOW) -> None:
        for audit_id in audit_ids:
            self.start(audit_id, flow_id)
            self.end(audit_id)

    def answer(self, call: Call[Any]) -> Any:
        flow_id = int(call.path.split("/")[3]) if "metrics" not in call.path else 0
        query = dict(call.query)
        if self.broken is not None:
            return self.broken
        if call.path.endswith("/history"):
            self.asked.append(f"history {flow_id} from {query['offset']}")
            newest_first = sorted((run for run in self.runs.values() if run.flow_id == flow_id), key=_newest_first)
            begin = int(query["offset"])
            return Page(newest_first[begin : begin + int(query["limit"])], None)
        if not flow_id:
            self.asked.append("day")
            return (
                self.day
                if isinstance(self.day, Exception)
                else _listed(self.honest() if self.day is None else self.day)
            )
        audit_id = int(query["auditId"])
        self.asked.append(f"run {audit_id}")
        return self.runs.get(audit_id) or EtlworksNotFound("No such run", status=404)

    def honest(self) -> dict[tuple[int, int], bool]:
        return {(run.flow_id, run.audit_id): not run.is_terminal for run in self.runs.values()}

    def look(self, endings: CompletionTracker) -> list[int]:
        ends = carry_out(endings.poll(), FastClock(), self.answer)
        return [end.execution.audit_id for end in ends]


def _newest_first(run: Execution) -> int:
    return -run.audit_id


def _listed(runs: dict[tuple[int, int], bool]) -> list[_ListedFlow]:
    return [
        _ListedFlow(
            flow_id, [_ListedRun(audit_id, status="running" if going else "success", ended=None if going else 1)]
        )
        for (flow_id, audit_id), going in runs.items()
    ]


@pytest.fixture
def etlworks() -> Etlworks:
    return Etlworks()


def begun(etlworks: Etlworks, flow_id: int = FLOW) -> CompletionTracker:
    """Return what has had its first look."""
    endings = CompletionTracker(flow_id, None, LOG)
    assert etlworks.look(endings) == []
    etlworks.asked.clear()
    return endings


def restarted(notes: Checkpoint | None) -> CompletionTracker:
    """Return what begins with the notes of an earlier process."""
    return CompletionTracker(FLOW, notes and Checkpoint.from_json(json.loads(json.dumps(notes.to_json()))), LOG)


# --- What is told ---------------------------------------------------------------------------------------------------


def test_a_first_start_tells_nothing_of_ten_thousand_old_runs_and_asks_once(etlworks: Etlworks) -> None:
    etlworks.run(*range(1, 10_001))
    endings = CompletionTracker(FLOW, None, LOG)

    assert etlworks.look(endings) == []
    assert etlworks.asked == ["history 7 from 0"]
    assert etlworks.look(endings) == []
    assert etlworks.look(restarted(endings.checkpoint)) == []


def test_what_is_going_at_the_first_start_is_told_when_it_ends(etlworks: Etlworks) -> None:
    etlworks.run(1, 3)
    etlworks.start(2)
    endings = begun(etlworks)
    etlworks.end(2)

    assert etlworks.look(endings) == [2]
    assert etlworks.look(endings) == []


def test_a_flow_that_never_ran_is_told_from_its_first_run_on(etlworks: Etlworks) -> None:
    endings = begun(etlworks)
    etlworks.run(500)

    assert etlworks.look(endings) == [500]


def test_runs_that_end_in_another_order_are_each_told_once(etlworks: Etlworks) -> None:
    endings = begun(etlworks)
    for audit_id in (1, 2, 3):
        etlworks.start(audit_id)
    told = [etlworks.look(endings)]
    for audit_id in (3, 1, 2):
        etlworks.end(audit_id)
        endings = restarted(endings.checkpoint)
        told.append(etlworks.look(endings))

    assert told == [[], [3], [1], [2]]


def test_a_run_that_goes_for_ever_is_still_told_and_costs_one_request_a_look(etlworks: Etlworks) -> None:
    endings = begun(etlworks)
    etlworks.start(1)
    for audit_id in range(2, 1000):
        etlworks.run(audit_id)
        assert etlworks.look(endings) == [audit_id]
    assert len(json.dumps(endings.checkpoint.to_json())) < 500
    etlworks.asked.clear()
    assert etlworks.look(endings) == []
    assert etlworks.asked == ["history 7 from 0", "run 1"]
    etlworks.end(1)

    assert etlworks.look(restarted(endings.checkpoint)) == [1]


def test_a_run_that_appears_after_later_ones_is_told(etlworks: Etlworks) -> None:
    endings = begun(etlworks)
    etlworks.run(*range(10, 20))
    etlworks.look(endings)
    etlworks.run(9)

    assert etlworks.look(restarted(endings.checkpoint)) == [9]


def test_a_run_that_is_being_stopped_has_not_ended(etlworks: Etlworks) -> None:
    endings = begun(etlworks)
    etlworks.start(1)
    etlworks.runs[1] = replace(etlworks.runs[1], status="canceled")
    assert etlworks.look(endings) == []
    etlworks.end(1, "error")

    assert etlworks.look(endings) == [1]


def test_a_run_that_was_canceled_in_the_queue_has_ended(etlworks: Etlworks) -> None:
    endings = begun(etlworks)
    etlworks.runs[1] = Execution(FLOW, 1, status="canceled")

    assert etlworks.look(endings) == [1]


def test_the_own_record_decides_where_the_history_says_too_little(etlworks: Etlworks) -> None:
    endings = begun(etlworks)
    etlworks.start(1)
    shown = replace(etlworks.runs[1], status="success")

    def answer(call: Call[Any]) -> Any:
        answered = etlworks.answer(call)
        return Page([shown], None) if call.path.endswith("/history") else answered

    assert carry_out(endings.poll(), FastClock(), answer) == []
    etlworks.end(1)
    (end,) = carry_out(endings.poll(), FastClock(), answer)
    assert end.execution.ended_at == MOMENT


def test_a_run_whose_record_is_deleted_is_given_up_after_some_looks(
    etlworks: Etlworks, caplog: pytest.LogCaptureFixture
) -> None:
    endings = begun(etlworks)
    etlworks.start(1)
    etlworks.run(*range(2, 100))
    etlworks.look(endings)
    assert endings.checkpoint is not None
    assert endings.checkpoint.pending == {1}
    del etlworks.runs[1]
    for _ in range(5):
        assert etlworks.look(endings) == []

    assert endings.checkpoint.pending == frozenset()
    assert [record.getMessage() for record in caplog.records] == [
        "Run 1 of flow 7 is gone from Etlworks; its end is not reported."
    ]
    etlworks.asked.clear()
    etlworks.look(endings)
    assert etlworks.asked == ["history 7 from 0"]


# --- Restarts -------------------------------------------------------------------------------------------------------


def test_what_ended_meanwhile_is_read_down_to_what_is_settled_and_no_further(etlworks: Etlworks) -> None:
    etlworks.run(*range(1, 10_001))
    endings = begun(etlworks)
    etlworks.run(*range(10_001, 10_121))
    after = restarted(endings.checkpoint)

    assert etlworks.look(after) == list(range(10_001, 10_121))
    assert etlworks.asked == ["history 7 from 0", "history 7 from 49", "history 7 from 98"]


def test_a_look_that_fails_half_way_loses_nothing(etlworks: Etlworks) -> None:
    endings = begun(etlworks)
    etlworks.run(*range(1, 121))
    requests = count()

    def answer(call: Call[Any]) -> Any:
        return etlworks.answer(call) if next(requests) != 1 else EtlworksUnreachable("Gone")

    with pytest.raises(EtlworksUnreachable):
        carry_out(endings.poll(), FastClock(), answer)
    assert etlworks.look(endings) == list(range(1, 121))


def test_a_server_that_ignores_the_offset_is_not_read_for_ever(etlworks: Etlworks) -> None:
    endings = begun(etlworks)
    etlworks.run(*range(1, 121))

    def answer(call: Call[Any]) -> Any:
        return etlworks.answer(replace(call, query=[("limit", "50"), ("offset", "0")]))

    ends = carry_out(endings.poll(), FastClock(), answer)
    assert [end.execution.audit_id for end in ends] == list(range(71, 121))
    assert len(etlworks.asked) == 2


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_end_is_told_once(seed: int) -> None:
    """Runs start, end and appear in any order, and the process dies after any end that it has noted."""
    chance = random.Random(seed)  # noqa: S311  # no secret
    etlworks, endings = Etlworks(), CompletionTracker(FLOW, None, LOG)
    etlworks.look(endings)
    noted = endings.checkpoint
    told: list[int] = []
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
            ends = carry_out(endings.poll(), FastClock(), etlworks.answer)
            survives = chance.randrange(len(ends) + 1) if chance.random() < 0.3 else len(ends)
            for end in ends[:survives]:
                told.append(end.execution.audit_id)
                noted = end.checkpoint
            if survives == len(ends):
                noted = endings.checkpoint
            endings = restarted(noted)
    told += etlworks.look(endings)

    assert len(told) == len(set(told))
    assert set(told) == {run.audit_id for run in etlworks.runs.values() if run.is_terminal}


ORDERS = {
    "newest first": lambda audit_id: -audit_id,
    "nearly newest first": lambda audit_id: -audit_id - 7 * audit_id % 5,
    "oldest first": lambda audit_id: audit_id,
    "no order": lambda audit_id: audit_id * 2_654_435_761 % 2**32,
}


@dataclass
class OddEtlworks(Etlworks):
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
            assert "read to its end" in msg
            self.about.append(lambda _: True)

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


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    before=st.integers(0, 70),
    steps=st.lists(STEPS, max_size=14),
    order=st.sampled_from(["newest first"] * 3 + list(ORDERS)),
    longest_page=st.sampled_from([200, 200, 50, 30, 7, 2]),
    ignores_offset=st.booleans(),
    keeps=st.sampled_from([10_000, 10_000, 60, 10]),
    meanwhile=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=6),
)
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
    # Nobody can know of a run that was no longer in the history when it was first read.
    unknowable = set(sorted(etlworks.runs)[:-keeps])
    assert etlworks.look(tracker) == []
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


@pytest.mark.parametrize(
    "stored", [[], {"low_watermark": 1}, {"low_watermark": "x", "done": [], "pending": []}, "checkpoint", 7]
)
def test_checkpoint_that_cannot_be_read_is_refused(stored: Any) -> None:
    with pytest.raises(ValueError, match="Cannot read the checkpoint"):
        Checkpoint.from_json(stored)


# --- Whose history is read ------------------------------------------------------------------------------------------

FLOWS = range(101, 126)


class Watching:
    """Some flows that are watched, round after round."""

    def __init__(self, etlworks: Etlworks, flows: Iterable[int] = FLOWS) -> None:
        self.etlworks = etlworks
        self.clock = FastClock()
        self.rounds = CompletionPlanner(self.clock, LOG)
        self.flows = [CompletionTracker(flow_id, None, LOG) for flow_id in flows]
        self.round()
        etlworks.asked.clear()

    def round(self, interval: float = 30.0) -> list[int]:
        """Carry out a round, and return the runs whose ends it tells."""
        told = []
        for endings in carry_out(self.rounds.choose(self.flows, interval), self.clock, self.etlworks.answer):
            self.rounds.reads(endings)
            told += self.etlworks.look(endings)
        self.clock.sleep(interval)
        return sorted(told)

    def told_in(self, rounds: int) -> list[int]:
        return [audit_id for _ in range(rounds) for audit_id in self.round()]

    def asked_in(self, rounds: int, interval: float = 30.0) -> list[str]:
        self.etlworks.asked.clear()
        for _ in range(rounds):
            assert self.round(interval) == []
        return self.etlworks.asked


def test_twenty_five_flows_are_one_request_a_round_and_one_for_each_end(etlworks: Etlworks) -> None:
    watching = Watching(etlworks)

    assert watching.asked_in(10) == ["day"] * 10
    etlworks.run(1, flow_id=103)
    etlworks.start(2, flow_id=104)
    etlworks.asked.clear()
    assert watching.round() == [1]
    assert etlworks.asked == ["day", "history 103 from 0"]
    assert watching.asked_in(1) == ["day"]
    etlworks.end(2)
    assert watching.round() == [2]


def test_one_and_two_flows_are_asked_for_by_their_histories(etlworks: Etlworks) -> None:
    watching = Watching(etlworks, [101, 102])

    assert sorted(watching.asked_in(1)) == ["history 101 from 0", "history 102 from 0"]


def test_without_the_role_administrator_it_is_a_request_for_each_flow(
    etlworks: Etlworks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    etlworks.day = EtlworksForbidden("Administrators only", status=403)
    watching = Watching(etlworks)

    assert sorted(watching.asked_in(1)) == [f"history {flow_id} from 0" for flow_id in FLOWS]
    etlworks.run(1, flow_id=103)
    assert watching.round() == [1]
    assert [record.getMessage() for record in caplog.records] == [
        "Runs are followed without the list of a day's runs. Administrators only"
    ]


def test_a_list_that_is_silent_delays_an_end_and_loses_none(etlworks: Etlworks) -> None:
    watching = Watching(etlworks)
    etlworks.day = {}
    etlworks.run(1, flow_id=103)

    assert watching.told_in(30) == [1]
    etlworks.run(2, flow_id=103)
    # The list is no longer relied on for this flow.
    assert watching.round() == [2]


def test_the_slow_round_takes_a_few_requests_in_ten_minutes(etlworks: Etlworks) -> None:
    watching = Watching(etlworks)
    asked = watching.asked_in(60)

    assert asked.count("day") == 60
    for flow_id in FLOWS:
        assert 1 <= asked.count(f"history {flow_id} from 0") <= 3


def test_a_list_that_stands_still_delays_an_end_and_loses_none(etlworks: Etlworks) -> None:
    watching = Watching(etlworks)
    etlworks.start(1, flow_id=103)
    watching.round()
    etlworks.day = etlworks.honest()
    etlworks.end(1)

    assert watching.told_in(40) == [1]


def test_a_list_that_calls_a_run_ended_is_not_believed(etlworks: Etlworks) -> None:
    watching = Watching(etlworks)
    etlworks.start(1, flow_id=103)
    etlworks.day = {(103, 1): False, (103, 99): False}
    asked = watching.asked_in(16)

    assert 2 <= asked.count("run 99") <= 6
    etlworks.end(1)
    assert watching.told_in(30) == [1]


def test_when_the_day_is_over_what_its_list_no_longer_tells_is_read(etlworks: Etlworks) -> None:
    watching = Watching(etlworks)
    etlworks.run(1, flow_id=103)
    etlworks.start(2, flow_id=104)
    assert watching.round() == [1]
    # In the last seconds of the day.
    etlworks.run(3, flow_id=105)
    etlworks.day = {}
    assert watching.round() == [3]
    assert watching.asked_in(1) == ["day", "history 104 from 0"]
    etlworks.end(2)

    assert watching.round() == [2]


def test_a_history_that_stands_still_is_corrected_by_the_runs_own_record(etlworks: Etlworks) -> None:
    watching = Watching(etlworks)
    etlworks.start(1, flow_id=103)
    watching.round()
    before = etlworks.runs[1]
    etlworks.end(1)
    honest = etlworks.answer
    etlworks.answer = lambda call: (  # type: ignore[method-assign]
        Page([before], None) if call.path.endswith("103/history") else honest(call)
    )

    assert watching.round() == [1]
    assert [watching.round() for _ in range(5)] == [[]] * 5


def test_a_list_that_fails_once_ends_the_round_and_twice_is_done_without(etlworks: Etlworks) -> None:
    watching = Watching(etlworks)
    etlworks.day = EtlworksUnreachable("Timed out")
    with pytest.raises(EtlworksUnreachable):
        watching.round()
    etlworks.run(1, flow_id=103)

    assert watching.round() == [1]
