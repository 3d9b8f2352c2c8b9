"""An Etlworks with thousands of runs, the client that watches them, and hours that pass in seconds: in one loop."""

from __future__ import annotations

import asyncio
import json
import logging
import selectors
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
from airflow_provider_etlworks.runs.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from airflow_provider_etlworks.runs.follow import FollowResult

# Noon in UTC, so that a test of an hour crosses no midnight unless it wants to.
NOON = 1_800_014_400.0
MIDNIGHT = NOON + 12 * 3600


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait for time to pass: if no message is under way, it is later at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        events = super().select(0.001)
        if not events:
            self.now += timeout
        return events


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class LoopClock:
    """The time of the event loop, beginning at noon."""

    def time(self) -> float:
        return NOON + asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def in_virtual_time(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in an event loop whose time passes only while nothing happens."""
    loop = _VirtualLoop()
    try:
        loop.run_until_complete(main)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@dataclass
class ServedRun:
    """A run: ``ends`` and ``started`` are in the loop's seconds."""

    flow_id: int
    audit_id: int
    ends: float = float("inf")
    started: float = 0.0
    status: str = "success"

    def record(self, now: float) -> dict[str, Any]:
        over = now >= self.ends
        return {
            "flowId": self.flow_id,
            "auditId": self.audit_id,
            "status": self.status if over else "running",
            "started": int((NOON + self.started) * 1000),
            "ended": int((NOON + self.ends) * 1000) if over else None,
        }


@dataclass
class Asked:
    """A request as the server got it."""

    at: float
    path: str
    audit_id: int | None


@dataclass
class Followed:
    """The result that a follower got, and when."""

    audit_id: int
    result: FollowResult
    at: float


Body = Any


@dataclass
class BusyEtlworks:
    """
    Etlworks with many runs. An async context manager.

    :ivar day: gives the list of a day's runs: by ``offset``, a JSON value, or a whole response. Default: honest.
    :ivar history: the same of a flow's history.
    :ivar answer: may answer any request instead.
    :ivar list_takes: seconds that the list of a day takes.
    """

    runs: dict[int, ServedRun] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    day: Callable[[int], Body] | None = None
    history: Callable[[int], Body] | None = None
    answer: Callable[[web.Request], Body] | None = None
    list_takes: float = 0.0
    connections: set[Any] = field(default_factory=set)

    async def __aenter__(self) -> BusyEtlworks:
        app = web.Application()
        app.router.add_get("/rest/v1/executions/{flow_id}", self._record)
        app.router.add_get("/rest/v1/executions/{flow_id}/history", self._history)
        app.router.add_get("/rest/v1/metrics/executions", self._day)
        self._runner = web.AppRunner(app, keepalive_timeout=1e9, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def run(self, audit_id: int, **fields: Any) -> ServedRun:
        run = self.runs[audit_id] = ServedRun(**{"flow_id": audit_id + 100_000, "audit_id": audit_id, **fields})
        return run

    def settings(self, requests_per_minute: int = 300, **fields: Any) -> ClientSettings:
        fields = {"password": "key", "verify": False, **fields}
        return ClientSettings(f"http://127.0.0.1:{self.port}", requests_per_minute=requests_per_minute, **fields)

    def polls(self, audit_id: int) -> list[float]:
        """Return when a run's own record was read."""
        return [each.at for each in self.asked if each.audit_id == audit_id]

    def lists(self, part: str = "metrics") -> list[Asked]:
        return [each for each in self.asked if each.audit_id is None and part in each.path]

    def most_in_a_minute(self, since: float = 0.0) -> int:
        """Return how many requests came in the busiest 60 seconds."""
        times = [each.at for each in self.asked if each.at >= since]
        most, first = 0, 0
        for last, at in enumerate(times):
            while at - times[first] >= 60:
                first += 1
            most = max(most, last - first + 1)
        return most

    async def _record(self, request: web.Request) -> web.StreamResponse:
        audit_id = int(request.query["auditId"])
        own = self._note(request, audit_id)
        return own if own is not None else _json(self.runs[audit_id].record(_now()))

    async def _day(self, request: web.Request) -> web.StreamResponse:
        own = self._note(request)
        if own is not None:
            return own
        offset = int(request.query["offset"])
        listed = self.day(offset) if self.day else self.honest_day(offset)
        await asyncio.sleep(self.list_takes)
        return _json(listed)

    async def _history(self, request: web.Request) -> web.StreamResponse:
        own = self._note(request)
        if own is not None:
            return own
        flow_id = int(request.match_info["flow_id"])
        if self.history:
            return _json(self.history(flow_id))
        limit, now = int(request.query["limit"]), _now()
        of_flow = [run for run in self.runs.values() if run.flow_id == flow_id]
        return _json([run.record(now) for run in sorted(of_flow, key=lambda run: -run.audit_id)[:limit]])

    def honest_day(self, offset: int, *, at: float | None = None, without: Sequence[int] = ()) -> list[dict[str, Any]]:
        """Return the list of a day, as it stood at a time, without some runs."""
        now = _now()
        today = (NOON + now) // 86400
        flows: dict[int, list[dict[str, Any]]] = {}
        for run in self.runs.values():
            if run.audit_id not in without and (NOON + run.started) // 86400 == today - offset:
                flows.setdefault(run.flow_id, []).append(run.record(now if at is None else at))
        return [{"flowId": flow_id, "name": str(flow_id), "executions": runs} for flow_id, runs in flows.items()]

    def _note(self, request: web.Request, audit_id: int | None = None) -> web.StreamResponse | None:
        self.asked.append(Asked(_now(), request.path, audit_id))
        self.connections.add(request.transport)
        own = self.answer(request) if self.answer else None
        return None if own is None else _json(own)


class Following:
    """Those who follow runs of an Etlworks, through one watcher. An async context manager."""

    def __init__(self, etlworks: BusyEtlworks, **settings: Any) -> None:
        self.etlworks = etlworks
        self.done: list[Followed] = []
        self._settings = settings
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Following:
        settings = self.etlworks.settings(**self._settings)
        self.client = await AsyncEtlworksClient(settings, clock=LoopClock()).open()
        self.watcher = Watcher(self.client)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.watcher.close()
        await self.client.close()

    def follow(self, run: ServedRun, **options: Any) -> asyncio.Task[None]:
        async def until_done() -> None:
            log = options.pop("log", logging.getLogger("task"))
            result = await self.watcher.follow(RunRef(run.flow_id, run.audit_id), PollPolicy(**options), log=log)
            self.done.append(Followed(run.audit_id, result, _now()))

        task = asyncio.ensure_future(until_done())
        self._tasks.append(task)
        return task

    async def all_done(self) -> None:
        """Wait until everybody has a result; an error is raised."""
        await asyncio.gather(*self._tasks)

    def lags(self) -> list[float]:
        """Return the seconds from each end to its report, the shortest first."""
        return sorted(each.at - self.etlworks.runs[each.audit_id].ends for each in self.done)

    def longest_delay(self, poll_interval: float = 10.0) -> float:
        """Return how many seconds after the promised time the latest end was reported."""
        runs = [(each.at, self.etlworks.runs[each.audit_id]) for each in self.done]
        return max(at - run.ends - max(poll_interval, 0.05 * (run.ends - run.started)) for at, run in runs)


def longest_waits(etlworks: BusyEtlworks, since: float, until: float) -> tuple[float, float]:
    """Return the longest and the mean time between two polls of the same run."""
    waits: list[float] = []
    last: dict[int, float] = {}
    for each in etlworks.asked:
        if each.audit_id is not None and since <= each.at <= until:
            if each.audit_id in last:
                waits.append(each.at - last[each.audit_id])
            last[each.audit_id] = each.at
    return max(waits), sum(waits) / len(waits)


def asked_per_path(etlworks: BusyEtlworks) -> Counter[str]:
    return Counter(each.path for each in etlworks.asked)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _json(value: Any) -> web.StreamResponse:
    if isinstance(value, web.StreamResponse):
        return value
    return web.Response(body=json.dumps(value).encode(), content_type="application/json")
