"""The hook: the connection test, runs in ``@task`` functions, and the one client that all triggers share."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import BEGINNING
from support.task import (
    CONN_VARIABLE,
    FLOW,
    HISTORY_PATH,
    RECORD_PATH,
    RUN_PATH,
    STOP_PATH,
    only_event,
    stored_and_loaded,
)
from tenacity import wait_none

from airflow_provider_etlworks.client.errors import (
    EtlworksAlreadyRunning,
    EtlworksConfigError,
    EtlworksExecutionTimeout,
    EtlworksForbidden,
    EtlworksLostTouch,
    EtlworksStartUnknown,
)
from airflow_provider_etlworks.client.models import Flow, Schedule
from airflow_provider_etlworks.compat import AirflowNotFoundException
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, broken_body, hang_up, status
from airflow_provider_etlworks.sandbox import tokens as sandbox_tokens
from airflow_provider_etlworks.triggerer import shared_watcher as shared_watcher_module
from airflow_provider_etlworks.triggerer.shared_watcher import shared_watcher
from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger

if TYPE_CHECKING:
    from support.etlworks import Etlworks

MANY = 50


@pytest.fixture
def hook(etlworks: Etlworks) -> EtlworksHook:
    return EtlworksHook()


# --- The connection test --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "with an API key; 1 flows are visible"),
        ({"login": "sandbox", "password": "sandbox"}, "as sandbox; 1 flows are visible"),
    ],
)
def test_working_connection(etlworks: Etlworks, changes: dict[str, Any], said: str) -> None:
    etlworks.connect(**changes)

    works, message = EtlworksHook().test_connection()

    assert works is True
    assert said in message
    assert etlworks.sandbox.url in message
    assert {each.method for each in etlworks.sandbox.requests} <= {"GET", "POST"}
    assert etlworks.sandbox.runs_started() == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"password": "wrong"}, "401"),
        ({"login": "sandbox", "password": "wrong"}, "401"),
        ({"password": None}, "no credentials"),
        ({"host": None}, "no Host"),
        ({"host": "http://127.0.0.1:9"}, "No answer from http://127.0.0.1:9"),
        ({"host": "http://no-such-host.invalid"}, "No answer from http://no-such-host.invalid"),
        ({"read_timeout": "soon"}, "'read_timeout'"),
        ({"verify": "/no/such/file"}, "which does not exist on this machine"),
    ],
)
def test_broken_connection(etlworks: Etlworks, changes: dict[str, Any], said: str) -> None:
    etlworks.connect(**changes)

    works, message = EtlworksHook().test_connection()

    assert works is False
    assert said in message
    assert "sandbox-key" not in message


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (broken_body(), "text/html"),
        (broken_body(code=404), "Is Host the address of an Etlworks instance?"),
        (status(403), "403"),
        (status(503), "503"),
        (status(429, headers={"Retry-After": "3600"}), "429"),
        (hang_up(), "No answer"),
        (broken_body(b"{}", content_type="application/json"), "Cannot read the answer"),
    ],
)
def test_foreign_server_is_recognized(etlworks: Etlworks, fault: Any, said: str) -> None:
    etlworks.sandbox.fault("*", "*", fault, times=None)

    works, message = EtlworksHook().test_connection()

    assert works is False
    assert said in message
    assert etlworks.clock.time() - BEGINNING < 15


@pytest.mark.parametrize("health", ["read", "refused", "a page", "cut off"])
@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({}, {"password": "wrong"}, "The API key in Password is wrong or has expired"),
        ({}, {"login": "sandbox", "password": "wrong"}, "Login or Password is wrong"),
        ({"api_user": True}, {}, "API User can call listeners only, not the API"),
        ({"api_user": True}, {"login": "sandbox", "password": "sandbox"}, "API User can call listeners only"),
        ({"api_keys": False}, {}, "API keys are disabled for this user's role"),
        ({"api_keys": False}, {"login": "sandbox", "password": "sandbox"}, None),
    ],
)
def test_refused_credentials_are_told_apart(
    etlworks: Etlworks, options: dict[str, Any], changes: dict[str, Any], said: str | None, health: str
) -> None:
    with Sandbox([], **options) as server:
        faults = {"refused": status(403), "a page": broken_body(), "cut off": hang_up()}
        if health in faults:
            server.fault("GET", "/health", faults[health], times=None)
        etlworks.connect(host=server.url, **changes)

        works, message = EtlworksHook().test_connection()

    assert works is (said is None)
    assert said is None or said in message
    assert ("its /health reports UP" in message) == (health == "read" and not works)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, "Use of API key is not allowed for role Editor"), "API keys are disabled"),
        ((403, "Forbidden"), "may not list flows"),
        ((403, "role API_USER"), "listeners only, not the API"),
    ],
)
def test_refusal_is_explained_by_what_the_server_says(etlworks: Etlworks, answer: tuple[int, str], said: str) -> None:
    body = json.dumps({"message": answer[1]}).encode()
    etlworks.sandbox.fault(
        "GET", "/rest/v1/flows", broken_body(body, content_type="application/json", code=answer[0]), times=None
    )

    works, message = EtlworksHook().test_connection()

    assert works is False
    assert said in message


def test_unreachable_server_names_the_fields_to_correct(etlworks: Etlworks, closed_port: int) -> None:
    etlworks.connect(host=f"http://127.0.0.1:{closed_port}")

    works, message = EtlworksHook().test_connection()

    assert works is False
    assert "Correct Host, Port or Scheme" in message


def test_connection_test_does_not_wait_for_a_hanging_server(etlworks: Etlworks) -> None:
    etlworks.connect(login="sandbox", password="sandbox", read_timeout=600)
    etlworks.sandbox.fault("*", "*", hang_up(delay=60), times=None)
    began = time.monotonic()

    works, message = EtlworksHook().test_connection()

    assert works is False
    assert "No answer" in message
    assert time.monotonic() - began < 15  # what the connection form promises


# --- Runs in @task functions ----------------------------------------------------------------------------------------


def test_flow_is_run_and_waited_for(etlworks: Etlworks, hook: EtlworksHook) -> None:
    etlworks.flow(running=300, ends="warning", log=("one", "two"))

    started = hook.run_flow(FLOW, {"runDate": "2026-05-09"}, run_options={"parallel": True})
    assert started.audit_id is not None
    ended = hook.wait_for_execution(FLOW, started.audit_id)

    (run,) = etlworks.sandbox.runs()
    assert (run.audit_id, run.parameters) == (started.audit_id, {"runDate": "2026-05-09"})
    assert ended.status == "warning"
    assert hook.get_execution(FLOW) == hook.get_execution(FLOW, run.audit_id) == ended
    assert [each.audit_id for each in hook.execution_history(FLOW)] == [run.audit_id]
    assert "two" in hook.execution_log(FLOW, run.audit_id)
    assert len(hook.execution_log(FLOW, run.audit_id, last_lines=1).splitlines()) == 1


def test_lost_start_is_found_or_reported(etlworks: Etlworks, hook: EtlworksHook) -> None:
    etlworks.flow(running=0)
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up())
    assert hook.run_flow(FLOW).audit_id == etlworks.sandbox.runs()[0].audit_id

    etlworks.sandbox.fault("POST", RUN_PATH, hang_up(carried_out=False), times=2)
    with pytest.raises(EtlworksStartUnknown):
        hook.run_flow(FLOW)
    assert etlworks.sandbox.runs_started() == 1


def test_active_run_is_reported(etlworks: Etlworks, hook: EtlworksHook) -> None:
    other = etlworks.run_of_somebody_else()

    with pytest.raises(EtlworksAlreadyRunning) as busy:
        hook.run_flow(FLOW)
    assert busy.value.audit_id == other


def test_wait_ends_with_the_known_state(etlworks: Etlworks, hook: EtlworksHook) -> None:
    etlworks.flow(running=86_400)
    run = hook.run_flow(FLOW).audit_id
    assert run is not None

    with pytest.raises(EtlworksExecutionTimeout, match="still going after 600 s"):
        hook.wait_for_execution(FLOW, run, timeout=600)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(403))
    with pytest.raises(EtlworksForbidden):
        hook.wait_for_execution(FLOW, run)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(503), times=None)
    with pytest.raises(EtlworksLostTouch, match="may still be going"):
        hook.wait_for_execution(FLOW, run, patience=300)


def test_flow_without_runs_has_no_run(hook: EtlworksHook) -> None:
    assert hook.get_execution(FLOW) is None
    assert list(hook.execution_history(FLOW)) == []


def test_stop_returns_its_result(etlworks: Etlworks, hook: EtlworksHook) -> None:
    etlworks.flow(running=3600)
    run = hook.run_flow(FLOW).audit_id
    assert run is not None
    etlworks.sandbox.fault("POST", STOP_PATH, status(403))

    refused, accepted = hook.stop_flow(FLOW, run), hook.stop_flow(FLOW, run)

    assert (refused.accepted, accepted.accepted) == (False, True)
    assert "takes Editor" in refused.detail
    assert etlworks.sandbox.runs()[0].stop_requested


def test_changing_tags_keeps_everything_else(etlworks: Etlworks, hook: EtlworksHook) -> None:
    etlworks.sandbox.add_flow(SandboxFlow(8, "Tagged", tags=("a", "b"), description="keep me"))
    etlworks.sandbox.fault("PUT", "/rest/v1/flows/8", status(409))

    (flow,) = hook.tag_flows([8], add=["c"], remove=["a"])
    hook.tag_flows([8], add=["c"])

    assert flow.tags == ("b", "c")
    assert flow.description == "keep me"
    assert etlworks.asked("PUT", "/rest/v1/flows/8") == 2


def test_tag_may_be_a_text_or_a_list(etlworks: Etlworks, hook: EtlworksHook) -> None:
    etlworks.sandbox.add_flow(SandboxFlow(8, "Tagged", tags=("nightly", "b")))

    assert [flow.id for flow in hook.list_flows(tags="nightly")] == [8]
    (flow,) = hook.tag_flows("8", add="daily", remove="nightly")
    assert flow.tags == ("b", "daily")
    assert hook.tag_flows(iter([8]), add=iter(["b"]))[0].tags == ("b", "daily")


def test_unreadable_tag_is_written_back(
    etlworks: Etlworks, hook: EtlworksHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = ["x" * 5_000, 5, {"name": "nested"}]
    written: list[Any] = []
    monkeypatch.setattr(EtlworksHook, "get_flow", lambda *_: Flow.from_json({"id": 8, "tags": odd}))
    monkeypatch.setattr(EtlworksHook, "replace_flow", lambda _, __, flow: written.append(flow["tags"]))

    hook.tag_flows([8], add="new")

    assert written == [[*odd, "new"]]


def test_ids_may_be_text(etlworks: Etlworks, hook: EtlworksHook) -> None:
    etlworks.flow(running=0, schedule="0 0 4 * * ?")
    flow_id = str(FLOW)
    started = hook.run_flow(flow_id)
    run = str(started.audit_id)

    assert hook.wait_for_execution(flow_id, run, timeout=timedelta(hours=1)).flow_id == FLOW
    assert hook.get_execution(flow_id) == hook.get_execution(flow_id, run)
    assert [str(each.audit_id) for each in hook.execution_history(flow_id)] == [run]
    assert hook.get_flow(flow_id).id == hook.update_flow(flow_id, {"description": "new"}).id == FLOW
    assert run in hook.execution_log(flow_id, run) + hook.execution_log(flow_id, run, last_lines=100) + run
    assert isinstance(hook.execution_tasks(run), list)
    assert not hook.stop_flow(flow_id, run).accepted or etlworks.sandbox.runs()
    assert str(FLOW) in hook.execution_url(flow_id, run) or hook.settings.ui_url is None
    assert hook.export_flows(flow_id)
    (schedule,) = hook.list_schedules(flow_id)
    hook.pause_schedule(str(schedule.id))
    hook.resume_schedule(str(schedule.id))
    with pytest.raises(EtlworksConfigError, match="flow_id is 'x'"):
        hook.get_flow("x")


@pytest.mark.parametrize("timeout", [True, "60", float("nan"), -1])
def test_invalid_wait_is_refused(hook: EtlworksHook, timeout: Any) -> None:
    with pytest.raises(EtlworksConfigError, match="timeout is"):
        hook.wait_for_execution(FLOW, 1, timeout=timeout)


def test_fields_are_keywords_or_one_mapping(etlworks: Etlworks, hook: EtlworksHook) -> None:
    sent = etlworks.sandbox.requests

    def body() -> Any:
        return json.loads(sent[-1].body)

    hook.create_schedule(name="At four", flow_id=str(FLOW), schedule="0 0 4 * * ?", enabled=False, tags="x")
    assert body() == {"name": "At four", "flowId": FLOW, "schedule": "0 0 4 * * ?", "enabled": False, "tags": ["x"]}
    fields = {"name": "At five", "flowId": FLOW, "schedule": "0 0 5 * * ?"}
    hook.create_schedule(fields)
    assert body() == fields

    hook.create_connection(name="db", connection_type="connection.db.postgres", properties={"a.b": "c"}, tags=("x",))
    assert body() == {
        "name": "db", "connectionType": "connection.db.postgres", "properties": {"a.b": "c"}, "tags": ["x"],
    }  # fmt: skip
    hook.test_etlworks_connection(name="db", connection_type="connection.db.postgres")
    assert body() == {"name": "db", "connectionType": "connection.db.postgres"}

    hook.create_webhook(name="w", events="FLOW_FAILED", url="https://example.com", flow_includes=[FLOW], basic_user="u")
    assert body() == {
        "name": "w", "events": ["FLOW_FAILED"], "url": "https://example.com", "flowIncludes": [FLOW], "basicUser": "u",
    }  # fmt: skip

    before = len(sent)
    for arguments in (((), {}), (({"name": "x"},), {"name": "y"}), (("x",), {}), ((5,), {})):
        with pytest.raises(EtlworksConfigError, match="as one mapping"):
            hook.create_connection(*arguments[0], **arguments[1])
    assert len(sent) == before


def test_schedules_of_other_flows_are_left_out(hook: EtlworksHook, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [Schedule(1, FLOW), Schedule(2, FLOW + 1), Schedule(3, None)]
    monkeypatch.setattr(type(hook.client), "iterate", lambda *_: iter(every))

    assert [each.id for each in hook.list_schedules(FLOW)] == [1]
    assert [each.id for each in hook.list_schedules()] == [1, 2, 3]


def test_credentials_in_a_log_are_redacted(etlworks: Etlworks, hook: EtlworksHook) -> None:
    etlworks.flow(running=0, log=("sent sandbox-key", "a\0b"))
    run = hook.run_flow(FLOW).audit_id
    assert run is not None

    for log in (hook.execution_log(FLOW, run), hook.execution_log(FLOW, run, last_lines=10)):
        assert "sent ***" in log
        assert "sandbox-key" not in log
        assert "a\N{REPLACEMENT CHARACTER}b" in log


def test_any_spelling_of_the_host_is_the_host(etlworks: Etlworks, hook: EtlworksHook) -> None:
    root = etlworks.sandbox.url

    for path in ("v1/flows", "/v1/flows", "/rest/v1/flows", f"{root.upper()}/rest/v1/flows"):
        assert [each["id"] for each in hook.request("GET", path)] == [FLOW]
    assert {each.path for each in etlworks.sandbox.requests} == {"/rest/v1/flows"}


def test_any_other_call_stays_with_the_host(etlworks: Etlworks, hook: EtlworksHook) -> None:
    listed = hook.request("GET", "/v1/flows", query={"q": "night"})

    assert [each["id"] for each in listed] == [FLOW]
    with pytest.raises(EtlworksConfigError):
        hook.request("GET", "https://elsewhere.example.com/rest/v1/flows")
    assert len(etlworks.sandbox.requests) == 1


# --- The client that triggers share ---------------------------------------------------------------------------------


@pytest.fixture
def connections_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count how often the connection is read, in Airflow an expensive call."""
    read: list[str] = []
    original = EtlworksHook.get_connection

    def get_connection(conn_id: str) -> Any:
        read.append(conn_id)
        return original(conn_id)

    monkeypatch.setattr(EtlworksHook, "get_connection", staticmethod(get_connection))
    return read


