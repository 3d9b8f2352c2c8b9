"""Whose history is read next."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.runs.listings import ListingBreaker, RunKey, read_listing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.procedure import Log, Procedure
    from airflow_provider_etlworks.runs.completions import CompletionTracker

# From this many flows on, one list for all takes fewer requests than each flow's history.
_FLOWS_WORTH_A_LIST = 3
# Seconds in which each flow's history is read once, also if the list reports nothing new about it.
_RESYNC_EVERY = 600.0
# Seconds for which a flow's history is read at every poll, after the list missed the end of a run.
_DISTRUSTED_FOR = 900.0

# Seconds since the last list after which older runs are left to the resync.
_LONGEST_GAP = 86_400.0
_NEVER = float("-inf")
# What the lists report of each run, by flow and audit id: whether it is going.
_Today = dict[int, dict[int, bool]]


class CompletionPlanner:
    """
    Chooses whose history is read at a poll: everybody's, or that of the flows that today's list reports on.

    Around midnight, "today" is two days: a run that started since the last poll is in one of the two lists.

    :param clock: gives the time.
    :param log: receives a line, once, if the list cannot be used.
    """

    def __init__(self, clock: Clock, log: Log) -> None:
        self._clock = clock
        self._breaker = ListingBreaker(clock, log)
        self._listed_until: float | None = None
        # A run in today's list: as long as it is there, the server counts the same day as today.
        self._witness: RunKey | None = None
        self._read_at: WeakKeyDictionary[CompletionTracker, float] = WeakKeyDictionary()
        self._distrusted_until: WeakKeyDictionary[CompletionTracker, float] = WeakKeyDictionary()
        self._resynced: set[CompletionTracker] = set()
        self._listed: _Today = {}
        # For how many polls the list has reported a run as done, without a record that confirms it.
        self._unconfirmed: WeakKeyDictionary[CompletionTracker, dict[int, int]] = WeakKeyDictionary()

    def choose(self, flows: Collection[CompletionTracker], interval: float) -> Procedure[list[CompletionTracker]]:
        """
        Return the flows whose history is to be read now, the one that was read longest ago first.

        :param flows: all that are watched.
        :param interval: seconds between two polls.
        :raises EtlworksError: Etlworks cannot be asked.
        """
        longest_ago_first = sorted(flows, key=lambda flow: self._read_at.get(flow, _NEVER))
        today = (yield from self._read_today(flows)) if len(flows) >= _FLOWS_WORTH_A_LIST else None
        if today is None:
            self._resynced, self._listed = set(), {}
            for flow in flows:
                flow.reported_done = frozenset()
            return longest_ago_first
        now = self._clock.monotonic()
        self._distrust_stale_list(today, now)
        day_is_over = any(not runs.keys() <= today[flow_id].keys() for flow_id, runs in self._listed.items())
        self._listed = today
        self._report_done(flows, today)
        due = {flow for flow in flows if day_is_over or flow.reported_done or self._is_due(flow, today, now)}
        share = ceil(len(flows) * interval / _RESYNC_EVERY)
        overdue = [flow for flow in longest_ago_first[:share] if now - self._read_at.get(flow, _NEVER) >= _RESYNC_EVERY]
        self._resynced = set(overdue) - due
        return [flow for flow in longest_ago_first if flow in due or flow in self._resynced]

    def reads(self, flow: CompletionTracker) -> None:
        """Record that a flow's history is read now."""
        self._read_at[flow] = self._clock.monotonic()

    def _read_today(self, flows: Collection[CompletionTracker]) -> Procedure[_Today | None]:
        """Return what the lists that contain all runs since the last poll report; ``None`` without a list."""
        today: _Today = {flow.flow_id: {} for flow in flows}
        now = self._clock.time()
        since = now if self._listed_until is None else max(self._listed_until, now - _LONGEST_GAP)
        days = self._breaker.days
        listings = days.between(since, now)
        if not self._breaker.is_available(listings[0]):
            return None
        witness, before = self._witness, set[RunKey]()
        try:
            for listing in listings:
                if listing.day == 1 and witness in before:
                    break
                keys = set[RunKey]()
                for key, going in (yield from read_listing(listing, self._breaker)):
                    keys.add(key)
                    if (runs := today.get(key[0])) is not None:
                        runs[key[1]] = going
                if listing.day == 0:
                    self._witness = next(iter(keys), None)
                if keys and keys == before and days.takes_dates:
                    # The server ignores the date, and returns the list of its today.
                    days.takes_dates = False
                before = keys
        except EtlworksError:
            if days.takes_dates == isinstance(listings[0].day, int):
                return (yield from self._read_today(flows))
            if self._breaker.is_available(listings[0]):
                raise
            return None
        self._listed_until = now
        # Runs of flows that are not watched any more must not make the day seem to be over.
        self._listed = {flow_id: runs for flow_id, runs in self._listed.items() if flow_id in today}
        return today

    def _is_due(self, flow: CompletionTracker, today: _Today, now: float) -> bool:
        if flow not in self._read_at or self._distrusted_until.get(flow, _NEVER) > now:
            return True
        # Such as one that began yesterday.
        return any(audit_id not in today[flow.flow_id] for audit_id in flow.going)

    def _report_done(self, flows: Iterable[CompletionTracker], today: _Today) -> None:
        """Set which runs of each flow have ended according to the list."""
        before, self._unconfirmed = self._unconfirmed, WeakKeyDictionary()
        for flow in flows:
            polls = before.get(flow, {})
            unconfirmed = {
                audit_id: polls.get(audit_id, 0) + 1
                for audit_id, going in today[flow.flow_id].items()
                if not going and flow.checkpoint is not None and not flow.checkpoint.is_done(audit_id)
            }
            self._unconfirmed[flow] = unconfirmed
            # An end that no record confirms is read less and less often: at the 1st, 2nd, 4th, 8th, … poll.
            flow.reported_done = frozenset(each for each, times in unconfirmed.items() if times & (times - 1) == 0)

    def _distrust_stale_list(self, today: _Today, now: float) -> None:
        """For a while, do not rely on a list that still does not contain the ends that a resync has found."""
        for flow in self._resynced:
            known = today.get(flow.flow_id, {})
            if any(known.get(audit_id, True) for audit_id in flow.found):
                self._distrusted_until[flow] = now + _DISTRUSTED_FOR
