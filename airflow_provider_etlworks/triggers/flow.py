"""The trigger that follows one run of a flow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksUnauthorized
from airflow_provider_etlworks.client.following import (
    DEFAULT_PATIENCE,
    DEFAULT_POLL_INTERVAL,
    Ending,
    Followed,
    follow,
)
from airflow_provider_etlworks.client.stopping import Stop, stop
from airflow_provider_etlworks.compat import AirflowNotFoundException
from airflow_provider_etlworks.hooks.shared import shared_client
from airflow_provider_etlworks.triggers.events import ExecutionEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient

# Airflow may learn up to five seconds late that the task's process has ended ([workers] min_heartbeat_interval). An
# event before that could overtake it, and Airflow would take the late news for the end of the resumed task.
_LONGEST_HEAD_START = 6.0
_SHORTEST_HEAD_START = 1.0
# Seconds. Airflow gives a killed trigger 30.
_STOP_WITHIN = 20.0


class EtlworksFlowExecutionTrigger(BaseTrigger):
    """
    Follows one run of a flow until it ends. Survives restarts of the triggerer, and every transient fault.

    It yields one event, always of the same shape (see
    :class:`~airflow_provider_etlworks.triggers.events.ExecutionEvent`). ``ending`` is ``finished``, ``deadline``,
    ``lost_touch`` (the status could not be read for longer than the patience, or the record is gone; the run may still
    be going) or ``denied`` (the connection no longer works). It never starts anything.

    Its arguments are a public contract: a trigger that an older release stored loads in a newer one.

    :param flow_id: the flow.
    :param audit_id: the run.
    :param etlworks_conn_id: the Airflow connection.
    :param poll_interval: seconds between two looks at a young run; an old one is looked at less often. The first look
        comes after as long, 6 s at most.
    :param deadline: Unix time at which to look a last time; ``None`` is never.
    :param cancel_on_kill: whether to stop the run at the deadline, and (from Airflow 3.3 on, which tells a trigger)
        when a person marks or clears the task. Before 3.3 a bare cancellation stops nothing: a deploy looks the same.
    :param patience: seconds for which the status may be unreadable.
    """

    def __init__(
        self,
        flow_id: int,
        audit_id: int,
        etlworks_conn_id: str = "etlworks_default",
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        deadline: float | None = None,
        cancel_on_kill: bool = True,
        patience: float = DEFAULT_PATIENCE,
        **_from_other_releases: Any,
    ) -> None:
        super().__init__()
        self.flow_id = flow_id
        self.audit_id = audit_id
        self.etlworks_conn_id = etlworks_conn_id
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.cancel_on_kill = cancel_on_kill
        self.patience = patience

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments that make this trigger again."""
        return (
            "airflow_provider_etlworks.triggers.flow.EtlworksFlowExecutionTrigger",
            {
                "flow_id": self.flow_id,
                "audit_id": self.audit_id,
                "etlworks_conn_id": self.etlworks_conn_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "cancel_on_kill": self.cancel_on_kill,
                "patience": self.patience,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Follow the run, and yield the one event."""
        await asyncio.sleep(max(_SHORTEST_HEAD_START, min(_LONGEST_HEAD_START, self.poll_interval)))
        try:
            followed = await self._follow()
        except asyncio.CancelledError:
            self.log.info("No longer watching run %s here. Unless it is stopped, it goes on.", self.audit_id)
            raise
        except (EtlworksConfigError, AirflowNotFoundException) as error:
            followed = Followed(Ending.DENIED, detail=str(error))
        yield TriggerEvent(ExecutionEvent(self.flow_id, self.audit_id, followed).to_payload())

    async def on_kill(self) -> None:
        """Stop the run: a person marked or cleared the task. Airflow 3.3 and later call this, earlier ones do not."""
        if not self.cancel_on_kill:
            self.log.info("The task was killed. Run %s goes on, since cancel_on_kill is off.", self.audit_id)
            return
        async with shared_client(self.etlworks_conn_id) as client:
            await self._stop(client)

    async def _follow(self) -> Followed:
        async with shared_client(self.etlworks_conn_id) as client:
            followed = await self._follow_with(client)
            if not isinstance(followed.error, EtlworksUnauthorized):
                return followed
            # The password may have been changed since the connection was read.
            self.log.warning("%s Reading the connection again.", followed.detail)
            async with shared_client(self.etlworks_conn_id, instead_of=client) as renewed:
                return await self._follow_with(renewed)

    async def _follow_with(self, client: AsyncEtlworksClient) -> Followed:
        followed = await client.converse(
            follow(
                self.flow_id,
                self.audit_id,
                clock=client.clock,
                log=self.log,
                poll_interval=self.poll_interval,
                patience=self.patience,
                deadline=self.deadline,
            )
        )
        if followed.ending is Ending.DEADLINE and self.cancel_on_kill:
            followed = Followed(followed.ending, followed.execution, await self._stop(client))
        return followed.redacted(client.settings.secrets)

    async def _stop(self, client: AsyncEtlworksClient) -> str:
        request = stop(self.flow_id, self.audit_id, client.settings.stop_path)
        try:
            stopped = await asyncio.wait_for(client.converse(request), _STOP_WITHIN)
        except asyncio.TimeoutError:
            stopped = Stop(accepted=False, detail=f"No answer to the stop of run {self.audit_id}; it may go on.")
        report = self.log.info if stopped.accepted else self.log.warning
        report("%s", stopped.detail)
        return stopped.detail
