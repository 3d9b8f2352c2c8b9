"""How asset triggers learn that runs have completed. It imports much more than the trigger itself."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from airflow_provider_etlworks.client.errors import (
    EtlworksConfigError,
    EtlworksError,
    EtlworksRateLimited,
    EtlworksUnauthorized,
    EtlworksUnreachable,
)
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.client.text import as_int
from airflow_provider_etlworks.runs.checkpoint import Checkpoint, reported_key
from airflow_provider_etlworks.runs.completion_plan import CompletionPlanner
from airflow_provider_etlworks.runs.completions import CompletionTracker
from airflow_provider_etlworks.runs.outcome import task_result
from airflow_provider_etlworks.triggerer.shared_watcher import (
    ConnectionUnreadableError,
    read_connection,
    shared_watcher,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.procedure import Log
    from airflow_provider_etlworks.client.settings import ClientSettings
    from airflow_provider_etlworks.runs.completions import Completion
    from airflow_provider_etlworks.runs.watcher import Watcher

log = logging.getLogger(__name__)

# Seconds in which triggers that start at about the same time are gathered for one poll.
_GATHER = 1.0
# Seconds between two polls at most, while Etlworks does not answer; or the interval, if that is longer.
_LONGEST_DELAY = 60.0
# Seconds until the connection is read again, after its credentials were refused.
_RECONNECT_DELAY = 180.0
_WARN_EVERY = 60.0
_WARN_OF_ACCESS_EVERY = 600.0
# Seconds in which Airflow has surely stored an event: before 3.3 it does not say when.
_STORED_WITHIN = 10.0

# The whole server does not answer, so polling the next flow would fail as well.
_OUT_OF_REACH = (EtlworksUnreachable, EtlworksRateLimited, EtlworksUnauthorized)


@dataclass(frozen=True, eq=False)
class FlowToWatch:
    """
    What an asset trigger hands over.

    :ivar flow_id: the flow.
    :ivar statuses: the final statuses for which the trigger yields an event.
    :ivar conn_id: the Airflow connection.
    :ivar poll_interval: seconds between two polls.
    :ivar read_checkpoint: reads what Airflow stored under a key; ``None`` if there is nothing yet.
    :ivar write_checkpoint: stores something in Airflow under a key.
    :ivar read_states: reads what each watched asset has under a key; nothing before Airflow 3.3.
    :ivar log: the trigger's own log.
    """

    flow_id: int
    statuses: Sequence[str]
    conn_id: str
    poll_interval: float
    read_checkpoint: Callable[[str], Awaitable[Any]]
    write_checkpoint: Callable[[str, Any], Awaitable[None]]
    read_states: Callable[[str], Awaitable[list[Any | None]]]
    log: Log


class FlowSubscription:
    """
    One trigger's subscription to the completed runs of a flow.

    :param flow: the flow, and which of its runs count.
    :ivar poll_interval: seconds between two polls.
    """

    def __init__(self, flow: FlowToWatch) -> None:
        self.flow_id = flow.flow_id
        self.poll_interval = flow.poll_interval
        self._flow = flow
        self._statuses = frozenset(flow.statuses)
        name = f"etlworks_ends.{flow.conn_id}.{flow.flow_id}.{'-'.join(flow.statuses)}"
        self._key = re.sub(r"[^\w.-]", "_", name)
        self._tracker: CompletionTracker | None = None
        self._pending = 0
        self._all_stored = True
        self._confirmed: Checkpoint | None = None
        self._committed: Checkpoint | None = None
        self._root_url = ""
        self._committing = asyncio.Lock()

    async def open(self, root_url: str) -> CompletionTracker:
        """
        Return the flow's tracker; the first call reads the checkpoint for it.

        :param root_url: the instance that has the flow. Audit ids of another instance say nothing about its runs.
        """
        if self._tracker is None:
            self._committed = await self._read_checkpoint(root_url)
        elif self._root_url != root_url:
            self._log_other_instance(self._root_url, root_url)
            self._committed, self._tracker = None, None
            self._pending, self._all_stored, self._confirmed = 0, True, None
        self._root_url = root_url
        if self._tracker is None:
            self._tracker = CompletionTracker(self.flow_id, self._committed, self._flow.log)
        return self._tracker

    async def _read_checkpoint(self, root_url: str) -> Checkpoint | None:
        stored = await self._flow.read_checkpoint(self._key)
        if stored is None:
            return None
        try:
            checkpoint = Checkpoint.from_json(stored)
        except ValueError as error:
            self._flow.log.warning("%s. Flow %s is watched as if for the first time.", error, self.flow_id)
            return None
        # The checkpoints of older releases do not name their instance.
        stored_root_url = stored.get("root_url")
        if stored_root_url in (None, root_url):
            return checkpoint
        self._log_other_instance(stored_root_url, root_url)
        return None

    def _log_other_instance(self, before: str, now: str) -> None:
        self._flow.log.warning(
            "Connection %s named %s before, and names %s now. Flow %s is watched there as if for the first time.",
            self._flow.conn_id,
            before,
            now,
            self.flow_id,
        )

    async def events_for(self, completions: Iterable[Completion], settings: ClientSettings) -> list[PendingEvent]:
        """
        Return the events for completed runs with one of the statuses, in the order in which they must be yielded.

        A run that the webhook has reported has no event.

        :param completions: the completed runs.
        :param settings: those of the connection, for the address of a run.
        """
        wanted = [each for each in completions if each.execution.status in self._statuses]
        # Before any await: a commit must not count these runs as reported meanwhile.
        self._pending += len(wanted)
        reported = await self._reported_by_webhook() if wanted else frozenset()
        events = [
            PendingEvent(
                self,
                task_result(run, settings.execution_url(run.flow_id, run.audit_id)),
                completion.checkpoint,
                settings.root_url,
            )
            for completion in wanted
            if (run := completion.execution).audit_id not in reported
        ]
        self._pending -= len(wanted) - len(events)
        return events

    async def _reported_by_webhook(self) -> frozenset[int | None]:
        """Return the runs that the webhook has reported to all assets that the trigger watches."""
        try:
            states = await self._flow.read_states(reported_key(self.flow_id))
        except Exception as error:  # noqa: BLE001  # whatever Airflow's own fault is, each run is reported
            self._flow.log.warning(
                "Airflow cannot read which runs of flow %s the webhook has reported; they are reported again: %s",
                self.flow_id,
                error,
            )
            return frozenset()
        listed = [frozenset(as_int(run) for run in each) if isinstance(each, list) else frozenset() for each in states]
        return frozenset.intersection(*listed) if listed else frozenset()

    def acknowledge(self, event: PendingEvent, *, is_stored: bool) -> None:
        """Record whether Airflow has stored an event."""
        if event.root_url != self._root_url:
            return
        self._pending -= 1
        self._all_stored = self._all_stored and is_stored
        if self._all_stored:
            self._confirmed = event.checkpoint

    async def commit(self) -> None:
        """Write the checkpoint up to the last stored event. If Airflow cannot, the next poll does."""
        async with self._committing:
            if self._tracker is not None and self._all_stored and not self._pending:
                self._confirmed = self._tracker.checkpoint
            checkpoint = self._confirmed
            if checkpoint is None or checkpoint == self._committed:
                return
            try:
                await self._flow.write_checkpoint(self._key, {**checkpoint.to_json(), "root_url": self._root_url})
            except Exception as error:  # noqa: BLE001  # whatever Airflow's own fault is, the next poll writes it
                log.warning("Airflow cannot store the checkpoint of flow %s, trying on: %s", self.flow_id, error)
            else:
                self._committed = checkpoint


@dataclass(eq=False)
class PendingEvent:
    """
    The event of a completed run, until Airflow has stored it.

    :ivar subscription: whose event it is.
    :ivar payload: what the event contains.
    :ivar checkpoint: the checkpoint to write once Airflow has stored the event.
    :ivar root_url: the instance that had the run.
    :ivar is_yielded: whether the trigger has yielded the event.
    """

    subscription: FlowSubscription
    payload: dict[str, Any]
    checkpoint: Checkpoint
    root_url: str
    is_yielded: bool = False

    def acknowledge(self, *, is_stored: bool) -> None:
        """Record whether Airflow has stored the event."""
        self.subscription.acknowledge(self, is_stored=is_stored)


class CompletionStream:
    """
    Finds the completed runs of all flows that are watched with one connection. No failure ends it.

    :param etlworks_conn_id: the Airflow connection.
    """

    def __init__(self, etlworks_conn_id: str) -> None:
        self._conn_id = etlworks_conn_id
        self._subscriptions: list[FlowSubscription] = []
        self._has_new_subscription = asyncio.Event()
        self._polling = asyncio.Lock()
        self._warned_at: dict[object, float] = {}

    @contextmanager
    def subscribe(self, flow: FlowToWatch) -> Iterator[FlowSubscription]:
        """
        Subscribe to the completed runs of a flow, until the block ends.

        :param flow: the flow, and which of its runs count.
        """
        subscription = FlowSubscription(flow)
        self._subscriptions.append(subscription)
        self._has_new_subscription.set()
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)

    async def events(self) -> AsyncIterator[PendingEvent]:
        """Yield the events of all subscriptions, without end."""
        refused: Watcher | None = None
        # Perhaps an earlier poll ends just now.
        async with self._polling:
            while True:
                try:
                    async with shared_watcher(self._conn_id, instead_of=refused) as watcher:
                        refused = watcher
                        async for event in self._events_with(watcher.client):
                            yield event
                    refused = None
                    continue
                except (EtlworksUnauthorized, EtlworksConfigError) as error:
                    text = "%s No completed run is reported until connection %s works; it is read again every %.0f s."
                    self._warn("access", _WARN_OF_ACCESS_EVERY, text, error, self._conn_id, _RECONNECT_DELAY)
                except Exception:  # a fault of Airflow's or ours: a trigger that fails is started again at once
                    log.exception("Connection %s cannot be watched, trying on.", self._conn_id)
                await asyncio.sleep(_RECONNECT_DELAY)

    async def _events_with(self, client: AsyncEtlworksClient) -> AsyncIterator[PendingEvent]:
        """Yield the events, until the connection differs from the client's settings."""
        planner = CompletionPlanner(client.clock, log)
        failures = 0
        while not await self._gather() or await self._is_current(client):
            try:
                async for event in self._round(client, planner):
                    yield event
                failures = 0
            except EtlworksUnauthorized:
                raise
            except EtlworksError as error:
                failures += 1
                self._warn("answer", _WARN_EVERY, "%s Completed runs are reported once Etlworks answers again.", error)
            delay = self._poll_interval()
            if failures:
                delay = max(delay, min(2.0**failures, _LONGEST_DELAY))
            await self._sleep_until_subscribed(delay)

    async def _round(self, client: AsyncEtlworksClient, planner: CompletionPlanner) -> AsyncIterator[PendingEvent]:
        subscriptions = await self._open(client.settings.root_url)
        choosing = planner.choose(subscriptions, self._poll_interval())
        for tracker in await client.run(choosing, priority=Priority.POLL):
            planner.reads(tracker)
            for event in await self._poll(subscriptions[tracker], tracker, client):
                yield event
        for subscription in subscriptions.values():
            await subscription.commit()

    async def _open(self, root_url: str) -> dict[CompletionTracker, FlowSubscription]:
        """Return the subscriptions whose checkpoint is read, by their tracker."""
        opened = {}
        for subscription in list(self._subscriptions):
            try:
                opened[await subscription.open(root_url)] = subscription
            except Exception as error:  # noqa: BLE001  # whatever Airflow's own fault is, the next poll reads it
                flow_id = subscription.flow_id
                text = "Airflow cannot read the checkpoint of flow %s, trying on: %s"
                self._warn(("checkpoint", flow_id), _WARN_EVERY, text, flow_id, error)
        return opened

    async def _poll(
        self, subscription: FlowSubscription, tracker: CompletionTracker, client: AsyncEtlworksClient
    ) -> list[PendingEvent]:
        try:
            # Not at the priority of lists: they would wait without an end while more runs are due than can be polled.
            completed = await client.run(tracker.poll(), priority=Priority.POLL)
            for completion in completed:
                client.metrics.run_read(completion.execution, client.clock.time())
            return await subscription.events_for(completed, client.settings)
        except _OUT_OF_REACH:
            raise
        except EtlworksError as error:
            flow_id = subscription.flow_id
            every = _WARN_EVERY if error.retryable else _WARN_OF_ACCESS_EVERY
            text = "%s Trying on. Completed runs of flow %s are reported once they can be read."
            self._warn(("flow", flow_id), every, text, error, flow_id)
            return []

    def _poll_interval(self) -> float:
        return min((each.poll_interval for each in self._subscriptions), default=_LONGEST_DELAY)

    async def _gather(self) -> bool:
        """Wait for the first subscription, and for those that come at about the same time. Return whether some came."""
        if self._subscriptions and not self._has_new_subscription.is_set():
            return False
        await self._has_new_subscription.wait()
        await asyncio.sleep(_GATHER)
        self._has_new_subscription.clear()
        return True

    async def _is_current(self, client: AsyncEtlworksClient) -> bool:
        """Return whether the connection still says what it said when the client was made, as far as it can be read."""
        try:
            return await read_connection(self._conn_id) == client.settings
        except (EtlworksConfigError, ConnectionUnreadableError) as error:
            self._warn("access", _WARN_OF_ACCESS_EVERY, "%s Connection %s is used as before.", error, self._conn_id)
            return True

    async def _sleep_until_subscribed(self, seconds: float) -> None:
        """Sleep; a new subscription ends it."""
        waiting = asyncio.ensure_future(self._has_new_subscription.wait())
        try:
            await asyncio.wait((waiting,), timeout=seconds)
        finally:
            waiting.cancel()

    def _warn(self, about: object, every: float, text: str, *args: Any) -> None:
        """Log a warning, at most once in so many seconds."""
        now = time.monotonic()
        if now - self._warned_at.get(about, float("-inf")) >= every:
            self._warned_at[about] = now
            log.warning(text, *args)


