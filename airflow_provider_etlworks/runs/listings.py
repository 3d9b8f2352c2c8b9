"""
Lists that cover many runs in one answer. They are hints: which run to poll now, and which can wait.

Only a run's own record decides. A list may be refused (the day's runs need an administrator), slow, stale, of another
shape, or incomplete; whoever uses it can do without it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from functools import cache
from itertools import chain
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.call import PAGE_SIZE
from airflow_provider_etlworks.client.errors import (
    EtlworksBadRequest,
    EtlworksError,
    EtlworksForbidden,
    EtlworksNotFound,
    EtlworksRateLimited,
    EtlworksReplyError,
    EtlworksUnauthorized,
)
from airflow_provider_etlworks.client.models import ExecutionStatus
from airflow_provider_etlworks.client.procedure import SendOnce
from airflow_provider_etlworks.client.text import as_int

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from airflow_provider_etlworks.client.call import Call, Response
    from airflow_provider_etlworks.client.clock import Clock
    from airflow_provider_etlworks.client.procedure import Log, Procedure

RunKey = tuple[int, int]
"""A run's flow id and audit id."""

# A list must save this much, or the runs are polled one by one: lists cost their server more.
_WORTH_IT = 1.2
_GOING = frozenset(status.value for status in ExecutionStatus if not status.is_final)
# Enough to reach the runs that are watched, and not more than one page.
_SHORTEST_HISTORY = 50

# Seconds for which a kind of list is not used: after a refusal, after failures (more each time), and when it is stale.
_REFUSED_FOR = 3600.0
_FAILED_FOR = 60.0
_FAILED_FOR_AT_MOST = 900.0
_STALE_FOR = 600.0
# The list is refused, but single runs may be readable. Polling a run shows whether the credentials are refused.
_REFUSALS = (EtlworksUnauthorized, EtlworksForbidden, EtlworksNotFound, EtlworksBadRequest)


class _ListedRun(msgspec.Struct, rename="camel", gc=False):
    """The few fields that are read of a run in a list: a list may hold tens of thousands."""

    audit_id: Any = None
    flow_id: Any = None
    status: Any = None
    started: Any = None
    ended: Any = None


class _ListedFlow(msgspec.Struct, rename="camel", gc=False):
    flow_id: Any = None
    executions: list[_ListedRun | None] | None = None


@dataclass(frozen=True)
class DayListing:
    """
    The runs of all flows of one day: ``/v1/metrics/executions``.

    :ivar day: a date of the tenant's time zone; or how many days ago, 0 for the server's today, if the server takes no
        dates.
    """

    day: date | int
    title: ClassVar[str] = "the list of a day's runs"

    def call(self, _watched: int, _offset: int = 0) -> Call[list[_ListedFlow | None]]:
        """Return the call that reads the list, which has one page."""
        day = self.day
        call = endpoints.executions_of_day(day) if isinstance(day, int) else endpoints.executions_of_day(date=day)
        return _read_with(lambda answer: _decode(answer, list[_ListedFlow | None]), call)


@dataclass(frozen=True)
class FlowHistoryListing:
    """
    The newest runs of one flow: ``/v1/executions/{flowId}/history``.

    :ivar flow_id: the flow.
    """

    flow_id: int
    title: ClassVar[str] = "a flow's history"

    def call(self, watched: int, offset: int = 0) -> Call[list[_ListedFlow | None]]:
        """Return the call that reads a page of the list, long enough for ``watched`` of its runs if possible."""
        limit = min(max(_SHORTEST_HISTORY, 2 * watched), PAGE_SIZE)
        return _read_with(
            lambda answer: [_ListedFlow(self.flow_id, _decode(answer, list[_ListedRun | None]))],
            endpoints.execution_history(self.flow_id, limit=limit).page_at(offset),
        )


Listing = DayListing | FlowHistoryListing


# How far local time is ahead of UTC, at most and at least, and how far summer time moves it.
_EASTERNMOST = 14 * 3600.0
_WESTERNMOST = -12 * 3600.0
_SUMMER_TIME = 3600.0
_DAY = 86_400.0


