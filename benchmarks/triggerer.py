"""A triggerer, as far as a trigger sees it: many triggers in one event loop of one process, and what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection
    from types import TracebackType

_LOOP_TICK = 0.005


@dataclass(frozen=True)
class Watching:
    """
    Where runs are, and how to watch them.

    :ivar url: the server.
    :ivar connection: Airflow's connection to it, as JSON.
    :ivar poll_interval: seconds.
    :ivar requests_per_minute: the connection's budget; 0 is none.
    """

    url: str
    connection: str
    poll_interval: float
    requests_per_minute: int


@dataclass(frozen=True)
class Stretch:
    """What a process used between two moments: ``since`` and ``until``, by the machine's monotonic clock."""

    since: float
    until: float
    cpu_seconds: float


@dataclass(frozen=True)
class Lateness:
    """
    How late an event loop was, in seconds.

    :ivar p99: the 99th percentile.
    :ivar longest: the longest.
    :ivar longest_without_gc: the longest, without the time of Python's garbage collector.
    """

    p99: float
    longest: float
    longest_without_gc: float


@dataclass(frozen=True)
class Ended:
    """The end of a watch: how it ended, and how many seconds after the run's own end it was reported."""

    ending: str
    lag: float


class TriggererProcess:
    """
    A process that watches runs and measures what that costs. A context manager.

    Its methods return when they are done.
    """

    def __init__(self, how: Watching) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_run, args=(theirs, how), daemon=True)

    def __enter__(self) -> TriggererProcess:
        self._process.start()
        # It is ready when it answers.
        self.memory()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(("stop",))
        self._process.join()

    def watch(self, means: str, runs: list[tuple[int, int]]) -> None:
        """Start to watch runs (flow id, audit id), each with a ``trigger``, a ``bare`` loop or an ``idle`` task."""
        self._ask("watch", means, runs)

    def measure(self, seconds: float) -> Stretch:
        """Let some seconds pass, and return what they cost."""
        return self._ask("measure", seconds)

    def lateness(self, seconds: float) -> Lateness:
        """Let some seconds pass, and return how late the event loop was."""
        return self._ask("lateness", seconds)

    def memory(self) -> int:
        """Return the resident memory, in bytes."""
        return self._ask("memory")

    def ended(self) -> list[Ended]:
        """Return the watches that came to an end."""
        return self._ask("ended")

    def _ask(self, *command: Any) -> Any:
        self._pipe.send(command)
        return self._pipe.recv()


def _run(pipe: Connection, how: Watching) -> None:
    connection = json.loads(how.connection)
    connection["extra"]["requests_per_minute"] = how.requests_per_minute
    os.environ["AIRFLOW_CONN_ETLWORKS_DEFAULT"] = json.dumps(connection)
    # Airflow writes what a trigger logs to a file of its own: not what is measured here.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        asyncio.run(_Triggerer(pipe, how).obey())


class _Triggerer:
    def __init__(self, pipe: Connection, how: Watching) -> None:
        self._pipe = pipe
        self._how = how
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ended: list[Ended] = []

    async def obey(self) -> None:
        # Reads Airflow's settings, so not before they are there.
        from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger

        self._trigger_class = EtlworksFlowExecutionTrigger
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=10, keepalive_timeout=75)) as session:
            self._session = session
            while (command := await self._next_command()) != ("stop",):
                what, *arguments = command
                self._pipe.send(await getattr(self, what)(*arguments))
            await self._forget()

    async def _next_command(self) -> tuple[Any, ...]:
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), arrived.set)
        try:
            await arrived.wait()
        finally:
            loop.remove_reader(self._pipe.fileno())
        command: tuple[Any, ...] = self._pipe.recv()
        return command

    async def watch(self, means: str, runs: list[tuple[int, int]]) -> None:
        watching = {"trigger": self._trigger, "bare": self._bare_loop, "idle": self._idle}[means]
        self._tasks.append(asyncio.ensure_future(self._start(watching, runs)))

    async def _start(self, watching: Callable[[int, int], Awaitable[None]], runs: list[tuple[int, int]]) -> None:
        for flow_id, audit_id in runs:
            self._tasks.append(asyncio.ensure_future(watching(flow_id, audit_id)))
            # As Airflow's triggerer does between two triggers.
            await asyncio.sleep(0)

    async def _forget(self) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _trigger(self, flow_id: int, audit_id: int) -> None:
        trigger = self._trigger_class(flow_id, audit_id, poll_interval=self._how.poll_interval)
        async for event in trigger.run():
            ended_at = event.payload["execution"] and event.payload["execution"]["ended_at"]
            lag = time.time() - datetime.fromisoformat(ended_at).timestamp() if ended_at else float("nan")
            self._ended.append(Ended(event.payload["ending"], lag))

    async def _bare_loop(self, flow_id: int, audit_id: int) -> None:
        assert self._session is not None
        url = f"{self._how.url}/rest/v1/executions/{flow_id}?auditId={audit_id}"
        headers = {"Authorization": f"Bearer {json.loads(self._how.connection)['password']}"}
        while True:
            await asyncio.sleep(self._how.poll_interval)
            async with self._session.get(url, headers=headers) as response:
                record = await response.json()
            if record["status"] not in ("queued", "running"):
                return

    async def _idle(self, _: int, __: int) -> None:
        await asyncio.sleep(86_400)

    async def measure(self, seconds: float) -> Stretch:
        since, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        return Stretch(since, time.monotonic(), time.process_time() - cpu)

    async def lateness(self, seconds: float) -> Lateness:
        late: list[float] = []
        late_without_gc: list[float] = []
        collecting = _Collecting()
        gc.callbacks.append(collecting)
        begun = time.monotonic()
        while (now := time.monotonic()) - begun < seconds:
            collected = collecting.seconds
            await asyncio.sleep(_LOOP_TICK)
            late.append(time.monotonic() - now - _LOOP_TICK)
            late_without_gc.append(late[-1] - (collecting.seconds - collected))
        gc.callbacks.remove(collecting)
        return Lateness(statistics.quantiles(late, n=100)[98], max(late), max(late_without_gc))

    async def memory(self) -> int:
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    async def ended(self) -> list[Ended]:
        return self._ended


class _Collecting:
    """Counts the seconds that Python's garbage collector takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __call__(self, phase: str, _: object) -> None:
        if phase == "start":
            self._since = time.monotonic()
        else:
            self.seconds += time.monotonic() - self._since
