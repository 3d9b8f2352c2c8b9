"""The webhook: posts over a socket, an Etlworks that has the runs, and an Airflow API that keeps the events."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from airflow import __version__ as airflow_version
from support.clock import VirtualClock
from support.task import CONN_VARIABLE
from support.webhook import AIRFLOW_PASSWORD, FakeAirflow, served

from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, delay, hang_up, status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytest.importorskip("airflow.sdk", reason="Airflow 2 has no plugins with FastAPI apps")

from aiohttp import web

from airflow_provider_etlworks.assets import flow_uri
from airflow_provider_etlworks.client import aio
from airflow_provider_etlworks.webhook import delivery as delivery_module
from airflow_provider_etlworks.webhook.app import MAX_BODY_BYTES, create_app
from airflow_provider_etlworks.webhook.delivery import Delivery
from airflow_provider_etlworks.webhook.settings import DEFAULT_HEADER, PATH, URL_PREFIX, WebhookSettings

FLOW, FAILING, ENDLESS = 7, 8, 9
RECORD = f"/rest/v1/executions/{FLOW}"
SECRET = "shared-secret-0815-0815"
ASSET = 41
DAY = 24 * 3600.0


@dataclass
class World:
    """Etlworks, Airflow's public API, and the webhook in an API server."""

    sandbox: Sandbox
    airflow: FakeAirflow
    clock: VirtualClock
    delivery: Delivery
    session: aiohttp.ClientSession
    url: str

    async def post(self, body: Any, **headers: str) -> tuple[int, bytes]:
        """Send a post, with the secret unless headers are given."""
        data = body if isinstance(body, bytes) or hasattr(body, "__aiter__") else json.dumps(body).encode()
        own = {name.replace("_", "-"): value for name, value in headers.items()} or {DEFAULT_HEADER: SECRET}
        async with self.session.post(self.url, data=data, headers=own) as response:
            if response.status == 503:
                assert response.headers["Retry-After"] == "30"
            return response.status, await response.read()

    async def ended(self, audit_id: int, flow_id: int = FLOW, **changes: Any) -> int:
        """Send what Etlworks sends when a run has ended, and return the status."""
        return (await self.post(event(audit_id, flow_id, **changes)))[0]

    async def settle(self) -> None:
        """Wait until every post is dealt with."""
        await until(lambda: not self.delivery.pending, "all posts are dealt with")

    def hold(self) -> asyncio.Event:
        """Let no retry happen until the event that this returns is set."""
        release = asyncio.Event()

        async def wait(seconds: float) -> None:
            await release.wait()
            await self.clock.sleep_async(seconds)

        self.delivery._sleep = wait
        return release

    def run(self, flow_id: int = FLOW) -> int:
        return self.sandbox.run_by_schedule(flow_id)


def event(audit_id: int, flow_id: int = FLOW, **changes: Any) -> dict[str, Any]:
    return {
        "eventId": str(uuid.uuid4()),
        "eventType": "Flow.Executed",
        "webhookId": 1,
        "entityId": audit_id,
        "entity": {"marker": "of-the-body", "status": "success"},
        "entityUrl": f"https://app.etlworks.com/rest/v1/flows/{flow_id}?auditId={audit_id}",
        "timestamp": 1_800_000_000_000,
        **changes,
    }


