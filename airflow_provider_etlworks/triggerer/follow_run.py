"""What a run's trigger does in the triggerer. It imports much more than the trigger itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow_provider_etlworks.runs import stop
from airflow_provider_etlworks.runs.events import ExecutionEvent
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.triggerer.shared_watcher import follow_with_shared_watcher, shared_watcher

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
    from airflow_provider_etlworks.runs.watcher import Watcher

# Seconds. Airflow gives a killed trigger 30.
_STOP_WITHIN = 20.0


async def follow_run(
    run: RunRef, policy: PollPolicy, *, conn_id: str, cancel_on_kill: bool, log: Log
) -> ExecutionEvent:
    """
    Follow a run, and return what to report to the task.

    :param run: the run.
    :param policy: how often it is polled, and when polling ends without a result.
    :param conn_id: the Airflow connection.
    :param cancel_on_kill: whether the run is stopped at the deadline.
    :param log: the trigger's own log, so that the lines are in the task's log.
    """

    async def follow(watcher: Watcher) -> FollowResult:
        result = await watcher.follow(run, policy, log=log)
        if result.ending is Ending.DEADLINE and cancel_on_kill:
            result = FollowResult(result.ending, result.execution, await _stop(run, watcher.client, log))
        return result.redacted(watcher.client.settings.secrets)

    return ExecutionEvent(run.flow_id, run.audit_id, await follow_with_shared_watcher(conn_id, log, follow))


async def stop_run(run: RunRef, *, conn_id: str, log: Log) -> None:
    """
    Stop a run whose task a person marked or cleared.

    :param run: the run.
    :param conn_id: the Airflow connection.
    :param log: the trigger's own log.
    """
    async with shared_watcher(conn_id) as watcher:
        await _stop(run, watcher.client, log)


async def _stop(run: RunRef, client: AsyncEtlworksClient, log: Log) -> str:
    request = stop.stop_run(run, client.settings.stop_path)
    try:
        stopped = await asyncio.wait_for(client.run(request), _STOP_WITHIN)
    except asyncio.TimeoutError:
        stopped = stop.StopResult(
            accepted=False, detail=f"No answer to the stop of run {run.audit_id}; it may still be going."
        )
    report = log.info if stopped.accepted else log.warning
    report("%s", stopped.detail)
    return stopped.detail
