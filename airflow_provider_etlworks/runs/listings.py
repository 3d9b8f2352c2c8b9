"""
Lists that tell about many runs in one answer. They are hints: which run to look at now, and which can wait.

Only a run's own record decides. A list may be refused (the day's runs take an administrator), slow, stale, of another
shape, or silent about a run; whoever uses it goes on without it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.call import PAGE_SIZE
from airflow_provider_etlworks.client.errors import (
    EtlworksBadRequest,
    EtlworksForbidden,
    EtlworksNotFound,
    EtlworksReplyError,
)
from airflow_provider_etlworks.client.models import ExecutionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_provider_etlworks.client.call import Call, Response
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.procedure import Log

RunKey = tuple[int, int]
"""A run's flow id and audit id."""

# A list must save this much, or the runs are asked for one by one: lists cost their server more.
_WORTH_IT = 1.2
_GOING = frozenset(status.value for status in ExecutionStatus if not status.is_final)
# Enough to reach the runs that are watched, and not more than one page.
_SHORTEST_HISTORY = 50

_REFUSED_FOR = 3600.0
_FAILED_FOR = 60.0
_FAILED_FOR_AT_MOST = 900.0
_LIED_FOR = 600.0


class _ListedRun(msgspec.Struct, rename="camel", gc=False):
    """What is read of a run in a list: next to nothing, since such a list may hold tens of thousands."""

    audit_id: int | str
    flow_id: int | str | None = None
    status: Any = None
    ended: Any = None


class _ListedFlow(msgspec.Struct, rename="camel", gc=False):
    flow_id: int | str | None = None
    executions: list[_ListedRun] | None = None


@dataclass(frozen=True)
class DayListing:
    """
    The runs of all flows of one day: ``/v1/metrics/executions``.

    :ivar days_ago: 0 is the server's today.
    """

    days_ago: int
    title: ClassVar[str] = "the list of a day's runs"

    def call(self, _: int) -> Call[list[_ListedFlow]]:
        """Return the call that asks for the list."""
        return _read_by(lambda answer: _decoded(answer, list[_ListedFlow]), endpoints.executions_of_day(self.days_ago))


@dataclass(frozen=True)
class FlowHistoryListing:
    """
    The newest runs of one flow: ``/v1/executions/{flowId}/history``.

    :ivar flow_id: the flow.
    """

    flow_id: int
    title: ClassVar[str] = "a flow's history"

    def call(self, watched: int) -> Call[list[_ListedFlow]]:
        """Return the call that asks for the list; ``watched`` is how many of its runs are wanted."""
        limit = min(max(_SHORTEST_HISTORY, 2 * watched), PAGE_SIZE)
        return _read_by(
            lambda answer: [_ListedFlow(self.flow_id, _decoded(answer, list[_ListedRun]))],
            endpoints.execution_history(self.flow_id, limit=limit).first(),
        )


Listing = DayListing | FlowHistoryListing


def listed_runs(flows: Iterable[_ListedFlow]) -> Iterator[tuple[RunKey, bool]]:
    """Yield each run of a list, and whether the list takes it to be going."""
    for flow in flows:
        of_flow = _number(flow.flow_id)
        for run in flow.executions or ():
            flow_id = of_flow if run.flow_id is None else _number(run.flow_id)
            going = not run.ended and isinstance(run.status, str) and run.status.strip().lower() in _GOING
            yield (flow_id, _number(run.audit_id)), going


class Watched(Protocol):
    """
    A run, as the choice of lists sees it.

    :ivar flow_id: its flow.
    :ivar day: the day whose list should tell about it; ``None`` where none does.
    :ivar interval: seconds between two looks that it needs, at its age.
    :ivar poll_interval: seconds between two looks that it needed when it was young.
    """

    flow_id: int
    day: int | None
    interval: float
    poll_interval: float

    def is_in_history(self) -> bool:
        """Whether its flow's history may tell about it."""


WatchedT = TypeVar("WatchedT", bound=Watched)


@dataclass(frozen=True)
class ListingPlan(Generic[WatchedT]):
    """
    What a list is asked for.

    :ivar runs: the runs that it should tell about.
    :ivar interval: seconds between two asks.
    """

    runs: list[WatchedT]
    interval: float


