"""The listener operator: a payload is sent once, and the run that it starts is followed."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import BEGINNING
from support.etlworks import ScriptedServer, reply
from support.proxy import Break, Proxy
from support.task import FLOW, RECORD_PATH, Task

from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksExecutionFailed
from airflow_provider_etlworks.client.sync import EtlworksClient
from airflow_provider_etlworks.compat import ObjectStoragePath
from airflow_provider_etlworks.operators.listener import EtlworksHttpListenerOperator
from airflow_provider_etlworks.sandbox import broken_body, hang_up, status
from airflow_provider_etlworks.worker import send_to_listener
from airflow_provider_etlworks.worker.send_to_listener import LONGEST_ANSWER, SendToListenerTask

if TYPE_CHECKING:
    from pathlib import Path

    from support.etlworks import Etlworks

LISTENER = "orders/new"
LISTENER_PATH = f"/rest/v1/httplistener/{LISTENER}"


class ListenerTask(Task):
    """A task instance of the listener operator."""

    def operator(self) -> Any:
        return EtlworksHttpListenerOperator(task_id="send", **{"path": LISTENER, **self.arguments})


@pytest.fixture(autouse=True)
def _listening(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EtlworksHttpListenerOperator, "log", logging.getLogger("seen.EtlworksHttpListenerOperator"))
    etlworks.flow(running=30, listener=LISTENER)


def task(etlworks: Etlworks, *, store: bool = True, **arguments: Any) -> ListenerTask:
    return ListenerTask(etlworks, arguments, **({} if store else {"store": None}))


def sent(etlworks: Etlworks) -> list[Any]:
    return [each for each in etlworks.sandbox.requests if each.path.startswith("/rest/v1/httplistener")]


# --- What is sent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "body", "content_type"),
    [
        ({}, b"", None),
        ({"payload": '{"order": "ü"}'}, '{"order": "ü"}'.encode(), "application/json"),
        ({"payload": {"order": "ü", "lines": [1, 2]}}, '{"order": "ü", "lines": [1, 2]}'.encode(), "application/json"),
        ({"payload": []}, b"[]", "application/json"),
        ({"payload": ""}, b"", "application/json"),
        ({"payload": "<order/>", "content_type": "application/xml"}, b"<order/>", "application/xml"),
        ({"payload": {"a": 1}, "content_type": "application/vnd.api+json"}, b'{"a": 1}', "application/vnd.api+json"),
    ],
)
def test_payload_arrives_unchanged(
    etlworks: Etlworks, arguments: dict[str, Any], body: bytes, content_type: str | None
) -> None:
    with ScriptedServer(lambda _: reply(body=b'{"messageUuid": "abc", "status": "accepted"}')) as server:
        etlworks.connect(host=server.url)
        went = task(etlworks, **arguments).run()

    (request,) = server.received
    assert (request.method, request.target) == ("POST", LISTENER_PATH)
    assert request.body == body
    assert request.headers.get("Content-Type") == content_type
    assert went.result == {
        "message_uuid": "abc", "audit_id": None, "answer": {"messageUuid": "abc", "status": "accepted"},
    }  # fmt: skip


@pytest.mark.parametrize("as_url", [False, True])
def test_file_is_sent_byte_for_byte(etlworks: Etlworks, tmp_path: Path, as_url: bool) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "orders.bin").write_bytes(content)
    path: Any = str(tmp_path / "orders.bin")
    with ScriptedServer(lambda _: reply(body=b"thanks", content_type="text/plain")) as server:
        etlworks.connect(host=server.url)
        payload_path = ObjectStoragePath(f"file://{path}") if as_url else path
        went = task(etlworks, payload_path=payload_path, content_type="application/octet-stream").run()

    (request,) = server.received
    assert request.body == content
    assert request.headers["Content-Length"] == str(len(content))
    assert went.result == {"message_uuid": None, "audit_id": None, "answer": "thanks"}


def test_long_response_is_cut(etlworks: Etlworks) -> None:
    with ScriptedServer(lambda _: reply(body=json.dumps({"rows": ["x" * 100] * 1000}).encode())) as server:
        etlworks.connect(host=server.url)
        went = task(etlworks).run()

    assert went.result is not None
    assert isinstance(went.result["answer"], str)
    assert len(went.result["answer"]) == LONGEST_ANSWER


def test_echoed_key_is_redacted(etlworks: Etlworks) -> None:
    with ScriptedServer(lambda request: reply(body=json.dumps(dict(request.headers)).encode())) as server:
        etlworks.connect(host=server.url)
        went = task(etlworks).run()

    assert "sandbox-key" not in str(went.result)
    assert "sandbox-key" not in etlworks.log_text
    assert "Bearer ***" in str(went.result)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"payload": "x", "payload_path": "y"}, "both are given"),
        ({"wait_for_completion": True}, "takes flow_id"),
        ({"poll_interval": 0}, "poll_interval is 0"),
    ],
)
def test_invalid_arguments_are_refused_at_parse_time(etlworks: Etlworks, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        task(etlworks, **arguments).operator()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"path": "orders//new"}, "orders//new"),
        ({"path": "../flows"}, "looks like"),
        ({"method": "PATCH"}, "method is 'PATCH'"),
        ({"method": "post"}, "method is 'post'"),
        ({"method": "GET", "payload": "x"}, "GET has no payload"),
        ({"payload": 7}, "payload is a int"),
        ({"payload": "x", "content_type": "json"}, "this is 'json'"),
        ({"payload": "x", "content_type": "text/plain\r\nX-Other: 1"}, "this is 'text/plain"),
        ({"payload": {"a": 1}, "content_type": "text/xml"}, "content_type is 'text/xml'"),
        ({"payload": {"a": float("nan")}}, "cannot be sent as JSON"),
        ({"payload": {"a": object()}}, "cannot be sent as JSON"),
        ({"payload_path": " "}, "payload_path is ' '"),
        ({"flow_id": "orders"}, "flow_id is 'orders'"),
    ],
)
def test_invalid_arguments_are_refused_before_a_request(
    etlworks: Etlworks, arguments: dict[str, Any], said: str
) -> None:
    went = task(etlworks, **arguments).run()

    assert went.colour == "failed for good"
    assert said in went.report
    assert etlworks.sandbox.requests == []


def test_missing_file_sends_nothing(etlworks: Etlworks, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        task(etlworks, payload_path=str(tmp_path / "none")).run()
    assert etlworks.sandbox.requests == []


# --- The run that it starts -----------------------------------------------------------------------------------------

waits = pytest.mark.parametrize("deferrable", [False, True])


def waiting_task(etlworks: Etlworks, **arguments: Any) -> ListenerTask:
    return task(etlworks, **{"payload": {"id": 1}, "flow_id": FLOW, "wait_for_completion": True, **arguments})


@waits
@pytest.mark.parametrize(
    ("ends", "fail_on_warning", "colour"),
    [
        ("success", False, "success"),
        ("warning", False, "success"),
        ("warning", True, "failed"),
        ("error", False, "failed"),
        ("canceled", False, "failed for good"),
    ],
)
def test_task_ends_as_its_run(
    etlworks: Etlworks, ends: str, fail_on_warning: bool, colour: str, deferrable: bool
) -> None:
    etlworks.flow(running=30, listener=LISTENER, ends=ends, records=1)
    other = etlworks.run_of_somebody_else()

    listener = waiting_task(etlworks, deferrable=deferrable, fail_on_warning=fail_on_warning)
    went = listener.run()

    _, run = etlworks.sandbox.runs()
    assert run.audit_id != other
    assert went.colour == colour
    assert (went.event is not None) == deferrable
    assert listener.xcoms["audit_id"] == run.audit_id
    if colour == "success":
        assert went.result is not None
        assert (went.result["audit_id"], went.result["status"], went.result["records"]) == (run.audit_id, ends, 1)
    assert len(sent(etlworks)) == 1


def test_late_run_is_found(etlworks: Etlworks) -> None:
    etlworks.flow(running=60, listener=LISTENER, visible_after=40)

    went = waiting_task(etlworks).run()

    assert (went.colour, len(went.accepted)) == ("success", 1)


def test_missing_run_is_reported_and_nothing_sent_again(etlworks: Etlworks) -> None:
    etlworks.flow(running=60, listener=LISTENER, visible_after=4000)

    went = waiting_task(etlworks).run()

    assert went.colour == "failed for good"
    assert "shows no run of flow 7" in went.report
    assert len(sent(etlworks)) == 1
    assert 60 <= etlworks.clock.time() - BEGINNING < 90


def test_transient_faults_during_the_search_are_survived(etlworks: Etlworks) -> None:
    etlworks.sandbox.fault("GET", RECORD_PATH, status(503), times=5)

    assert waiting_task(etlworks).run().colour == "success"


def test_ignored_filter_gives_no_other_run(etlworks: Etlworks) -> None:
    other = {"auditId": 5, "flowId": FLOW, "status": "success", "messageId": "another"}
    etlworks.sandbox.fault("GET", RECORD_PATH, broken_body(json.dumps(other), content_type="application/json"), times=3)

    went = waiting_task(etlworks).run()

    assert went.result is not None
    assert went.result["audit_id"] == etlworks.sandbox.runs()[0].audit_id


@waits
@pytest.mark.parametrize("receipt", ["auditId", "messageUuid"])
def test_run_is_followed_by_the_receipt(etlworks: Etlworks, receipt: str, deferrable: bool) -> None:
    etlworks.flow(running=30, listener=LISTENER, receipt=receipt, visible_after=20)
    etlworks.run_of_somebody_else()

    went = waiting_task(etlworks, deferrable=deferrable).run()

    run = etlworks.sandbox.runs()[-1]
    assert went.result is not None
    assert (went.result["audit_id"], went.result["status"]) == (run.audit_id, "success")
    by_message = [each for each in etlworks.sandbox.requests if "messageId" in each.query]
    assert bool(by_message) == (receipt == "messageUuid")


def test_audit_id_of_a_receipt_comes_before_its_message(etlworks: Etlworks) -> None:
    etlworks.is_ours = lambda _: False  # type: ignore[method-assign]  # the receipt names a run of somebody else
    run = etlworks.sandbox.run_by_user(FLOW)
    receipt = json.dumps({"auditId": run, "messageUuid": "unknown"}).encode()
    etlworks.sandbox.fault("POST", LISTENER_PATH, broken_body(receipt, content_type="application/json"))

    went = waiting_task(etlworks).run()

    assert went.result is not None
    assert went.result["audit_id"] == run


@pytest.mark.parametrize("audit_id", [0, -1, None, "", "x", {}, True])
def test_receipt_without_a_run_is_followed_by_its_message(etlworks: Etlworks, audit_id: Any) -> None:
    with ScriptedServer(lambda _: reply(body=json.dumps({"auditId": audit_id, "messageUuid": "m"}).encode())) as server:
        etlworks.connect(host=server.url)
        went = task(etlworks).run()

    assert went.result is not None
    assert (went.result["audit_id"], went.result["message_uuid"]) == (None, "m")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("auth", ["jwt", "basic"])
def test_listener_is_called_with_its_method_and_authentication(
    etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch, method: str, auth: str
) -> None:
    etlworks.flow(running=30, listener=LISTENER, listener_methods=(method,), listener_auth=auth, receipt="auditId")
    basic_user(monkeypatch, login="sandbox", password="sandbox")
    conn_id = "listener_user" if auth == "basic" else None
    payload = None if method == "GET" else {"id": 1}

    went = waiting_task(etlworks, method=method, payload=payload, listener_conn_id=conn_id).run()

    assert went.colour == "success"
    (request,) = sent(etlworks)
    assert request.method == method
    assert request.headers["Authorization"].startswith("Basic " if auth == "basic" else "Bearer ")
    assert bool(request.body) == (payload is not None)


def basic_user(monkeypatch: pytest.MonkeyPatch, **fields: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LISTENER_USER", json.dumps({"conn_type": "http", **fields}))


def test_password_of_a_basic_listener_is_in_no_log_and_no_result(
    etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    basic_user(monkeypatch, login="partner", password="pa55-of-the-listener")
    for status_code in (200, 400):
        with ScriptedServer(
            lambda request, code=status_code: reply(
                code, body=json.dumps({"got": dict(request.headers), "again": "pa55-of-the-listener"}).encode()
            )
        ) as server:
            etlworks.connect(host=server.url)
            went = task(etlworks, listener_conn_id="listener_user").run()
        shown = f"{went.result} {went.error!r} {etlworks.log_text}"
        assert "pa55-of-the-listener" not in shown
        assert server.received[0].headers["Authorization"].removeprefix("Basic ") not in shown
        assert "***" in shown


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"login": "x"}, "has no Password"),
        ({"password": "x"}, "has no Login"),
        ({"login": "a:b", "password": "x"}, "colon"),
    ],
)
def test_unusable_basic_connection_sends_nothing(
    etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], said: str
) -> None:
    basic_user(monkeypatch, **fields)

    went = task(etlworks, listener_conn_id="listener_user").run()

    assert went.colour == "failed for good"
    assert said in str(went.error)
    assert sent(etlworks) == []


@pytest.mark.parametrize("answer", [b"thanks", b"[]", b"{}", b'{"messageUuid": null}', b"", b'"text"'])
def test_response_without_a_message_cannot_be_followed(etlworks: Etlworks, answer: bytes) -> None:
    etlworks.sandbox.fault("POST", LISTENER_PATH, broken_body(answer, content_type="application/json"))

    went = waiting_task(etlworks).run()

    assert went.colour == "failed for good"
    assert "no messageUuid" in went.report
    assert len(sent(etlworks)) == 1


@waits
def test_timeout_stops_the_run(etlworks: Etlworks, deferrable: bool) -> None:
    etlworks.flow(running=86_400, listener=LISTENER)

    went = waiting_task(etlworks, timeout=600, deferrable=deferrable).run()

    assert went.colour == "failed"
    assert "timeout (600 s)" in went.report
    assert etlworks.sandbox.runs()[0].stop_requested


# --- Sent once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits_for_it", [False, True])
@pytest.mark.parametrize(
    "fault",
    # Any status may be the flow author's own, so none proves that the payload was not received.
    [
        hang_up(),
        hang_up(carried_out=False),
        broken_body(code=500),
        *(status(code) for code in (302, 400, 403, 404, 429, 500, 502)),
    ],
    ids=["lost answer", "lost payload", "proxy", "302", "400", "403", "404", "429", "500", "502"],
)
def test_payload_in_doubt_is_not_sent_again(etlworks: Etlworks, fault: Any, waits_for_it: bool) -> None:
    etlworks.sandbox.fault("POST", LISTENER_PATH, fault)

    went = (waiting_task(etlworks) if waits_for_it else task(etlworks, payload={})).run()

    assert went.colour == "failed for good"
    assert "may have been received, so it is not sent again" in went.report
    assert len(sent(etlworks)) == 1


def test_unsent_payload_is_sent_by_the_next_try(etlworks: Etlworks, closed_port: int) -> None:
    listener = waiting_task(etlworks)
    etlworks.connect(host=f"http://127.0.0.1:{closed_port}")
    refused = listener.run()
    etlworks.connect()

    assert refused.colour == "failed"
    assert listener.run().colour == "success"


def test_retry_returns_the_result_of_the_try_that_sent(etlworks: Etlworks) -> None:
    listener = task(etlworks, payload={"id": 1})
    first = listener.operator().execute(listener.next_try())

    retry = listener.run()

    assert (retry.colour, retry.result) == ("success", first)
    assert first["message_uuid"]
    assert len(sent(etlworks)) == 1


def test_failing_xcom_backend_sends_no_payload_twice(etlworks: Etlworks) -> None:
    listener = waiting_task(etlworks)
    context = listener.next_try()

    def broken(key: str, value: Any) -> None:
        raise ConnectionError("The XCom backend is away.")

    context["ti"].xcom_push = broken
    with pytest.raises(ConnectionError):
        listener.operator().execute(context)

    assert listener.run().colour == "success"
    assert len(sent(etlworks)) == 1


def test_cleared_task_sends_its_payload_again(etlworks: Etlworks) -> None:
    etlworks.flow(running=0, listener=LISTENER)
    listener = task(etlworks, payload={"id": 1})
    listener.run()
    listener.clear()

    assert listener.run().colour == "success"
    assert len(sent(etlworks)) == 2


def test_lost_worker_that_did_not_wait_sends_nothing_again(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = task(etlworks, payload={"id": 1})
    lose_worker(monkeypatch, listener, "send", EtlworksClient)

    went = listener.run()

    assert went.colour == "failed for good"
    assert "An earlier try was lost while it sent the payload" in went.report
    assert sent(etlworks) == []


@pytest.mark.parametrize("store", [True, False])
def test_unforeseen_error_after_sending_sends_nothing_again(
    etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch, store: bool
) -> None:
    listener = task(etlworks, store=store, payload={"id": 1})

    def broken(*_: Any) -> Any:
        raise RecursionError("too deep")

    monkeypatch.setattr(send_to_listener, "bounded_answer", broken)

    went = listener.run()

    assert went.colour == "failed for good"
    assert "may have been received" in went.report


def test_killed_task_sends_nothing(etlworks: Etlworks) -> None:
    listener = task(etlworks, payload={"id": 1})
    assert listener.store is not None
    operator = listener.operator()
    listener.store.before_the_start = operator.on_kill

    with pytest.raises(EtlworksError, match="killed"):
        operator.execute(listener.next_try())

    assert sent(etlworks) == []


@pytest.mark.parametrize("where", [Break.AFTER_RESPONSE, Break.INSIDE_RESPONSE, Break.BEFORE_FORWARDING])
def test_payload_dropped_by_a_proxy_is_not_sent_again(etlworks: Etlworks, where: Break) -> None:
    with Proxy() as proxy:
        etlworks.connect(proxy=proxy.url)
        proxy.break_connections(where)
        sending = task(etlworks, payload={})
        tries = [sending.run() for _ in range(2)]

    assert [went.colour for went in tries] == ["failed for good"] * 2
    assert len(proxy.received) == 1
    assert len(sent(etlworks)) == (0 if where is Break.BEFORE_FORWARDING else 1)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b'{"a": "x\\u0000y", "b\\ud83d": [1, "\\udc00"]}', {"a": "x\ufffdy", "b\ufffd": [1, "\ufffd"]}),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'{"__classname__": "os.system"}', '{"__classname__": "os.system"}'),
        (b'[{"a": [{"__type": "set"}]}]', '[{"a": [{"__type": "set"}]}]'),
        (b'{"a": NaN}', {"a": None}),
        (b"[1e999]", [None]),
        (b"[9223372036854775807, -1.5, null, true]", [2**63 - 1, -1.5, None, True]),
        (b"[9223372036854775808]", [None]),
        (nested(60).encode(), json.loads(nested(60))),
    ],
)
def test_answer_that_no_xcom_can_hold_is_made_storable(etlworks: Etlworks, body: bytes, answer: Any) -> None:
    with ScriptedServer(lambda _: reply(body=body)) as server:
        etlworks.connect(host=server.url)
        went = task(etlworks).run()

    assert went.colour == "success"
    assert went.result == {"message_uuid": None, "audit_id": None, "answer": answer}
    assert "\\u0000" not in json.dumps(went.result)
    json.dumps(went.result, allow_nan=False, ensure_ascii=False).encode()


# --- Retries and kills ----------------------------------------------------------------------------------------------


class WorkerLost(BaseException):
    """The machine is gone."""


def lose_worker(
    monkeypatch: pytest.MonkeyPatch, listener: ListenerTask, at: str, owner: type = SendToListenerTask
) -> None:
    """Make one try, and lose its worker when it comes to a method."""
    with monkeypatch.context() as patch:

        def gone(*_: Any, **__: Any) -> Any:
            raise WorkerLost

        patch.setattr(owner, at, gone)
        with pytest.raises(WorkerLost):
            listener.run()


@pytest.mark.parametrize("at", ["_find_run", "_follow"])
def test_retry_follows_the_run_of_a_lost_worker(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    listener = waiting_task(etlworks)
    lose_worker(monkeypatch, listener, at)

    went = listener.run()

    (run,) = etlworks.sandbox.runs()
    assert went.result is not None
    assert went.result["audit_id"] == run.audit_id
    assert len(sent(etlworks)) == 1


def test_worker_lost_while_sending_sends_nothing_again(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = waiting_task(etlworks)
    lose_worker(monkeypatch, listener, "send", EtlworksClient)

    went = listener.run()

    assert went.colour == "failed for good"
    assert "An earlier try was lost while it sent the payload" in went.report
    assert sent(etlworks) == []
    listener.clear()
    assert listener.run().colour == "success"


def test_payload_is_sent_again_after_a_bad_end(etlworks: Etlworks) -> None:
    etlworks.flow(running=30, listener=LISTENER, ends="error")
    listener = waiting_task(etlworks)
    first = listener.run()
    etlworks.flow(running=30, listener=LISTENER)
    second = listener.run()

    assert (first.colour, second.colour) == ("failed", "success")
    assert len(sent(etlworks)) == 2


def test_kill_stops_the_run(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600, listener=LISTENER)
    listener = waiting_task(etlworks)
    operator = listener.operator()
    etlworks.clock.at(100, operator.on_kill)

    with pytest.raises(EtlworksExecutionFailed):
        operator.execute(listener.next_try())

    assert etlworks.sandbox.runs()[0].stop_requested


def test_kill_during_the_search_stops_the_run(etlworks: Etlworks) -> None:
    etlworks.flow(running=3600, listener=LISTENER, visible_after=10)
    listener = waiting_task(etlworks)
    operator = listener.operator()
    etlworks.clock.at(5, operator.on_kill)

    with pytest.raises(Exception, match="killed"):
        operator.execute(listener.next_try())

    assert etlworks.sandbox.runs()[0].stop_requested


def test_kill_while_sending_reports_the_doubt(etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = waiting_task(etlworks)
    operator = listener.operator()

    def killed(*_: Any, **__: Any) -> Any:
        operator.on_kill()
        raise WorkerLost

    monkeypatch.setattr(EtlworksClient, "send", killed)
    with pytest.raises(WorkerLost):
        operator.execute(listener.next_try())

    assert etlworks.warnings("The task was killed while it sent its payload")
