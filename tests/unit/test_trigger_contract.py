"""What Airflow's database stores stays readable: triggers and their events, from every release."""

from __future__ import annotations

import asyncio
import inspect
import json
from datetime import timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.task import stored_and_loaded

from airflow_provider_etlworks.client.errors import EtlworksReplyError
from airflow_provider_etlworks.client.models import Execution
from airflow_provider_etlworks.runs.events import ExecutionEvent, WaitEvent
from airflow_provider_etlworks.runs.follow import Ending, FollowResult
from airflow_provider_etlworks.triggers.flow import EtlworksFlowExecutionTrigger
from airflow_provider_etlworks.triggers.sensor import EtlworksFlowSensorTrigger

GOLDEN = Path(__file__).parent.parent / "golden"
TRIGGERS = sorted(GOLDEN.glob("trigger-*.json"))
EVENTS = sorted(GOLDEN.glob("event-*.json"))
# For each argument of a trigger, a value other than the default.
ARGUMENTS: dict[str, Any] = {
    "flow_id": 7,
    "audit_id": 8721934,
    "etlworks_conn_id": "etlworks_eu",
    "poll_interval": 2.5,
    "deadline": 1_800_000_000.25,
    "cancel_on_kill": False,
    "patience": 60.0,
    "root_url": "https://etlworks.example.com",
    "started_at": 1_799_999_000.5,
}


def test_all_arguments_are_stored() -> None:
    parameters = inspect.signature(EtlworksFlowExecutionTrigger.__init__).parameters.values()
    named = {each.name: each.default for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD}
    del named["self"]

    assert set(ARGUMENTS) == set(named), "give the new argument a value here"
    assert [name for name, value in ARGUMENTS.items() if value == named[name]] == []
    assert stored_and_loaded(EtlworksFlowExecutionTrigger(**ARGUMENTS)).serialize()[1] == ARGUMENTS


@pytest.mark.parametrize("stored", TRIGGERS, ids=lambda path: path.stem)
def test_trigger_of_an_older_release_loads(stored: Path) -> None:
    path, kwargs = json.loads(stored.read_text())

    assert path == EtlworksFlowExecutionTrigger(7, 1).serialize()[0]
    now = EtlworksFlowExecutionTrigger(**kwargs).serialize()[1]
    assert {name: now.get(name) for name in kwargs} == kwargs


def test_golden_files_include_this_release() -> None:
    from airflow_provider_etlworks import __version__

    assert f"trigger-{__version__}" in [path.stem for path in TRIGGERS]
    assert f"event-{__version__}" in [path.stem for path in EVENTS]


def test_trigger_of_a_newer_release_loads() -> None:
    trigger = EtlworksFlowExecutionTrigger(**ARGUMENTS, from_a_newer_release={"x": 1})

    assert trigger.serialize()[1] == ARGUMENTS


@pytest.mark.parametrize("trigger_class", [EtlworksFlowExecutionTrigger, EtlworksFlowSensorTrigger])
def test_durations_are_stored_as_seconds(trigger_class: Any) -> None:
    trigger = trigger_class(7, 41, poll_interval=timedelta(seconds=5), patience=timedelta(minutes=1))

    stored = json.loads(json.dumps(trigger.serialize()[1]))
    assert (stored["poll_interval"], stored["patience"]) == (5, 60)


