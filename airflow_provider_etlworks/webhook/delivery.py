"""
From a post to an event of an asset: the run's own record decides, whatever the post says.

Everything happens in tasks of the API server's event loop, in a bounded number. What is lost (at an end of the server,
or after a long outage) is reported by the asset watcher, if there is one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextlib import AsyncExitStack
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.assets import flow_uri
from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.client.clock import SYSTEM_CLOCK, Clock
from airflow_provider_etlworks.client.errors import (
    EtlworksConfigError,
    EtlworksError,
    EtlworksNotFound,
    EtlworksUnauthorized,
)
from airflow_provider_etlworks.compat import AirflowNotFoundException, conf
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.hooks.metrics import component_metrics
from airflow_provider_etlworks.runs.checkpoint import reported_key
from airflow_provider_etlworks.runs.outcome import task_result
from airflow_provider_etlworks.webhook.airflow_api import AirflowApi, AirflowApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from airflow_provider_etlworks.client.models import Execution
    from airflow_provider_etlworks.webhook.post import Post
    from airflow_provider_etlworks.webhook.settings import WebhookSettings

log = logging.getLogger(__name__)

MAX_PENDING = 1_000
"""The most posts that are being worked on; more are answered with 503."""

_AT_ONCE = 8
# Event ids that are remembered, and runs that the state store names as reported.
_REMEMBERED = 10_000
_REPORTED = 200
# Seconds for which a post is retried, and between two tries at most.
_RETRY_WITHIN = 900.0
_LONGEST_DELAY = 60.0
# Seconds between two readings of the connections at least, so that refused credentials lock nobody out.
_RECONNECT_DELAY = 60.0
# Seconds for which Airflow may fail to list an asset's events.
_LISTED_WITHIN = 10.0
# Seconds for which a run may still be going, or have no record, after its end was posted.
_GOING_WITHIN = 60.0
# Older ends are the asset watcher's: a late repetition must not start DAGs again.
_OLDEST_END = timedelta(hours=24)
# The clocks of Etlworks and Airflow may differ by so much.
_CLOCK_SKEW = timedelta(hours=1)

# What is not mended by trying again.
_FATAL_STATUSES = (400, 403, 404, 405, 422)


class _StillGoingError(Exception):
    """The run has not ended yet."""


class Delivery:
    """
    Works on posts in the background. Use it in one event loop, and close it there.

    :param settings: the connection of the webhook.
    :param clock: reads the time; for tests.
    :param sleep: waits for some seconds; for tests.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        *,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._open: _Clients | None = None
        self._opened_at = 0.0

    @property
    def pending(self) -> int:
        """How many posts are being worked on."""
        return len(self._tasks)

    def accept(self, post: Post) -> bool:
        """
        Take a post over; a repetition is dropped.

        :param post: the post, whose sender has proved that it is Etlworks.
        :return: ``False`` if there is too much to do.
        """
        run = (post.flow_id, post.audit_id)
        if post.event_id in self._seen or run in self._tasks:
            return True
        if len(self._tasks) >= MAX_PENDING:
            return False
        self._seen[post.event_id] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        task = self._tasks[run] = asyncio.create_task(self._deliver(post))
        task.add_done_callback(lambda _: self._tasks.pop(run, None))
        return True

    async def close(self) -> None:
        """Give up what is being worked on, and close the connections."""
        tasks = list(self._tasks.values())
        if tasks:
            log.warning("The API server stops: %s posted runs are left to the asset watchers.", len(tasks))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._open is not None:
            await self._open.close()

    async def _deliver(self, post: Post) -> None:
        """Try until the post is dealt with, or until it is not worth it."""
        began, delay = self._clock.monotonic(), 1.0
        name = f"Run {post.audit_id} of flow {post.flow_id}"
        while True:
            waited = self._clock.monotonic() - began
            clients = None
            try:
                async with self._slots:
                    clients = await self._clients()
                    await self._report(post, name, clients, is_patient=waited < _LISTED_WITHIN)
                return
            except _StillGoingError:
                reason, is_final = "it has not ended", waited >= _GOING_WITHIN
            except EtlworksNotFound as error:
                # The record of a short run may appear late.
                reason, is_final = str(error), waited >= _GOING_WITHIN
            except EtlworksUnauthorized as error:
                await self._reconnect(clients)
                reason, is_final = str(error), waited >= _RETRY_WITHIN
            except (EtlworksConfigError, AirflowNotFoundException) as error:
                # The connection may be mended meanwhile.
                reason, is_final = str(error), waited >= _RETRY_WITHIN
            except EtlworksError as error:
                reason, is_final = str(error), not error.retryable or waited >= _RETRY_WITHIN
            except AirflowApiError as error:
                if error.status == 401:
                    await self._reconnect(clients)
                reason, is_final = str(error), error.status in _FATAL_STATUSES or waited >= _RETRY_WITHIN
            except Exception as error:  # noqa: BLE001  # a fault of Airflow's database or ours must not be silent
                reason, is_final = type(error).__name__, waited >= _RETRY_WITHIN
            if is_final:
                # Etlworks, or a person, may post it again.
                self._seen.pop(post.event_id, None)
                log.warning("%s was posted by Etlworks and is dropped: %s", name, reason)
                return
            log.info("%s was posted by Etlworks, trying again in %.0f s: %s", name, delay, reason)
            await self._sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)

    async def _report(self, post: Post, name: str, clients: _Clients, *, is_patient: bool) -> None:
        run = await clients.etlworks.send(endpoints.get_execution(post.flow_id, post.audit_id))
        if run.occupies_flow:
            raise _StillGoingError
        if run.status not in self._settings.statuses:
            log.info("%s ended: %s. The webhook does not report this status.", name, run.status)
            return
        now = datetime.fromtimestamp(self._clock.time(), timezone.utc)
        if run.ended_at is None or run.ended_at < now - _OLDEST_END:
            log.warning("%s ended at %s, too long ago for the webhook. Nothing is reported.", name, run.ended_at)
            return
        settings = clients.etlworks.settings
        uri = flow_uri(run.flow_id, settings.root_url)
        asset_ids = await clients.airflow.asset_ids(uri)
        if not asset_ids:
            log.info("%s ended: %s. No DAG has the asset %s.", name, run.status, uri)
        payload = task_result(run, settings.execution_url(run.flow_id, run.audit_id))
        for asset_id in asset_ids:
            if run.audit_id in await _reported(clients.airflow, asset_id, run.flow_id):
                log.info("%s is reported already.", name)
                continue
            if await self._has_event(clients.airflow, asset_id, run, is_patient=is_patient):
                log.info("%s is reported already, by a watcher.", name)
            else:
                await clients.airflow.create_event(asset_id, {"payload": payload})
                log.info("%s ended: %s. The asset %s is updated.", name, run.status, uri)
            await self._mark_reported(clients.airflow, asset_id, run)

    @staticmethod
    async def _has_event(airflow: AirflowApi, asset_id: int, run: Execution, *, is_patient: bool) -> bool:
        """
        Return whether the asset has an event for this run, from a watcher or from us.

        :param is_patient: whether to wait for Airflow's list. Airflow 3.3.2 cannot list the events of an asset while a
            DAG run that one of them has created is queued; a report must not wait for that.
        """
        since = (run.ended_at or run.started_at or datetime.fromtimestamp(0, timezone.utc)) - _CLOCK_SKEW
        try:
            async for event in airflow.events(asset_id, since.isoformat()):
                extra = event.get("extra")
                payload = extra.get("payload") if isinstance(extra, dict) else None
                if isinstance(payload, dict) and payload.get("audit_id") == run.audit_id:
                    return True
        except AirflowApiError as error:
            if is_patient or error.status != 500:
                raise
            text = "%s Run %s of flow %s may be reported twice."
            log.warning(text, error, run.audit_id, run.flow_id)
        return False

    async def _mark_reported(self, airflow: AirflowApi, asset_id: int, run: Execution) -> None:
        """Let the asset's watchers know. If this fails, they report the run once more: at least once."""
        key = reported_key(run.flow_id)
        try:
            async with self._writing:
                before = await _reported(airflow, asset_id, run.flow_id)
                await airflow.write_state(asset_id, key, [*before, run.audit_id][-_REPORTED:])
        except AirflowApiError as error:
            # Airflow before 3.3 has no such store.
            level = logging.DEBUG if error.status in (404, 405) else logging.WARNING
            log.log(level, "The watchers of flow %s may report run %s again: %s", run.flow_id, run.audit_id, error)

    async def _clients(self) -> _Clients:
        async with self._opening:
            if self._open is None:
                self._open = await _Clients.open(self._settings)
                self._opened_at = self._clock.monotonic()
            return self._open

    async def _reconnect(self, refused: _Clients | None) -> None:
        """Let the next try read both connections again, once for all: a credential may have been changed."""
        is_due = self._clock.monotonic() - self._opened_at >= _RECONNECT_DELAY
        if is_due and refused is not None and self._open is refused:
            self._open = None
            # Requests of other tasks fail by this, and are sent again.
            await refused.close()


