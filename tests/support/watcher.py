"""Those who follow the runs of a busy Etlworks, and what its server has seen of them."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
from airflow_provider_etlworks.runs.watcher import Watcher
from support.clock import LoopClock, in_virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from airflow_provider_etlworks.runs.follow import FollowResult
    from support.etlworks import BusyEtlworks, ServedRun


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let a test run in virtual time."""

    # Not functools.wraps: pytest would take the test for a coroutine.
    def run(**fixtures: Any) -> None:
        in_virtual_time(test(**fixtures))

    signature = inspect.signature(test)
    run.__name__, run.__doc__, run.__signature__ = test.__name__, test.__doc__, signature  # type: ignore[attr-defined]
    run.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined]
    return run


def refuse_lists(request: web.Request) -> web.Response | None:
    """Answer as to a user who is not an administrator, at a server without histories."""
    if "metrics" in request.path or request.path.endswith("/history"):
        return web.json_response({"status": 403, "message": "Administrators only"}, status=403)
    return None


class Hanging(web.Response):
    """An answer that never comes."""

    async def prepare(self, _: Any) -> Any:
        await asyncio.Event().wait()


@dataclass
class Followed:
    """The result that a follower got, and when."""

    audit_id: int
    result: FollowResult
    at: float


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
            self.done.append(Followed(run.audit_id, result, asyncio.get_running_loop().time()))

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