async def until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, f"not in time: {what}"
        await asyncio.sleep(0.01)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Any]]:
    """Return a factory of worlds; at the end, no secret and nothing of a body may be in what was logged."""
    caplog.set_level(logging.DEBUG)
    clock = VirtualClock()
    monkeypatch.setattr(
        delivery_module, "AsyncEtlworksClient", partial(aio.AsyncEtlworksClient, clock=clock, sleep=clock.sleep_async)
    )

    @asynccontextmanager
    async def make(body_timeout: float = 30.0, **settings: Any) -> AsyncIterator[World]:
        chosen = WebhookSettings(SECRET, **settings)
        flows = [
            SandboxFlow(FLOW, "Watched", records=3),
            SandboxFlow(FAILING, "Failing", ends="error", exception="No such table"),
            SandboxFlow(ENDLESS, "Endless", running=float("inf")),
        ]
        deliveries = Delivery(chosen, clock=clock, sleep=clock.sleep_async)
        app = create_app(chosen, make_delivery=lambda _: deliveries, body_timeout=body_timeout)
        with Sandbox(flows, requests_per_minute=None, clock=clock.time) as sandbox:
            connection = json.loads(sandbox.airflow_connection)
            connection["extra"] |= {"requests_per_minute": 0, "verify": False}
            monkeypatch.setenv(CONN_VARIABLE, json.dumps(connection))
            async with FakeAirflow(clock.time) as airflow, aiohttp.ClientSession() as session:
                monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_WEBHOOK_AIRFLOW", airflow.connection)
                airflow.assets = {
                    ASSET: flow_uri(FLOW, sandbox.url),
                    42: flow_uri(FAILING, sandbox.url),
                    43: flow_uri(ENDLESS, sandbox.url),
                    44: flow_uri(70, sandbox.url),
                }
                async with served(app, URL_PREFIX) as address:
                    yield World(sandbox, airflow, clock, deliveries, session, f"{address}{URL_PREFIX}{PATH}")

    yield make
    logged = [record.getMessage() + (record.exc_text or "") for record in caplog.get_records("call")]
    secrets = (SECRET, AIRFLOW_PASSWORD, "token-of-airflow", "sandbox-key", "of-the-body", "eyJ")
    assert [text for text in logged if any(secret in text for secret in secrets)] == []