async def _reported(airflow: AirflowApi, asset_id: int, flow_id: int) -> list[Any]:
    """Return the runs that the asset's state store names as reported by us."""
    stored = await airflow.read_state(asset_id, reported_key(flow_id))
    return stored if isinstance(stored, list) else []


class _Clients:
    """The clients of Etlworks and of Airflow, as the connections describe them now."""

    def __init__(self, etlworks: AsyncEtlworksClient, airflow: AirflowApi, stack: AsyncExitStack) -> None:
        self.etlworks = etlworks
        self.airflow = airflow
        self._stack = stack

    @classmethod
    async def open(cls, settings: WebhookSettings) -> _Clients:
        """Read the connections, without holding the event loop, and open the clients."""
        conn_id = settings.etlworks_conn_id
        metrics = await component_metrics(conn_id)
        etlworks = AsyncEtlworksClient(await EtlworksHook(conn_id).read_settings(), metrics=metrics)
        airflow = await asyncio.to_thread(_airflow_api, settings.airflow_conn_id)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(etlworks)
            await stack.enter_async_context(airflow)
            return cls(etlworks, airflow, stack.pop_all())

    async def close(self) -> None:
        """Close both."""
        await self._stack.aclose()


def _airflow_api(conn_id: str) -> AirflowApi:
    connection: Any = EtlworksHook.get_connection(conn_id)
    return AirflowApi.from_connection(connection, conf.get("api", "base_url", fallback=""))
