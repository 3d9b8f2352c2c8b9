"""How a sensor's trigger waits for its run. Apart from the trigger itself, since it takes much more to import."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from airflow_provider_etlworks.runs.events import WaitEvent
from airflow_provider_etlworks.runs.find import Awaited, Lookout, search
from airflow_provider_etlworks.runs.follow import Ending, Followed
from airflow_provider_etlworks.triggerer.shared_watcher import followed_with_shared_watcher

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.runs.watcher import Watcher
    from airflow_provider_etlworks.triggers.sensor import EtlworksFlowSensorTrigger

# A watcher looks a little early; a sensor looks as often in the triggerer as on a worker.
_NOT_EARLY = 1.07


async def event_of(trigger: EtlworksFlowSensorTrigger, *, pause: float = 0.0) -> WaitEvent:
    """
    Wait for a trigger's run, and return what to tell its task.

    :param trigger: the trigger.
    :param pause: seconds until the first look.
    """
    # A second watcher need not wait once more.
    pauses = iter((pause, 0.0))
    followed = await followed_with_shared_watcher(
        trigger.etlworks_conn_id, trigger.log, lambda watcher: _wait(trigger, watcher, next(pauses))
    )
    return WaitEvent(trigger.flow_id, followed)


async def _wait(trigger: EtlworksFlowSensorTrigger, watcher: Watcher, pause: float) -> Followed:
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