@pytest.mark.parametrize("trigger_class", [EtlworksFlowExecutionTrigger, EtlworksFlowSensorTrigger])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -1, "10", None, True])
@pytest.mark.parametrize("name", ["poll_interval", "patience"])
def test_invalid_durations_are_refused(trigger_class: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        trigger_class(7, 41, **{name: value})


def test_run_is_the_only_required_argument() -> None:
    trigger = EtlworksFlowExecutionTrigger(7, 8721934)

    assert trigger.serialize()[1]["etlworks_conn_id"] == "etlworks_default"
    assert trigger.cancel_on_kill is True


@pytest.mark.parametrize("trigger_class", [EtlworksFlowExecutionTrigger, EtlworksFlowSensorTrigger])
@pytest.mark.parametrize(
    ("poll_interval", "deferred", "startup_delay"),
    [(0.1, False, 1.0), (3.0, False, 3.0), (60.0, False, 6.0), (0.1, True, 9.0), (60.0, True, 9.0)],
)
async def test_first_event_waits_until_airflow_has_seen_the_deferral(
    monkeypatch: pytest.MonkeyPatch, trigger_class: Any, poll_interval: float, deferred: bool, startup_delay: float
) -> None:
    class Slept(Exception):
        pass

    async def sleep(seconds: float) -> None:
        raise Slept(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "7")
    trigger = trigger_class(7, 41, poll_interval=poll_interval)
    if deferred:
        trigger.task_instance = SimpleNamespace(task_id="run")

    with pytest.raises(Slept) as slept:
        await anext(trigger.run())
    assert startup_delay <= slept.value.args[0] <= 1.25 * startup_delay


# --- Events ---------------------------------------------------------------------------------------------------------


def payload_with(**changes: Any) -> dict[str, Any]:
    execution = Execution(flow_id=7, audit_id=41, status="success", records=3)
    payload = ExecutionEvent(7, 41, FollowResult(Ending.FINISHED, execution)).to_payload()
    return {**payload, **changes}


@pytest.mark.parametrize("stored", EVENTS, ids=lambda path: path.stem)
def test_event_of_an_older_release_is_read(stored: Path) -> None:
    for payload in json.loads(stored.read_text()):
        event = ExecutionEvent.from_payload(payload)
        again = json.loads(json.dumps(event.to_payload()))

        assert {name: again[name] for name in payload} == payload


def test_golden_events_include_all_endings() -> None:
    endings = [each["ending"] for path in EVENTS for each in json.loads(path.read_text())]

    assert set(endings) == {ending.value for ending in Ending}


@pytest.mark.parametrize("ending", list(Ending))
@pytest.mark.parametrize("execution", [None, Execution(flow_id=7, audit_id=41, status="archiving")])
def test_event_always_has_the_same_shape(ending: Ending, execution: Execution | None) -> None:
    payload = ExecutionEvent(7, 41, FollowResult(ending, execution, "why")).to_payload()

    assert set(payload) == {"ending", "flow_id", "audit_id", "status", "detail", "execution"}
    assert payload["status"] == (execution.status if execution else None)
    assert ExecutionEvent.from_payload(json.loads(json.dumps(payload))) == ExecutionEvent(
        7, 41, FollowResult(ending, execution, "why")
    )


@pytest.mark.parametrize(
    "payload",
    [
        None,
        {},
        [],
        "finished",
        7,
        {"ending": "finished", "flow_id": 7},
        payload_with(ending="exploded"),
        payload_with(ending=None),
        payload_with(flow_id="seven"),
        payload_with(execution="success"),
        payload_with(execution={"flow_id": 7}),
        payload_with(execution={"flow_id": 7, "audit_id": 41, "started_at": "yesterday"}),
    ],
    ids=str,
)
def test_unreadable_event_is_refused_and_names_its_run(payload: Any) -> None:
    with pytest.raises(EtlworksReplyError) as unreadable:
        ExecutionEvent.from_payload(payload)

    assert "Cannot read the trigger's event" in str(unreadable.value)
    assert "The run may still be going in Etlworks." in str(unreadable.value)
    if isinstance(payload, dict) and "audit_id" in payload:
        assert "run 41" in str(unreadable.value)


def test_event_with_more_or_fewer_keys_is_read() -> None:
    more = payload_with(from_a_newer_release=1, execution={"flow_id": 7, "audit_id": 41, "status": "success", "new": 1})
    less = {"ending": "lost_touch", "flow_id": 7, "audit_id": 41}

    read = ExecutionEvent.from_payload(more)
    assert read.followed.execution is not None
    assert read.followed.execution.status == "success"
    assert ExecutionEvent.from_payload(less).followed == FollowResult(Ending.LOST_TOUCH)


@pytest.mark.parametrize("letter", ["x", "ü", "東", "😀"])
def test_event_is_small_whatever_the_server_sends(letter: str) -> None:
    execution = Execution(flow_id=7, audit_id=41, status="error", exception=letter * 5_000_000)
    followed = FollowResult(Ending.LOST_TOUCH, execution, letter * 5_000_000)

    payload = ExecutionEvent(7, 41, followed).to_payload()

    assert len(json.dumps(payload)) < 48_000
    assert len(payload["execution"]["exception"]) >= 1_000


# Any text, with NULs, control characters and halves of surrogate pairs; some of them far too long.
TEXTS = st.builds(
    str.__mul__,
    st.text(st.characters(codec=None, exclude_categories=()), max_size=10),
    st.sampled_from([1, 1, 1, 50, 10_000]),
)
MOMENTS = st.none() | st.datetimes(timezones=st.just(timezone.utc))
NUMBERS = st.integers(-(2**63), 2**63 - 1)
EXECUTIONS = st.builds(
    Execution,
    flow_id=NUMBERS,
    audit_id=NUMBERS,
    records=st.none() | NUMBERS,
    parent_audit_id=st.none() | NUMBERS,
    started_at=MOMENTS,
    ended_at=MOMENTS,
    **{name: st.none() | TEXTS for name in ("status", "user", "exception", "flow_name", "event_id", "message_uuid")},
)


@settings(deadline=None)
@given(st.sampled_from(Ending), st.none() | EXECUTIONS, TEXTS)
def test_any_run_gives_an_event_that_airflow_can_store(
    ending: Ending, execution: Execution | None, detail: str
) -> None:
    followed = FollowResult(ending, execution, detail)
    for event in (ExecutionEvent(7, 41, followed), WaitEvent(7, followed)):
        payload = event.to_payload()

        for stored in (json.dumps(payload).encode(), json.dumps(payload, ensure_ascii=False).encode()):
            assert len(stored) < 64 * 1024
            assert b"\0" not in stored
            assert b"\\u0000" not in stored.replace(b"\\\\", b"")
            assert json.loads(stored) == payload
        read = type(event).from_payload(json.loads(json.dumps(payload)))
        assert type(event).from_payload(read.to_payload()) == read


# What the models let through unchanged.
WORDS = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=100)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_harmless_texts_reach_the_task_unchanged(text: str, detail: str) -> None:
    execution = Execution(7, 41, status=text, flow_name=text, exception=text)
    event = ExecutionEvent(7, 41, FollowResult(Ending.FINISHED, execution, detail))

    assert ExecutionEvent.from_payload(json.loads(json.dumps(event.to_payload()))) == event


def test_root_cause_of_a_long_trace_is_kept() -> None:
    frames = "\n".join(f"    at com.étl.Löad.run(Löad.java:{number})" for number in range(2_000))
    trace = f"Zeile 1 ist ungültig\n{frames}\nCaused by: java.sql.SQLException: Tabelle für Aufträge fehlt\n{frames}"
    followed = FollowResult(Ending.FINISHED, Execution(7, 41, status="error", exception=trace))

    exception = ExecutionEvent(7, 41, followed).to_payload()["execution"]["exception"]

    assert exception.startswith("Zeile 1 ist ungültig")
    assert "Caused by: java.sql.SQLException: Tabelle für Aufträge fehlt" in exception
    assert "Löad.java" not in exception


@pytest.mark.parametrize("field", ["status", "user", "exception", "flow_name", "event_id", "message_uuid"])
def test_cut_text_is_marked(field: str) -> None:
    execution = Execution(7, 41, **{field: "x" * 5_000_000})  # type: ignore[arg-type]

    record = ExecutionEvent(7, 41, FollowResult(Ending.FINISHED, execution)).to_payload()["execution"]

    assert record[field].startswith("xxx")
    assert record[field].endswith("x…")
