"""Whose history is read next."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksUnauthorized
from airflow_provider_etlworks.client.procedure import SendOnce
from airflow_provider_etlworks.runs.listings import DayListing, ListingBreaker, listed_runs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.procedure import Log, Procedure
    from airflow_provider_etlworks.runs.completions import CompletionTracker

_TODAY = DayListing(0)


# From so many flows on, one list for all takes fewer requests than each flow's history.
_FLOWS_WORTH_A_LIST = 3


# Seconds in which each flow's history is read once, also where the list has no news of it.
_SLOW_ROUND = 600.0


# Seconds for which a flow's history is read in every round, after the list was silent about the end of a run.
_DOUBTED_FOR = 900.0


_NEVER = float("-inf")
# What the list says of each run, by flow and audit id: whether it is going.
_Today = dict[int, dict[int, bool]]


class CompletionPlanner:
    """
    Chooses whose history is read in a round: everybody's, or that of the flows that today's list has news of.

    :param clock: tells the time.
    :param log: is told, once, where the list cannot be used.
    """

    def __init__(self, clock: Clock, log: Log) -> None:
        self._clock = clock
        self._breaker = ListingBreaker(clock, log)
        self._read_at: WeakKeyDictionary[CompletionTracker, float] = WeakKeyDictionary()
        self._doubted_until: WeakKeyDictionary[CompletionTracker, float] = WeakKeyDictionary()
        self._in_slow_round: set[CompletionTracker] = set()
        self._listed: _Today = {}
        self._claims: WeakKeyDictionary[CompletionTracker, dict[int, int]] = WeakKeyDictionary()

    def choose(self, flows: Collection[CompletionTracker], interval: float) -> Procedure[list[CompletionTracker]]:
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
                flow.reported_done = frozenset()
            return longest_ago_first
        now = self._clock.monotonic()
        self._doubt_what_is_silent(today, now)
        day_is_over = any(not runs.keys() <= today[flow_id].keys() for flow_id, runs in self._listed.items())
        self._listed = today
        self._take_claims(flows, today)
        due = {flow for flow in flows if day_is_over or flow.reported_done or self._is_due(flow, today, now)}
        share = ceil(len(flows) * interval / _SLOW_ROUND)
        overdue = [flow for flow in longest_ago_first[:share] if now - self._read_at.get(flow, _NEVER) >= _SLOW_ROUND]
        self._in_slow_round = set(overdue) - due
        return [flow for flow in longest_ago_first if flow in due or flow in self._in_slow_round]

    def reads(self, flow: CompletionTracker) -> None:
        """Note that a flow's history is read now."""
        self._read_at[flow] = self._clock.monotonic()

    def _list_of_today(self, flows: Collection[CompletionTracker]) -> Procedure[_Today | None]:
        """Return what today's list says about the flows; ``None`` where there is no list."""
        if not self._breaker.is_available(_TODAY):
            return None
        try:
            listed = yield SendOnce(_TODAY.call(0))
        except EtlworksUnauthorized:
            raise
        except EtlworksError as error:
            self._breaker.record_failure(_TODAY, error)
            if self._breaker.is_available(_TODAY):
                raise
            return None
        self._breaker.record_success(_TODAY)
        today: _Today = {flow.flow_id: {} for flow in flows}
        for (flow_id, audit_id), going in listed_runs(listed):
            if flow_id in today:
                today[flow_id][audit_id] = going
        # Those that were listed before and are not watched any more say nothing about the day.
        self._listed = {flow_id: runs for flow_id, runs in self._listed.items() if flow_id in today}
        return today

    def _is_due(self, flow: CompletionTracker, today: _Today, now: float) -> bool:
        if flow not in self._read_at or self._doubted_until.get(flow, _NEVER) > now:
            return True
        # Such as one that began yesterday.
        return any(audit_id not in today[flow.flow_id] for audit_id in flow.going)

    def _take_claims(self, flows: Iterable[CompletionTracker], today: _Today) -> None:
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
            flow.reported_done = frozenset(each for each, count in claims.items() if count & (count - 1) == 0)

    def _doubt_what_is_silent(self, today: _Today, now: float) -> None:
        """For a while, do not rely on a list that still does not know the ends that the slow round has found."""
        for flow in self._in_slow_round:
            known = today.get(flow.flow_id, {})
            if any(known.get(audit_id, True) for audit_id in flow.found):
                self._doubted_until[flow] = now + _DOUBTED_FOR
