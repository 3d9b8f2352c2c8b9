"""The trigger of an asset's watcher against an Etlworks, in an event loop that treats it as a triggerer does."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.task import CONN_VARIABLE, stored_and_loaded

from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, broken_body, hang_up, status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytest.importorskip("airflow.sdk", reason="Airflow 2 has no watchers of assets")

from airflow_provider_etlworks.triggerer import completions
from airflow_provider_etlworks.triggers.asset import EtlworksFlowFinishedTrigger

FLOW = 7
HISTORY = f"/rest/v1/executions/{FLOW}/history"
DAY = "/rest/v1/metrics/executions"
ENDS_LOG = completions.log.name


class Store:
    """Airflow's store of an asset's state: keeps JSON."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.broken = False
        self.writes = 0

    async def aget(self, key: str) -> Any:
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError("the API server is restarting")
        return json.loads(self.kept[key]) if key in self.kept else None

    async def aset(self, key: str, value: Any) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError("the API server is restarting")
        self.kept[key] = json.dumps(value)
        self.writes += 1

    @property
    def text(self) -> str:
        return "".join(self.kept.values())


class Triggerer:
    """
    Runs triggers as Airflow's triggerer does, and keeps what they tell.

    :ivar told: what the events tell, with the trigger's number.
    :ivar stores: whether events reach the database.
    """

    def __init__(self, shares: bool, **settings: Any) -> None:
        self.told: list[tuple[int, dict[str, Any]]] = []
        self.stores = True
        self.tasks: list[asyncio.Task[None]] = []
        self._manager: Any = None
        if shares:
            from airflow.triggers.shared_stream import SharedStreamManager

            self._manager = SharedStreamManager(**settings)

    def start(self, trigger: EtlworksFlowFinishedTrigger, store: Store, number: int = 1) -> None:
        loaded = stored_and_loaded(trigger)
        loaded.asset_state_store = SimpleNamespace(_by_name={"asset": store})
        self.tasks.append(
            asyncio.ensure_future(self._share(loaded, number) if self._manager else self._run(loaded, number))
        )

    async def _run(self, trigger: Any, number: int) -> None:
        async for event in trigger.run():
            self.told.append((number, json.loads(json.dumps(event.payload))))

    async def _share(self, trigger: Any, number: int) -> None:
        key = trigger.shared_stream_key()
        stream = self._manager.subscribe(trigger_id=number, trigger=trigger, key=key)
        try:
            async for event in trigger.filter_shared_stream(stream):
                seq = self._manager.bind_pending_event(trigger_id=number, key=key)
                if self.stores:
                    self.told.append((number, json.loads(json.dumps(event.payload))))
                    asyncio.get_running_loop().call_later(0.05, self._manager.confirm_persisted, [seq])
        finally:
            await self._manager.unsubscribe(number, key)

    @property
    def runs_told(self) -> list[int]:
        return [payload["audit_id"] for _, payload in self.told]

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def can_share() -> bool:
    try:
        import airflow.triggers.shared_stream  # noqa: F401
    except ImportError:
        return False
    return True


sharing = pytest.mark.skipif(not can_share(), reason="Airflow 3.3 brought shared streams")


