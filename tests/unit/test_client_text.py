"""Whatever an answer holds, it becomes a typed value or an error, and neither can hurt Airflow."""

from __future__ import annotations

import json
import math
import time
import unicodedata
from dataclasses import fields
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_etlworks.client import endpoints, models
from airflow_provider_etlworks.client.call import Call, Page, PagedCall, Response
from airflow_provider_etlworks.client.errors import EtlworksApiError, EtlworksError, EtlworksReplyError
from airflow_provider_etlworks.client.models import Execution, Flow, Model
from airflow_provider_etlworks.client.redaction import excerpt, redact, redact_json
from airflow_provider_etlworks.client.text import (
    LONGEST_DESCRIPTION,
    as_error,
    as_int,
    as_str,
    clean,
    harmless,
    shorten_trace,
    visible,
)

PASSWORD = 'pa"ss\\wo/rd <7>\u00e9'
TOKEN = jwt.encode({"sub": "alice", "exp": 1}, "a key that is long enough for HS256 to be happy with it")
SECRETS = (PASSWORD, TOKEN)
FIXED = settings(
    max_examples=12, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

RUN = {
    "flowId": 7, "auditId": 42, "parentAuditId": 0, "retries": 0, "flowName": "Orders", "eventId": 3, "eventName": "e",
    "messageId": "m-1", "status": "error", "started": 1_778_320_800_123, "ended": 1_778_320_860_623, "user": "alice",
    "records": 100, "exception": "disk full",
}  # fmt: skip
FLOW = {
    "id": 7, "name": "Orders", "description": "d", "flowType": "x", "tags": ["a", "b"], "enabledSchedules": 1,
    "disabledSchedules": 0, "latestFinishedStatus": "success", "created": 1_778_320_800_123, "modified": 1,
}  # fmt: skip
SCHEDULE = {
    "id": 1, "name": "s", "flowId": 7, "schedule": "0 0 4 * * ?", "enabled": True, "description": "d", "tags": ["a"],
    "emailSuccess": False, "emailFailure": True, "emails": "a@example.com b@example.com", "retries": 2,
    "delayBetweenRetries": 5, "expectedTime": 60, "debug": True, "logStep": 100, "keepMessage": True,
    "keepEmptyAudit": True,
}  # fmt: skip
CONNECTION = {"id": 1, "name": "db", "connectionType": "x", "description": "d", "tags": ["a"], "properties": {"a": "b"}}
WEBHOOK = {
    "id": 1, "name": "w", "url": "https://example.com", "events": ["FLOW_FAILED"], "enabled": True, "description": "d",
    "method": "POST", "contentType": "application/json", "includeEntity": True, "basicUser": "u",
    "headers": [{"key": "X-A", "value": "v"}], "secret": "s", "basicPass": "p", "flowIncludes": [1],
}  # fmt: skip
EVENT = {"timestamp": 1_778_320_800_123, "user": "alice", "action": "execute", "resourceId": "7"}
SHORT_EVENT = {
    "id": 5, "an": "etl", "md": "execute", "ur": "alice", "tn": "eu", "rt": False, "in": True, "ex": "disk full",
    "hip": "10.0.0.1", "cip": "10.0.0.2", "dn": 30, "dt": "1778320800123",
}  # fmt: skip
TASK = {"name": "t", "type": "load", "started": 1_778_320_800_123, "duration": 5, "recordsProcessed": 100}
START = {"flowId": 7, "auditId": 42, "status": 0, "messageUuid": "m", "exception": ""}
REPORT = {"graph": {"a": ["b"]}, "flows": {"1": {"id": 1, "name": "n"}}, "success": True}

DOCUMENTED: dict[str, tuple[Call[Any], Any]] = {
    "list_flows": (endpoints.list_flows().first(), [FLOW, FLOW]),
    "get_flow": (endpoints.get_flow(7), FLOW),
    "replace_flow": (endpoints.replace_flow(7, {}), FLOW),
    "run_flow": (endpoints.run_flow(7), START),
    "run_flow_by_name_legacy": (endpoints.run_flow_by_name_legacy("Orders"), {"status": 1, "exception": "no"}),
    "get_execution": (endpoints.get_execution(7, 42), RUN),
    "latest_execution": (endpoints.latest_execution(7), RUN),
    "execution_history": (endpoints.execution_history(7).first(), [RUN, RUN]),
    "executions_of_day": (endpoints.executions_of_day(), [{"flowId": 7, "name": "Orders", "executions": [RUN]}]),
    "execution_tasks": (endpoints.execution_tasks(42), [TASK]),
    "metrics_summary": (endpoints.metrics_summary(), {"total": 1, "succeeded": 1, "failed": 0, "avgDurationMs": 5}),
    "preview_import": (endpoints.preview_import(b"{}"), REPORT),
    "import_bundle": (endpoints.import_bundle(b"{}"), REPORT),
    "create_connection": (endpoints.create_connection({}), CONNECTION),
    "test_connection": (endpoints.test_connection({}), {"success": True}),
    "create_schedule": (endpoints.create_schedule({}), SCHEDULE),
    "list_schedules": (endpoints.list_schedules().first(), [SCHEDULE]),
    "audit_events": (endpoints.audit_events().first(), [EVENT]),
    "audit_events_legacy": (endpoints.audit_events_legacy(), [SHORT_EVENT]),
    "health": (endpoints.health(), {"status": "UP", "db": {"status": "UP", "running.flows": 1}}),
    "create_webhook": (endpoints.create_webhook({}), WEBHOOK),
    "list_webhooks": (endpoints.list_webhooks().first(), [WEBHOOK]),
    "send_to_listener": (endpoints.send_to_listener("orders"), {"auditId": 5, "headers": {"Authorization": "x"}}),
}

HUGE = "a number of 5,000 digits"
PIECES = [
    PASSWORD, TOKEN, f"Bearer {TOKEN}", json.dumps(PASSWORD), "\0", "\ud83d", "\udc00", "\x1b[31m", "\r\n", "\u2028",
    "\u202e", "x" * 10_100, "java.lang.Error: no\n\tat a.b.c(D.java:1)\nCaused by: why", "Łódź", "\U0001f600", HUGE,
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(st.characters(), max_size=5)), max_size=4).map("".join)
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, -(2**64), 10**400]), st.just(HUGE))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(LEAVES, lambda inner: st.one_of(st.lists(inner), st.dictionaries(TEXTS, inner)), max_leaves=6)