def many_runs(etlworks: Etlworks) -> list[EtlworksFlowExecutionTrigger]:
    """Start a run of as many flows, and return a stored trigger for each."""
    triggers = []
    for number in range(100, 100 + MANY):
        etlworks.sandbox.add_flow(SandboxFlow(number, f"Flow {number}", running=300))
        audit_id = etlworks.sandbox.run_by_user(number)
        triggers.append(stored_and_loaded(EtlworksFlowExecutionTrigger(number, audit_id)))
    return triggers


async def all_events(triggers: list[Any]) -> list[dict[str, Any]]:
    events = await asyncio.gather(*(only_event(trigger) for trigger in triggers))
    # Nothing is left behind for the next one.
    assert shared_watcher_module._BY_LOOP[asyncio.get_running_loop()] == {}
    return events


async def test_many_triggers_share_one_client(etlworks: Etlworks, connections_read: list[str]) -> None:
    etlworks.connect(login="sandbox", password="sandbox")
    triggers = many_runs(etlworks)

    events = await all_events(triggers)

    assert [event["status"] for event in events] == ["success"] * MANY
    assert connections_read == ["etlworks_default"]
    assert etlworks.sandbox.log_ins == 1
    assert len({each.connection for each in etlworks.sandbox.requests}) <= 10


