"""One watcher for all triggers of a connection in one event loop: one pool, one log-in, one rate limit."""

from __future__ import annotations

import asyncio
import logging
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
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.runs.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.client.settings import ClientSettings

log = logging.getLogger(__name__)

# Seconds for which reading the connection is retried.
_READ_WITHIN = 300.0


@dataclass
class _Shared:
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    watcher: Watcher | None = None
    users: int = 0


_BY_LOOP: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Shared]] = WeakKeyDictionary()


@asynccontextmanager
async def shared_watcher(etlworks_conn_id: str, *, instead_of: Watcher | None = None) -> AsyncIterator[Watcher]:
    """
    Yield the watcher of a connection that all triggers in this event loop share; the last user closes it.

    :param etlworks_conn_id: the Airflow connection. It is read once for all users.
    :param instead_of: a watcher whose credentials no longer work: the connection is read again, unless another user has
        done that since.
    """
    watchers = _BY_LOOP.setdefault(asyncio.get_running_loop(), {})
    shared = watchers.get(etlworks_conn_id)
    if shared is None or (instead_of is not None and shared.watcher is instead_of):
        shared = watchers[etlworks_conn_id] = _Shared()
    shared.users += 1
    try:
        async with shared.opening:
            if shared.watcher is None:
                settings = await _read_settings(etlworks_conn_id)
                shared.watcher = Watcher(await AsyncEtlworksClient(settings).open())
        yield shared.watcher
    finally:
        shared.users -= 1
        if shared.users == 0:
            if watchers.get(etlworks_conn_id) is shared:
                del watchers[etlworks_conn_id]
            if shared.watcher is not None:
                await shared.watcher.close()
                await shared.watcher.client.close()


async def follow_with_shared_watcher(
    etlworks_conn_id: str, log: Log, follow: Callable[[Watcher], Awaitable[FollowResult]]
) -> FollowResult:
    """
    Follow with the shared watcher. If Etlworks refuses the credentials, read the connection again and follow once more.

    :param etlworks_conn_id: the Airflow connection. If it cannot work, the result is ``denied``.
    :param log: receives a line if the connection is read again.
    :param follow: follows with a watcher, and returns how it ended.
    """
    try:
        async with shared_watcher(etlworks_conn_id) as watcher:
            followed = await follow(watcher)
            if not isinstance(followed.error, EtlworksUnauthorized):
                return followed
            # The password may have been changed since the connection was read.
            log.warning("%s Reading the connection again.", followed.detail)
            async with shared_watcher(etlworks_conn_id, instead_of=watcher) as renewed:
                return await follow(renewed)
    except (EtlworksConfigError, AirflowNotFoundException) as error:
        return FollowResult(Ending.DENIED, detail=str(error))


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
