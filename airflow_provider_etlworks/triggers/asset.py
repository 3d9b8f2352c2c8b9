"""The trigger that updates an Airflow asset whenever a flow ends. It takes Airflow 3, which brought such triggers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.triggerer.startup import import_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Sequence
    from types import ModuleType

    from airflow.triggers.shared_stream import SharedStreamProducer

    from airflow_provider_etlworks.triggerer.completions import FlowToWatch

_COMPLETIONS = "airflow_provider_etlworks.triggerer.completions"

DEFAULT_STATUSES = ("success", "warning")
FINAL_STATUSES = ("success", "warning", "error", "canceled")


class EtlworksFlowFinishedTrigger(BaseEventTrigger):
    """
    Tells every end of a flow's runs, whoever started them: for ``AssetWatcher``.

    An asset with such a watcher is updated each time, and DAGs that are scheduled on it run. The event's payload is
    what :class:`~airflow_provider_etlworks.operators.flow.EtlworksRunFlowOperator` returns: ``flow_id``, ``audit_id``,
    ``status``, ``started_at``, ``ended_at``, ``duration_seconds``, ``records`` and ``url``.

    The first start tells nothing of what has ended by then. After that no end is missed: what was told is noted, with
    the asset from Airflow 3.3 on, as a variable before. None is told twice, unless the triggerer dies in the second or
    two (ten seconds, before Airflow 3.3) after it has told one. A run that Etlworks repeats by itself is several runs,
    each with an end of its own.

    From Airflow 3.3 on, all watchers of a connection share one poll. Before, each reads its flow's history.

    :param flow_id: the flow.
    :param statuses: which ends are told: any of ``success``, ``warning``, ``error`` and ``canceled``.
    :param etlworks_conn_id: the Airflow connection. Of an administrator, three and more watchers take one request an
        interval, and one for each end; of others, one request for each flow and interval.
    :param poll_interval: seconds between two looks. Where watchers share a poll, the shortest counts.
    :raises ValueError: an argument cannot work.
    """

    def __init__(
        self,
        flow_id: int,
        statuses: Sequence[str] = DEFAULT_STATUSES,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float = 30.0,
        **_from_other_releases: Any,
    ) -> None:
        super().__init__()
        if isinstance(flow_id, bool) or not isinstance(flow_id, int) or flow_id < 1:
            raise ValueError(f"flow_id is {flow_id!r}; it must be a whole number above 0, such as 12345.")
        chosen = {statuses} if isinstance(statuses, str) else set(statuses)
        if not chosen or not chosen <= set(FINAL_STATUSES):
            raise ValueError(f"statuses is {statuses!r}; it must be some of {', '.join(FINAL_STATUSES)}.")
        if not poll_interval > 0:
            raise ValueError(f"poll_interval is {poll_interval!r}; it must be a number of seconds above 0.")
        self.flow_id = flow_id
        # In one order, and as a list: Airflow compares what is stored with what the DAG file says.
        self.statuses = [status for status in FINAL_STATUSES if status in chosen]
        self.etlworks_conn_id = etlworks_conn_id
        self.poll_interval = float(poll_interval)

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
        """Yield an event for each end, for ever. Airflow 3.3 and later share a stream instead."""
        module = await import_in_thread(_COMPLETIONS)
        async for payload in module.payloads_of(self._job(module)):
            yield TriggerEvent(payload)

    def shared_stream_key(self) -> Hashable | None:
        """Return what all watchers of a connection have in common. Airflow 3.3 and later ask for it."""
        return "etlworks", self.etlworks_conn_id

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        """Return what finds the ends for all watchers of a connection. Airflow 3.3 and later ask for it."""
        from airflow_provider_etlworks.triggerer.shared_stream import SharedEnds

        return SharedEnds(kwargs["etlworks_conn_id"])

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Yield an event for each end that is found for this trigger."""
        module = await import_in_thread(_COMPLETIONS)
        with module.watch_of(self._job(module)) as watch:
            async for told in shared_stream:
                if told.watch is watch:
                    told.has_left = True
                    yield TriggerEvent(told.payload)

    def _job(self, module: ModuleType) -> FlowToWatch:
        from airflow_provider_etlworks.compat import read_watcher_notes, write_watcher_notes

        job: FlowToWatch = module.FlowToWatch(
            flow_id=self.flow_id,
            statuses=self.statuses,
            conn_id=self.etlworks_conn_id,
            poll_interval=self.poll_interval,
            read_notes=partial(read_watcher_notes, self),
            write_notes=partial(write_watcher_notes, self),
        )
        return job
