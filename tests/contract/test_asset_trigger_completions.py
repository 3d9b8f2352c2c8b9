"""The asset trigger against an Etlworks, in an event loop that treats it as a triggerer does."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.state import AssetStateStore
from support.task import CONN_VARIABLE, stored_and_loaded

from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, broken_body, hang_up, status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytest.importorskip("airflow.sdk", reason="Airflow 2 has no watchers of assets")

from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.runs.checkpoint import Checkpoint
from airflow_provider_etlworks.runs.completions import Completion
from airflow_provider_etlworks.triggerer import completion_stream
from airflow_provider_etlworks.triggers.asset import EtlworksFlowFinishedTrigger

FLOW = 7
HISTORY = f"/rest/v1/executions/{FLOW}/history"
DAY = "/rest/v1/metrics/executions"
COMPLETIONS_LOG = completion_stream.log.name
TRIGGER_LOG = "seen.EtlworksFlowFinishedTrigger"


class Triggerer:
    """
    Runs triggers as Airflow's triggerer does, and keeps their events.

    :ivar events: the payloads of the events, with the trigger's number.
    :ivar stores: whether events reach the database.
    """

    def __init__(self, shares: bool, **settings: Any) -> None:
        self.events: list[tuple[int, dict[str, Any]]] = []
        self.stores = True
        self.tasks: list[asyncio.Task[None]] = []
        self._manager: Any = None
        if shares:
            from airflow.triggers.shared_stream import SharedStreamManager

            self._manager = SharedStreamManager(**settings)

    def start(
        self,
        trigger: EtlworksFlowFinishedTrigger,
        store: AssetStateStore,
        number: int = 1,
        others: tuple[AssetStateStore, ...] = (),
    ) -> None:
        loaded = stored_and_loaded(trigger)
        by_name = {f"asset_{place}": each for place, each in enumerate((store, *others))}
        loaded.asset_state_store = SimpleNamespace(_by_name=by_name)
        self.tasks.append(
            asyncio.ensure_future(self._share(loaded, number) if self._manager else self._run(loaded, number))
        )

    async def _run(self, trigger: Any, number: int) -> None:
        async for event in trigger.run():
            self.events.append((number, json.loads(json.dumps(event.payload))))

    async def _share(self, trigger: Any, number: int) -> None:
        key = trigger.shared_stream_key()
        stream = self._manager.subscribe(trigger_id=number, trigger=trigger, key=key)
        try:
            async for event in trigger.filter_shared_stream(stream):
                seq = self._manager.bind_pending_event(trigger_id=number, key=key)
                if self.stores:
                    self.events.append((number, json.loads(json.dumps(event.payload))))
                    asyncio.get_running_loop().call_later(0.05, self._manager.confirm_persisted, [seq])
        finally:
            await self._manager.unsubscribe(number, key)

    @property
    def runs_reported(self) -> list[int]:
        return [payload["audit_id"] for _, payload in self.events]

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
    """Return a factory of triggerers; each ends with its block."""

    @asynccontextmanager
    async def make() -> AsyncIterator[Triggerer]:
        triggerer = Triggerer(request.param)
        try:
            yield triggerer
            assert not any(task.done() for task in triggerer.tasks), "an asset trigger never ends by itself"
        finally:
            await triggerer.end()

    return make


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    for name, seconds in {
        "_GATHER": 0.05,
        "_STORED_WITHIN": 0.3,
        "_RECONNECT_DELAY": 0.2,
        "_LONGEST_DELAY": 0.2,
        "_WARN_EVERY": 3600.0,
    }.items():
        monkeypatch.setattr(completion_stream, name, seconds)
    monkeypatch.setattr(EtlworksFlowFinishedTrigger, "log", logging.getLogger(TRIGGER_LOG))
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
    """Wait until Etlworks has received some more requests."""
    enough = len(sandbox.requests) + rounds
    await until(lambda: len(sandbox.requests) >= enough, "more rounds")


def trigger(flow_id: int = FLOW, **arguments: Any) -> EtlworksFlowFinishedTrigger:
    return EtlworksFlowFinishedTrigger(flow_id, **{"poll_interval": 0.1, **arguments})


def asked(sandbox: Sandbox, path: str) -> int:
    return sum(request.path == path for request in sandbox.requests)


# --- One watcher ----------------------------------------------------------------------------------------------------


async def test_each_run_is_reported_once_with_the_operators_result(
    sandbox: Sandbox, triggerers: Callable[[], Any]
) -> None:
    store = AssetStateStore()
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: store.kept, "the first checkpoint is stored")
        first, second = sandbox.run_by_schedule(FLOW), sandbox.run_by_user(FLOW)
        await until(lambda: str(second) in store.text, "both are stored")
        await a_few_rounds(sandbox)

    assert triggerer.runs_reported == [first, second]
    payload = triggerer.events[0][1]
    assert payload.keys() == {
        "flow_id", "audit_id", "status", "started_at", "ended_at", "duration_seconds", "records", "url",
    }  # fmt: skip
    assert (payload["flow_id"], payload["status"], payload["records"]) == (FLOW, "success", 3)
    assert payload["url"] == f"{sandbox.url}/ui/flows/{FLOW}/runs/{first}"


async def test_ten_thousand_old_runs_cost_a_few_requests_and_no_event(
    sandbox: Sandbox, triggerers: Callable[[], Any]
) -> None:
    for _ in range(10_000):
        sandbox.run_by_schedule(FLOW)
    store = AssetStateStore()
    async with triggerers() as triggerer:
        triggerer.start(trigger(poll_interval=60), store)
        await until(lambda: store.kept, "the first checkpoint is stored")

    assert triggerer.events == []
    assert len(sandbox.requests) <= 3
    assert len(store.text) < 1000


async def test_runs_completed_while_nobody_watched_are_reported(
    sandbox: Sandbox, triggerers: Callable[[], Any]
) -> None:
    sandbox.run_by_schedule(FLOW)
    store = AssetStateStore()
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: store.kept, "the first checkpoint is stored")
    three = [sandbox.run_by_schedule(FLOW) for _ in range(3)]
    for _ in range(2):
        async with triggerers() as restarted:
            restarted.start(trigger(), store)
            await a_few_rounds(sandbox)
            await until(lambda: str(three[-1]) in store.text, "all are stored")
        triggerer.events += restarted.events

    assert triggerer.runs_reported == three


async def test_only_wanted_statuses_are_reported(sandbox: Sandbox, triggerers: Callable[[], Any]) -> None:
    store = AssetStateStore()
    async with triggerers() as triggerer:
        triggerer.start(trigger(statuses=["error"]), store)
        await until(lambda: store.kept, "the first checkpoint is stored")
        sandbox.run_by_schedule(FLOW)
        sandbox.add_flow(SandboxFlow(FLOW, "Watched", ends="error"))
        failed = sandbox.run_by_schedule(FLOW)
        await until(lambda: str(failed) in store.text, "it is stored")

    assert triggerer.runs_reported == [failed]


@sharing
async def test_run_that_the_webhook_has_reported_is_not_repeated(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    store, triggerer = AssetStateStore(), Triggerer(shares=True)
    triggerer.start(trigger(), store)
    await until(lambda: store.kept, "the first checkpoint is stored")
    by_webhook = sandbox.run_by_schedule(FLOW) + 1
    store.kept[f"etlworks_webhook.{FLOW}"] = json.dumps([by_webhook, "text", None, []])
    assert sandbox.run_by_schedule(FLOW) == by_webhook
    by_watcher = sandbox.run_by_schedule(FLOW)
    await until(lambda: by_watcher in triggerer.runs_reported, "it is reported")
    checkpoint = f"etlworks_ends.etlworks_default.{FLOW}.success-warning"
    await until(lambda: str(by_webhook) in store.kept[checkpoint], "it counts as done")
    await triggerer.end()
    assert triggerer.runs_reported == [by_webhook - 1, by_watcher]


@sharing
async def test_run_that_only_the_webhook_has_reported_counts_as_done(sandbox: Sandbox) -> None:
    store, first = AssetStateStore(), Triggerer(shares=True)
    first.start(trigger(), store)
    await until(lambda: store.kept, "the first checkpoint is stored")
    await first.end()
    audit_id = sandbox.run_by_schedule(FLOW)
    store.kept[f"etlworks_webhook.{FLOW}"] = json.dumps([audit_id])
    restarted = Triggerer(shares=True)
    restarted.start(trigger(), store)
    checkpoint = f"etlworks_ends.etlworks_default.{FLOW}.success-warning"
    await until(lambda: str(audit_id) in store.kept[checkpoint], "it counts as done")
    await restarted.end()
    assert restarted.events == []


async def test_checkpoint_waits_for_events_not_made_yet(sandbox: Sandbox) -> None:
    written: list[Any] = []
    answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

    async def read_checkpoint(_: str) -> Any:
        return Checkpoint(40).to_json()

    async def write_checkpoint(_: str, checkpoint: Any) -> None:
        written.append(checkpoint)

    async def read_states(_: str) -> list[Any]:
        return await answer

    flow = completion_stream.FlowToWatch(
        FLOW, ["success"], "etl", 1.0, read_checkpoint, write_checkpoint, read_states, completion_stream.log
    )
    subscription = completion_stream.FlowSubscription(flow)
    tracker = await subscription.open(sandbox.url)
    tracker.checkpoint = Checkpoint(42)
    ended = [Completion(Execution(FLOW, run, "success"), Checkpoint(run)) for run in (41, 42)]
    making = asyncio.ensure_future(subscription.events_for(ended, ClientSettings(sandbox.url, "key")))
    await asyncio.sleep(0)
    # As the acknowledgement of an earlier event does.
    await subscription.commit()
    assert written == []
    answer.set_result([[41]])
    (event,) = await making
    assert event.payload["audit_id"] == 42
    await subscription.commit()
    assert written == []
    event.acknowledge(is_stored=True)
    await subscription.commit()
    assert written == [{**Checkpoint(42).to_json(), "root_url": sandbox.url}]


@sharing
@pytest.mark.parametrize("listed", ["null", "5", '"text"', "{}"])
async def test_list_of_the_webhook_that_makes_no_sense_hides_nothing(sandbox: Sandbox, listed: str) -> None:
    store, triggerer = AssetStateStore(), Triggerer(shares=True)
    store.kept[f"etlworks_webhook.{FLOW}"] = listed
    triggerer.start(trigger(), store)
    await until(lambda: len(store.kept) > 1, "the first checkpoint is stored")
    audit_id = sandbox.run_by_schedule(FLOW)
    await until(lambda: triggerer.events, "it is reported")
    await triggerer.end()
    assert triggerer.runs_reported == [audit_id]


@sharing
async def test_run_is_reported_unless_all_assets_have_it(sandbox: Sandbox) -> None:
    stores, triggerer = [AssetStateStore(), AssetStateStore()], Triggerer(shares=True)
    triggerer.start(trigger(), stores[0])
    await until(lambda: stores[0].kept, "the first checkpoint is stored")
    await triggerer.end()
    audit_id = sandbox.run_by_schedule(FLOW)
    stores[0].kept[f"etlworks_webhook.{FLOW}"] = json.dumps([audit_id])
    # The webhook updates the asset with the flow's URI only.
    restarted = Triggerer(shares=True)
    restarted.start(trigger(), stores[0], others=(stores[1],))
    await until(lambda: restarted.events, "it is reported")
    await restarted.end()
    assert restarted.runs_reported == [audit_id]


FAULTS = (status(503), status(502, body="<html>Bad gateway</html>"), broken_body(), broken_body("{"), hang_up())


async def test_transient_fault_does_not_end_the_trigger(
    sandbox: Sandbox, triggerers: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = AssetStateStore()
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: store.kept, "the first checkpoint is stored")
        for fault in FAULTS:
            sandbox.fault("GET", HISTORY, fault, times=3)
        audit_id = sandbox.run_by_schedule(FLOW)
        await until(lambda: str(audit_id) in store.text, "it is stored")

    assert triggerer.runs_reported == [audit_id]
    warnings = [record for record in caplog.records if record.name == COMPLETIONS_LOG]
    # Less than a minute has passed: one line about the server, one about the flow.
    assert 1 <= len(warnings) <= 2


async def test_refused_credentials_are_logged_once_and_read_again(
    sandbox: Sandbox,
    triggerers: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = AssetStateStore()
    monkeypatch.setenv(CONN_VARIABLE, _connection(sandbox, password="an-old-key"))
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: len(sandbox.requests) > 5, "several tries")
        monkeypatch.delenv(CONN_VARIABLE)
        warnings = [record.getMessage() for record in caplog.records if record.name == COMPLETIONS_LOG]
        monkeypatch.setenv(CONN_VARIABLE, _connection(sandbox))
        await until(lambda: store.kept, "the first checkpoint is stored")
        audit_id = sandbox.run_by_schedule(FLOW)
        await until(lambda: str(audit_id) in store.text, "it is stored")

    assert triggerer.runs_reported == [audit_id]
    assert len(warnings) == 1
    assert "until connection etlworks_default works" in warnings[0]
    assert "an-old-key" not in caplog.text


async def test_checkpoint_that_cannot_be_stored_is_stored_later(
    sandbox: Sandbox, triggerers: Callable[[], Any]
) -> None:
    store = AssetStateStore()
    store.broken = True
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await asyncio.sleep(0.5)
        store.broken = False
        await until(lambda: store.kept, "the first checkpoint is stored")
        store.broken = True
        audit_id = sandbox.run_by_schedule(FLOW)
        await until(lambda: triggerer.events, "it is reported")
        await a_few_rounds(sandbox, 5)
        store.broken = False
        await until(lambda: str(audit_id) in store.text, "it is stored")

    assert triggerer.runs_reported == [audit_id]


async def test_unreadable_checkpoint_is_logged_and_replaced(
    sandbox: Sandbox, triggerers: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = AssetStateStore()
    store.kept[f"etlworks_ends.etlworks_default.{FLOW}.success-warning"] = '"nonsense"'
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: "low_watermark" in store.text, "the first checkpoint is stored")

    (line,) = [record for record in caplog.records if "Flow 7 is watched as if for the first time." in record.message]
    assert line.name == TRIGGER_LOG


async def test_unchanged_checkpoint_is_not_written(sandbox: Sandbox, triggerers: Callable[[], Any]) -> None:
    sandbox.add_flow(SandboxFlow(FLOW, "Watched", running=float("inf")))
    store = AssetStateStore()
    async with triggerers() as triggerer:
        triggerer.start(trigger(), store)
        await until(lambda: store.kept, "the first checkpoint is stored")
        sandbox.run_by_schedule(FLOW)
        await a_few_rounds(sandbox, 10)

    assert store.writes == 1


# --- Twenty-five watchers -------------------------------------------------------------------------------------------


@sharing
async def test_twenty_five_watchers_share_one_poll(sandbox: Sandbox) -> None:
    flows = range(101, 126)
    for flow_id in flows:
        sandbox.add_flow(SandboxFlow(flow_id, f"Flow {flow_id}"))
    store = AssetStateStore()
    triggerer = Triggerer(shares=True)
    for flow_id in flows:
        triggerer.start(trigger(flow_id), store, number=flow_id)
    try:
        await until(lambda: len(store.kept) == 25, "all first checkpoints are stored")
        await a_few_rounds(sandbox)
        before = len(sandbox.requests)
        await a_few_rounds(sandbox, 10)
        assert {request.path for request in sandbox.requests[before:]} == {DAY}
        audit_ids = {flow_id: sandbox.run_by_schedule(flow_id) for flow_id in (103, 117)}
        await until(lambda: all(str(each) in store.text for each in audit_ids.values()), "both are stored")
    finally:
        await triggerer.end()

    assert sorted((number, event["audit_id"]) for number, event in triggerer.events) == sorted(audit_ids.items())
    assert len({request.connection for request in sandbox.requests}) == 1
    others = [request.path for request in sandbox.requests[before:] if request.path != DAY]
    assert sorted(set(others)) == ["/rest/v1/executions/103/history", "/rest/v1/executions/117/history"]
    assert len(others) <= 4


@sharing
async def test_joining_and_leaving_watchers_do_not_disturb_others(sandbox: Sandbox) -> None:
    sandbox.add_flow(SandboxFlow(8, "Another"))
    stores = {number: AssetStateStore() for number in (1, 2)}
    triggerer = Triggerer(shares=True)
    try:
        triggerer.start(trigger(), stores[1], 1)
        await until(lambda: stores[1].kept, "the first checkpoint is stored")
        triggerer.start(trigger(8, poll_interval=60), stores[2], 2)
        await until(lambda: stores[2].kept, "the first checkpoint is stored")
        of_another = sandbox.run_by_schedule(8)
        await until(lambda: str(of_another) in stores[2].text, "it is stored")
        triggerer.tasks.pop(0).cancel()
        await until(lambda: len(triggerer.tasks) == 1, "one left")
        second = sandbox.run_by_schedule(8)
        triggerer.start(trigger(), stores[1], 3)
        await until(lambda: str(second) in stores[2].text, "it is stored")
        mine = sandbox.run_by_schedule(FLOW)
        await until(lambda: str(mine) in stores[1].text, "it is stored")
    finally:
        await triggerer.end()

    assert [(number, event["audit_id"]) for number, event in triggerer.events] == [
        (2, of_another), (2, second), (3, mine),
    ]  # fmt: skip


@sharing
async def test_checkpoint_waits_until_the_event_is_stored(sandbox: Sandbox) -> None:
    store = AssetStateStore()
    triggerer = Triggerer(shares=True)
    triggerer.stores = False
    triggerer.start(trigger(), store)
    await until(lambda: store.kept, "the first checkpoint is stored")
    audit_id = sandbox.run_by_schedule(FLOW)
    await a_few_rounds(sandbox, 6)
    await triggerer.end()
    assert str(audit_id) not in store.text
    after_a_crash = Triggerer(shares=True)
    after_a_crash.start(trigger(), store)
    await until(lambda: str(audit_id) in store.text, "it is stored")
    await after_a_crash.end()

    assert after_a_crash.runs_reported == [audit_id]


@sharing
async def test_event_that_is_not_stored_is_delivered_again(
    sandbox: Sandbox,
) -> None:
    sandbox.add_flow(SandboxFlow(8, "Another"))
    stores = {number: AssetStateStore() for number in (1, 2)}
    triggerer = Triggerer(shares=True, ack_timeout=2.0)
    try:
        triggerer.start(trigger(), stores[1], 1)
        triggerer.start(trigger(8), stores[2], 2)
        await until(lambda: stores[1].kept and stores[2].kept, "the first checkpoints are stored")
        triggerer.stores = False
        audit_id = sandbox.run_by_schedule(FLOW)
        failing = triggerer.tasks[0]
        await until(failing.done, "Airflow fails the trigger")
        assert "not yet confirmed persisted" in str(failing.exception())
        triggerer.stores = True
        triggerer.start(trigger(), stores[1], 3)
        of_another = sandbox.run_by_schedule(8)
        await until(lambda: str(audit_id) in stores[1].text, "it is stored")
        await until(lambda: str(of_another) in stores[2].text, "it is stored")
    finally:
        await triggerer.end()

    assert sorted((number, event["audit_id"]) for number, event in triggerer.events) == [(2, of_another), (3, audit_id)]


@sharing
async def test_thousands_of_completions_do_not_overrun_airflows_queues(sandbox: Sandbox) -> None:
    store = AssetStateStore()
    first = Triggerer(shares=True)
    first.start(trigger(), store)
    await until(lambda: store.kept, "the first checkpoint is stored")
    await first.end()
    many = [sandbox.run_by_schedule(FLOW) for _ in range(2_000)]
    triggerer = Triggerer(shares=True)
    triggerer.start(trigger(), store)
    try:
        await until(lambda: str(many[-1]) in store.text, "all are stored")
    finally:
        await triggerer.end()

    assert triggerer.runs_reported == many