def distorted(documented: Any) -> st.SearchStrategy[Any]:
    """Return a documented answer with some of its values replaced or missing, and others added."""
    if isinstance(documented, dict):
        kept = {name: st.one_of(distorted(value), VALUES) for name, value in documented.items()}
        some = st.fixed_dictionaries({}, optional=kept)
        return st.builds(lambda whole, extra: {**extra, **whole}, some, st.dictionaries(TEXTS, VALUES, max_size=2))
    if isinstance(documented, list):
        return st.lists(st.one_of(distorted(documented[0]), LEAVES), max_size=3)
    return st.one_of(st.just(documented), VALUES)


def body_of(answer: Any, *, escaped: bool) -> bytes:
    text = json.dumps(answer, ensure_ascii=escaped).replace(json.dumps(HUGE), "9" * 5_000)
    return text.encode("utf-8", "surrogatepass")


def plain(value: Any) -> Any:
    if isinstance(value, Model):
        return value.to_dict()
    if isinstance(value, Page):
        return [plain(each) for each in value.items]
    return [plain(each) for each in value] if isinstance(value, list) else value


def texts_of(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for each in pair for text in texts_of(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts_of(each)]
    return [value] if isinstance(value, str) else []


def assert_no_secret(text: str) -> None:
    for secret in (PASSWORD, TOKEN, TOKEN.rpartition(".")[2], json.dumps(PASSWORD)[1:-1]):
        assert secret not in text


def assert_harmless(value: Any) -> None:
    stored = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    assert b"\\u0000" not in stored
    for text in texts_of(value):
        assert "\0" not in text
        assert_no_secret(text)
    for number in numbers_of(value):
        assert -(2**63) <= number < 2**63


def numbers_of(value: Any) -> list[float]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] if isinstance(value, int) else [number for each in inner for number in numbers_of(each)]


