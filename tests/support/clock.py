"""The clocks of the tests. A test passes one to what it tests, and no test waits for the real one."""

from __future__ import annotations

import asyncio
import selectors
import threading
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client import aio, sync

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import pytest

BEGINNING = 1_800_000_000.0
# Noon in UTC, so that a test of an hour crosses no midnight unless it wants to.
NOON = 1_800_014_400.0
MIDNIGHT = NOON + 12 * 3600


class VirtualClock:
    """Time that passes only in ``sleep``, and there at once."""

    def __init__(self, now: float = BEGINNING) -> None:
        self.now = now
        self.slept: list[float] = []
        self._lock = threading.Lock()

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)
        await asyncio.sleep(0)


class FastClock(VirtualClock):
    """A clock for several coroutines: it passes once nothing is on its way to a server, and keeps appointments."""

    def __init__(self) -> None:
        super().__init__()
        self._appointments: list[tuple[float, Callable[[], object]]] = []
        self._sleepers: list[float] = []
        self._on_the_way = 0
        self._arrivals = 0

    def at(self, seconds: float, what: Callable[[], object]) -> None:
        """Do something so many seconds after the beginning of time."""
        self._appointments.append((BEGINNING + seconds, what))

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        for appointment in [each for each in self._appointments if each[0] <= self.now]:
            self._appointments.remove(appointment)
            appointment[1]()

    async def sleep_async(self, seconds: float) -> None:
        """Let time pass, once nothing is on its way to a server and nobody wakes up earlier."""
        wake_at = self.now + seconds
        self._sleepers.append(wake_at)
        try:
            while True:
                # Whatever can go on goes on first, what has just arrived included.
                arrivals = self._arrivals
                for _ in range(25):
                    await asyncio.sleep(0)
                if self.now >= wake_at:
                    return
                if self._on_the_way or self._arrivals != arrivals or min(self._sleepers) < wake_at:
                    await asyncio.sleep(0.001)
                else:
                    self.sleep(wake_at - self.now)
        finally:
            self._sleepers.remove(wake_at)
            # Whoever slept goes on now, so that the others must not let time pass at once.
            self._arrivals += 1

    def stand_still_during(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        """Let no time pass while a coroutine of a class is under way."""
        method = getattr(owner, name)

        async def counted(*args: Any, **kwargs: Any) -> Any:
            self._on_the_way += 1
            try:
                return await method(*args, **kwargs)
            finally:
                self._on_the_way -= 1
                self._arrivals += 1

        monkeypatch.setattr(owner, name, counted)


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait for time to pass: if no message and no thread is under way, it is later at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.busy_threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0 or self.busy_threads:
            return super().select(None if self.busy_threads and timeout != 0 else timeout)
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

    def run_in_executor(self, executor: Any, function: Any, *arguments: Any) -> Any:
        self._jumping.busy_threads += 1
        future = super().run_in_executor(executor, function, *arguments)
        future.add_done_callback(lambda _: setattr(self._jumping, "busy_threads", self._jumping.busy_threads - 1))
        return future


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


def pass_clock_to_clients(monkeypatch: pytest.MonkeyPatch, clock: VirtualClock) -> None:
    """Let the clients that the hook and the triggerer make be made with a clock."""
    # Imported here: it is the only module that binds the name when it is imported, and it needs Airflow.
    from airflow_provider_etlworks.triggerer import shared_watcher

    monkeypatch.setattr(sync, "EtlworksClient", partial(sync.EtlworksClient, clock=clock, sleep=clock.sleep))
    asynchronous = partial(aio.AsyncEtlworksClient, clock=clock, sleep=clock.sleep_async)
    for module in (aio, shared_watcher):
        monkeypatch.setattr(module, "AsyncEtlworksClient", asynchronous)


def moment(seconds: float) -> datetime:
    """Return a Unix time as Airflow has it."""
    return datetime.fromtimestamp(seconds, tz=timezone.utc)
