"""
One watcher for all triggers of a connection in one event loop: one pool, one log-in, one rate limit.

The key is what the connection says, not its id. Triggers that start after the connection was changed get another
watcher; triggers that already follow a run keep theirs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import asgiref.sync  # noqa: F401  # the hook needs it: imported with this module in a thread, not on the event loop
from tenacity import (
    AsyncRetrying,
    before_sleep_log,
    retry_if_not_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksUnauthorized
from airflow_provider_etlworks.compat import AirflowNotFoundException
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.hooks.metrics import component_metrics
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.runs.poll_queue import LAST_POLL_WITHIN
from airflow_provider_etlworks.runs.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.client.settings import ClientSettings

log = logging.getLogger(__name__)

# Seconds for which reading the connection is retried.
_READ_WITHIN = 300.0
# Seconds in which triggers start together: one reading of the connection serves them all.
_TOGETHER = 1.0


@dataclass
class _Shared:
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    watcher: Watcher | None = None
    users: int = 0


@dataclass(frozen=True)
class _Reading:
    """
    A reading of a connection. Triggers that need it at about the same time share it.

    :ivar settings: what it says, or why it cannot be read.
    :ivar began_at: when it began, by the machine's monotonic clock.
    :ivar instead_of: the watcher whose credentials were refused before.
    """

    settings: asyncio.Task[ClientSettings]
    began_at: float
    instead_of: Watcher | None


_BY_LOOP: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[ClientSettings, _Shared]] = WeakKeyDictionary()
_READINGS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Reading]] = WeakKeyDictionary()


class ConnectionUnreadableError(Exception):
    """Airflow could not read the connection, or not in time."""


@asynccontextmanager
async def shared_watcher(
    etlworks_conn_id: str,
    *,
    instead_of: Watcher | None = None,
    root_url: str | None = None,
    deadline: float | None = None,
) -> AsyncIterator[Watcher]:
    """
    Yield the watcher that all triggers with the same settings in this event loop share; the last user closes it.

    :param etlworks_conn_id: the Airflow connection. It is read once for all users that start together.
    :param instead_of: a watcher whose credentials no longer work: the connection is read again, once for all its users.
    :param root_url: the instance that the connection must name; ``None`` is any.
    :param deadline: Unix time of a last poll, for which the connection is needed in time; ``None`` is never.
    :raises EtlworksConfigError: the connection does not exist, cannot work, or names another instance.
    :raises ConnectionUnreadableError: Airflow cannot read it.
    """
    settings = await read_connection(etlworks_conn_id, instead_of=instead_of, root_url=root_url, deadline=deadline)
    async with SharedWatcher(settings) as watcher:
        yield watcher


class SharedWatcher:
    """
    The watcher that all users with these settings in this event loop share. An async context manager.

    The last user closes the watcher. A class, since a generator for each of thousands of triggers takes more memory.

    :param settings: what the connection says.
    """

    __slots__ = ("_settings", "_shared")

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings

    async def __aenter__(self) -> Watcher:
        """Open the watcher, unless another user has."""
        watchers = _BY_LOOP.setdefault(asyncio.get_running_loop(), {})
        self._shared = shared = watchers.setdefault(self._settings, _Shared())
        shared.users += 1
        try:
            async with shared.opening:
                if shared.watcher is None:
                    metrics = await component_metrics(self._settings.name)
                    client = AsyncEtlworksClient(self._settings, metrics=metrics)
                    shared.watcher = Watcher(await client.open())
        except BaseException:
            await self.__aexit__()
            raise
        return shared.watcher

    async def __aexit__(self, *_: object) -> None:
        """Close the watcher, unless another user has it."""
        shared = self._shared
        shared.users -= 1
        if shared.users == 0:
            del _BY_LOOP[asyncio.get_running_loop()][self._settings]
            if shared.watcher is not None:
                await shared.watcher.close()
                await shared.watcher.client.close()


async def follow_with_shared_watcher(
    etlworks_conn_id: str,
    log: Log,
    follow: Callable[[Watcher], Awaitable[FollowResult]],
    *,
    root_url: str | None = None,
    deadline: float | None = None,
) -> FollowResult:
    """
    Follow with the shared watcher. If Etlworks refuses the credentials, read the connection again and follow once more.

    :param etlworks_conn_id: the Airflow connection. If it cannot work, the result is ``denied``.
    :param log: receives a line if the connection is read again.
    :param follow: follows with a watcher, and returns how it ended.
    :param root_url: the instance that has the run; if the connection names another one, the result is ``denied``.
    :param deadline: Unix time of the last poll; if the connection cannot be read in time, the result is ``deadline``.
    """
    try:
        # Not shared_watcher: it would keep one more frame for each of thousands of triggers.
        settings = await read_connection(etlworks_conn_id, root_url=root_url, deadline=deadline)
        async with SharedWatcher(settings) as watcher:
            followed = await follow(watcher)
            if not isinstance(followed.error, EtlworksUnauthorized):
                return followed
            # The password may have been changed since the connection was read.
            log.warning("%s Reading the connection again.", followed.detail)
            host = settings.root_url
            async with shared_watcher(
                etlworks_conn_id, instead_of=watcher, root_url=host, deadline=deadline
            ) as renewed:
                return await follow(renewed)
    except EtlworksConfigError as error:
        return FollowResult(Ending.DENIED, detail=str(error))
    except ConnectionUnreadableError as error:
        is_late = deadline is not None and time.time() >= deadline
        return FollowResult(Ending.DEADLINE if is_late else Ending.LOST_TOUCH, detail=str(error))


async def read_connection(
    conn_id: str,
    *,
    instead_of: Watcher | None = None,
    root_url: str | None = None,
    deadline: float | None = None,
) -> ClientSettings:
    """Return what the connection says. The parameters and errors are those of :func:`shared_watcher`."""
    called_at = time.monotonic()
    reading = _reading(conn_id, called_at - _TOGETHER, instead_of)
    settings = await _result(conn_id, reading, deadline)
    if root_url not in (None, settings.root_url) and reading.began_at < called_at:
        # Perhaps that reading began before the connection was changed.
        settings = await _result(conn_id, _reading(conn_id, called_at, instead_of), deadline)
    if root_url not in (None, settings.root_url):
        raise EtlworksConfigError(
            f"This began on {root_url}, but connection {conn_id!r} names {settings.root_url} by now. What has the same "
            "id there is something else, so nothing is followed or stopped there."
        )
    return settings


def _reading(conn_id: str, since: float, instead_of: Watcher | None) -> _Reading:
    """Return a reading of the connection that is under way, or began since a moment. If there is none, begin one."""
    readings = _READINGS.setdefault(asyncio.get_running_loop(), {})
    reading = readings.get(conn_id)
    fits = reading is not None and instead_of in (None, reading.instead_of)
    if reading is not None and fits and (reading.began_at >= since or not reading.settings.done()):
        return reading
    task = asyncio.ensure_future(_read_settings(conn_id))
    # If nobody waits any more, its error is of no interest.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    reading = readings[conn_id] = _Reading(task, time.monotonic(), instead_of)
    return reading


async def _result(conn_id: str, reading: _Reading, deadline: float | None) -> ClientSettings:
    """
    Wait for a reading, until a last poll would be too late.

    Everybody who waits gets an error of its own: each raise of the same one would make its traceback longer.
    """
    timeout = None if deadline is None else max(0.0, deadline + LAST_POLL_WITHIN - time.time())
    await asyncio.wait((reading.settings,), timeout=timeout)
    if not reading.settings.done():
        raise ConnectionUnreadableError(f"Airflow could not read connection {conn_id!r} in time.")
    error = reading.settings.exception()
    if isinstance(error, (EtlworksConfigError, AirflowNotFoundException)):
        raise EtlworksConfigError(str(error))
    if error is not None:
        raise ConnectionUnreadableError(f"Airflow cannot read connection {conn_id!r}: {error!r}") from error
    return reading.settings.result()


async def _read_settings(etlworks_conn_id: str) -> ClientSettings:
    """Read the connection, and retry if Airflow itself has a fault: its API server may be restarting."""
    retrying = AsyncRetrying(
        retry=retry_if_not_exception_type((EtlworksConfigError, AirflowNotFoundException)),
        stop=stop_after_delay(_READ_WITHIN),
        wait=wait_random_exponential(min=1, max=15),
        before_sleep=before_sleep_log(log, logging.WARNING),
        reraise=True,
    )
    return await retrying(EtlworksHook(etlworks_conn_id).read_settings)