class Days:
    """
    Which day's list contains a run. The days are those of the tenant's time zone, which no answer names.

    Each run of a day's list narrows down where that day begins. Summer time moves it by an hour, so that both days
    count for an hour around the boundary; a list that contradicts what was learned makes it start over.

    :param clock: gives the time.
    :ivar takes_dates: whether the server takes dates, as newer ones do. Otherwise days are counted back from today.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.takes_dates = True
        # Seconds that local time is ahead of UTC: at least, and less than.
        self._ahead = (_WESTERNMOST, _EASTERNMOST)

    def between(self, since: float, until: float) -> list[DayListing]:
        """
        Return the lists that together contain all runs that started between two moments.

        :param since: Unix time, at most a day before ``until``.
        :param until: Unix time.
        """
        if not self.takes_dates:
            return [DayListing(0), DayListing(1)]
        least, most = self._ahead
        first, last = _date(since + least - _SUMMER_TIME), _date(until + most + _SUMMER_TIME)
        return [DayListing(first + timedelta(days=each)) for each in range((last - first).days + 1)]

    def candidates(self, started: datetime | None) -> list[date | int]:
        """
        Return the days whose list may contain a run, the likeliest first.

        :param started: when it started; ``None`` if that is not known, such as just now.
        """
        now = self._clock.time()
        at = now if started is None else started.timestamp()
        if not self.takes_dates:
            days_ago = (_date(now) - _date(at)).days
            # The server's day may begin hours before ours, or after.
            return [each for each in (days_ago, days_ago + 1, days_ago - 1) if each >= 0]
        least, most = self._ahead
        likely = min(max(0.0, least), most)
        return list(dict.fromkeys(map(_date, (at + likely, at + least - _SUMMER_TIME, at + most + _SUMMER_TIME))))

    def learn(self, day: date, starts: Iterable[int]) -> None:
        """
        Learn where days begin from the list of one.

        :param day: the day.
        :param starts: when the runs in it started, in Unix milliseconds.
        """
        begins = datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp()
        moments = [each / 1000 for each in starts]
        # A run of another day that was still going is listed, too; it says nothing about where the day begins.
        moments = [each for each in moments if _WESTERNMOST - _DAY < begins - each <= _EASTERNMOST]
        if not moments:
            return
        least, most = begins - min(moments), begins + _DAY - max(moments)
        for known in (self._ahead, (_WESTERNMOST, _EASTERNMOST)):
            ahead = max(known[0], least), min(known[1], most)
            if ahead[0] < ahead[1]:
                break
        else:
            ahead = (_WESTERNMOST, _EASTERNMOST)
        self._ahead = ahead


def _date(moment: float) -> date:
    return datetime.fromtimestamp(moment, timezone.utc).date()


def read_listing(
    listing: Listing, breaker: ListingBreaker, runs: Collection[HasRunKey] = (), most_pages: int = 1
) -> Procedure[Iterator[tuple[RunKey, bool]]]:
    """
    Read a list, once, and record in the breaker whether that worked.

    :param listing: the list.
    :param breaker: decides which lists are used.
    :param runs: the runs that are wanted: with all of them, no further page is read.
    :param most_pages: how many pages are read at most.
    :return: as :func:`listed_runs` does.
    :raises EtlworksError: the list cannot be read.
    """
    pages = []
    missing, seen, offset = {run.key for run in runs} if most_pages > 1 else set(), set[RunKey](), 0
    try:
        while True:
            page: list[_ListedFlow | None] = yield SendOnce(listing.call(len(runs), offset))
            pages.append(page)
            if len(pages) >= most_pages:
                break
            keys = {key for key, _ in listed_runs(page)}
            # A short page is not an end: a server may have a smaller limit. It may also ignore the offset.
            if not (keys - seen) or missing <= (seen := seen | keys):
                break
            offset += sum(len(flow.executions or ()) for flow in page if flow is not None)
    except EtlworksRateLimited:
        # Too many requests are not a fault of the list.
        raise
    except EtlworksError as error:
        breaker.record_failure(listing, error)
        raise
    breaker.record_success(listing)
    flows = chain.from_iterable(pages)
    if isinstance(listing, DayListing) and isinstance(listing.day, date):
        return _learning(breaker.days, listing.day, flows)
    return listed_runs(flows)


def _learning(days: Days, day: date, flows: Iterable[_ListedFlow | None]) -> Iterator[tuple[RunKey, bool]]:
    """Yield as :func:`listed_runs` does, and learn from all of it where the day begins."""
    starts: list[int] = []
    for flow in flows:
        runs = (flow.executions if flow is not None else None) or ()
        of_flow = [run.started for run in runs if run is not None and type(run.started) is int and run.started > 0]
        starts += (min(of_flow), max(of_flow)) if of_flow else ()
        yield from listed_runs([flow])
    days.learn(day, starts)


def listed_runs(flows: Iterable[_ListedFlow | None]) -> Iterator[tuple[RunKey, bool]]:
    """
    Yield each run of a list, and whether the list reports it as certainly going.

    It reads the raw fields, since an Execution for each of tens of thousands of runs would hold the event loop. The
    statuses are those of ExecutionStatus; a doubtful run is not going, so that its own record decides.
    """
    for flow in flows:
        if flow is None:
            continue
        of_flow = _as_id(flow.flow_id)
        for run in flow.executions or ():
            if run is None:
                continue
            flow_id = of_flow if run.flow_id is None else _as_id(run.flow_id)
            going = not run.ended and isinstance(run.status, str) and run.status.strip().lower() in _GOING
            yield (flow_id, _as_id(run.audit_id)), going


class HasRunKey(Protocol):
    """A run that may be in a list."""

    @property
    def key(self) -> RunKey:
        """Its flow id and audit id."""


class Watched(Protocol):
    """
    A run, as the choice of lists sees it.

    :ivar flow_id: its flow.
    :ivar day: the day whose list should contain it; ``None`` if none does.
    :ivar interval: seconds between two polls that it needs, at its age.
    :ivar poll_interval: seconds between two polls that it needed when it was young.
    """

    flow_id: int
    day: date | int | None
    interval: float
    poll_interval: float

    def is_in_history(self) -> bool:
        """Whether its flow's history may contain it."""