def assert_one_line(text: str) -> None:
    assert not [each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@pytest.mark.parametrize("name", DOCUMENTED)
@given(data=st.data())
@FIXED
def test_any_response_becomes_a_harmless_value_or_an_error(name: str, data: st.DataObject) -> None:
    call, documented = DOCUMENTED[name]
    body = body_of(data.draw(st.one_of(distorted(documented), VALUES)), escaped=data.draw(st.booleans()))
    status = data.draw(st.sampled_from([200, 200, 200, 201, 302, 400, 403, 418, 500]))
    value = error = None
    try:
        value = call.result(Response(status, {"Content-Type": "application/json"}, body), SECRETS)
    except EtlworksError as raised:
        error = raised
    assert_one_line(str(error))
    assert_no_secret(str(error))
    assert len(str(error)) < 2_000
    assert_harmless(getattr(error, "answer", None))
    assert_harmless(plain(value))
    if name not in ("preview_import", "import_bundle", "test_connection", "send_to_listener"):
        assert max(map(len, texts_of(plain(value))), default=0) <= LONGEST_DESCRIPTION


@given(body=st.one_of(st.binary(max_size=200), TEXTS.map(lambda text: text.encode("utf-16", "surrogatepass"))))
@FIXED
def test_any_bytes_become_a_harmless_value_or_an_error(body: bytes) -> None:
    for kind in ("text/plain", "application/json; charset=latin-1", "text/x; charset=zip", "a; charset=utf-16"):
        for call in (endpoints.send_to_listener("orders"), endpoints.get_execution(7, 42)):
            try:
                value = call.result(Response(200, {"Content-Type": kind}, body), SECRETS)
            except EtlworksReplyError as error:
                assert_one_line(str(error))
            else:
                assert_harmless(plain(value))


# --- No way round it ------------------------------------------------------------------------------------------------

EVERY_MODEL = [
    each for each in vars(models).values() if isinstance(each, type) and issubclass(each, Model) and each is not Model
]


@pytest.mark.parametrize("model", [each for each in EVERY_MODEL if each is not Execution])
def test_every_field_has_a_reader(model: type[Model]) -> None:
    readers = {each for name, each in vars(models).items() if name.startswith("as_")}
    for each in fields(model):
        assert each.name == "raw" or each.metadata["read"] in readers, each.name


@pytest.mark.parametrize("model", EVERY_MODEL)
def test_no_field_passes_hostile_text_or_numbers(model: type[Model]) -> None:
    known = (RUN, FLOW, SCHEDULE, CONNECTION, WEBHOOK, EVENT, SHORT_EVENT, TASK, START)
    keys = {name for each in known for name in each} | {"avgDurationMs", "p95DurationMs"}
    ids = {"id": 7, "auditId": 42, "flowId": 7}
    for hostile in (
        "a\0b\ud83d\n" + "x" * 50_000,
        ["\0\udc00" * 5_000] * 5_000,
        10**30,
        -(10**400),
        float("nan"),
        1e300,
    ):
        value = model.from_json({**dict.fromkeys(keys, hostile), **ids}).to_dict()
        assert_harmless(value)
        assert max(map(len, texts_of(value)), default=0) <= LONGEST_DESCRIPTION
        assert len(json.dumps(value)) < 2_000_000


def test_run_is_small() -> None:
    run = Execution.from_json({**dict.fromkeys(RUN, "\U0001f600" * 50_000), "flowId": 7, "auditId": 42})
    written = run.to_dict()
    del written["exception"]
    assert len(json.dumps(written)) < 20_000
    assert Execution.from_dict(run.to_dict()) == run


# --- Its parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limit", "keep", "expected"),
    [
        ("plain", 5, "", "plain"),
        ("longer", 5, "", "long…"),
        ("Łódź \U0001f600\xa0x", 50, "", "Łódź \U0001f600\xa0x"),
        ("a\0b\ud83d", 50, "", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"),
        ("a\nb\x1b[0m", 50, "", "a b"),
        ("a\nb\tc\x1b", 50, "\n\t", "a\nb\tc "),
        ("\u202e\u2028", 50, "", "  "),
        ("\x1b" * 10, 6, "", "     …"),
    ],
)
def test_clean_text(text: str, limit: int, keep: str, expected: str) -> None:
    assert clean(text, limit, keep) == expected


def test_visible_is_idempotent() -> None:
    once = visible("a\nb\0\ud83d\u202e")
    assert visible(once) == once


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2**63 - 1, 2**63 - 1), (2**63, None), (-(2**63), -(2**63)), (str(2**63), None), ("9" * 5_000, None),
        (math.inf, None), (math.nan, None), (True, None), ("12", 12), (1e300, None),
    ],
)  # fmt: skip
def test_numbers_have_64_bits(value: Any, expected: int | None) -> None:
    assert as_int(value) == expected


