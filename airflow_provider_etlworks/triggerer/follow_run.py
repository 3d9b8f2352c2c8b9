"""How a trigger follows its run. Apart from the trigger itself, since it takes much more to import."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_etlworks.runs.events import ExecutionEvent
from airflow_provider_etlworks.runs.follow import Ending, Followed
from airflow_provider_etlworks.runs.stop import Stop, stop
from airflow_provider_etlworks.triggerer.shared_watcher import followed_with_shared_watcher, shared_watcher

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
    from airflow_provider_etlworks.runs.watcher import Watcher

# Seconds. Airflow gives a killed trigger 30.
_STOP_WITHIN = 20.0


@dataclass(frozen=True)
class RunToFollow:
    """
    What a trigger is to do.

    :ivar run: the run.
    :ivar policy: how often it is polled, and when polling gives up.
    :ivar conn_id: the Airflow connection.
    :ivar cancel_on_kill: whether the run is stopped at the deadline.
    :ivar log: the trigger's own, so that its lines are in the task's log.
    """

    run: RunRef
    policy: PollPolicy
    conn_id: str
    cancel_on_kill: bool
    log: Log


async def follow_run(job: RunToFollow) -> ExecutionEvent:
    """Follow a trigger's run, and return what to tell its task. At the deadline, the run is stopped."""
    followed = await followed_with_shared_watcher(job.conn_id, job.log, lambda watcher: _follow(job, watcher))
    return ExecutionEvent(job.run.flow_id, job.run.audit_id, followed)


async def stop_run(job: RunToFollow) -> None:
    """Stop a trigger's run."""
    async with shared_watcher(job.conn_id) as watcher:
        await _stop(job, watcher.client)


async def _follow(job: RunToFollow, watcher: Watcher) -> Followed:
    followed = await watcher.follow(job.run, job.policy, log=job.log)
    client = watcher.client
    if followed.ending is Ending.DEADLINE and job.cancel_on_kill:
        followed = Followed(followed.ending, followed.execution, await _stop(job, client))
    return followed.redacted(client.settings.secrets)


async def _stop(job: RunToFollow, client: AsyncEtlworksClient) -> str:
    request = stop(job.run.flow_id, job.run.audit_id, client.settings.stop_path)
    try:
        stopped = await asyncio.wait_for(client.converse(request), _STOP_WITHIN)
    except asyncio.TimeoutError:
        stopped = Stop(accepted=False, detail=f"No answer to the stop of run {job.run.audit_id}; it may go on.")
    report = job.log.info if stopped.accepted else job.log.warning
    report("%s", stopped.detail)
    return stopped.detail
