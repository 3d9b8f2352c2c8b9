"""How the watchers of a connection share one poll, from Airflow 3.3 on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow.triggers.shared_stream import SharedStreamProducer

from airflow_provider_etlworks.triggerer.startup import import_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Sequence

    from airflow.triggers.shared_stream import AdvanceItem

    from airflow_provider_etlworks.triggerer.completions import PendingEvent

# Ends on their way into Airflow's database. Airflow fails a trigger that has too many before it.
_AT_A_TIME = 32


class SharedEnds(SharedStreamProducer):
    """
    Finds the ends for all watchers of a connection, and has each noted once Airflow has stored its event.

    :param etlworks_conn_id: the Airflow connection.
    """

    def __init__(self, etlworks_conn_id: str) -> None:
        self._conn_id = etlworks_conn_id
        self._room = asyncio.Semaphore(_AT_A_TIME)

    async def open_stream(self) -> AsyncIterator[tuple[PendingEvent, PendingEvent]]:
        """Yield each end, for ever."""
        ends = await import_in_thread("airflow_provider_etlworks.triggerer.completions")
        async for told in ends.stream_of(self._conn_id).ends():
            await self._room.acquire()
            yield told, told

    def get_advance_lane(self, broker_payload: PendingEvent) -> Hashable:
        """Return whose end it is: the notes of one watcher do not wait for another's."""
        return broker_payload.watch

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Note ends whose events are stored."""
        for item in batch:
            self._room.release()
            told: PendingEvent = item.broker_payload
            told.acknowledge(is_stored=told.has_left and item.outcome.failed == 0)
        await batch[-1].broker_payload.watch.commit()
