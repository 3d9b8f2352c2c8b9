"""
Every end of a flow's runs, once: what is noted of those that were told, and what is read to learn of the next.

A flow's history decides. The list of the day's runs only says whose history is worth reading now, so a list that is
refused, stale or silent about a run delays an end, and loses none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksNotFound, EtlworksUnauthorized
from airflow_provider_etlworks.client.procedure import Once
from airflow_provider_etlworks.runs.listings import RunsOfDay, Trust, mentions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.endpoints import Page
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Conversation, Log

# What Etlworks gives by default, so that a page is full also where the server knows no other length.
_PAGE = 50
# So many of the newest runs stay above the floor: a run may appear in the history after ones that started later.
_ABOVE_FLOOR = 25
_LOOKS_BEFORE_GONE = 3
_NEVER = float("-inf")

_TODAY = RunsOfDay(0)
# From so many flows on, one list for all takes fewer requests than each flow's history.
_FLOWS_WORTH_A_LIST = 3
# Seconds in which each flow's history is read once, also where the list has no news of it.
_SLOW_ROUND = 600.0
# Seconds for which a flow's history is read in every round, after the list was silent about the end of a run.
_DOUBTED_FOR = 900.0

# What the list says of each run, by flow and audit id: whether it is going.
_Today = dict[int, dict[int, bool]]


@dataclass(frozen=True)
class Notes:
    """
    Which runs of a flow are settled: they have ended, and whoever wants to know was told.

    Runs end in another order than they began, so one number is not enough. The size is bounded: some of the newest
    runs, and those that have been going for longer.

    :ivar floor: runs up to this audit id are settled, those that are still ``going`` excepted.
    :ivar settled: settled runs above the floor.
    :ivar going: runs up to the floor that have not ended.
    """

    floor: int = 0
    settled: frozenset[int] = frozenset()
    going: frozenset[int] = frozenset()

    def has(self, audit_id: int) -> bool:
        """Whether a run is settled."""
        return audit_id in self.settled or (audit_id <= self.floor and audit_id not in self.going)

    def settle(self, audit_id: int) -> Notes:
        """Return these notes with one more run settled."""
        if audit_id <= self.floor:
            return Notes(self.floor, self.settled, self.going - {audit_id})
        return Notes(self.floor, self.settled | {audit_id}, self.going)

    def raise_floor(self, floor: int, known: Iterable[int]) -> Notes:
        """
        Return these notes with a higher floor.

        :param known: all runs between the two floors.
        """
        if floor <= self.floor:
            return self
        left = {audit_id for audit_id in known if self.floor < audit_id <= floor and audit_id not in self.settled}
        return Notes(floor, frozenset(each for each in self.settled if each > floor), self.going | left)

    def to_json(self) -> dict[str, Any]:
        """Return the notes as plain JSON."""
        return {"floor": self.floor, "settled": sorted(self.settled), "going": sorted(self.going)}

    @classmethod
    def from_json(cls, value: Any) -> Notes:
        """
        Read back what ``to_json`` wrote.

        :raises ValueError: it is no such thing.
        """
        try:
            floor, settled, going = (value[name] for name in ("floor", "settled", "going"))
            return cls(int(floor), frozenset(map(int, settled)), frozenset(map(int, going)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Cannot read the notes {value!r}") from error


@dataclass(frozen=True)
class End:
    """
    A run that has ended.

    :ivar execution: its record.
    :ivar notes: what is noted once it is told.
    """

    execution: Execution
    notes: Notes


class Endings:
    """
    Finds the ends of one flow's runs.

    :param flow_id: the flow.
    :param notes: what was noted of it; ``None`` is a first start: what has ended by then is not told.
    :param log: is told what is lost.
    :ivar notes: what is settled, the ends that the last look has found included.
    :ivar claimed: runs that a list takes to have ended: the next look asks for their own records.
    :ivar found: the runs whose ends the last look has found.
    :ivar going: the runs that were going at the last look.
    """

    def __init__(self, flow_id: int, notes: Notes | None, log: Log) -> None:
        self.flow_id = flow_id
        self.notes = notes
        self.claimed: frozenset[int] = frozenset()
        self.found: frozenset[int] = frozenset()
        self.going: frozenset[int] = frozenset()
        self._log = log
        self._missing: Counter[int] = Counter()

    def look(self) -> Conversation[list[End]]:
        """
        Read the history, page by page, down to what is settled and no further; at a first start, its first page.

        :return: the runs that have ended since the last look, in the order of their audit ids.
        :raises EtlworksError: Etlworks cannot be asked. The next look finds what this one would have.
        """
        runs = yield from self._newest()
        over = {run.audit_id: run for run in runs.values() if _is_over(run)}
        if self.notes is None:
            before_all = Notes(floor=min(runs, default=1) - 1)
            self.notes = self._settle(before_all, runs, over)[1]
            ends: list[End] = []
        else:
            older = yield from self._older(self.notes.going - runs.keys())
            claimed = yield from self._records_of(self.claimed - over.keys())
            over |= {run.audit_id: run for run in (*older.values(), *claimed.values()) if run.has_ended}
            news = yield from self._confirmed(run for run in over.values() if not self.notes.has(run.audit_id))
            ends, self.notes = self._settle(self.notes, runs.keys() | over.keys(), news)
            self.found = frozenset(news)
        self.going = self.notes.going | {audit_id for audit_id in runs if not self.notes.has(audit_id)}
        return ends

    def _newest(self) -> Conversation[dict[int, Execution]]:
        paged = endpoints.execution_history(self.flow_id, limit=_PAGE)
        page: Page[Execution] = yield Once(paged.first())
        runs = {run.audit_id: run for run in page.items}
        offset = len(page.items)
        while self.notes is not None and runs and min(runs) > self.notes.floor:
            call = paged.following(offset, page)
            if call is None:
                break
            previous, page = page, (yield call)
            if page.repeats(previous):
                break
            # Where runs have started meanwhile, pages overlap.
            runs |= {run.audit_id: run for run in page.items}
            offset += len(page.items)
        return runs

    def _older(self, going: frozenset[int]) -> Conversation[dict[int, Execution]]:
        """Read the records of runs below the pages that were read. What is gone several times is given up."""
        records = yield from self._records_of(going)
        self._missing = Counter({audit_id: self._missing[audit_id] + 1 for audit_id in going - records.keys()})
        for audit_id, looks in self._missing.items():
            if looks == _LOOKS_BEFORE_GONE and self.notes is not None:
                self.notes = self.notes.settle(audit_id)
                self._log.warning(
                    "Run %s of flow %s is gone from Etlworks: its end is not told.", audit_id, self.flow_id
                )
        return records

    def _records_of(self, audit_ids: Iterable[int]) -> Conversation[dict[int, Execution]]:
        records: dict[int, Execution] = {}
        for audit_id in sorted(audit_ids):
            try:
                records[audit_id] = yield Once(endpoints.get_execution(self.flow_id, audit_id))
            except EtlworksNotFound:
                continue
        return records

    def _confirmed(self, runs: Iterable[Execution]) -> Conversation[dict[int, Execution]]:
        """Let a run's own record decide where the history's tells too little to."""
        confirmed: dict[int, Execution] = {}
        for run in runs:
            if run.started_at is None or run.ended_at is None:
                try:
                    run = yield endpoints.get_execution(self.flow_id, run.audit_id)
                except EtlworksNotFound:
                    self._log.info("Run %s has no record of its own: the history's is told.", run.audit_id)
            if run.has_ended:
                confirmed[run.audit_id] = run
        return confirmed

    @staticmethod
    def _settle(notes: Notes, known: Iterable[int], over: Mapping[int, Execution]) -> tuple[list[End], Notes]:
        """
        Settle runs one after the other, so that what is noted after each is true of all before it.

        :param known: all runs above the floor, and perhaps others.
        :param over: those of them that have ended, and are not settled.
        """
        ends: list[End] = []
        ordered = sorted(known)
        lowest = bisect_right(ordered, notes.floor)
        for position, audit_id in enumerate(ordered):
            if audit_id in over:
                notes = notes.settle(audit_id)
            below = position + 1 - _ABOVE_FLOOR
            if below > lowest:
                notes = notes.raise_floor(ordered[below - 1], ordered[lowest:below])
                lowest = below
            if audit_id in over:
                ends.append(End(over[audit_id], notes))
        return ends, notes


def _is_over(run: Execution) -> bool:
    """Whether a run has ended for good: one that is being stopped still becomes something else."""
    return run.has_ended and not (run.is_being_stopped and run.started_at is not None)


class Rounds:
    """
    Chooses whose history is read in a round: everybody's, or that of the flows that today's list has news of.

    :param clock: tells the time.
    :param log: is told, once, where the list cannot be used.
    """

    def __init__(self, clock: Clock, log: Log) -> None:
        self._clock = clock
        self._trust = Trust(clock, log)
        self._read_at: WeakKeyDictionary[Endings, float] = WeakKeyDictionary()
        self._doubted_until: WeakKeyDictionary[Endings, float] = WeakKeyDictionary()
        self._in_slow_round: set[Endings] = set()
        self._listed: _Today = {}
        self._claims: WeakKeyDictionary[Endings, dict[int, int]] = WeakKeyDictionary()

    def choose(self, flows: Collection[Endings], interval: float) -> Conversation[list[Endings]]:
        """
        Return the flows whose history is to be read now, the one that was read longest ago first.

        :param flows: all that are watched.
        :param interval: seconds between two rounds.
        :raises EtlworksError: Etlworks cannot be asked.
        """
        longest_ago_first = sorted(flows, key=lambda flow: self._read_at.get(flow, _NEVER))
        today = (yield from self._list_of_today(flows)) if len(flows) >= _FLOWS_WORTH_A_LIST else None
        if today is None:
            self._in_slow_round, self._listed = set(), {}
            for flow in flows:
                flow.claimed = frozenset()
            return longest_ago_first
        now = self._clock.monotonic()
        self._doubt_what_is_silent(today, now)
        day_is_over = any(not runs.keys() <= today[flow_id].keys() for flow_id, runs in self._listed.items())
        self._listed = today
        self._take_claims(flows, today)
        due = {flow for flow in flows if day_is_over or flow.claimed or self._is_due(flow, today, now)}
        share = ceil(len(flows) * interval / _SLOW_ROUND)
        overdue = [flow for flow in longest_ago_first[:share] if now - self._read_at.get(flow, _NEVER) >= _SLOW_ROUND]
        self._in_slow_round = set(overdue) - due
        return [flow for flow in longest_ago_first if flow in due or flow in self._in_slow_round]

    def reads(self, flow: Endings) -> None:
        """Note that a flow's history is read now."""
        self._read_at[flow] = self._clock.monotonic()

    def _list_of_today(self, flows: Collection[Endings]) -> Conversation[_Today | None]:
        """Return what today's list says about the flows; ``None`` where there is no list."""
        if not self._trust.allows(_TODAY):
            return None
        try:
            listed = yield Once(_TODAY.call(0))
        except EtlworksUnauthorized:
            raise
        except EtlworksError as error:
            self._trust.failed(_TODAY, error)
            if self._trust.allows(_TODAY):
                raise
            return None
        self._trust.served(_TODAY)
        today: _Today = {flow.flow_id: {} for flow in flows}
        for (flow_id, audit_id), going in mentions(listed):
            if flow_id in today:
                today[flow_id][audit_id] = going
        # Those that were listed before and are not watched any more say nothing about the day.
        self._listed = {flow_id: runs for flow_id, runs in self._listed.items() if flow_id in today}
        return today

    def _is_due(self, flow: Endings, today: _Today, now: float) -> bool:
        if flow not in self._read_at or self._doubted_until.get(flow, _NEVER) > now:
            return True
        # Such as one that began yesterday.
        return any(audit_id not in today[flow.flow_id] for audit_id in flow.going)

    def _take_claims(self, flows: Iterable[Endings], today: _Today) -> None:
        """Tell flows which of their runs have ended, if the list is right."""
        before, self._claims = self._claims, WeakKeyDictionary()
        for flow in flows:
            rounds = before.get(flow, {})
            claims = {
                audit_id: rounds.get(audit_id, 0) + 1
                for audit_id, going in today[flow.flow_id].items()
                if not going and flow.notes is not None and not flow.notes.has(audit_id)
            }
            self._claims[flow] = claims
            # What is not confirmed is asked for less and less often: in the 1st, 2nd, 4th, 8th, … round.
            flow.claimed = frozenset(each for each, count in claims.items() if count & (count - 1) == 0)

    def _doubt_what_is_silent(self, today: _Today, now: float) -> None:
        """For a while, do not rely on a list that still does not know the ends that the slow round has found."""
        for flow in self._in_slow_round:
            known = today.get(flow.flow_id, {})
            if any(known.get(audit_id, True) for audit_id in flow.found):
                self._doubted_until[flow] = now + _DOUBTED_FOR