_STREAMS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, CompletionStream]] = WeakKeyDictionary()


def stream_for(etlworks_conn_id: str) -> CompletionStream:
    """
    Return the stream that all asset triggers of a connection share in this event loop.

    :param etlworks_conn_id: the Airflow connection.
    """
    streams = _STREAMS.setdefault(asyncio.get_running_loop(), {})
    return streams.setdefault(etlworks_conn_id, CompletionStream(etlworks_conn_id))


async def payloads(flow: FlowToWatch) -> AsyncIterator[dict[str, Any]]:
    """
    Yield the payloads of a trigger's events without end, for a trigger that shares no stream.

    Airflow does not say when an event is stored, so the checkpoint follows some seconds later: events are delivered at
    least once.

    :param flow: the flow, and which of its runs count.
    """
    stream = CompletionStream(flow.conn_id)
    confirming: set[asyncio.Task[None]] = set()
    with stream.subscribe(flow):
        try:
            async for event in stream.events():
                yield event.payload
                task = asyncio.create_task(_confirm_later(event))
                confirming.add(task)
                task.add_done_callback(confirming.discard)
        finally:
            for task in confirming:
                task.cancel()


async def _confirm_later(event: PendingEvent) -> None:
    await asyncio.sleep(_STORED_WITHIN)
    event.acknowledge(is_stored=True)
    await event.subscription.commit()
