"""How a sensor's trigger waits for its run. Apart from the trigger itself, since it takes much more to import."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from airflow_provider_etlworks.runs.events import WaitEvent
from airflow_provider_etlworks.runs.find import Awaited, Lookout, search
from airflow_provider_etlworks.runs.follow import Ending, Followed
from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
from airflow_provider_etlworks.triggerer.shared_watcher import followed_with_shared_watcher

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.runs.watcher import Watcher

# A watcher looks a little early; a sensor looks as often in the triggerer as on a worker.
_NOT_EARLY = 1.07


@dataclass(frozen=True)
class RunToAwait:
    """
    What a sensor's trigger is to do.

    :ivar awaited: which run.
    :ivar policy: how often Etlworks is polled, and when polling gives up.
    :ivar repetition_grace: seconds after the bad end of a schedule's run in which Etlworks may still repeat it.
    :ivar conn_id: the Airflow connection.
    :ivar log: the trigger's own, so that its lines are in the task's log.
    """

    awaited: Awaited
    policy: PollPolicy
    repetition_grace: float
    conn_id: str
    log: Log


async def wait_for_run(job: RunToAwait, *, pause: float = 0.0) -> WaitEvent:
    """
    Wait for a trigger's run, and return what to tell its task.

    :param job: the run, and how to wait for it.
    :param pause: seconds until the first look.
    """
    # A second watcher need not wait once more.
    pauses = iter((pause, 0.0))
    followed = await followed_with_shared_watcher(
        job.conn_id, job.log, lambda watcher: _wait(job, watcher, next(pauses))
    )
    return WaitEvent(job.awaited.flow_id, followed)


async def _wait(job: RunToAwait, watcher: Watcher, pause: float) -> Followed:
    client, policy = watcher.client, job.policy
    lookout = Lookout(
        job.awaited,
        clock=client.clock,
        log=job.log,
        patience=policy.patience,
        repetition_grace=job.repetition_grace,
    )
    ended: Execution | None = None
    while True:
        found = await client.converse(
            search(lookout, poll_interval=policy.poll_interval, deadline=policy.deadline, pause=pause, ended=ended)
        )
        if isinstance(found, Followed):
            return found.redacted(client.settings.secrets)
        followed = await watcher.follow(
            RunRef(found.flow_id, found.audit_id),
            replace(policy, poll_interval=policy.poll_interval * _NOT_EARLY),
            log=job.log,
        )
        if followed.ending is not Ending.FINISHED:
            return followed.redacted(client.settings.secrets)
        # There may be a newer one that counts, or Etlworks may have repeated it.
        pause, ended = 0.0, followed.execution
