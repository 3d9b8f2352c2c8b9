"""A call describes a request: what may be described, what it shows of itself, and what may be sent twice."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date

import pytest

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.call import Call, PagedCall, Response
from airflow_provider_etlworks.client.errors import EtlworksConfigError, EtlworksError, EtlworksReplyError
from airflow_provider_etlworks.client.models import StartStatus

ROOT = "https://etl.example.com"


@pytest.mark.parametrize(
    "path",
    [
        "https://example.com/v1/flows",
        "http://etl.example.com/v1/flows",
        "https://etl.example.com:8443/v1/flows",
        "https://etl.example.com.evil.com/v1/flows",
        "https://etl.example.com@evil.com/v1/flows",
        "https://evil.com/https://etl.example.com/",
        "//evil.com/v1/flows",
        "ftp://etl.example.com/v1/flows",
        "https:evil.com",
    ],
)
def test_another_host_is_refused(path: str) -> None:
    with pytest.raises(EtlworksConfigError, match="another host"):
        endpoints.request("GET", path, root_url=ROOT)


@pytest.mark.parametrize(
    "path", ["", "?a=1", "/v1/my flow", "/v1/flows\n", "/v1/a\r\nX: y", "/v1/flows#top", "/v1\\flows", "/v1/Łódź"]
)
def test_invalid_path_is_refused(path: str) -> None:
    with pytest.raises(EtlworksConfigError, match="percent-encoded"):
        endpoints.request("GET", path, root_url=ROOT)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/v1/flows", f"{ROOT}/rest/v1/flows"),
        ("v1/flows", f"{ROOT}/rest/v1/flows"),
        ("/rest/v1/flows", f"{ROOT}/rest/v1/flows"),
        ("rest/v1/flows?a=1", f"{ROOT}/rest/v1/flows?a=1"),
        ("HTTPS://ETL.Example.COM:443/rest/v1/flows?a=1", f"{ROOT}/rest/v1/flows?a=1"),
        ("/v1/flows?a=1&b=%C3%A9&c", f"{ROOT}/rest/v1/flows?a=1&b=%C3%A9&c="),
        (f"{ROOT}/etl/x", f"{ROOT}/etl/x"),
        (f"{ROOT}/rest/v1/flows", f"{ROOT}/rest/v1/flows"),
        (ROOT, f"{ROOT}/"),
        (f"{ROOT}/x?a=1", f"{ROOT}/x?a=1"),
    ],
)
def test_request_url(path: str, url: str) -> None:
    assert endpoints.request("GET", path, root_url=ROOT).url(f"{ROOT}/rest", ROOT) == url


@pytest.mark.parametrize("root", ["http://[2001:db8::5]:8443/etlworks", "https://example.com/etlworks"])
def test_request_below_a_path(root: str) -> None:
    for path in (
        "/v1/flows",
        f"{root}/rest/v1/flows",
        f"{root.upper().removesuffix('/ETLWORKS')}/etlworks/rest/v1/flows",
    ):
        assert endpoints.request("GET", path, root_url=root).url(f"{root}/rest", root) == f"{root}/rest/v1/flows"
    with pytest.raises(EtlworksConfigError, match="another host"):
        endpoints.request("GET", root.removesuffix("/etlworks") + "/elsewhere", root_url=root)


@pytest.mark.parametrize(
    ("method", "idempotent"),
    [("get", True), ("HEAD", True), ("put", True), ("DELETE", True), ("post", False), ("PATCH", False)],
)
def test_custom_request_is_repeated_by_its_method(method: str, idempotent: bool) -> None:
    assert endpoints.request(method, "/v1/x", root_url=ROOT).idempotent is idempotent


def test_day_is_counted_back_or_a_date() -> None:
    assert endpoints.executions_of_day(1).query == [("offset", "1")]
    assert endpoints.executions_of_day(date=date(2026, 5, 31)).query == [("date", "2026-05-31")]
    with pytest.raises(EtlworksConfigError, match="date or days_ago"):
        endpoints.executions_of_day(1, date=date(2026, 5, 31))


def test_unsafe_request_is_never_repeated() -> None:
    once: list[Call[object]] = [
        endpoints.run_flow(7),
        endpoints.run_flow_by_name("Orders"),
        endpoints.run_flow_by_name_legacy("Orders"),
        endpoints.import_bundle(b"{}"),
        endpoints.import_bundle_legacy("dump"),
        endpoints.create_connection({}),
        endpoints.create_schedule({}),
        endpoints.create_webhook({}),
        endpoints.send_to_listener("orders"),
        endpoints.send_to_listener_legacy("orders"),
        *(endpoints.send_to_listener("orders", method=method) for method in ("GET", "PUT", "DELETE")),
    ]
    assert [str(call) for call in once if call.idempotent] == []


@pytest.mark.parametrize("path", ["", "/", "orders//new", "../flows", "orders/./new", "orders/.."])
def test_invalid_listener_is_refused(path: str) -> None:
    with pytest.raises(EtlworksConfigError, match="orders/new"):
        endpoints.send_to_listener(path)


@pytest.mark.parametrize("basic", [("", "x"), ("x", ""), ("a:b", "x")])
def test_invalid_basic_credentials_are_refused(basic: tuple[str, str]) -> None:
    with pytest.raises(EtlworksConfigError, match="Basic"):
        endpoints.send_to_listener("orders", basic=basic)


def test_call_hides_its_payload() -> None:
    calls: list[Call[object]] = [
        endpoints.log_in("alice", "hunter2"),
        endpoints.run_flow(7, {"card": "hunter2"}, {"key": "hunter2"}),
        endpoints.run_flow_by_name("Orders", {"card": "hunter2"}),
        endpoints.import_bundle(b"hunter2"),
        endpoints.send_to_listener("orders", basic=("alice", "hunter2")),
    ]
    for call in calls:
        assert "hunter2" not in f"{call} {call!r}"
    assert "hunter2" not in repr(Response(200, {}, b"hunter2"))
    assert str(endpoints.run_flow_by_name("My Flow/v2")) == "POST /v1/flows/flow-name/My%20Flow%2Fv2/run"


WEBHOOK = {
    "name": "w",
    "secret": "the-secret",
    "basicPass": "the-password",
    "headers": [{"key": "X-Token", "value": "in-a-header"}, {"key": "Accept", "value": "application/json"}],
    "contentType": "application/json",
}


@pytest.mark.parametrize(
    ("status", "template"),
    [
        (200, '{"id": 1, "name": "%s"}'),
        (200, "<html>%s</html>"),
        (200, '{"success": false, "error": "Bad value %s"}'),
        (400, '{"message": "Bad value %s"}'),
        (500, "%s"),
    ],
)
@pytest.mark.parametrize("secret", ["the-secret", "the-password", "in-a-header"])
def test_webhooks_secrets_are_in_no_answer_and_no_message(status: int, template: str, secret: str) -> None:
    call = endpoints.create_webhook(WEBHOOK)
    assert secret not in f"{call} {call!r}"
    try:
        webhook = call.result(Response(status, {}, (template % secret).encode()))
        shown = repr(webhook) + json.dumps(webhook.to_dict()) + json.dumps(webhook.raw)
    except EtlworksError as error:
        shown = f"{error} {getattr(error, 'answer', '')}"
    assert secret not in shown
    assert "***" in shown


def test_public_fields_of_a_webhook_stay_readable() -> None:
    answer = {**WEBHOOK, "id": 1, "secret": None}
    webhook = endpoints.create_webhook(WEBHOOK).result(Response(201, {}, json.dumps(answer).encode()))
    assert (webhook.content_type, webhook.header_names) == ("application/json", ("X-Token", "Accept"))


@pytest.mark.parametrize("headers", [None, {"X-Token": "v"}, ["x"], [{"key": "a"}], [{"key": "a", "value": 5}]])
def test_webhook_with_other_headers_is_sent_as_given(headers: object) -> None:
    call = endpoints.create_webhook({"name": "w", "headers": headers})
    assert json.loads(call.body) == {"name": "w", "headers": headers}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        ({"status": 0}, StartStatus.SUCCEEDED),
        ({"status": 1, "exception": "disk full"}, StartStatus.FAILED),
        ({"status": 7}, None),
        ({}, None),
    ],
)
def test_legacy_status_has_another_meaning(answer: dict[str, object], meaning: StartStatus | None) -> None:
    start = endpoints.run_flow_by_name_legacy("Orders").result(Response(200, {}, json.dumps(answer).encode()))
    assert (start.status, start.exception) == (meaning, answer.get("exception"))


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[1]",
        b'[{"flowId": 7, "executions": [null]}]',
        b'[{"flowId": 7, "executions": {"a": 1}}]',
        b'[{"flowId": 7, "executions": [{"status": "running"}]}]',
    ],
)
def test_unreadable_day(body: bytes) -> None:
    with pytest.raises(EtlworksReplyError):
        endpoints.executions_of_day().result(Response(200, {}, body))


@pytest.mark.parametrize("executions", [[], None])
def test_flow_without_a_run_that_day(executions: object) -> None:
    body = json.dumps([{"flowId": 7, "executions": executions}, {"flowId": 8}]).encode()
    assert endpoints.executions_of_day().result(Response(200, {}, body)) == []


@pytest.mark.parametrize("paged", [endpoints.list_flows(), endpoints.audit_events(), endpoints.execution_history(7)])
@pytest.mark.parametrize("body", [b"{}", b'{"items": []}', b"null", b"", b"[null]", b"[[]]"])
def test_invalid_list(paged: PagedCall[object], body: bytes) -> None:
    with pytest.raises(EtlworksReplyError):
        paged.first().result(Response(200, {}, body))


def test_transport_is_loaded_on_first_use() -> None:
    script = """
import sys
from airflow_provider_etlworks import client
from airflow_provider_etlworks.client import values
loaded = {"requests", "aiohttp", "tenacity", "airflow_provider_etlworks.client.errors"} & set(sys.modules)
assert not loaded, loaded
assert all(getattr(client, name) is not None for name in client.__all__)
assert {"requests", "aiohttp"} <= set(sys.modules)
assert not hasattr(client, "no_such_name")
assert "airflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
