"""How a trigger follows its run. Apart from the trigger itself, since it takes much more to import."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_provider_etlworks.runs.events import ExecutionEvent
from airflow_provider_etlworks.runs.follow import Ending, Followed
from airflow_provider_etlworks.runs.stop import Stop, stop
from airflow_provider_etlworks.triggerer.shared_watcher import followed_with_shared_watcher, shared_watcher

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.runs.watcher import Watcher
    from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger

# Seconds. Airflow gives a killed trigger 30.
_STOP_WITHIN = 20.0


async def event_of(trigger: EtlworksFlowExecutionTrigger) -> ExecutionEvent:
    """Follow a trigger's run, and return what to tell its task. At the deadline, the run is stopped."""
    followed = await followed_with_shared_watcher(
        trigger.etlworks_conn_id, trigger.log, lambda watcher: _follow(trigger, watcher)
    )
    return ExecutionEvent(trigger.flow_id, trigger.audit_id, followed)


async def stop_run(trigger: EtlworksFlowExecutionTrigger) -> None:
    """Stop a trigger's run."""
    async with shared_watcher(trigger.etlworks_conn_id) as watcher:
        await _stop(trigger, watcher.client)


async def _follow(trigger: EtlworksFlowExecutionTrigger, watcher: Watcher) -> Followed:
    followed = await watcher.follow(
        trigger.flow_id,
        trigger.audit_id,
        log=trigger.log,
        poll_interval=trigger.poll_interval,
        patience=trigger.patience,
        deadline=trigger.deadline,
    )
    client = watcher.client
    if followed.ending is Ending.DEADLINE and trigger.cancel_on_kill:
        followed = Followed(followed.ending, followed.execution, await _stop(trigger, client))
    return followed.redacted(client.settings.secrets)


async def _stop(trigger: EtlworksFlowExecutionTrigger, client: AsyncEtlworksClient) -> str:
    request = stop(trigger.flow_id, trigger.audit_id, client.settings.stop_path)
    try:
        stopped = await asyncio.wait_for(client.converse(request), _STOP_WITHIN)
    except asyncio.TimeoutError:
        stopped = Stop(accepted=False, detail=f"No answer to the stop of run {trigger.audit_id}; it may go on.")
    report = trigger.log.info if stopped.accepted else trigger.log.warning
    report("%s", stopped.detail)
    return stopped.detail