def test_too_long_number_is_not_a_text() -> None:
    assert as_str(10**5_000) is None


def test_deep_json_is_cut() -> None:
    value: Any = "bottom"
    for _ in range(500):
        value = [value]
    assert "bottom" not in json.dumps(harmless(value))
    assert harmless({"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}


FRAMES = "".join(f"\n\tat com.etlworks.Step{number}.run(Step.java:{number})" for number in range(500))
TRACE = f"java.lang.RuntimeException: step 4{FRAMES}\nCaused by: java.sql.SQLException: rejected{FRAMES}\n\t... 12 more"


def test_stack_trace_keeps_first_line_and_causes() -> None:
    trace = f"{TRACE}\nCaused by: java.net.ConnectException: db.example.com refused{FRAMES}"
    short = shorten_trace(trace, 1_000)
    assert short.splitlines() == [
        "java.lang.RuntimeException: step 4 …",
        "Caused by: java.sql.SQLException: rejected …",
        "Caused by: java.net.ConnectException: db.example.com refused …",
    ]
    assert "ConnectException" in (as_error(trace) or "")
    assert "ConnectException: db.example.com refused" in excerpt(trace)


@pytest.mark.parametrize("limit", [300, 4_000, 7_500])
def test_bounded_stack_trace_keeps_the_root_cause(limit: int) -> None:
    trace = "x" * 100_000 + "\n\tat a.b(C.java:1)" + "".join(f"\nCaused by: cause {n} {'y' * 9_000}" for n in range(99))
    short = shorten_trace(trace, limit)
    assert len(short) <= limit
    assert short.startswith("xxx")
    assert "Caused by: cause 98 " in short
    assert "…" in short


def test_short_trace_and_long_text_without_frames() -> None:
    assert shorten_trace(TRACE, len(TRACE)) == TRACE
    assert shorten_trace("a" * 50 + "\n" + "b" * 50, 60) == "a" * 50 + "\n" + "b" * 8 + "…"


# --- Secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 290, 299, 300, 19_190, 19_200, 23_190, 23_199, 23_200])
def test_secret_at_a_cut_is_removed_whole(depth: int) -> None:
    for filler in ("x", " ", "<b>"):
        text = filler * (depth // len(filler)) + " " + PASSWORD + " Bearer " + TOKEN
        said = excerpt(text, SECRETS)
        for part in (PASSWORD[:4], TOKEN[:10], "eyJ"):
            assert part not in said
    run = endpoints.get_execution(7, 42).result(
        Response(200, {}, json.dumps({**RUN, "exception": "x" * (LONGEST_DESCRIPTION - 5) + PASSWORD}).encode()),
        SECRETS,
    )
    assert PASSWORD[:3] not in (run.exception or "")


@pytest.mark.parametrize("escaped", [True, False])
def test_echo_of_a_listener_is_redacted(escaped: bool) -> None:
    echo = {
        "headers": {"authorization": f"Bearer {TOKEN}"},
        "text": json.dumps({"password": PASSWORD}),
        PASSWORD: [PASSWORD],
    }
    call = endpoints.send_to_listener("orders")
    body = json.dumps(echo, ensure_ascii=escaped).encode()
    value = call.result(Response(200, {}, body), SECRETS)
    assert_harmless(value)
    assert value["headers"] == {"authorization": "Bearer ***"}
    with pytest.raises(EtlworksApiError) as raised:
        call.result(Response(500, {}, body), SECRETS)
    assert_no_secret(str(raised.value))
    assert_no_secret(call.result(Response(200, {}, f"you sent {TOKEN} and {PASSWORD}".encode()), SECRETS))


def test_other_text_is_not_redacted() -> None:
    data = {"name": "Bearer bonds import", "token": "of love", "password": "of a database", "n": [1, 2.5, None, True]}
    assert redact_json(data, ["", "abc", "hunter2"]) == data


def test_flow_is_written_back_as_read() -> None:
    whole = {**FLOW, "description": f"uses {PASSWORD}", "script": f"token = 'eyJa.b.c'; {PASSWORD}"}
    flow = endpoints.get_flow(7).result(Response(200, {}, json.dumps(whole).encode()), SECRETS)
    assert flow.raw == whole
    assert flow.description == "uses ***"
    token = endpoints.log_in("alice", PASSWORD).result(
        Response(200, {}, json.dumps({"token": TOKEN}).encode()), SECRETS
    )
    assert token == TOKEN


@pytest.mark.parametrize(
    "piece",
    ["x", "<b", "eyJ", "eyJ.", "bearer ", "bearer", "basic ", "basic aB", "token=", 'token=\\"', "\\", "://", "://a@",
     "\n", "at ", "\nat a(",
     "<script", "<!--", "</script ", "&amp;", "\nCaused by:", "\0", "'", 'secret="', " ", "\ud83d"],
)  # fmt: skip
def test_hostile_text_takes_no_time(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    excerpt(text, SECRETS)
    redact_json([text], SECRETS)
    as_error(text)
    redact(text[:20_000], SECRETS)
    redact('token=\\"' + text[:20_000], SECRETS)
    assert time.process_time() - began < 2  # a quadratic one takes minutes


# --- Charsets and lists ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [
        ("application/json; charset=ISO-8859-2", "iso-8859-2"),
        ('application/json;charset="windows-1250"', "windows-1250"),
        ("application/json; charset=utf-16", "utf-16"),
        ("application/json", "utf-16"),
        ("application/json", "utf-8-sig"),
        ("application/json; charset=utf-8", "utf-8"),
        ("application/json; charset=no-such-charset", "utf-8"),
        ("application/json; charset=zip", "utf-8"),
        ("application/json; charset=punycode", "utf-8"),
        ("", "utf-8"),
    ],
)
def test_json_in_its_declared_charset(kind: str, encoding: str) -> None:
    body = json.dumps({**FLOW, "name": "Łódź"}, ensure_ascii=False).encode(encoding)
    assert endpoints.get_flow(7).result(Response(200, {"Content-Type": kind}, body)).name == "Łódź"


def test_invalid_byte_is_replaced() -> None:
    body = json.dumps({**FLOW, "name": "a?b"}).encode().replace(b"?", b"\xff")
    assert endpoints.get_flow(7).result(Response(200, {}, body)).name == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize("bad", [None, {}, {"name": "no id"}, {"id": None}, {"id": "x"}, {"id": 10**30}, 5, [], "text"])
@pytest.mark.parametrize("paged", [endpoints.list_flows(), endpoints.list_schedules(), endpoints.execution_history(7)])
def test_unreadable_item_is_left_out(paged: PagedCall[Any], bad: Any, caplog: Any) -> None:
    good = {"id": 7, "auditId": 42}
    page = paged.first().result(Response(200, {}, json.dumps([good, bad, good]).encode()))
    assert (len(page.items), page.skipped) == (2, 1)
    assert "1 of 3 items" in caplog.text
    following = paged.following(len(page.items), page)
    assert following is not None
    assert dict(following.query)["offset"] == "3"
    with pytest.raises(EtlworksReplyError):
        paged.first().result(Response(200, {}, json.dumps([bad]).encode()))


def test_day_list_with_an_unreadable_run() -> None:
    body = json.dumps([{"flowId": 7, "executions": [{"status": "running"}, RUN]}, None, {"flowId": 8}]).encode()
    assert [run.audit_id for run in endpoints.executions_of_day().result(Response(200, {}, body))] == [42]


def test_changed_page_of_runs_keeps_its_identity() -> None:
    def page(first: int, status: str) -> Page[Execution]:
        return Page([Execution(7, audit_id, status) for audit_id in range(first, first - 50, -1)], None)

    assert page(101, "success").repeats(page(100, "running"))
    assert not page(51, "success").repeats(page(100, "running"))
    assert not page(100, "success").repeats(None)


@pytest.mark.parametrize("total", ["9" * 5_000, "²", "-1", "1e3", "x"])
def test_non_numeric_total_is_ignored(total: str) -> None:
    paged = endpoints.list_flows()
    page = paged.first().result(Response(200, {"X-Total-Count": total}, json.dumps([FLOW]).encode()))
    assert paged.following(1, page) is not None


def test_half_a_surrogate_pair_can_be_sent_back() -> None:
    assert json.loads(endpoints.replace_flow(7, {"name": "\ud83d"}).body) == {"name": "\ud83d"}  # type: ignore[arg-type]
    assert Flow.from_json({**FLOW, "name": "\ud83d"}).name == "\N{REPLACEMENT CHARACTER}"
