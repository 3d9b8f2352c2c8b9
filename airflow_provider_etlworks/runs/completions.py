"""
Finds each completed run of a flow once: it reads what is needed to find the next ones, and keeps the checkpoint.

A flow's history decides. The list of the day's runs only shows whose history is worth reading now, so a list that is
refused, stale or incomplete delays the report of a run, and loses none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.errors import EtlworksNotFound
from airflow_provider_etlworks.client.procedure import SendOnce
from airflow_provider_etlworks.runs.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow_provider_etlworks.client.call import Page
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Log, Procedure

# The length that Etlworks gives by default, so that a page is full also if the server ignores the limit.
_PAGE = 50
# This many of the newest runs stay above the watermark: a run may appear in the history after runs that started later.
_ABOVE_WATERMARK = 25
# A history that is not newest first must be read to its end; at most this many pages of it are.
_PAGES_OF_UNORDERED = 20
# If a gap in the history stays unreadable while this many runs end, we give the gap up: a checkpoint must stay small.
_DONE_AT_MOST = 500
_POLLS_BEFORE_GONE = 3


@dataclass(frozen=True)
class Completion:
    """
    A run that has ended.

    :ivar execution: its record.
    :ivar checkpoint: what to store once this completion is reported.
    """

    execution: Execution
    checkpoint: Checkpoint


class CompletionTracker:
    """
    Finds completed runs of one flow.

    :param flow_id: the flow.
    :param checkpoint: what was stored about it; ``None`` is a first start: runs that have ended by then are not
        reported.
    :param log: receives a warning about each completed run that may not be reported.
    :ivar checkpoint: which runs are done, including the completed runs that the last poll has found.
    :ivar reported_done: runs that a list reports as ended: the next poll reads their own records.
    :ivar found: the completed runs that the last poll has found.
    :ivar going: the runs that were going at the last poll.
    """

    def __init__(self, flow_id: int, checkpoint: Checkpoint | None, log: Log) -> None:
        self.flow_id = flow_id
        self.checkpoint = checkpoint
        self.reported_done: frozenset[int] = frozenset()
        self.found: frozenset[int] = frozenset()
        self.going: frozenset[int] = frozenset()
        self._log = log
        self._missing: Counter[int] = Counter()
        self._warned_about: tuple[str, int] | None = None

    def poll(self) -> Procedure[list[Completion]]:
        """
        Read the history, page by page, down to the watermark and no further; at a first start, its first page.

        The watermark rises only past what was read. If something may lie in between, a warning says so.

        :return: the runs that have ended since the last poll, in the order of their audit ids.
        :raises EtlworksError: Etlworks cannot be asked. The next poll finds the same runs.
        """
        runs, is_complete = yield from self._read_history()
        over = {run.audit_id: run for run in runs.values() if not run.occupies_flow}
        completions: list[Completion] = []
        if self.checkpoint is None:
            before_all = Checkpoint(min(runs, default=1) - 1, pending=frozenset(runs) - over.keys())
            self.checkpoint = self._settle(before_all, runs.keys(), over, is_complete=True)[1]
        else:
            absent = yield from self._read_absent((self.checkpoint.pending | self.going) - runs.keys())
            reported_done = yield from self._read_records(self.reported_done - over.keys())
            records = (*absent.values(), *reported_done.values())
            over |= {run.audit_id: run for run in records if not run.occupies_flow}
            ended = yield from self._confirm(run for run in over.values() if not self.checkpoint.is_done(run.audit_id))
            known = runs.keys() | over.keys() | self.going | self.checkpoint.done
            completions, self.checkpoint = self._settle(self.checkpoint, known, ended, is_complete=is_complete)
            self.found = frozenset(ended)
        known_going = self.checkpoint.pending | self.going | runs.keys()
        self.going = frozenset(audit_id for audit_id in known_going if not self.checkpoint.is_done(audit_id))
        return completions

    def _read_history(self) -> Procedure[tuple[dict[int, Execution], bool]]:
        """Return the newest runs, and whether they are all runs above the watermark."""
        checkpoint = self.checkpoint
        paged = endpoints.execution_history(self.flow_id, limit=_PAGE)
        page: Page[Execution] = yield SendOnce(paged.first())
        runs = {run.audit_id: run for run in page.items}
        pages = 1
        while True:
            lowest = _complete_from(list(runs))
            if lowest is None:
                if pages == _PAGES_OF_UNORDERED:
                    return runs, self._gives_up(runs, "it is not newest first, and too long to be read to its end")
            elif checkpoint is not None and lowest <= checkpoint.low_watermark + 1:
                return runs, True
            elif (is_last := _looks_last(page, len(runs))) and self._is_end(runs, page):
                self._warn_about_deleted(runs)
                return runs, True
            elif checkpoint is None and (pages > 1 or not is_last):
                self._log.warning(
                    "Flow %s is watched from run %s on. If an older run is still going, its end is not reported.",
                    self.flow_id,
                    lowest,
                )
                return runs, True
            # Pages overlap by one run, to notice if a run was deleted meanwhile and the others moved up.
            previous, page = page, (yield paged.page_at(len(runs) - 1))
            new = {run.audit_id: run for run in page.items if run.audit_id not in runs}
            if not new and 0 < len(page.items) < len(previous.items):
                self._warn_about_deleted(runs)
                return runs, True
            if not new:
                return runs, self._gives_up(runs, "its next page has no other runs than the one before")
            if len(new) == len(page.items):
                return runs, self._gives_up(runs, "runs were deleted from it meanwhile")
            runs |= {run.audit_id: run for run in page.items}
            pages += 1

    def _is_end(self, runs: Mapping[int, Execution], page: Page[Execution]) -> bool:
        """Whether a short page ends the history. A page may also be short because the server has a lower limit."""
        is_known = self.checkpoint is not None and min(runs, default=0) <= self.checkpoint.newest_known
        return is_known or len(runs) <= 1 or len(page.items) > _PAGE

    def _warn_about_deleted(self, runs: Mapping[int, Execution]) -> None:
        """Warn if a history that was read to its end has no run that was known: others may be gone with those."""
        # A run that was only seen going is not in the checkpoint yet.
        known = max(self.checkpoint.newest_known, *self.going, 0) if self.checkpoint is not None else 0
        if known and min(runs, default=0) > known:
            self._warn_once(
                ("deleted", known),
                "Run %s of flow %s and all before it are gone from the history, which now begins with run %s. "
                "Runs between the two that have completed are not reported.",
                known,
                self.flow_id,
                min(runs),
            )

    def _gives_up(self, runs: Mapping[int, Execution], why: str) -> bool:
        """Warn that a gap in the history cannot be read, and return whether it is given up."""
        watermark = self.checkpoint.low_watermark if self.checkpoint is not None else 0
        self._warn_once(
            ("gap", watermark),
            "The history of flow %s cannot be read down to run %s: %s. Completed runs that are not among the %s that "
            "were read are not reported until it can; every poll tries again.",
            self.flow_id,
            watermark,
            why,
            len(runs),
        )
        if self.checkpoint is None or len(self.checkpoint.done) < _DONE_AT_MOST:
            return False
        self._warn_once(
            ("given up", watermark),
            "The history of flow %s still cannot be read down to run %s. Runs that were not read stay unreported.",
            self.flow_id,
            watermark,
        )
        return True

    def _warn_once(self, about: tuple[str, int], text: str, *args: object) -> None:
        if self._warned_about != about:
            self._warned_about = about
            self._log.warning(text, *args)

    def _read_absent(self, going: frozenset[int]) -> Procedure[dict[int, Execution]]:
        """Read the records of runs that the history did not show. A run that is missing several times is given up."""
        records = yield from self._read_records(going)
        self._missing = Counter({audit_id: self._missing[audit_id] + 1 for audit_id in going - records.keys()})
        for audit_id, polls in self._missing.items():
            if polls == _POLLS_BEFORE_GONE and self.checkpoint is not None:
                self.checkpoint = self.checkpoint.mark_done(audit_id)
                self._log.warning(
                    "Run %s of flow %s is gone from Etlworks; its end is not reported. Was it deleted by the server's "
                    "maintenance?",
                    audit_id,
                    self.flow_id,
                )
        return records

    def _read_records(self, audit_ids: Iterable[int]) -> Procedure[dict[int, Execution]]:
        records: dict[int, Execution] = {}
        for audit_id in sorted(audit_ids):
            try:
                records[audit_id] = yield SendOnce(endpoints.get_execution(self.flow_id, audit_id))
            except EtlworksNotFound:
                continue
        return records

    def _confirm(self, runs: Iterable[Execution]) -> Procedure[dict[int, Execution]]:
        """Let a run's own record decide if the history's has too few fields to."""
        confirmed: dict[int, Execution] = {}
        for run in runs:
            if run.started_at is None or run.ended_at is None:
                try:
                    run = yield endpoints.get_execution(self.flow_id, run.audit_id)
                except EtlworksNotFound:
                    self._log.info("Run %s has no record of its own; the history's is reported.", run.audit_id)
            if not run.occupies_flow:
                confirmed[run.audit_id] = run
        return confirmed

    @staticmethod
    def _settle(
        checkpoint: Checkpoint, known: Iterable[int], ended: Mapping[int, Execution], *, is_complete: bool
    ) -> tuple[list[Completion], Checkpoint]:
        """
        Mark runs as done, one after the other, so that the checkpoint after each is true of all before it.

        :param known: all runs above the watermark, if ``is_complete``, and perhaps others.
        :param ended: those of them that have ended, and are not done.
        :param is_complete: whether the watermark may rise.
        """
        completions: list[Completion] = []
        ordered = sorted(known)
        # A start alone is not worth a write.
        is_written = bool(ended) or not is_complete
        lowest = bisect_right(ordered, checkpoint.low_watermark)
        for position, audit_id in enumerate(ordered):
            if audit_id in ended:
                checkpoint = checkpoint.mark_done(audit_id)
            elif is_written and not checkpoint.is_done(audit_id):
                checkpoint = checkpoint.mark_pending(audit_id)
            below = position + 1 - _ABOVE_WATERMARK
            if is_complete and below > lowest:
                checkpoint = checkpoint.raise_watermark(ordered[below - 1], ordered[lowest:below])
                lowest = below
            if audit_id in ended:
                completions.append(Completion(ended[audit_id], checkpoint))
        return completions, checkpoint


def _looks_last(page: Page[Execution], read: int) -> bool:
    """Whether a page may be the last of a history: it is short, or the total that the server says is read."""
    return not 0 < len(page.items) <= _PAGE or (len(page.items) < _PAGE if page.total is None else read >= page.total)


def _complete_from(audit_ids: Sequence[int]) -> int | None:
    """
    Return the audit id from which the runs that were read are complete; ``None`` if the history is not newest first.

    Some runs may be out of place: those that were not read are assumed to be no further out of place than the others.
    """
    lows = [-low for low in accumulate(audit_ids, min)]
    displaced = max((place - bisect_right(lows, -each) for place, each in enumerate(audit_ids)), default=0)
    if displaced >= min(_ABOVE_WATERMARK, len(audit_ids) / 2) and displaced > 0:
        return None
    return -lows[len(lows) - 1 - max(displaced, 0)] if lows else 0