WatchedT = TypeVar("WatchedT", bound=Watched)


@dataclass(frozen=True)
class ListingPlan(Generic[WatchedT]):
    """
    What a list is read for.

    :ivar runs: the runs that it should contain.
    :ivar interval: seconds between two reads.
    :ivar pages: how many requests a read takes, at least.
    :ivar most_pages: the most requests with which a read still saves requests.
    """

    runs: list[WatchedT]
    interval: float
    pages: int = 1
    most_pages: int = 1


def choose_listings(
    runs: Iterable[WatchedT], is_usable: Callable[[Listing], bool]
) -> dict[Listing, ListingPlan[WatchedT]]:
    """
    Choose the lists with which following the runs takes the fewest requests.

    :param runs: what is watched.
    :param is_usable: whether a list can be used at present.
    :return: the lists. Runs in none are polled one by one.
    """
    days: dict[date | int | None, list[WatchedT]] = defaultdict(list)
    for run in runs:
        days[run.day].append(run)
    chosen: dict[Listing, ListingPlan[WatchedT]] = {}
    for day, of_day in days.items():
        histories = _histories_worth_reading(of_day, is_usable)
        rate = requests_a_second(of_day, histories.values())
        needed = _plan(of_day)
        if day is not None and _is_worth_it(needed.interval, rate) and is_usable(DayListing(day)):
            # One list for all costs so little that old runs are as fresh as young ones.
            young = min([run.poll_interval for run in of_day])
            chosen[DayListing(day)] = ListingPlan(of_day, young) if _is_worth_it(young, rate) else needed
        else:
            chosen |= histories
    return chosen


def requests_a_second(runs: Iterable[WatchedT], lists: Iterable[ListingPlan[WatchedT]]) -> float:
    """Return how many requests a second it takes to follow runs, if lists cover some of them."""
    rate = sum([1 / run.interval for run in runs])
    for each in lists:
        rate += each.pages / each.interval - sum([1 / run.interval for run in each.runs])
    return rate


