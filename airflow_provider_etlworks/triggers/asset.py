"""The trigger that updates an Airflow asset when a run of a flow completes. It needs Airflow 3 or later."""

from __future__ import annotations

from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_etlworks.client.values import parse_seconds
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.triggerer.startup import import_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Sequence
    from datetime import timedelta
    from types import ModuleType

    from airflow.triggers.shared_stream import SharedStreamProducer

    from airflow_provider_etlworks.triggerer.completion_stream import FlowToWatch

_COMPLETIONS = "airflow_provider_etlworks.triggerer.completion_stream"

DEFAULT_STATUSES = ("success", "warning")
FINAL_STATUSES = ("success", "warning", "error", "canceled")


class EtlworksFlowFinishedTrigger(BaseEventTrigger):
    """
    Yields an event for each completed run of a flow, whoever started the run: for ``AssetWatcher``.

    An asset with such a watcher is updated each time, and DAGs that are scheduled on it run. The event's payload is
    what :class:`~airflow_provider_etlworks.operators.flow.EtlworksRunFlowOperator` returns: ``flow_id``, ``audit_id``,
    ``status``, ``started_at``, ``ended_at``, ``duration_seconds``, ``records`` and ``url``.

    The first start reports no run that has completed before. After that no completed run is missed: a checkpoint says
    which runs are reported. It is stored with the asset from Airflow 3.3 on, as a variable before. Events are delivered
    at least once: a run is reported twice only if the triggerer dies within a second or two (ten seconds, before
    Airflow 3.3) after its event. A run that Etlworks repeats by itself is several runs, with an event for each.

    From Airflow 3.3 on, all watchers of a connection share one poll. Before, each reads its flow's history.

    :param flow_id: the flow.
    :param statuses: the final statuses that yield an event: any of ``success``, ``warning``, ``error`` and
        ``canceled``. Default: ``success`` and ``warning``.
    :param etlworks_conn_id: the Airflow connection. With an administrator's, three and more watchers send one request
        per interval, and one for each completed run; with another user's, one request per flow and interval.
    :param poll_interval: seconds between two polls, or a ``timedelta``; default 30. If watchers share a poll, the
        shortest interval counts.
    :raises ValueError: an argument is not valid.
    """

    def __init__(
        self,
        flow_id: int,
        statuses: Sequence[str] = DEFAULT_STATUSES,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float | timedelta = 30.0,
        **_from_other_releases: Any,
    ) -> None:
        super().__init__()
        if isinstance(flow_id, bool) or not hasattr(flow_id, "__index__") or index(flow_id) < 1:
            raise ValueError(f"flow_id is {flow_id!r}; it must be a whole number above 0, such as 12345.")
        chosen = {statuses} if isinstance(statuses, str) else set(statuses)
        if not chosen or not chosen <= set(FINAL_STATUSES):
            raise ValueError(f"statuses is {statuses!r}; it must be some of {', '.join(FINAL_STATUSES)}.")
        self.flow_id = index(flow_id)
        # In one order, and as a list: Airflow compares what is stored with what the DAG file says.
        self.statuses = [status for status in FINAL_STATUSES if status in chosen]
        self.etlworks_conn_id = etlworks_conn_id
        self.poll_interval = float(parse_seconds("poll_interval", poll_interval))

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments that make this trigger again."""
        return (
            "airflow_provider_etlworks.triggers.asset.EtlworksFlowFinishedTrigger",
            {
                "flow_id": self.flow_id,
                "statuses": self.statuses,
                "etlworks_conn_id": self.etlworks_conn_id,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield an event for each completed run, without end. Airflow 3.3 and later use the shared stream instead."""
        completions = await import_in_thread(_COMPLETIONS)
        async for payload in completions.payloads(self._flow_to_watch(completions)):
            yield TriggerEvent(payload)

    def shared_stream_key(self) -> Hashable | None:
        """Return what all watchers of a connection have in common. Airflow 3.3 and later call this."""
        return "etlworks", self.etlworks_conn_id

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Return the producer that all watchers of a connection share. Airflow 3.3 and later call this."""
        from airflow_provider_etlworks.triggerer.shared_stream import SharedCompletions

        return SharedCompletions(kwargs["etlworks_conn_id"])

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Yield this trigger's events. Airflow 3.3 and later call this."""
        completions = await import_in_thread(_COMPLETIONS)
        stream = completions.stream_for(self.etlworks_conn_id)
        with stream.subscribe(self._flow_to_watch(completions)) as subscription:
            async for event in shared_stream:
                if event.subscription is subscription:
                    event.is_yielded = True
                    yield TriggerEvent(event.payload)

    def _flow_to_watch(self, completions: ModuleType) -> FlowToWatch:
        from airflow_provider_etlworks.compat import read_asset_states, read_checkpoint, write_checkpoint

        flow: FlowToWatch = completions.FlowToWatch(
            flow_id=self.flow_id,
            statuses=self.statuses,
            conn_id=self.etlworks_conn_id,
            poll_interval=self.poll_interval,
            read_checkpoint=partial(read_checkpoint, self),
            write_checkpoint=partial(write_checkpoint, self),
            read_states=partial(read_asset_states, self),
            log=self.log,
        )
        return flow
