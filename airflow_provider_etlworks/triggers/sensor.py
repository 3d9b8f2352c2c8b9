"""The trigger that waits for a run of a flow, whoever starts it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_etlworks.client.values import parse_seconds
from airflow_provider_etlworks.provider_info import DEFAULT_CONN_ID
from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_REPETITION_GRACE
from airflow_provider_etlworks.runs.types import PollPolicy
from airflow_provider_etlworks.triggerer.startup import import_in_thread, startup_delay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import timedelta

_WAIT_FOR_RUN = "airflow_provider_etlworks.triggerer.wait_for_run"


class EtlworksFlowSensorTrigger(BaseTrigger):
    """
    Waits for a run of a flow: until the run is there, and until it and its repetitions by Etlworks have ended.

    It yields one event, always of the same shape (see :class:`~airflow_provider_etlworks.runs.events.WaitEvent`).
    It starts nothing and stops nothing. The arguments are a public contract: a trigger that an older release stored
    loads in a newer one.

    :param flow_id: the flow.
    :param audit_id: the run, if it is known.
    :param message_uuid: the message that started it, if that is known.
    :param since: ISO 8601; without audit id and message, the newest run that started at or after it.
    :param etlworks_conn_id: the Airflow connection.
    :param poll_interval: seconds (or a ``timedelta``) between two polls, and before the first. Default 60.
    :param deadline: Unix time of the last poll; ``None`` is never.
    :param patience: seconds (or a ``timedelta``) for which the status may be unreadable. Default 1800.
    :param repetition_grace: seconds (or a ``timedelta``) after the bad end of a schedule's run in which Etlworks may
        still repeat it. Default 10.
    :param root_url: the address of the instance, as the connection named it when the task deferred. If the connection
        names another one by now, the wait ends as ``denied``. Default: whatever the connection names.
    """

    def __init__(
        self,
        flow_id: int,
        audit_id: int | None = None,
        message_uuid: str | None = None,
        since: str | None = None,
        etlworks_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float | timedelta = 60.0,
        deadline: float | None = None,
        patience: float | timedelta = DEFAULT_PATIENCE,
        repetition_grace: float | timedelta = DEFAULT_REPETITION_GRACE,
        root_url: str | None = None,
        **_from_other_releases: Any,
    ) -> None:
        super().__init__()
        self.flow_id = flow_id
        self.audit_id = audit_id
        self.message_uuid = message_uuid
        self.since = since
        self.etlworks_conn_id = etlworks_conn_id
        self.poll_interval = parse_seconds("poll_interval", poll_interval)
        self.deadline = deadline
        self.patience = parse_seconds("patience", patience)
        self.repetition_grace = parse_seconds("repetition_grace", repetition_grace, allow_zero=True)
        self.root_url = root_url

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments that make this trigger again."""
        return (
            "airflow_provider_etlworks.triggers.sensor.EtlworksFlowSensorTrigger",
            {
                "flow_id": self.flow_id,
                "audit_id": self.audit_id,
                "message_uuid": self.message_uuid,
                "since": self.since,
                "etlworks_conn_id": self.etlworks_conn_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "patience": self.patience,
                "repetition_grace": self.repetition_grace,
                **({} if self.root_url is None else {"root_url": self.root_url}),
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the run, and yield the one event."""
        waited = startup_delay(self.poll_interval, for_task=self.task_instance is not None)
        await asyncio.sleep(waited)
        module = await import_in_thread(_WAIT_FOR_RUN)
        event = await module.wait_for_run(
            self.flow_id,
            audit_id=self.audit_id,
            message_uuid=self.message_uuid,
            since=self.since,
            policy=PollPolicy(self.poll_interval, self.patience, self.deadline),
            repetition_grace=self.repetition_grace,
            pause=max(0.0, self.poll_interval - waited),
            conn_id=self.etlworks_conn_id,
            root_url=self.root_url,
            log=self.log,
        )
        yield TriggerEvent(event.to_payload())