def _histories_worth_reading(
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
        plan, rate = _plan(of_flow), requests_a_second(of_flow, ())
        pages = ceil(len(of_flow) / PAGE_SIZE)
        if _is_worth_it(plan.interval / pages, rate) and is_usable(FlowHistoryListing(flow_id)):
            # Runs that have ended are in between, so it may take more pages than the runs that are watched fill.
            most_pages = max(pages, int(rate * plan.interval / _WORTH_IT))
            chosen[FlowHistoryListing(flow_id)] = replace(plan, pages=pages, most_pages=most_pages)
    return chosen


def _plan(runs: list[WatchedT]) -> ListingPlan[WatchedT]:
    return ListingPlan(runs, min([run.interval for run in runs]))


def _is_worth_it(interval: float, rate: float) -> bool:
    """Whether a list, with a request at this interval, saves enough of a rate of requests."""
    return _WORTH_IT / interval < rate


class ListingBreaker:
    """
    Which kinds of list can be used at present. It logs once when a kind cannot be used.

    :param clock: gives the time.
    :param log: receives that line.
    :ivar days: which day's list contains a run.
    """

    def __init__(self, clock: Clock, log: Log) -> None:
        self.days = Days(clock)
        self._clock = clock
        self._log = log
        self._unusable_until: dict[type[Listing], float] = {}
        self._failures: Counter[type[Listing]] = Counter()
        self._logged: set[type[Listing]] = set()

    def is_available(self, listing: Listing) -> bool:
        """Whether a list can be used now."""
        return self._clock.monotonic() >= self._unusable_until.get(type(listing), 0.0)

    def record_success(self, listing: Listing) -> None:
        """Record that a list was read."""
        del self._failures[type(listing)]

    def record_failure(self, listing: Listing, error: Exception) -> None:
        """Record that a list could not be read. A single transient fault has no consequence."""
        is_by_date = isinstance(listing, DayListing) and isinstance(listing.day, date)
        if is_by_date and isinstance(error, EtlworksBadRequest) and self.days.takes_dates:
            self._log.info(
                "The server takes no date for %s; days are counted back from today. %s", listing.title, error
            )
            self.days.takes_dates = False
            return
        failures = self._failures[type(listing)]
        self._failures[type(listing)] += 1
        if isinstance(error, _REFUSALS):
            self._do_without(listing, str(error), _REFUSED_FOR)
        elif failures or isinstance(error, EtlworksReplyError):
            self._do_without(listing, str(error), min(_FAILED_FOR * 2 ** max(0, failures - 1), _FAILED_FOR_AT_MOST))

    def record_stale(self, listing: Listing, audit_id: int) -> None:
        """Record that a list reports a run as going whose own record has ended before."""
        self._do_without(listing, f"It is stale: it reports run {audit_id} as going.", _STALE_FOR)

    def _do_without(self, listing: Listing, why: str, seconds: float) -> None:
        kind = type(listing)
        self._unusable_until[kind] = self._clock.monotonic() + seconds
        if kind not in self._logged:
            self._logged.add(kind)
            self._log.info("Runs are followed without %s. %s", listing.title, why)


def _read_with(read: Callable[[Response], list[_ListedFlow | None]], call: Call[Any]) -> Call[list[_ListedFlow | None]]:
    return replace(call, read=read)


def _as_id(value: Any) -> int:
    # No run has the id -1, so nobody watches a run whose id cannot be read.
    found = as_int(value)
    return -1 if found is None else found


@cache
def _decoder(shape: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape)


def _decode(answer: Response, shape: Any) -> Any:
    """Read a list, ten times as fast as into Python objects: the event loop stands still meanwhile."""
    try:
        try:
            return _decoder(shape).decode(answer.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # Another charset, or a number or a text that this decoder refuses: the slow one reads them.
            return msgspec.convert(answer.json, shape)
    except (msgspec.MsgspecError, EtlworksReplyError, RecursionError) as error:
        raise EtlworksReplyError(f"Expected a list of runs: {error}") from error
