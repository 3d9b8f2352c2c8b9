"""One client for all the triggers of a connection in one event loop: one pool, one log-in, one budget of requests."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class _Shared:
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    client: AsyncEtlworksClient | None = None
    users: int = 0


_BY_LOOP: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Shared]] = WeakKeyDictionary()


@asynccontextmanager
async def shared_client(
    etlworks_conn_id: str, *, instead_of: AsyncEtlworksClient | None = None
) -> AsyncIterator[AsyncEtlworksClient]:
    """
    Give the client that everybody in this event loop shares; the last to leave closes it.

    :param etlworks_conn_id: the Airflow connection. It is read once for all.
    :param instead_of: a client whose credentials no longer work: the connection is read again, unless somebody else
        has done that since.
    """
    clients = _BY_LOOP.setdefault(asyncio.get_running_loop(), {})
    shared = clients.get(etlworks_conn_id)
    if shared is None or (instead_of is not None and shared.client is instead_of):
        shared = clients[etlworks_conn_id] = _Shared()
    shared.users += 1
    try:
        async with shared.opening:
            if shared.client is None:
                settings = await EtlworksHook(etlworks_conn_id).read_settings()
                shared.client = await AsyncEtlworksClient(settings).open()
        yield shared.client
    finally:
        shared.users -= 1
        if shared.users == 0:
            if clients.get(etlworks_conn_id) is shared:
                del clients[etlworks_conn_id]
            if shared.client is not None:
                await shared.client.close()