def logged_by_us(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(each.getMessage() for each in caplog.records if "webhook" in each.name)


# --- What is reported -----------------------------------------------------------------------------------------------


async def test_end_becomes_one_event_with_the_watchers_payload(world: Callable[..., Any]) -> None:
    async with world() as w:
        audit_id = w.run()
        assert await w.post(event(audit_id)) == (202, b"")
        await w.settle()
    (created,) = w.airflow.events
    assert created["asset_id"] == ASSET
    payload = created["extra"]["payload"]
    assert payload.keys() == {
        "flow_id", "audit_id", "status", "started_at", "ended_at", "duration_seconds", "records", "url",
    }  # fmt: skip
    assert (payload["flow_id"], payload["audit_id"], payload["status"], payload["records"]) == (
        FLOW, audit_id, "success", 3,
    )  # fmt: skip
    assert w.airflow.states == {(ASSET, f"etlworks_webhook.{FLOW}"): [audit_id]}
    assert w.airflow.log_ins == 1


async def test_body_is_not_believed(world: Callable[..., Any]) -> None:
    async with world() as w:
        failed = w.run(FAILING)
        assert await w.ended(failed, FAILING) == 202
        # A run of another flow, and one that never was.
        assert await w.ended(failed, FLOW) == 202
        assert await w.ended(2**63 - 1) == 202
        await w.settle()
    assert w.airflow.events == []


async def test_chosen_statuses_are_reported(world: Callable[..., Any]) -> None:
    async with world(statuses=("error",)) as w:
        failed, fine = w.run(FAILING), w.run()
        await w.ended(failed, FAILING)
        await w.ended(fine)
        await w.settle()
    assert w.airflow.reported == [failed]


async def test_every_asset_with_the_uri_is_updated(world: Callable[..., Any]) -> None:
    async with world() as w:
        w.airflow.assets[45] = w.airflow.assets[ASSET]
        await w.ended(w.run())
        await w.settle()
    assert [each["asset_id"] for each in w.airflow.events] == [ASSET, 45]


async def test_exact_asset_is_found_among_hundreds(world: Callable[..., Any]) -> None:
    async with world() as w:
        own = w.airflow.assets.pop(ASSET)
        w.airflow.assets = {number: f"{own}{number}" for number in range(100, 350)} | {ASSET: own}
        await w.ended(w.run())
        await w.settle()
    assert [each["asset_id"] for each in w.airflow.events] == [ASSET]


async def test_flow_without_an_asset_is_left_alone(world: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async with world() as w:
        del w.airflow.assets[ASSET]
        await w.ended(w.run())
        await w.settle()
    assert w.airflow.events == []
    assert "No DAG has the asset" in logged_by_us(caplog)


async def test_run_that_is_about_to_end_is_waited_for(world: Callable[..., Any]) -> None:
    async with world() as w:
        audit_id, release = w.run(ENDLESS), w.hold()
        await w.ended(audit_id, ENDLESS)
        await until(lambda: w.sandbox.requests, "it was polled")
        w.sandbox.finish(audit_id)
        release.set()
        await w.settle()
    assert w.airflow.reported == [audit_id]


async def test_run_that_does_not_end_is_given_up(world: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async with world() as w:
        audit_id = w.run(ENDLESS)
        await w.ended(audit_id, ENDLESS)
        await w.settle()
        assert w.airflow.events == []
        assert f"Run {audit_id} of flow {ENDLESS} was posted by Etlworks and is dropped" in logged_by_us(caplog)
        # A later post of the same event counts again.
        w.sandbox.finish(audit_id)
        await w.ended(audit_id, ENDLESS)
        await w.settle()
    assert w.airflow.reported == [audit_id]


async def test_end_of_yesterday_is_too_late(world: Callable[..., Any]) -> None:
    async with world() as w:
        old = w.run()
        w.clock.now += DAY + 60
        new = w.run()
        w.clock.now += DAY - 60
        await w.ended(old)
        await w.ended(new)
        await w.settle()
    assert w.airflow.reported == [new]


# --- Repetitions ----------------------------------------------------------------------------------------------------


async def test_repeated_posts_are_one_event(world: Callable[..., Any]) -> None:
    async with world() as w:
        audit_id = w.run()
        repeated = event(audit_id)
        statuses = await asyncio.gather(*(w.post(repeated) for _ in range(50)))
        assert {status for status, _ in statuses} == {202}
        await w.settle()
        requests = len(w.sandbox.requests)
        assert (await w.post(repeated))[0] == 202
        await w.settle()
        assert len(w.sandbox.requests) == requests
        # Another event of the same run is recognized by what Airflow has.
        await w.ended(audit_id)
        await w.settle()
    assert w.airflow.reported == [audit_id]


async def test_restarted_server_repeats_nothing(world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as w:
        audit_id = w.run()
        await w.ended(audit_id)
        await w.settle()
        monkeypatch.setattr(w.delivery, "_seen", type(w.delivery._seen)())
        await w.ended(audit_id)
        await w.settle()
    assert w.airflow.reported == [audit_id]


async def test_end_that_a_watcher_has_reported_is_not_repeated(world: Callable[..., Any]) -> None:
    async with world() as w:
        audit_id = w.run()
        # Many other events came after it.
        w.airflow.add_event(ASSET, {"from_trigger": True, "payload": {"audit_id": audit_id}})
        for extra in [{"payload": {"audit_id": 1}}, {"payload": "text"}, {}] * 100:
            w.airflow.add_event(ASSET, extra)
        before = len(w.airflow.events)
        await w.ended(audit_id)
        await w.settle()
    assert len(w.airflow.events) == before
    assert w.airflow.states[ASSET, f"etlworks_webhook.{FLOW}"] == [audit_id]


async def test_airflow_without_state_stores_gets_its_events(world: Callable[..., Any]) -> None:
    async with world() as w:
        w.airflow.has_store = False
        audit_id = w.run()
        await w.ended(audit_id)
        await w.settle()
    assert w.airflow.reported == [audit_id]


async def test_list_of_reported_runs_is_bounded(world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "_REPORTED", 5)
    async with world() as w:
        runs = [w.run() for _ in range(12)]
        await asyncio.gather(*(w.ended(run) for run in runs))
        await w.settle()
    assert sorted(w.airflow.reported) == runs
    assert len(w.airflow.states[ASSET, f"etlworks_webhook.{FLOW}"]) == 5


# --- Load -----------------------------------------------------------------------------------------------------------


async def test_storm_of_posts_loses_nothing(world: Callable[..., Any]) -> None:
    async with world() as w:
        runs = [w.run() for _ in range(300)]
        bodies = [event(run) for run in runs for _ in range(2)]
        statuses = await asyncio.gather(*(w.post(body) for body in bodies))
        assert {status for status, _ in statuses} == {202}
        await w.settle()
    assert sorted(w.airflow.reported) == runs
    assert w.airflow.log_ins == 1


async def test_full_server_asks_to_repeat(world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "MAX_PENDING", 3)
    async with world() as w:
        release = w.hold()
        endless = [w.run(ENDLESS) for _ in range(4)]
        assert [await w.ended(run, ENDLESS) for run in endless] == [202, 202, 202, 503]
        for run in endless:
            w.sandbox.finish(run)
        release.set()
        await w.settle()
        assert w.airflow.reported == endless[:3]
        assert await w.ended(endless[3], ENDLESS) == 202
        await w.settle()
    assert w.airflow.reported == endless


async def test_slow_etlworks_holds_up_nobody(world: Callable[..., Any]) -> None:
    async with world() as w:
        w.sandbox.fault("GET", RECORD, delay(600.0), times=None)
        assert {await w.ended(w.run()) for _ in range(20)} == {202}
        # All are answered, and none is dealt with.
        assert w.delivery.pending == 20
        assert await w.post(b"{") == (400, b"")


async def test_end_of_the_server_gives_up_at_once(world: Callable[..., Any]) -> None:
    async with world() as w:
        w.hold()
        await w.ended(w.run(ENDLESS), ENDLESS)
        assert w.delivery.pending == 1
    assert w.delivery.pending == 0


# --- Faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [status(503), status(429), hang_up(), status(500, body="<html>")])
async def test_fault_of_etlworks_is_waited_out(world: Callable[..., Any], fault: Any) -> None:
    async with world() as w:
        w.sandbox.fault("GET", RECORD, fault, times=12)
        audit_id = w.run()
        await w.ended(audit_id)
        await w.settle()
    assert w.airflow.reported == [audit_id]


async def test_etlworks_that_stays_away_is_given_up(
    world: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as w:
        w.sandbox.fault("GET", RECORD, status(503), times=None)
        await w.ended(w.run())
        await w.settle()
    assert w.airflow.events == []
    assert "is dropped" in logged_by_us(caplog)


@pytest.mark.parametrize("code", [500, 502, 503, 429])
async def test_fault_of_airflow_is_waited_out(world: Callable[..., Any], code: int) -> None:
    async with world() as w:
        faults = iter([web.Response(status=code, text="of-the-body") for _ in range(6)])
        w.airflow.answer = lambda _: next(faults, None)
        audit_id = w.run()
        await w.ended(audit_id)
        await w.settle()
    assert w.airflow.reported == [audit_id]


async def test_events_that_airflow_cannot_list_hold_up_no_report(
    world: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as w:
        # As Airflow 3.3.2 does while a DAG run of an earlier event is queued.
        path = "/api/v2/assets/events"
        w.airflow.answer = lambda request: (
            web.Response(status=500) if (request.method, request.path) == ("GET", path) else None
        )
        audit_id, began = w.run(), w.clock.now
        await w.ended(audit_id)
        await w.settle()
        assert w.clock.now - began < 60
        # What the state store names needs no list.
        listed = w.airflow.requests.count(f"GET {path}")
        await w.ended(audit_id)
        await w.settle()
        assert w.airflow.requests.count(f"GET {path}") == listed
    assert w.airflow.reported == [audit_id]
    assert "may be reported twice" in logged_by_us(caplog)


async def test_event_whose_answer_was_lost_is_not_created_twice(world: Callable[..., Any]) -> None:
    async with world() as w:
        lost: list[int] = []

        def lose(request: web.Request) -> web.Response | None:
            if request.method != "POST" or request.path == "/auth/token" or lost:
                return None
            lost.append(1)
            w.airflow.add_event(ASSET, {"payload": {"audit_id": audit_id}, "from_rest_api": True})
            return web.Response(status=504)

        audit_id = w.run()
        w.airflow.answer = lose
        await w.ended(audit_id)
        await w.settle()
    assert lost
    assert w.airflow.reported == [audit_id]


async def test_expired_token_of_airflow_is_renewed(world: Callable[..., Any]) -> None:
    async with world() as w:
        runs = [w.run() for _ in range(2)]
        await w.ended(runs[0])
        await w.settle()
        w.airflow.token = "another"
        await w.ended(runs[1])
        await w.settle()
    assert w.airflow.reported == runs
    assert w.airflow.log_ins == 2


async def test_changed_credentials_are_read_again(world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as w:
        right, release = w.airflow.connection, w.hold()
        monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_WEBHOOK_AIRFLOW", right.replace("4711", "0000"))
        audit_id = w.run()
        await w.ended(audit_id)
        await until(lambda: "POST /auth/token" in w.airflow.requests, "it was tried")
        monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_WEBHOOK_AIRFLOW", right)
        release.set()
        await w.settle()
    assert w.airflow.reported == [audit_id]


async def test_refused_credentials_are_not_tried_all_the_time(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    airflow_api = delivery_module._airflow_api
    monkeypatch.setattr(delivery_module, "_airflow_api", lambda conn_id: read.append(conn_id) or airflow_api(conn_id))
    async with world() as w:
        w.hold().set()
        refused = json.loads(w.sandbox.airflow_connection) | {"password": "an-old-key"}
        monkeypatch.setenv(CONN_VARIABLE, json.dumps(refused))
        for run in [w.run() for _ in range(20)]:
            await w.ended(run)
        began = w.clock.now
        await w.settle()
    assert w.airflow.events == []
    assert 1 < len(read) <= (w.clock.now - began) / 60 + 1


async def test_missing_role_in_airflow_is_final(world: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async with world() as w:
        refuse = web.json_response
        w.airflow.answer = lambda request: refuse({}, status=403) if request.path.startswith("/api/") else None
        await w.ended(w.run())
        await w.settle()
        assert w.airflow.requests.count("GET /api/v2/assets") == 1
    assert "403" in logged_by_us(caplog)


@pytest.mark.skipif(airflow_version.startswith("3.1."), reason="Airflow 3.1 does not say what is missing")
async def test_missing_connection_may_be_added_later(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as w:
        release = w.hold()
        monkeypatch.delenv("AIRFLOW_CONN_ETLWORKS_WEBHOOK_AIRFLOW")
        audit_id = w.run()
        await w.ended(audit_id)
        await until(lambda: "isn't defined" in logged_by_us(caplog), "it was tried")
        monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_WEBHOOK_AIRFLOW", w.airflow.connection)
        release.set()
        await w.settle()
    assert w.airflow.reported == [audit_id]


# --- Who may post ---------------------------------------------------------------------------------------------------


def basic(login: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({}, {"X-Other": "x"}),
        ({}, {DEFAULT_HEADER: ""}),
        ({}, {DEFAULT_HEADER: SECRET[:-1]}),
        ({}, {DEFAULT_HEADER: SECRET + "x"}),
        ({}, {DEFAULT_HEADER: "wröng"}),
        ({}, {"Authorization": f"Bearer {SECRET}"}),
        ({"header": "X-Ours"}, {DEFAULT_HEADER: SECRET}),
        ({"login": "etl"}, {DEFAULT_HEADER: SECRET}),
        ({"login": "etl"}, {"Authorization": basic("etl", "wrong")}),
        ({"login": "etl"}, {"Authorization": basic("other", SECRET)}),
        ({"login": "etl"}, {"Authorization": "Basic %%%"}),
        ({"login": "etl"}, {"Authorization": "Basic"}),
        ({"login": "etl"}, {"Authorization": basic("etl", SECRET).replace("Basic", "Bearer")}),
        ({"signature_header": "X-Sign"}, {DEFAULT_HEADER: SECRET}),
        ({"signature_header": "X-Sign"}, {"X-Sign": "0" * 64}),
        ({"signature_header": "X-Sign"}, {"X-Sign": SECRET}),
        ({"signature_header": "X-Sign"}, {"X-Sign": "sha256="}),
    ],
)
async def test_forged_post_is_refused_without_a_reason(
    world: Callable[..., Any], settings: dict[str, str], headers: dict[str, str]
) -> None:
    async with world(**settings) as w:
        assert await w.post(event(w.run()), **headers) == (401, b"")
        # Not even wrong JSON is read.
        assert await w.post(b"{", **headers) == (401, b"")
        assert (w.delivery.pending, w.sandbox.requests, w.airflow.requests) == (0, [], [])


@pytest.mark.parametrize("header", ["X-Ours", "x-ours"])
async def test_secret_comes_in_the_chosen_header(world: Callable[..., Any], header: str) -> None:
    async with world(header="X-Ours") as w:
        assert (await w.post(event(w.run()), **{header: SECRET}))[0] == 202


async def test_secret_comes_as_basic(world: Callable[..., Any]) -> None:
    async with world(login="etl") as w:
        async with w.session.post(w.url, data=b"{}") as response:
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, 'Basic realm="etlworks"')
        assert (await w.post(event(w.run()), Authorization=basic("etl", SECRET)))[0] == 202


@pytest.mark.parametrize("form", ["hex", "HEX", "sha256=", "base64"])
async def test_secret_signs_the_body(world: Callable[..., Any], form: str) -> None:
    async with world(signature_header="X-Sign") as w:
        body = json.dumps(event(w.run())).encode()
        digest = hmac.new(SECRET.encode(), body, hashlib.sha256)
        in_base64 = base64.b64encode(digest.digest()).decode()
        written = {"base64": in_base64, "HEX": digest.hexdigest().upper(), "sha256=": f"sha256={digest.hexdigest()}"}
        signature = written.get(form, digest.hexdigest())
        assert (await w.post(body, **{"X-Sign": signature}))[0] == 202
        assert (await w.post(body + b" ", **{"X-Sign": signature}))[0] == 401


# --- What may be posted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"1", b"null", b'"text"', b"\xff\xfe", b"[" * 60_000, b"1" * 60_000, b'{"a": NaN}]']
)
async def test_what_is_not_json_is_refused(world: Callable[..., Any], body: bytes) -> None:
    async with world() as w:
        assert await w.post(body) == (400, b"")
        assert w.delivery.pending == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"entityUrl": None},
        {"entityUrl": 5},
        {"entityUrl": "http://[::1"},
        {"entityUrl": "https://app.etlworks.com/rest/v1/flows/7"},
        {"entityUrl": "https://app.etlworks.com/rest/v1/flows/7?auditId="},
        {"entityUrl": "https://app.etlworks.com/rest/v1/flows/7?auditId=1&auditId=2"},
        {"entityUrl": "https://app.etlworks.com/rest/v1/flows/0?auditId=1"},
        {"entityUrl": "https://app.etlworks.com/rest/v1/flows/7?auditId=0"},
        {"entityUrl": "https://app.etlworks.com/rest/v1/flows/7?auditId=-1"},
        {"entityUrl": f"https://app.etlworks.com/rest/v1/flows/7?auditId={2**63}"},
        {"entityUrl": f"https://app.etlworks.com/rest/v1/flows/{'9' * 5000}?auditId=1"},
        {"entityUrl": "https://app.etlworks.com/rest/v1/users/7?auditId=1"},
        {"entityUrl": "https://app.etlworks.com/rest/v1/flows/7?" + "a=1&" * 1000 + "auditId=1"},
    ],
)
async def test_post_that_names_no_run_is_ignored(world: Callable[..., Any], changes: dict[str, Any]) -> None:
    async with world() as w:
        assert await w.ended(1, **changes) == 202
        assert (w.delivery.pending, w.sandbox.requests) == (0, [])


@pytest.mark.parametrize("event_id", [None, "", 5, ["x"], {"a": 1}, "x" * 10_000])
async def test_event_id_of_another_kind_does_no_harm(world: Callable[..., Any], event_id: Any) -> None:
    async with world() as w:
        runs = [w.run() for _ in range(2)]
        assert {await w.ended(run, eventId=event_id) for run in runs} == {202}
        await w.settle()
    assert sorted(w.airflow.reported) == runs


async def test_enormous_post_is_refused(world: Callable[..., Any]) -> None:
    async with world() as w:
        fitting = json.dumps(event(w.run())).encode().ljust(MAX_BODY_BYTES)
        assert (await w.post(fitting))[0] == 202
        assert (await w.post(fitting + b" "))[0] == 413

        async def without_length() -> AsyncIterator[bytes]:
            for _ in range(80):
                yield b" " * 1024

        assert (await w.post(without_length()))[0] == 413


@pytest.mark.parametrize("length", ["-1", "1e9", "9" * 30, str(MAX_BODY_BYTES + 1)])
async def test_announced_length_is_checked_before_the_body(world: Callable[..., Any], length: str) -> None:
    async with world() as w:
        host, _, port = w.url.split("/")[2].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {URL_PREFIX}{PATH} HTTP/1.1\r\nHost: a\r\n{DEFAULT_HEADER}: {SECRET}\r\nContent-Length: {length}"
        writer.write(head.encode() + b"\r\n\r\n")
        assert (await reader.readline()).split()[1] in (b"413", b"400")
        writer.close()


async def test_slow_post_is_cut_off(world: Callable[..., Any]) -> None:
    async with world(body_timeout=0.2) as w:
        never = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"{"
            await never.wait()

        assert (await w.post(slow()))[0] == 408
        assert await w.ended(w.run()) == 202


async def test_other_methods_and_paths_are_nobodys(world: Callable[..., Any]) -> None:
    async with world() as w:
        for method, path, code in [("GET", w.url, 405), ("PUT", w.url, 405), ("POST", f"{w.url}/more", 404)]:
            async with w.session.request(method, path, headers={DEFAULT_HEADER: SECRET}) as response:
                assert response.status == code
        for page in ("docs", "redoc", "openapi.json"):
            async with w.session.get(w.url.replace("webhook", page)) as response:
                assert response.status == 404
