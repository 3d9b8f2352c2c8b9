"""What Etlworks says is read tolerantly, and never taken for something else."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.call import Response
from airflow_provider_etlworks.client.errors import EtlworksReplyError
from airflow_provider_etlworks.client.models import (
    AuditEvent,
    Connection,
    Execution,
    ExecutionStatus,
    Flow,
    FlowStart,
    FlowTask,
    Health,
    MetricsSummary,
    Schedule,
    StartStatus,
    Webhook,
)

RECORD = {
    "auditId": 42,
    "parentAuditId": 41,
    "flowId": 7,
    "flowName": "Orders",
    "eventId": 3,
    "messageId": "m-1",
    "status": "success",
    "started": 1_778_320_800_123,
    "ended": 1_778_320_860_623,
    "user": "alice@example.com",
    "records": 100,
    "exception": "none to speak of",
    "somethingNew": {"a": [1]},
}
STARTED = datetime(2026, 5, 9, 10, 0, 0, 123_000, tzinfo=timezone.utc)
EVERY_MODEL = (AuditEvent, Connection, Execution, Flow, FlowStart, FlowTask, MetricsSummary, Schedule, Webhook)


def test_record_is_read_whole() -> None:
    run = Execution.from_json(RECORD)
    assert run == Execution(
        flow_id=7,
        audit_id=42,
        status="success",
        started_at=STARTED,
        ended_at=STARTED + timedelta(seconds=60.5),
        user="alice@example.com",
        records=100,
        exception="none to speak of",
        flow_name="Orders",
        event_id="3",
        message_uuid="m-1",
        parent_audit_id=41,
    )
    assert run.duration_seconds == 60.5
    assert run.raw["somethingNew"] == {"a": [1]}


@pytest.mark.parametrize("absent", ["missing", None, {}, [], True, "", float("nan")])
@pytest.mark.parametrize("name", sorted(set(RECORD) - {"auditId", "flowId", "somethingNew"}))
def test_missing_or_odd_field_is_none(name: str, absent: object) -> None:
    record = {key: value for key, value in RECORD.items() if key != name}
    if absent != "missing":
        record[name] = absent
    whole, read = Execution.from_json(RECORD), Execution.from_json(record)
    changed = {key for key, value in read.to_dict().items() if value != whole.to_dict()[key]}
    assert len(changed) == 1
    assert str(getattr(read, changed.pop())) in {"None", "nan"}


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("records", "12", 12),
        ("records", 12.0, 12),
        ("records", "a dozen", None),
        ("records", 0, 0),
        ("started", str(RECORD["started"]), STARTED),
        ("started", 0, None),
        ("started", 10**30, None),
        ("started", "2026-05-09T10:00:00Z", None),
        ("status", " Running\n", "running"),
        ("status", "CANCELED", "canceled"),
        ("status", 5, "5"),
        ("status", "archiving", "archiving"),
        ("user", 17, "17"),
        ("parentAuditId", 0, None),
        ("parentAuditId", -1, None),
        ("parentAuditId", "41", 41),
    ],
)
def test_oddly_written_values(name: str, value: object, read: object) -> None:
    attribute = {"started": "started_at", "parentAuditId": "parent_audit_id"}.get(name, name)
    assert getattr(Execution.from_json({**RECORD, name: value}), attribute) == read


@pytest.mark.parametrize(
    ("status", "ended", "known", "is_terminal", "is_stopping"),
    [
        ("queued", None, ExecutionStatus.QUEUED, False, False),
        ("Running", None, ExecutionStatus.RUNNING, False, False),
        # A clock that is ahead must not end a run.
        ("running", RECORD["ended"], ExecutionStatus.RUNNING, False, False),
        ("SUCCESS", None, ExecutionStatus.SUCCESS, True, False),
        ("warning", RECORD["ended"], ExecutionStatus.WARNING, True, False),
        ("error", RECORD["ended"], ExecutionStatus.ERROR, True, False),
        ("canceled", RECORD["ended"], ExecutionStatus.CANCELED, True, False),
        ("canceled", None, ExecutionStatus.CANCELED, True, True),
        ("archiving", None, None, False, False),
        ("archiving", RECORD["ended"], None, True, False),
        (None, None, None, False, False),
        (None, RECORD["ended"], None, True, False),
    ],
)
def test_status_meaning(status, ended, known, is_terminal, is_stopping) -> None:
    run = Execution.from_json({**RECORD, "status": status, "ended": ended})
    assert (run.known_status, run.is_terminal, run.is_stopping) == (known, is_terminal, is_stopping)


def test_duration_needs_both_ends() -> None:
    assert Execution.from_json({**RECORD, "ended": None}).duration_seconds is None
    assert Execution.from_json({**RECORD, "started": None}).duration_seconds is None


@pytest.mark.parametrize("model", EVERY_MODEL)
@pytest.mark.parametrize("value", [None, [], "text", 5, True])
def test_non_object_is_refused(model, value: object) -> None:
    with pytest.raises(EtlworksReplyError, match="JSON object"):
        model.from_json(value)


def test_record_of_another_run_or_flow_is_refused() -> None:
    with pytest.raises(EtlworksReplyError, match=r"auditId 43, the answer is about 42"):
        Execution.from_json(RECORD, audit_id=43)
    with pytest.raises(EtlworksReplyError, match=r"flowId 8, the answer is about 7"):
        Execution.from_json(RECORD, flow_id=8)


def test_record_may_omit_requested_ids() -> None:
    run = Execution.from_json({"status": "running"}, flow_id=7, audit_id=42)
    assert (run.flow_id, run.audit_id) == (7, 42)


@pytest.mark.parametrize("record", [{"status": "running"}, {"flowId": 7}, {"auditId": 42}, {"success": True}])
def test_record_without_a_run_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(EtlworksReplyError):
        Execution.from_json(record)


@pytest.mark.parametrize("record", [RECORD, {"flowId": 7, "auditId": 42}])
def test_run_survives_a_round_trip(record: dict[str, object]) -> None:
    run = Execution.from_json(record)
    assert Execution.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_run_of_another_release_is_read() -> None:
    written = {**Execution.from_json(RECORD).to_dict(), "of_a_later_release": 1}
    del written["parent_audit_id"]
    assert Execution.from_dict(written).audit_id == 42


def test_times_are_written_in_utc() -> None:
    assert Execution.from_json(RECORD).to_dict()["started_at"] == "2026-05-09T10:00:00.123000+00:00"


@pytest.mark.parametrize("value", [None, [], {"audit_id": 1}, {"flow_id": 7, "audit_id": 1, "started_at": "yesterday"}])
def test_invalid_stored_run_is_refused(value: object) -> None:
    with pytest.raises(EtlworksReplyError):
        Execution.from_dict(value)


@pytest.mark.parametrize(
    ("status", "meaning", "code"),
    [(number.value, number, number.value) for number in StartStatus]
    + [("1", StartStatus.ALREADY_RUNNING, 1), (17, None, 17), (None, None, None), (True, None, None)],
)
def test_outcome_of_a_start(status, meaning, code) -> None:
    start = FlowStart.from_json({"flowId": 7, "auditId": 42, "status": status})
    assert (start.status, start.status_code, start.audit_id) == (meaning, code, 42)


@pytest.mark.parametrize("audit_id", [None, 0, "", "none"])
def test_start_without_a_run(audit_id: object) -> None:
    assert FlowStart.from_json({"auditId": audit_id, "status": 1}).audit_id is None


def test_invalid_tags_are_none() -> None:
    assert Flow.from_json({"id": "7", "tags": "nightly"}).tags == ()
    assert Flow.from_json({"id": 7, "tags": ["a", None, 5, {}]}).tags == ("a", "5")


def test_flow_needs_an_id() -> None:
    with pytest.raises(EtlworksReplyError, match="no id"):
        Flow.from_json({"name": "Orders"})


@pytest.mark.parametrize("value", ["true", 1, None])
@pytest.mark.parametrize("model", [Schedule, Webhook])
def test_on_or_off_is_not_guessed(model, value: object) -> None:
    assert model.from_json({"id": 1, "enabled": value}).enabled is None
    assert model.from_json({"id": 1, "enabled": False}).enabled is False


def test_schedule_has_all_documented_fields() -> None:
    record = {
        "id": 1, "name": "Nightly", "tags": ["a"], "description": "d", "flowId": 7, "enabled": True,
        "schedule": "0 0 4 * * ?", "emailSuccess": False, "emailFailure": True, "emails": " a@example.com\tb@x.com ",
        "retries": 2, "delayBetweenRetries": 5, "expectedTime": 60, "debug": True, "logStep": 100, "keepMessage": True,
        "keepEmptyAudit": False,
    }  # fmt: skip
    assert Schedule.from_json(record) == Schedule(
        id=1, flow_id=7, name="Nightly", schedule="0 0 4 * * ?", enabled=True, description="d", tags=("a",),
        email_success=False, email_failure=True, emails=("a@example.com", "b@x.com"), retries=2,
        delay_between_retries=5, expected_time=60, debug=True, log_step=100, keep_message=True, keep_empty_audit=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "read"), [("a@x.com", ("a@x.com",)), ("", ()), (None, ()), (["a@x.com", None], ("a@x.com",)), (5, ())]
)
def test_addresses_are_read_from_a_text_or_a_list(written: object, read: tuple[str, ...]) -> None:
    assert Schedule.from_json({"emails": written}).emails == read


@pytest.mark.parametrize(("written", "read"), [("30", "30"), (30, "30"), ("", None)])
def test_schedule_is_cron_or_minutes(written: object, read: str | None) -> None:
    assert Schedule.from_json({"schedule": written}).schedule == read


def test_webhook_keeps_none_of_its_secrets() -> None:
    record = {
        "id": 1, "name": "w", "description": "d", "events": ["Flow.Executed"], "url": "https://a:pw-in-url@example.com/x",
        "method": "POST", "contentType": "application/json", "includeEntity": True, "enabled": True,
        "headers": [{"key": "X-Token", "value": "in-a-header"}, {"key": "X-Other"}, "?"], "secret": "the-secret",
        "basicUser": "admin", "basicPass": "the-password", "flowIncludes": [7, "8"], "flowExcludes": None, "new": 1,
    }  # fmt: skip
    webhook = Webhook.from_json(record)
    assert webhook == Webhook(
        id=1, name="w", url="https://***@example.com/x", events=("Flow.Executed",), enabled=True, description="d",
        method="POST", content_type="application/json", include_entity=True, header_names=("X-Token", "X-Other"),
        basic_user="admin", flow_includes=(7, 8),
    )  # fmt: skip
    assert webhook.raw["new"] == 1
    everything = repr(webhook) + json.dumps(webhook.to_dict()) + json.dumps(webhook.raw)
    for secret in ("pw-in-url", "in-a-header", "the-secret", "the-password"):
        assert secret not in everything


def test_audit_event_is_read_in_both_shapes() -> None:
    at = datetime(2026, 5, 9, 9, 20, tzinfo=timezone.utc)
    milliseconds = int(at.timestamp() * 1000)
    long = {"timestamp": milliseconds, "user": "alice", "action": "execute", "resourceId": 7}
    short = {
        "id": 5, "an": "etl", "md": "execute", "ur": "alice", "tn": "eu", "rt": False, "in": True, "ex": "disk full",
        "hip": "10.0.0.1", "cip": "10.0.0.2", "dn": 30, "dt": str(milliseconds),
    }  # fmt: skip
    assert AuditEvent.from_json(long) == AuditEvent(at, "alice", "execute", "7")
    assert AuditEvent.from_json(short) == AuditEvent(
        at, "alice", "execute", None, 5, "etl", "eu", False, True, "disk full", "10.0.0.1", "10.0.0.2", 30
    )


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ({"status": "UP", "db": {"running.flows": 3}}, Health("UP", 3)),
        ({"status": "DOWN", "db": []}, Health("DOWN", None)),
    ],
)
def test_health(answer: dict[str, object], read: Health) -> None:
    assert Health.from_json(answer) == read


def test_other_answer_is_not_a_health_report() -> None:
    assert Health.from_json({"error": "x"}).status is None
    with pytest.raises(EtlworksReplyError, match="no status"):
        endpoints.health().result(Response(200, {}, b'{"error": "x"}'))


@pytest.mark.parametrize("model", EVERY_MODEL)
def test_every_model_is_json_safe(model) -> None:
    known = {"id": 1, "auditId": 2, "flowId": 3, "tags": ["t"], "timestamp": 1_000, "started": 1_000, "created": 1_000}
    one = model.from_json({**known, "properties": {"password": "hunter2"}})
    assert "hunter2" not in json.dumps(one.to_dict()) + repr(one)
    assert one.raw["properties"] == {"password": "hunter2"}


@pytest.mark.parametrize(
    ("signs", "is_scheduled"),
    [({}, False), ({"eventId": 3}, True), ({"user": "Scheduler"}, True), ({"user": "alice", "eventId": 0}, False)],
)
def test_scheduled_run_shows_its_event_or_the_scheduler(signs: dict[str, object], is_scheduled: bool) -> None:
    assert Execution.from_json({"flowId": 7, "auditId": 1, **signs}).is_scheduled is is_scheduled


@pytest.mark.parametrize("none", [0, -1, "0", None, ""])
def test_placeholder_event_id_is_none(none: object) -> None:
    assert Execution.from_json({**RECORD, "eventId": none}).event_id is None
