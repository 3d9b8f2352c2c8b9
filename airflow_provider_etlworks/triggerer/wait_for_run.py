"""What the sensor's trigger does in the triggerer. It imports much more than the trigger itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.runs.events import WaitEvent
from airflow_provider_etlworks.runs.find import RunSelector, RunWaiter
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.runs.poll_queue import LAST_POLL_WITHIN
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
    root_url: str | None,
    log: Log,
) -> WaitEvent:
    """
    Wait for a run of a flow, and return what to report to the task.

    :param flow_id: the flow.
    :param audit_id: the run, if it is known.
    :param message_uuid: the message that started it, if that is known.
    :param since: ISO 8601; without audit id and message, the newest run that started at or after it.
    :param policy: how often Etlworks is polled, and when polling ends without a result.
    :param repetition_grace: seconds after the end of a schedule's run in which Etlworks may still repeat it.
    :param pause: seconds until the first poll.
    :param conn_id: the Airflow connection.
    :param root_url: the instance that has the run; ``None`` is whatever the connection names.
    :param log: the trigger's own log, so that the lines are in the task's log.
    """
    selector = RunSelector(flow_id, audit_id, message_uuid, None if since is None else datetime.fromisoformat(since))
    # A second watcher need not pause again.
    pauses = iter((pause, 0.0))

    async def wait(watcher: Watcher) -> FollowResult:
        client = watcher.client
        waiter = RunWaiter(selector, policy, clock=client.clock, log=log, repetition_grace=repetition_grace)
        return (await _Wait(waiter, watcher).run(next(pauses))).redacted(client.settings.secrets)

    followed = await follow_with_shared_watcher(conn_id, log, wait, root_url=root_url, deadline=policy.deadline)
    return WaitEvent(flow_id, followed)


class _Wait:
    """A sensor's wait, with a watcher that searches and polls for all who wait."""

    def __init__(self, waiter: RunWaiter, watcher: Watcher) -> None:
        self._waiter = waiter
        self._watcher = watcher
        self._client = watcher.client

    async def run(self, pause: float) -> FollowResult:
        """Wait until the run, and whatever replaces it, has ended."""
        waiter, watcher = self._waiter, self._watcher
        selector = waiter.selector
        policy = replace(waiter.policy, poll_interval=waiter.policy.poll_interval * _NOT_EARLY)
        await self._sleep(pause)
        found: Execution | None = None
        while True:
            if selector.audit_id is None and (found is None or not selector.is_one_run):
                # If a run has ended, there may be a newer one that counts.
                searched = await watcher.search(waiter, is_urgent=found is not None)
                if searched.ending is Ending.FINISHED:
                    found = searched.execution
                elif found is None or searched.ending is not Ending.DEADLINE:
                    return searched
            if found is None or not found.is_terminal:
                audit_id = selector.audit_id if found is None else found.audit_id
                assert audit_id is not None  # noqa: S101  # a search that has FINISHED has found a run
                followed = await watcher.follow(RunRef(selector.flow_id, audit_id), policy, log=waiter.log, found=found)
                if followed.ending is not Ending.FINISHED or followed.execution is None:
                    return followed
                found = followed.execution
                if not selector.is_one_run:
                    continue
            polled = await self._check_end(found)
            if isinstance(polled, FollowResult):
                return polled
            if polled is not None and not polled.is_terminal:
                # Etlworks has repeated the run.
                found = polled
                continue
            if waiter.policy.deadline is not None and self._client.clock.time() >= waiter.policy.deadline:
                return FollowResult(Ending.DEADLINE, polled or found)
            await self._sleep(waiter.policy.poll_interval)

    async def _check_end(self, found: Execution) -> FollowResult | Execution | None:
        """Return whether a run's end is the end of the wait, as a poll does; ``None`` without an answer in time."""
        deadline, now = self._waiter.policy.deadline, self._client.clock.time()
        is_late = deadline is not None and now > deadline - LAST_POLL_WITHIN
        priority = Priority.LAST_POLL if is_late else Priority.REPORTED_DONE
        polling = asyncio.ensure_future(self._client.run(self._waiter.poll(found), priority=priority))
        if deadline is None:
            return await polling
        giving_up = asyncio.ensure_future(self._client.sleep(max(0.0, deadline + LAST_POLL_WITHIN - now)))
        try:
            await asyncio.wait((polling, giving_up), return_when=asyncio.FIRST_COMPLETED)
            return polling.result() if polling.done() else None
        finally:
            polling.cancel()
            giving_up.cancel()

    async def _sleep(self, seconds: float) -> None:
        """Wait, and not longer than until the deadline."""
        if self._waiter.policy.deadline is not None:
            seconds = min(seconds, self._waiter.policy.deadline - self._client.clock.time())
        await self._client.sleep(max(0.0, seconds))