@pytest.fixture(params=[pytest.param(True, marks=sharing, id="shared"), pytest.param(False, id="alone")])
def triggerers(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Return what makes a triggerer; it ends with its block."""

    @asynccontextmanager
    async def make() -> AsyncIterator[Triggerer]:
        triggerer = Triggerer(request.param)
        try:
            yield triggerer
            assert not any(task.done() for task in triggerer.tasks), "a trigger of a watcher never ends by itself"
        finally:
            await triggerer.end()

    return make


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    for name, seconds in {
        "_GATHER": 0.05,
        "_STORED_WITHIN": 0.3,
        "_READ_AGAIN": 0.2,
        "_LONGEST_PAUSE": 0.2,
        "_COMPLAIN_EVERY": 3600.0,
    }.items():
        monkeypatch.setattr(completions, name, seconds)
    with Sandbox([SandboxFlow(FLOW, "Watched", records=3)], requests_per_minute=None) as sandbox:
        monkeypatch.setenv(CONN_VARIABLE, _connection(sandbox))
        yield sandbox


def _connection(sandbox: Sandbox, **changes: Any) -> str:
    connection = json.loads(sandbox.airflow_connection)
    connection["extra"]["requests_per_minute"] = 0
    return json.dumps({**connection, **changes})


async def until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, f"not in time: {what}"
        await asyncio.sleep(0.02)


async def a_few_rounds(sandbox: Sandbox, rounds: int = 3) -> None:
    """Wait until Etlworks has been asked some more times."""
    enough = len(sandbox.requests) + rounds
    await until(lambda: len(sandbox.requests) >= enough, "more rounds")


def trigger(flow_id: int = FLOW, **arguments: Any) -> EtlworksFlowFinishedTrigger:
    return EtlworksFlowFinishedTrigger(flow_id, **{"poll_interval": 0.1, **arguments})


def asked(sandbox: Sandbox, path: str) -> int:
    return sum(request.path == path for request in sandbox.requests)


# --- One watcher ----------------------------------------------------------------------------------------------------


async def test_each_end_is_told_once_with_what_the_operator_returns(
    sandbox: Sandbox, triggerers: Callable[[], Any]
) -> None:
    store = Store()
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: store.kept, "the first look is noted")
        first, second = sandbox.run_by_schedule(FLOW), sandbox.run_by_user(FLOW)
        await until(lambda: str(second) in store.text, "both are noted")
        await a_few_rounds(sandbox)

    assert triggerer.runs_told == [first, second]
    payload = triggerer.told[0][1]
    assert payload.keys() == {
        "flow_id", "audit_id", "status", "started_at", "ended_at", "duration_seconds", "records", "url",
    }  # fmt: skip
    assert (payload["flow_id"], payload["status"], payload["records"]) == (FLOW, "success", 3)
    assert payload["url"] == f"{sandbox.url}/ui/flows/{FLOW}/runs/{first}"


async def test_ten_thousand_old_runs_are_a_handful_of_requests_and_no_event(
    sandbox: Sandbox, triggerers: Callable[[], Any]
) -> None:
    for _ in range(10_000):
        sandbox.run_by_schedule(FLOW)
    store = Store()
    async with triggerers() as triggerer:
        triggerer.start(trigger(poll_interval=60), store)
        await until(lambda: store.kept, "the first look is noted")

    assert triggerer.told == []
    assert len(sandbox.requests) <= 3
    assert len(store.text) < 1000


async def test_what_ended_while_nobody_watched_is_told_afterwards(
    sandbox: Sandbox, triggerers: Callable[[], Any]
) -> None:
    sandbox.run_by_schedule(FLOW)
    store = Store()
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: store.kept, "the first look is noted")
    three = [sandbox.run_by_schedule(FLOW) for _ in range(3)]
    for _ in range(2):
        async with triggerers() as restarted:
            restarted.start(trigger(), store)
            await a_few_rounds(sandbox)
            await until(lambda: str(three[-1]) in store.text, "all are noted")
        triggerer.told += restarted.told

    assert triggerer.runs_told == three


async def test_only_ends_with_the_wanted_statuses_are_told(sandbox: Sandbox, triggerers: Callable[[], Any]) -> None:
    store = Store()
    async with triggerers() as triggerer:
        triggerer.start(trigger(statuses=["error"]), store)
        await until(lambda: store.kept, "the first look is noted")
        sandbox.run_by_schedule(FLOW)
        sandbox.add_flow(SandboxFlow(FLOW, "Watched", ends="error"))
        failed = sandbox.run_by_schedule(FLOW)
        await until(lambda: str(failed) in store.text, "it is noted")

    assert triggerer.runs_told == [failed]


FAULTS = (status(503), status(502, body="<html>Bad gateway</html>"), broken_body(), broken_body("{"), hang_up())


async def test_no_passing_fault_ends_the_watch(
    sandbox: Sandbox, triggerers: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: store.kept, "the first look is noted")
        for fault in FAULTS:
            sandbox.fault("GET", HISTORY, fault, times=3)
        audit_id = sandbox.run_by_schedule(FLOW)
        await until(lambda: str(audit_id) in store.text, "it is noted")

    assert triggerer.runs_told == [audit_id]
    complaints = [record for record in caplog.records if record.name == ENDS_LOG]
    # A minute has not passed: one about the server, one about the flow.
    assert 1 <= len(complaints) <= 2


async def test_refused_credentials_are_said_once_and_read_again(
    sandbox: Sandbox,
    triggerers: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store()
    monkeypatch.setenv(CONN_VARIABLE, _connection(sandbox, password="an-old-key"))
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: len(sandbox.requests) > 5, "several tries")
        monkeypatch.delenv(CONN_VARIABLE)
        complaints = [record.getMessage() for record in caplog.records if record.name == ENDS_LOG]
        monkeypatch.setenv(CONN_VARIABLE, _connection(sandbox))
        await until(lambda: store.kept, "the first look is noted")
        audit_id = sandbox.run_by_schedule(FLOW)
        await until(lambda: str(audit_id) in store.text, "it is noted")

    assert triggerer.runs_told == [audit_id]
    assert len(complaints) == 1
    assert "until connection etlworks_default works" in complaints[0]
    assert "an-old-key" not in caplog.text


async def test_what_airflow_cannot_note_is_noted_later(sandbox: Sandbox, triggerers: Callable[[], Any]) -> None:
    store = Store()
    store.broken = True
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await asyncio.sleep(0.5)
        store.broken = False
        await until(lambda: store.kept, "the first look is noted")
        store.broken = True
        audit_id = sandbox.run_by_schedule(FLOW)
        await until(lambda: triggerer.told, "it is told")
        await a_few_rounds(sandbox, 5)
        store.broken = False
        await until(lambda: str(audit_id) in store.text, "it is noted")

    assert triggerer.runs_told == [audit_id]


async def test_notes_that_cannot_be_read_are_said_and_replaced(
    sandbox: Sandbox, triggerers: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    store.kept[f"etlworks_ends.etlworks_default.{FLOW}.success-warning"] = '"nonsense"'
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: "low_watermark" in store.text, "the first look is noted")

    assert "Flow 7 is watched as if for the first time." in caplog.text


async def test_a_watch_that_has_nothing_to_tell_writes_nothing(sandbox: Sandbox, triggerers: Callable[[], Any]) -> None:
    sandbox.add_flow(SandboxFlow(FLOW, "Watched", running=float("inf")))
    store = Store()
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: store.kept, "the first look is noted")
        sandbox.run_by_schedule(FLOW)
        await a_few_rounds(sandbox, 10)

    assert store.writes == 1


# --- Twenty-five watchers -------------------------------------------------------------------------------------------


@sharing
async def test_twenty_five_watchers_of_a_connection_share_one_poll(sandbox: Sandbox) -> None:
    flows = range(101, 126)
    for flow_id in flows:
        sandbox.add_flow(SandboxFlow(flow_id, f"Flow {flow_id}"))
    store = Store()
    triggerer = Triggerer(shares=True)
    for flow_id in flows:
        triggerer.start(trigger(flow_id), store, number=flow_id)
    try:
        await until(lambda: len(store.kept) == 25, "all first looks are noted")
        await a_few_rounds(sandbox)
        before = len(sandbox.requests)
        await a_few_rounds(sandbox, 10)
        assert {request.path for request in sandbox.requests[before:]} == {DAY}
        audit_ids = {flow_id: sandbox.run_by_schedule(flow_id) for flow_id in (103, 117)}
        await until(lambda: all(str(each) in store.text for each in audit_ids.values()), "both are noted")
    finally:
        await triggerer.end()

    assert sorted((number, told["audit_id"]) for number, told in triggerer.told) == sorted(audit_ids.items())
    assert len({request.connection for request in sandbox.requests}) == 1
    others = [request.path for request in sandbox.requests[before:] if request.path != DAY]
    assert sorted(set(others)) == ["/rest/v1/executions/103/history", "/rest/v1/executions/117/history"]
    assert len(others) <= 4


@sharing
async def test_a_watcher_that_comes_later_and_one_that_leaves_change_nothing_for_others(sandbox: Sandbox) -> None:
    sandbox.add_flow(SandboxFlow(8, "Another"))
    stores = {number: Store() for number in (1, 2)}
    triggerer = Triggerer(shares=True)
    try:
        triggerer.start(trigger(), stores[1], 1)
        await until(lambda: stores[1].kept, "the first look is noted")
        triggerer.start(trigger(8, poll_interval=60), stores[2], 2)
        await until(lambda: stores[2].kept, "the first look is noted")
        of_another = sandbox.run_by_schedule(8)
        await until(lambda: str(of_another) in stores[2].text, "it is noted")
        triggerer.tasks.pop(0).cancel()
        await until(lambda: len(triggerer.tasks) == 1, "one left")
        second = sandbox.run_by_schedule(8)
        triggerer.start(trigger(), stores[1], 3)
        await until(lambda: str(second) in stores[2].text, "it is noted")
        mine = sandbox.run_by_schedule(FLOW)
        await until(lambda: str(mine) in stores[1].text, "it is noted")
    finally:
        await triggerer.end()

    assert [(number, told["audit_id"]) for number, told in triggerer.told] == [
        (2, of_another), (2, second), (3, mine),
    ]  # fmt: skip


@sharing
async def test_an_end_is_not_noted_before_airflow_has_stored_its_event(sandbox: Sandbox) -> None:
    store = Store()
    triggerer = Triggerer(shares=True)
    triggerer.stores = False
    triggerer.start(trigger(), store)
    await until(lambda: store.kept, "the first look is noted")
    audit_id = sandbox.run_by_schedule(FLOW)
    await a_few_rounds(sandbox, 6)
    await triggerer.end()
    assert str(audit_id) not in store.text
    after_a_crash = Triggerer(shares=True)
    after_a_crash.start(trigger(), store)
    await until(lambda: str(audit_id) in store.text, "it is noted")
    await after_a_crash.end()

    assert after_a_crash.runs_told == [audit_id]


@sharing
async def test_an_event_that_airflow_fails_to_store_is_told_by_the_trigger_that_it_starts_instead(
    sandbox: Sandbox,
) -> None:
    sandbox.add_flow(SandboxFlow(8, "Another"))
    stores = {number: Store() for number in (1, 2)}
    triggerer = Triggerer(shares=True, ack_timeout=2.0)
    try:
        triggerer.start(trigger(), stores[1], 1)
        triggerer.start(trigger(8), stores[2], 2)
        await until(lambda: stores[1].kept and stores[2].kept, "the first looks are noted")
        triggerer.stores = False
        audit_id = sandbox.run_by_schedule(FLOW)
        failing = triggerer.tasks[0]
        await until(failing.done, "Airflow fails the trigger")
        assert "not yet confirmed persisted" in str(failing.exception())
        triggerer.stores = True
        triggerer.start(trigger(), stores[1], 3)
        of_another = sandbox.run_by_schedule(8)
        await until(lambda: str(audit_id) in stores[1].text, "it is noted")
        await until(lambda: str(of_another) in stores[2].text, "it is noted")
    finally:
        await triggerer.end()

    assert sorted((number, told["audit_id"]) for number, told in triggerer.told) == [(2, of_another), (3, audit_id)]


@sharing
async def test_hundreds_of_ends_at_once_do_not_overrun_airflows_queues(sandbox: Sandbox) -> None:
    store = Store()
    first = Triggerer(shares=True)
    first.start(trigger(), store)
    await until(lambda: store.kept, "the first look is noted")
    await first.end()
    many = [sandbox.run_by_schedule(FLOW) for _ in range(2_000)]
    triggerer = Triggerer(shares=True)
    triggerer.start(trigger(), store)
    try:
        await until(lambda: str(many[-1]) in store.text, "all are noted")
    finally:
        await triggerer.end()

    assert triggerer.runs_told == many
