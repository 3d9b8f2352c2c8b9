"""How a sensor's trigger waits for its run. Apart from the trigger itself, since it takes much more to import."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from airflow_provider_etlworks.client.awaiting import Awaited, Lookout, search
from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksUnauthorized
from airflow_provider_etlworks.client.following import Ending, Followed
from airflow_provider_etlworks.compat import AirflowNotFoundException
from airflow_provider_etlworks.hooks.shared import shared_watcher
from airflow_provider_etlworks.triggers.events import WaitEvent

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.watcher import Watcher
    from airflow_provider_etlworks.triggers.sensor import EtlworksFlowSensorTrigger

# A watcher looks a little early; a sensor looks as often in the triggerer as on a worker.
_NOT_EARLY = 1.07


async def event_of(trigger: EtlworksFlowSensorTrigger, *, pause: float = 0.0) -> WaitEvent:
    """
    Wait for a trigger's run, and return what to tell its task.

    :param trigger: the trigger.
    :param pause: seconds until the first look.
    """
    try:
        followed = await _wait(trigger, pause)
    except (EtlworksConfigError, AirflowNotFoundException) as error:
        followed = Followed(Ending.DENIED, detail=str(error))
    return WaitEvent(trigger.flow_id, followed)


async def _wait(trigger: EtlworksFlowSensorTrigger, pause: float) -> Followed:
    async with shared_watcher(trigger.etlworks_conn_id) as watcher:
        followed = await _wait_with(trigger, watcher, pause)
        if not isinstance(followed.error, EtlworksUnauthorized):
            return followed
        # The password may have been changed since the connection was read.
        trigger.log.warning("%s Reading the connection again.", followed.detail)
        async with shared_watcher(trigger.etlworks_conn_id, instead_of=watcher) as renewed:
            return await _wait_with(trigger, renewed, 0.0)


async def _wait_with(trigger: EtlworksFlowSensorTrigger, watcher: Watcher, pause: float) -> Followed:
    client = watcher.client
    since = None if trigger.since is None else datetime.fromisoformat(trigger.since)
    lookout = Lookout(
        Awaited(trigger.flow_id, trigger.audit_id, trigger.message_uuid, since),
        clock=client.clock,
        log=trigger.log,
        patience=trigger.patience,
        repetition_grace=trigger.repetition_grace,
    )
    ended: Execution | None = None
    while True:
        found = await client.converse(
            search(lookout, poll_interval=trigger.poll_interval, deadline=trigger.deadline, pause=pause, ended=ended)
        )
        if isinstance(found, Followed):
            return found.redacted(client.settings.secrets)
        followed = await watcher.follow(
            found.flow_id,
            found.audit_id,
            log=trigger.log,
            poll_interval=trigger.poll_interval * _NOT_EARLY,
            patience=trigger.patience,
            deadline=trigger.deadline,
        )
        if followed.ending is not Ending.FINISHED:
            return followed.redacted(client.settings.secrets)
        # There may be a newer one that counts, or Etlworks may have repeated it.
        pause, ended = 0.0, followed.execution