async def test_unreadable_connection_is_read_again(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    read = EtlworksHook.read_settings
    faults = [RuntimeError("The API server answers 503."), OSError("Connection reset.")]

    async def sometimes(hook: EtlworksHook) -> Any:
        if faults:
            raise faults.pop()
        return await read(hook)

    monkeypatch.setattr(EtlworksHook, "read_settings", sometimes)
    monkeypatch.setattr(shared_watcher_module, "wait_random_exponential", lambda **_: wait_none())

    async with shared_watcher("etlworks_default") as watcher:
        assert watcher.client.settings.root_url == etlworks.sandbox.url
    assert faults == []


async def test_last_user_closes_the_client(etlworks: Etlworks) -> None:
    async with shared_watcher("etlworks_default") as first:
        async with shared_watcher("etlworks_default") as second:
            assert second is first
        assert first.client._session is not None
        assert not first.client._session.closed
    assert first.client._session.closed
    async with shared_watcher("etlworks_default") as third:
        assert third is not first


async def test_rotated_password_is_read_once(
    etlworks: Etlworks, connections_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    etlworks.connect(login="sandbox", password="sandbox")
    triggers = many_runs(etlworks)

    def rotate() -> None:
        monkeypatch.setattr(sandbox_tokens, "PASSWORD", "rotated")
        etlworks.sandbox.revoke_tokens()
        etlworks.connect(login="sandbox", password="rotated")

    etlworks.clock.at(100, rotate)

    events = await all_events(triggers)

    assert [event["status"] for event in events] == ["success"] * MANY
    assert len(connections_read) == 2
    assert etlworks.sandbox.log_ins == 2


async def test_revoked_credentials_fail_every_task(
    etlworks: Etlworks, connections_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    etlworks.connect(login="sandbox", password="sandbox")
    triggers = many_runs(etlworks)
    etlworks.clock.at(100, lambda: monkeypatch.setattr(sandbox_tokens, "PASSWORD", "rotated"))
    etlworks.clock.at(100, etlworks.sandbox.revoke_tokens)

    events = await all_events(triggers)

    assert {event["ending"] for event in events} == {"denied"}
    assert all("401" in event["detail"] for event in events)
    assert len(connections_read) == 2


async def test_failed_trigger_does_not_disturb_others(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    known = EtlworksHook.get_connection

    def get_connection(conn_id: str) -> Any:
        if conn_id == "etlworks_unknown":
            # What Airflow says; Airflow 2 would look into its database first, and these tests have none.
            raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined")
        return known(conn_id)

    monkeypatch.setattr(EtlworksHook, "get_connection", staticmethod(get_connection))
    broken = {**json.loads(etlworks.sandbox.airflow_connection), "password": ""}
    monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_BROKEN", json.dumps(broken))
    triggers = many_runs(etlworks)
    triggers[0].etlworks_conn_id = "etlworks_unknown"
    triggers[1].etlworks_conn_id = "etlworks_broken"
    triggers[2].audit_id = 1  # there is no such run
    cancelled = asyncio.ensure_future(only_event(triggers.pop()))
    asyncio.get_running_loop().call_soon(cancelled.cancel)

    events = await all_events(triggers)

    assert [event["ending"] for event in events[:3]] == ["denied", "denied", "lost_touch"]
    assert "etlworks_unknown" in events[0]["detail"]
    assert "no credentials" in events[1]["detail"]
    assert [event["status"] for event in events[3:]] == ["success"] * (MANY - 4)
    assert cancelled.cancelled()


async def test_unavailable_connection_is_requested_again(
    etlworks: Etlworks, connections_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = EtlworksHook.get_connection

    def away_at_first(conn_id: str) -> Any:
        given = counted(conn_id)
        if len(connections_read) == 1:
            raise RuntimeError("Airflow's API server answers 503.")
        return given

    monkeypatch.setattr(EtlworksHook, "get_connection", staticmethod(away_at_first))

    events = await all_events(many_runs(etlworks))

    assert [event["status"] for event in events] == ["success"] * MANY
    assert len(connections_read) == 2


async def test_async_client_works_in_a_loop(etlworks: Etlworks, hook: EtlworksHook) -> None:
    from airflow_provider_etlworks.client.endpoints import get_flow

    async with hook.async_client() as client:
        assert (await client.send(get_flow(FLOW))).name == "Nightly load"


async def test_reading_the_connection_does_not_hold_the_loop(
    etlworks: Etlworks, hook: EtlworksHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    proceed = asyncio.Event()
    loop = asyncio.get_running_loop()
    original = EtlworksHook.get_connection

    def slow(conn_id: str) -> Any:
        # Would wait for ever if it held the loop that is to let it go on.
        asyncio.run_coroutine_threadsafe(proceed.wait(), loop).result(timeout=60)
        return original(conn_id)

    monkeypatch.setattr(EtlworksHook, "get_connection", staticmethod(slow))
    reading = asyncio.ensure_future(hook.read_settings())
    await asyncio.sleep(0)
    proceed.set()

    assert (await reading).root_url == etlworks.sandbox.url


def test_connection_is_read_once_per_hook(
    etlworks: Etlworks, hook: EtlworksHook, connections_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(hook.execution_history(FLOW)) == []
    monkeypatch.delenv(CONN_VARIABLE)
    hook.get_flow(FLOW)
    hook.execution_url(FLOW, 1)

    assert connections_read == ["etlworks_default"]
    assert etlworks.asked("GET", HISTORY_PATH) == 1