def choose_listings(
    runs: Iterable[WatchedT], is_usable: Callable[[Listing], bool]
) -> dict[Listing, ListingPlan[WatchedT]]:
    """
    Choose the lists with which the fewest requests follow the runs.

    :param runs: what is watched.
    :param is_usable: whether a list can be used at present.
    :return: the lists. Runs in none are asked for one by one.
    """
    days: dict[int | None, list[WatchedT]] = defaultdict(list)
    for run in runs:
        days[run.day].append(run)
    chosen: dict[Listing, ListingPlan[WatchedT]] = {}
    for day, of_day in days.items():
        histories = _histories_worth_asking(of_day, is_usable)
        rate = requests_a_second(of_day, histories.values())
        needed = _as_fresh_as_needed(of_day)
        if day is not None and _is_worth_it(needed.interval, rate) and is_usable(DayListing(day)):
            # One list for all costs so little that old runs need not wait longer than young ones.
            young = min([run.poll_interval for run in of_day])
            chosen[DayListing(day)] = ListingPlan(of_day, young) if _is_worth_it(young, rate) else needed
        else:
            chosen |= histories
    return chosen


def requests_a_second(runs: Iterable[WatchedT], lists: Iterable[ListingPlan[WatchedT]]) -> float:
    """Return how many requests a second it takes to follow runs, where lists tell about some of them."""
    rate = sum([1 / run.interval for run in runs])
    for each in lists:
        rate += 1 / each.interval - sum([1 / run.interval for run in each.runs])
    return rate


def _histories_worth_asking(
    runs: list[WatchedT], is_usable: Callable[[Listing], bool]
) -> dict[Listing, ListingPlan[WatchedT]]:
    if len({run.flow_id for run in runs}) == len(runs):
        return {}
    flows: dict[int, list[WatchedT]] = defaultdict(list)
    for run in runs:
        if run.is_in_history():
            flows[run.flow_id].append(run)
    chosen: dict[Listing, ListingPlan[WatchedT]] = {}
    for flow_id, of_flow in flows.items():
        choice = _as_fresh_as_needed(of_flow)
        if _is_worth_it(choice.interval, requests_a_second(of_flow, ())) and is_usable(FlowHistoryListing(flow_id)):
            chosen[FlowHistoryListing(flow_id)] = choice
    return chosen


def _as_fresh_as_needed(runs: list[WatchedT]) -> ListingPlan[WatchedT]:
    return ListingPlan(runs, min([run.interval for run in runs]))


def _is_worth_it(interval: float, rate: float) -> bool:
    """Whether a list, asked for at this interval, spares enough of a rate of requests."""
    return _WORTH_IT / interval < rate


class ListingBreaker:
    """
    Which kinds of list can be used at present. Where one cannot, that is said once.

    :param clock: tells the time.
    :param log: is told.
    """

    def __init__(self, clock: Clock, log: Log) -> None:
        self._clock = clock
        self._log = log
        self._unusable_until: dict[type[Listing], float] = {}
        self._failures: Counter[type[Listing]] = Counter()
        self._said: set[type[Listing]] = set()

    def is_available(self, source: Listing) -> bool:
        """Whether a list can be used now."""
        return self._clock.monotonic() >= self._unusable_until.get(type(source), 0.0)

    def record_success(self, source: Listing) -> None:
        """Note that a list was answered as it should be."""
        del self._failures[type(source)]

    def record_failure(self, source: Listing, error: Exception) -> None:
        """Note that a list could not be read. One passing fault is let pass."""
        failures = self._failures[type(source)]
        self._failures[type(source)] += 1
        if isinstance(error, (EtlworksForbidden, EtlworksNotFound, EtlworksBadRequest)):
            self._do_without(source, str(error), _REFUSED_FOR)
        elif failures or isinstance(error, EtlworksReplyError):
            self._do_without(source, str(error), min(_FAILED_FOR * 2 ** max(0, failures - 1), _FAILED_FOR_AT_MOST))

    def record_stale(self, source: Listing, audit_id: int) -> None:
        """Note that a list calls a run going whose own record says that it ended before."""
        self._do_without(source, f"It is out of date: it has run {audit_id} still going.", _LIED_FOR)

    def _do_without(self, source: Listing, why: str, seconds: float) -> None:
        kind = type(source)
        self._unusable_until[kind] = self._clock.monotonic() + seconds
        if kind not in self._said:
            self._said.add(kind)
            self._log.info("Runs are followed without %s. %s", source.title, why)


def _read_by(read: Callable[[Response], list[_ListedFlow]], call: Call[Any]) -> Call[list[_ListedFlow]]:
    return replace(call, read=read)


def _number(value: int | str | None) -> int:
    # -1 is no id of anything: what cannot be read is taken for unknown.
    if isinstance(value, int):
        return value
    return int(value) if value is not None and value.strip().isdecimal() else -1


@cache
def _decoder(shape: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape)


def _decoded(answer: Response, shape: Any) -> Any:
    """Read a list. Ten times as fast as the whole list as Python objects: the event loop waits meanwhile."""
    try:
        return _decoder(shape).decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EtlworksReplyError(f"Expected a list of runs: {error}") from error
