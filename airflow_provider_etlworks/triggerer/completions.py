"""How the watchers of assets learn that flows have ended. Apart from the trigger, since it takes more to import."""

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
from airflow_provider_etlworks.compat import AirflowNotFoundException
from airflow_provider_etlworks.runs.checkpoint import Checkpoint
from airflow_provider_etlworks.runs.completion_plan import CompletionPlanner
from airflow_provider_etlworks.runs.completions import CompletionTracker
from airflow_provider_etlworks.runs.outcome import task_result
from airflow_provider_etlworks.triggerer.shared_watcher import shared_watcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.settings import ClientSettings
    from airflow_provider_etlworks.runs.completions import Completion
    from airflow_provider_etlworks.runs.watcher import Watcher

log = logging.getLogger(__name__)

# Seconds in which those who come at about the same time are gathered for one round.
_GATHER = 1.0
# Seconds between two rounds at most, while Etlworks cannot be asked; or the interval, if that is longer.
_LONGEST_PAUSE = 60.0
# Seconds until the connection is read again, after its credentials were refused.
_READ_AGAIN = 180.0
_COMPLAIN_EVERY = 60.0
_COMPLAIN_OF_ACCESS_EVERY = 600.0
# Seconds in which Airflow has surely stored an event, where it does not tell (before 3.3).
_STORED_WITHIN = 10.0

# The server as a whole does not answer, so that asking about the next flow is of no use.
_NOBODY_ANSWERS = (EtlworksUnreachable, EtlworksRateLimited, EtlworksUnauthorized)


@dataclass(frozen=True, eq=False)
class FlowToWatch:
    """
    What the trigger of an asset's watcher is to do.

    :ivar flow_id: the flow.
    :ivar statuses: which ends are told.
    :ivar conn_id: the Airflow connection.
    :ivar poll_interval: seconds between two looks.
    :ivar read_notes: reads from Airflow what was noted under a key; ``None`` where there is nothing yet.
    :ivar write_notes: has Airflow note something under a key.
    """

    flow_id: int
    statuses: Sequence[str]
    conn_id: str
    poll_interval: float
    read_notes: Callable[[str], Awaitable[Any]]
    write_notes: Callable[[str, Any], Awaitable[None]]


class Watch:
    """
    One trigger that waits for the ends of a flow.

    :param job: the flow, and which of its ends count.
    :ivar endings: finds the ends; ``None`` until the trigger's notes have been read.
    """

    def __init__(self, job: FlowToWatch) -> None:
        self.flow_id = job.flow_id
        self.interval = job.poll_interval
        self.endings: CompletionTracker | None = None
        self._statuses = frozenset(job.statuses)
        self._job = job
        name = f"etlworks_ends.{job.conn_id}.{job.flow_id}.{'-'.join(job.statuses)}"
        self._key = re.sub(r"[^\w.-]", "_", name)
        self._on_the_way = 0
        self._is_sound = True
        self._true: Checkpoint | None = None
        self._kept: Checkpoint | None = None
        self._keeping = asyncio.Lock()

    async def open(self) -> CompletionTracker:
        """Read the notes of earlier days, unless that has been done."""
        if self.endings is None:
            noted = await self._job.read_notes(self._key)
            try:
                self._kept = None if noted is None else Checkpoint.from_json(noted)
            except ValueError as error:
                log.warning("%s. Flow %s is watched as if for the first time.", error, self.flow_id)
            self.endings = CompletionTracker(self.flow_id, self._kept, log)
        return self.endings

    def events_for(self, ends: Iterable[Completion], settings: ClientSettings) -> list[PendingEvent]:
        """Return the ends that are to be told, in the order in which they must be."""
        told = [
            PendingEvent(self, task_result(run, settings.execution_url(run.flow_id, run.audit_id)), end.checkpoint)
            for end in ends
            if (run := end.execution).status in self._statuses
        ]
        self._on_the_way += len(told)
        return told

    def acknowledge(self, told: PendingEvent, *, is_stored: bool) -> None:
        """Note that an end has reached Airflow's database, or that it has not."""
        self._on_the_way -= 1
        self._is_sound = self._is_sound and is_stored
        if self._is_sound:
            self._true = told.notes

    async def commit(self) -> None:
        """Write down what is true by now. Where Airflow cannot, the next round does."""
        async with self._keeping:
            if self.endings is not None and self._is_sound and not self._on_the_way:
                self._true = self.endings.checkpoint
            notes = self._true
            if notes is None or notes == self._kept:
                return
            try:
                await self._job.write_notes(self._key, notes.to_json())
            except Exception as error:  # noqa: BLE001  # whatever Airflow's own fault is, the next round writes it
                log.warning("Airflow could not note what flow %s has told: %s", self.flow_id, error)
            else:
                self._kept = notes


@dataclass(eq=False)
class PendingEvent:
    """
    The end of a run, on its way to Airflow.

    :ivar watch: who waits for it.
    :ivar payload: what the event tells.
    :ivar notes: what is noted once Airflow has stored the event.
    :ivar has_left: whether the trigger has yielded the event.
    """

    watch: Watch
    payload: dict[str, Any]
    notes: Checkpoint
    has_left: bool = False

    def acknowledge(self, *, is_stored: bool) -> None:
        """Note that Airflow has stored the event, or that it has not."""
        self.watch.acknowledge(self, is_stored=is_stored)


