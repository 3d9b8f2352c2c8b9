"""What the sensor's trigger does in the triggerer. It imports much more than the trigger itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from airflow_provider_etlworks.runs.events import WaitEvent
from airflow_provider_etlworks.runs.find import RunSelector, RunWaiter, wait_until_found
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.runs.types import RunRef
from airflow_provider_etlworks.triggerer.shared_watcher import follow_with_shared_watcher

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.runs.types import PollPolicy
    from airflow_provider_etlworks.runs.watcher import Watcher

# A watcher polls a little early. A sensor polls as often in the triggerer as on a worker.
_NOT_EARLY = 1.07


async def wait_for_run(
    flow_id: int,
    *,
    audit_id: int | None,
    message_uuid: str | None,
    since: str | None,
    policy: PollPolicy,
    repetition_grace: float,
    pause: float,
    conn_id: str,
    log: Log,
) -> WaitEvent:
    """
    Wait for a run of a flow, and return what to report to the task.

    :param flow_id: the flow.
    :param audit_id: the run, if it is known.
    :param message_uuid: the message that started it, if that is known.
    :param since: ISO 8601; without audit id and message, the newest run that started at or after it.
    :param policy: how often Etlworks is polled, and when polling ends without a result.
    :param repetition_grace: seconds after the bad end of a schedule's run in which Etlworks may still repeat it.
    :param pause: seconds until the first poll.
    :param conn_id: the Airflow connection.
    :param log: the trigger's own log, so that the lines are in the task's log.
    """
    selector = RunSelector(flow_id, audit_id, message_uuid, None if since is None else datetime.fromisoformat(since))
    # A second watcher need not pause again.
    pauses = iter((pause, 0.0))

    async def wait(watcher: Watcher) -> FollowResult:
        client = watcher.client
        waiter = RunWaiter(selector, policy, clock=client.clock, log=log, repetition_grace=repetition_grace)
        return (await _wait(waiter, watcher, next(pauses))).redacted(client.settings.secrets)

    return WaitEvent(flow_id, await follow_with_shared_watcher(conn_id, log, wait))


async def _wait(waiter: RunWaiter, watcher: Watcher, pause: float) -> FollowResult:
    policy = replace(waiter.policy, poll_interval=waiter.policy.poll_interval * _NOT_EARLY)
    ended: Execution | None = None
    while True:
        found = await watcher.client.run(wait_until_found(waiter, pause=pause, ended=ended))
        if isinstance(found, FollowResult):
            return found
        followed = await watcher.follow(RunRef(found.flow_id, found.audit_id), policy, log=waiter.log)
        if followed.ending is not Ending.FINISHED:
            return followed
        # There may be a newer run that counts, or Etlworks may have repeated this one.
        pause, ended = 0.0, followed.execution
