"""Both clients behind one interface."""

from __future__ import annotations

import asyncio
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.client.sync import EtlworksClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from airflow_provider_etlworks.client.call import Call, PagedCall
    from airflow_provider_etlworks.client.procedure import Procedure
    from airflow_provider_etlworks.client.settings import ClientSettings
    from support.clock import VirtualClock

GENEROUS = 60.0
"""Seconds after which a test that waits for something has failed."""


class Drive:
    """Either client behind the same methods. It keeps every raised error in ``errors``."""

    def __init__(self, settings: ClientSettings, clock: VirtualClock) -> None:
        self.settings = settings
        self.clock = clock
        self.errors: list[BaseException] = []

    def send(self, call: Call[Any], **options: Any) -> Any:
        return self._recorded(lambda: self._send(call, **options))

    def iterate(self, paged: PagedCall[Any]) -> list[Any]:
        return self._recorded(lambda: self._iterate(paged))

    def run(self, procedure: Procedure[Any], **options: Any) -> Any:
        return self._recorded(lambda: self._run(procedure, **options))

    def send_at_once(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        """Send calls concurrently, and return each one's value or error."""
        results = self._send_at_once(calls, **options)
        self.errors += [each for each in results if isinstance(each, BaseException)]
        return results

    def _recorded(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:
            self.errors.append(error)
            raise

    def _send(self, call: Call[Any], **options: Any) -> Any:
        raise NotImplementedError

    def _iterate(self, paged: PagedCall[Any]) -> list[Any]:
        raise NotImplementedError

    def _run(self, procedure: Procedure[Any], **options: Any) -> Any:
        raise NotImplementedError

    def _send_at_once(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class SyncDrive(Drive):
    """Drives the client over requests."""

    def __init__(self, settings: ClientSettings, clock: VirtualClock) -> None:
        super().__init__(settings, clock)
        self.client = EtlworksClient(settings, clock=clock, sleep=clock.sleep)

    def _send(self, call: Call[Any], **options: Any) -> Any:
        return self.client.send(call, **options)

    def _iterate(self, paged: PagedCall[Any]) -> list[Any]:
        return list(self.client.iterate(paged))

    def _run(self, procedure: Procedure[Any], **options: Any) -> Any:
        return self.client.run(procedure, **options)

    def _send_at_once(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        together = threading.Barrier(len(calls))

        def one(call: Call[Any]) -> Any:
            together.wait(GENEROUS)
            return self.client.send(call, **options)

        with ThreadPoolExecutor(len(calls)) as pool:
            futures = [pool.submit(one, call) for call in calls]
        return [future.exception() or future.result() for future in futures]

    def close(self) -> None:
        self.client.close()


class AsyncDrive(Drive):
    """Drives the client over aiohttp, in an event loop of its own."""

    def __init__(self, settings: ClientSettings, clock: VirtualClock) -> None:
        super().__init__(settings, clock)
        self._loop = asyncio.new_event_loop()
        self.client = AsyncEtlworksClient(settings, clock=clock, sleep=clock.sleep_async)
        try:
            self._loop.run_until_complete(self.client.open())
        except BaseException:
            self._loop.close()
            raise

    def _send(self, call: Call[Any], **options: Any) -> Any:
        return self._loop.run_until_complete(self.client.send(call, **options))

    def _iterate(self, paged: PagedCall[Any]) -> list[Any]:
        async def read_all() -> list[Any]:
            return [item async for item in self.client.iterate(paged)]

        return self._loop.run_until_complete(read_all())

    def _run(self, procedure: Procedure[Any], **options: Any) -> Any:
        return self._loop.run_until_complete(self.client.run(procedure, **options))

    def _send_at_once(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        async def together() -> list[Any]:
            return await asyncio.gather(*(self.client.send(call, **options) for call in calls), return_exceptions=True)

        return self._loop.run_until_complete(together())

    def close(self) -> None:
        self._loop.run_until_complete(self.client.close())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


DRIVES: Mapping[str, type[Drive]] = {"requests": SyncDrive, "aiohttp": AsyncDrive}


def whole_text_of(error: BaseException) -> str:
    """Return everything that an error can show: its text, its repr, and the tracebacks of its whole chain."""
    return "\n".join([str(error), repr(error), *traceback.format_exception(type(error), error, error.__traceback__)])