class CompletionStream:
    """
    Finds the ends of all flows that are watched with one connection. Nothing that fails ends it.

    :param etlworks_conn_id: the Airflow connection.
    """

    def __init__(self, etlworks_conn_id: str) -> None:
        self._conn_id = etlworks_conn_id
        self._watches: list[Watch] = []
        self._somebody_came = asyncio.Event()
        self._asking = asyncio.Lock()
        self._complained_at: dict[object, float] = {}

    @contextmanager
    def watch(self, job: FlowToWatch) -> Iterator[Watch]:
        """Watch a flow."""
        watch = Watch(job)
        self._watches.append(watch)
        self._somebody_came.set()
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    async def ends(self) -> AsyncIterator[PendingEvent]:
        """Yield each end, for ever."""
        refused: Watcher | None = None
        # An earlier poll may be about to end.
        async with self._asking:
            while True:
                try:
                    async with shared_watcher(self._conn_id, instead_of=refused) as watcher:
                        refused = watcher
                        async for told in self._ends_by(watcher.client):
                            yield told
                except (EtlworksUnauthorized, EtlworksConfigError, AirflowNotFoundException) as error:
                    text = "%s The ends of flows are not seen until connection %s works; it is read again every %.0f s."
                    self._complain("access", _COMPLAIN_OF_ACCESS_EVERY, text, error, self._conn_id, _READ_AGAIN)
                except Exception:  # a fault of Airflow's or ours: a trigger that fails is started again at once
                    log.exception("Connection %s cannot be watched; trying on.", self._conn_id)
                await asyncio.sleep(_READ_AGAIN)

    async def _ends_by(self, client: AsyncEtlworksClient) -> AsyncIterator[PendingEvent]:
        rounds = CompletionPlanner(client.clock, log)
        failures = 0
        while True:
            await self._gather()
            try:
                async for told in self._round(client, rounds):
                    yield told
                failures = 0
            except EtlworksUnauthorized:
                raise
            except EtlworksError as error:
                failures += 1
                text = "%s The ends of flows are told once Etlworks answers again."
                self._complain("answer", _COMPLAIN_EVERY, text, error)
            pause = self._interval()
            if failures:
                pause = max(pause, min(2.0**failures, _LONGEST_PAUSE))
            await self._wait(pause)

    async def _round(self, client: AsyncEtlworksClient, rounds: CompletionPlanner) -> AsyncIterator[PendingEvent]:
        by_endings = await self._opened()
        for endings in await client.run(rounds.choose(by_endings, self._interval())):
            rounds.reads(endings)
            for told in await self._ends_of(by_endings[endings], endings, client):
                yield told
        for watch in by_endings.values():
            await watch.commit()

    async def _opened(self) -> dict[CompletionTracker, Watch]:
        """Return those whose notes are read."""
        opened = {}
        for watch in list(self._watches):
            try:
                opened[await watch.open()] = watch
            except Exception as error:  # noqa: BLE001  # whatever Airflow's own fault is, the next round reads them
                text = "Airflow cannot read what flow %s has told: %s Trying on."
                self._complain(("notes", watch.flow_id), _COMPLAIN_EVERY, text, watch.flow_id, error)
        return opened

    async def _ends_of(
        self, watch: Watch, endings: CompletionTracker, client: AsyncEtlworksClient
    ) -> list[PendingEvent]:
        try:
            return watch.events_for(await client.run(endings.poll()), client.settings)
        except _NOBODY_ANSWERS:
            raise
        except EtlworksError as error:
            every = _COMPLAIN_EVERY if error.retryable else _COMPLAIN_OF_ACCESS_EVERY
            text = "%s Trying on. The ends of flow %s are told once its runs can be read."
            self._complain(("flow", watch.flow_id), every, text, error, watch.flow_id)
            return []

    def _interval(self) -> float:
        return min((watch.interval for watch in self._watches), default=_LONGEST_PAUSE)

    async def _gather(self) -> None:
        """Wait until somebody watches, and for those who come at the same time."""
        if not self._watches or self._somebody_came.is_set():
            await self._somebody_came.wait()
            await asyncio.sleep(_GATHER)
            self._somebody_came.clear()

    async def _wait(self, seconds: float) -> None:
        """Wait, unless somebody comes."""
        waiting = asyncio.ensure_future(self._somebody_came.wait())
        try:
            await asyncio.wait((waiting,), timeout=seconds)
        finally:
            waiting.cancel()

    def _complain(self, about: object, every: float, text: str, *args: Any) -> None:
        now = time.monotonic()
        if now - self._complained_at.get(about, float("-inf")) >= every:
            self._complained_at[about] = now
            log.warning(text, *args)


_STREAMS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, CompletionStream]] = WeakKeyDictionary()


def stream_of(etlworks_conn_id: str) -> CompletionStream:
    """Return the stream that all watchers of a connection share in this event loop."""
    streams = _STREAMS.setdefault(asyncio.get_running_loop(), {})
    return streams.setdefault(etlworks_conn_id, CompletionStream(etlworks_conn_id))


@contextmanager
def watch_of(job: FlowToWatch) -> Iterator[Watch]:
    """Watch a flow in the stream of its connection."""
    with stream_of(job.conn_id).watch(job) as watch:
        yield watch


async def payloads_of(job: FlowToWatch) -> AsyncIterator[dict[str, Any]]:
    """
    Yield what the events of a trigger tell that shares nothing, for ever.

    Airflow does not say when an event is stored. So it is noted some seconds later: it may be told twice, and is never
    lost.
    """
    stream = CompletionStream(job.conn_id)
    noting: set[asyncio.Task[None]] = set()
    with stream.watch(job):
        try:
            async for told in stream.ends():
                yield told.payload
                task = asyncio.create_task(_note_later(told))
                noting.add(task)
                task.add_done_callback(noting.discard)
        finally:
            for task in noting:
                task.cancel()


async def _note_later(told: PendingEvent) -> None:
    await asyncio.sleep(_STORED_WITHIN)
    told.acknowledge(is_stored=True)
    await told.watch.commit()
