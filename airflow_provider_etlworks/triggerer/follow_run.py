"""What a run's trigger does in the triggerer. It imports much more than the trigger itself."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks import compat
from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.runs import stop
from airflow_provider_etlworks.runs.defaults import TRIGGER_BUFFER
from airflow_provider_etlworks.runs.events import ExecutionEvent
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.triggerer.shared_watcher import (
    ConnectionUnreadableError,
    SharedWatcher,
    follow_with_shared_watcher,
    shared_watcher,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextlib import AbstractAsyncContextManager

    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.runs.types import PollPolicy, RunRef
    from airflow_provider_etlworks.runs.watcher import Watcher

log = logging.getLogger(__name__)

# Seconds that a trigger waits for its stop. Airflow gives a killed trigger 30, unless its on_kill_timeout says less.
_STOP_WITHIN = 20.0
# Seconds before Airflow ends a trigger at which the event must be there.
_FOR_THE_EVENT = 10.0
# Seconds in which Airflow must say whether a task still waits.
_STATE_WITHIN = 30.0
# Seconds for which a stop is repeated in the background, if Etlworks asks to wait or cannot be reached.
_STOP_PATIENCE = 600.0


async def follow_run(
    run: RunRef, policy: PollPolicy, *, conn_id: str, root_url: str | None, cancel_on_kill: bool, log: Log
) -> ExecutionEvent:
    """
    Follow a run, and return what to report to the task.

    :param run: the run.
    :param policy: how often it is polled, and when polling ends without a result.
    :param conn_id: the Airflow connection.
    :param root_url: the instance that has the run; ``None`` is whatever the connection names.
    :param cancel_on_kill: whether the run is stopped at the deadline.
    :param log: the trigger's own log, so that the lines are in the task's log.
    """
    follow = partial(_follow, run, policy, cancel_on_kill, log)
    followed = await follow_with_shared_watcher(conn_id, log, follow, root_url=root_url, deadline=policy.deadline)
    return ExecutionEvent(run.flow_id, run.audit_id, followed)


async def _follow(run: RunRef, policy: PollPolicy, cancel_on_kill: bool, log: Log, watcher: Watcher) -> FollowResult:
    result = await watcher.follow(run, policy, log=log)
    if result.ending is Ending.DEADLINE and policy.deadline is not None and cancel_on_kill:
        left = policy.deadline + TRIGGER_BUFFER - _FOR_THE_EVENT - watcher.client.clock.time()
        # On the instance that was polled, whatever the connection names by now.
        stopping = _Stopping(run, SharedWatcher(watcher.client.settings))
        stopped = await stopping.report(log, watcher.client.sleep(min(_STOP_WITHIN, max(0.0, left))))
        result = replace(result, detail=stopped)
    return result.redacted(watcher.client.settings.secrets)


async def stop_run(run: RunRef, *, conn_id: str, root_url: str | None, log: Log, task_instance: Any = None) -> None:
    """
    Stop a run whose task a person marked or cleared.

    If the stop cannot be sent in the time that Airflow gives, it goes on in the background.

    :param run: the run.
    :param conn_id: the Airflow connection.
    :param root_url: the instance that has the run; ``None`` is whatever the connection names.
    :param log: the trigger's own log.
    :param task_instance: the trigger's task. If it is still deferred, nobody killed it, and nothing is stopped.
    """
    stopping = _Stopping(run, shared_watcher(conn_id, root_url=root_url), task_instance)
    await stopping.report(log, asyncio.sleep(_STOP_WITHIN))


class _Stopping:
    """
    The stop of one run. It goes on if its caller stops waiting; then it logs its result itself.

    :param run: the run.
    :param watching: opens the watcher whose client sends the stop, and keeps it open.
    :param task_instance: nothing is sent if this task is still deferred; ``None`` is no task.
    """

    # Python keeps no strong reference to a task.
    _in_background: set[asyncio.Task[stop.StopResult]] = set()  # noqa: RUF012  # of all stops

    def __init__(self, run: RunRef, watching: AbstractAsyncContextManager[Watcher], task_instance: Any = None) -> None:
        self._run = run
        self._watching = watching
        self._task_instance = task_instance
        self._is_sent = False
        # In an empty context: the log of the task that waits for it may be closed before it ends.
        self._task = contextvars.Context().run(asyncio.ensure_future, self._stop())
        self._in_background.add(self._task)
        self._task.add_done_callback(self._in_background.discard)

    async def report(self, log: Log, time_is_over: Awaitable[None]) -> str:
        """Wait some time for the result. Log what is known by then, and return it as a sentence for people."""
        waiting = asyncio.ensure_future(time_is_over)
        try:
            await asyncio.wait((self._task, waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            if not self._task.done():
                self._task.add_done_callback(self._log_result)
        if self._task.done():
            stopped = self._task.result()
        else:
            state = "sent, but Etlworks has not accepted it yet" if self._is_sent else "not sent yet"
            detail = f"The stop of {self._run} is {state}, so it may go on. The triggerer continues in the background."
            stopped = stop.StopResult(accepted=False, detail=detail)
        (log.info if stopped.accepted else log.warning)("%s", stopped.detail)
        return stopped.detail

    async def _stop(self) -> stop.StopResult:
        # If a triggerer misses its heartbeats, another one takes over its triggers, and Airflow cancels them here as if
        # a person had killed their tasks.
        if await self._is_still_deferred():
            detail = f"{self._run} is not stopped: its task still waits for it, so another triggerer follows it now."
            return stop.StopResult(accepted=True, detail=detail)
        try:
            async with self._watching as watcher:
                client = watcher.client
                async with client.dispatcher.turn(Priority.STOP) as turn:
                    self._is_sent = True
                    request = stop.stop_run(
                        self._run, client.settings.stop_path, clock=client.clock, patience=_STOP_PATIENCE
                    )
                    return await client.run(request, turn=turn)
        except (EtlworksConfigError, ConnectionUnreadableError) as error:
            return stop.StopResult(accepted=False, detail=f"{stop.not_stopped(self._run)}: {error}")

    async def _is_still_deferred(self) -> bool:
        if self._task_instance is None:
            return False
        try:
            return await asyncio.wait_for(compat.task_state(self._task_instance), _STATE_WITHIN) == "deferred"
        except Exception:  # whatever Airflow raises: its first word counts then, which is that a person killed the task
            log.warning(
                "Airflow does not say whether the task of %s still waits; it is stopped.", self._run, exc_info=True
            )
            return False

    def _log_result(self, task: asyncio.Task[stop.StopResult]) -> None:
        if task.cancelled():
            log.warning("The triggerer ends before %s was stopped. It may go on.", self._run)
        elif (error := task.exception()) is not None:
            log.error("Not certain whether %s was stopped; it may go on.", self._run, exc_info=error)
        else:
            stopped = task.result()
            (log.info if stopped.accepted else log.warning)("%s", stopped.detail)
