"""How the asset triggers of a connection share one poll, from Airflow 3.3 on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow.triggers.shared_stream import SharedStreamProducer

from airflow_provider_etlworks.triggerer.startup import import_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Sequence

    from airflow.triggers.shared_stream import AdvanceItem

    from airflow_provider_etlworks.triggerer.completion_stream import PendingEvent

# Events that Airflow has not stored yet. Airflow fails a trigger that has too many of them.
_MAX_PENDING = 32


class SharedCompletions(SharedStreamProducer):
    """
    Finds the completed runs for all asset triggers of a connection, and records each once Airflow stored its event.

    :param etlworks_conn_id: the Airflow connection.
    """

    def __init__(self, etlworks_conn_id: str) -> None:
        self._conn_id = etlworks_conn_id
        self._slots = asyncio.Semaphore(_MAX_PENDING)

    async def open_stream(self) -> AsyncIterator[tuple[PendingEvent, PendingEvent]]:
        """Yield an event for each completed run, without end."""
        completions = await import_in_thread("airflow_provider_etlworks.triggerer.completion_stream")
        async for event in completions.stream_for(self._conn_id).events():
            await self._slots.acquire()
            yield event, event

    def get_advance_lane(self, broker_payload: PendingEvent) -> Hashable:
        """Return whose event it is: the checkpoint of one trigger does not wait for another trigger."""
        return broker_payload.subscription

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Record the events that Airflow has stored."""
        for item in batch:
            self._slots.release()
            event: PendingEvent = item.broker_payload
            event.acknowledge(is_stored=event.is_yielded and item.outcome.failed == 0)
        await batch[-1].broker_payload.subscription.commit()
