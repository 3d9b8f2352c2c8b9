"""
Every end of a flow's runs, once: what is noted of those that were told, and what is read to learn of the next.

A flow's history decides. The list of the day's runs only says whose history is worth reading now, so a list that is
refused, stale or silent about a run delays an end, and loses none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksNotFound
from airflow_provider_etlworks.client.procedure import SendOnce
from airflow_provider_etlworks.runs.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_provider_etlworks.client.call import Page
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Log, Procedure

# What Etlworks gives by default, so that a page is full also where the server knows no other length.
_PAGE = 50
# So many of the newest runs stay above the floor: a run may appear in the history after ones that started later.
_ABOVE_FLOOR = 25
_LOOKS_BEFORE_GONE = 3


@dataclass(frozen=True)
class Completion:
    """
    A run that has ended.

    :ivar execution: its record.
    :ivar notes: what is noted once it is told.
    """

    execution: Execution
    notes: Checkpoint


class CompletionTracker:
    """
    Finds the ends of one flow's runs.

    :param flow_id: the flow.
    :param notes: what was noted of it; ``None`` is a first start: what has ended by then is not told.
    :param log: is told what is lost.
    :ivar notes: what is settled, the ends that the last look has found included.
    :ivar reported_done: runs that a list takes to have ended: the next look asks for their own records.
    :ivar found: the runs whose ends the last look has found.
    :ivar going: the runs that were going at the last look.
    """

    def __init__(self, flow_id: int, notes: Checkpoint | None, log: Log) -> None:
        self.flow_id = flow_id
        self.notes = notes
        self.reported_done: frozenset[int] = frozenset()
        self.found: frozenset[int] = frozenset()
        self.going: frozenset[int] = frozenset()
        self._log = log
        self._missing: Counter[int] = Counter()

    def look(self) -> Procedure[list[Completion]]:
        """
        Read the history, page by page, down to what is settled and no further; at a first start, its first page.

        :return: the runs that have ended since the last look, in the order of their audit ids.
        :raises EtlworksError: Etlworks cannot be asked. The next look finds what this one would have.
        """
        runs = yield from self._newest()
        over = {run.audit_id: run for run in runs.values() if not run.occupies_flow}
        if self.notes is None:
            before_all = Checkpoint(floor=min(runs, default=1) - 1)
            self.notes = self._settle(before_all, runs, over)[1]
            ends: list[Completion] = []
        else:
            older = yield from self._older(self.notes.going - runs.keys())
            reported_done = yield from self._records_of(self.reported_done - over.keys())
            over |= {run.audit_id: run for run in (*older.values(), *reported_done.values()) if run.is_terminal}
            news = yield from self._confirmed(run for run in over.values() if not self.notes.has(run.audit_id))
            ends, self.notes = self._settle(self.notes, runs.keys() | over.keys(), news)
            self.found = frozenset(news)
        self.going = self.notes.going | {audit_id for audit_id in runs if not self.notes.has(audit_id)}
        return ends

    def _newest(self) -> Procedure[dict[int, Execution]]:
        paged = endpoints.execution_history(self.flow_id, limit=_PAGE)
        page: Page[Execution] = yield SendOnce(paged.first())
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

    def _older(self, going: frozenset[int]) -> Procedure[dict[int, Execution]]:
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

    def _records_of(self, audit_ids: Iterable[int]) -> Procedure[dict[int, Execution]]:
        records: dict[int, Execution] = {}
        for audit_id in sorted(audit_ids):
            try:
                records[audit_id] = yield SendOnce(endpoints.get_execution(self.flow_id, audit_id))
            except EtlworksNotFound:
                continue
        return records

    def _confirmed(self, runs: Iterable[Execution]) -> Procedure[dict[int, Execution]]:
        """Let a run's own record decide where the history's tells too little to."""
        confirmed: dict[int, Execution] = {}
        for run in runs:
            if run.started_at is None or run.ended_at is None:
                try:
                    run = yield endpoints.get_execution(self.flow_id, run.audit_id)
                except EtlworksNotFound:
                    self._log.info("Run %s has no record of its own: the history's is told.", run.audit_id)
            if run.is_terminal:
                confirmed[run.audit_id] = run
        return confirmed

    @staticmethod
    def _settle(
        notes: Checkpoint, known: Iterable[int], over: Mapping[int, Execution]
    ) -> tuple[list[Completion], Checkpoint]:
        """
        Settle runs one after the other, so that what is noted after each is true of all before it.

        :param known: all runs above the floor, and perhaps others.
        :param over: those of them that have ended, and are not settled.
        """
        ends: list[Completion] = []
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
                ends.append(Completion(over[audit_id], notes))
        return ends, notes
