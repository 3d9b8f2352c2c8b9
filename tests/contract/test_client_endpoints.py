"""Every call of the client, over both transports: the request as it arrives, and the value that comes back."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
from support.clock import VirtualClock
from support.etlworks import ScriptedServer, reply

from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.call import Call, PagedCall
from airflow_provider_etlworks.client.errors import EtlworksApiError, EtlworksNotFound
from airflow_provider_etlworks.client.models import StartStatus
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, broken_body, status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from support.client import Drive

JSON = "application/json"
PAGE = {"limit": ["200"], "offset": ["0"]}
CREDENTIALS = {"login": "sandbox", "password": "sandbox"}
CONNECTION = {"name": "new-db", "connectionType": "connection.db.postgres", "tags": ["eu"]}
SCHEDULE = {"name": "Nightly", "flowId": 7, "schedule": "0 0 4 * * ?", "enabled": False}
WEBHOOK = {
    "name": "Hook", "description": "d", "events": ["Flow.Executed", "SOMETHING_NEW"], "url": "https://example.com/hook",
    "method": "POST", "contentType": "application/json", "includeEntity": True, "secret": "the-secret",
    "headers": [{"key": "X-Token", "value": "in-a-header"}, {"key": "Accept", "value": "application/json"}],
    "basicUser": "etl", "basicPass": "the-password", "flowIncludes": [7], "flowExcludes": [8], "enabled": True,
}  # fmt: skip

FLOWS = [
    SandboxFlow(
        7,
        "Orders",
        tags=("nightly", "eu"),
        records=100,
        log=("one", "two"),
        schedule="0 0 4 * * ?",
        connections=("db",),
    ),
    SandboxFlow(8, "My Flow/v2", tags=("nightly",), ends="error", exception="disk full"),
    SandboxFlow(9, "Listener", listener="orders/new one"),
    SandboxFlow(10, "Never ran"),
]


class World:
    """A sandbox in which flow 7 ran once, and a client that has logged in to it."""

    def __init__(self, sandbox: Sandbox, drive: Drive) -> None:
        self.sandbox = sandbox
        self.drive = drive
        self.audit_id = drive.send(endpoints.run_flow(7)).audit_id

    @property
    def root_url(self) -> str:
        return self.sandbox.url

    @property
    def bundle(self) -> bytes:
        return self.drive.send(endpoints.export_flows([7]))

    @property
    def webhook(self) -> int:
        """The id of a webhook, which is made for it."""
        return self.drive.send(endpoints.create_webhook(WEBHOOK)).id

    @property
    def dump(self) -> str:
        return self.drive.send(endpoints.export_flows_legacy([7]))


@pytest.fixture
def world(connect: Callable[..., Drive]):
    clock = VirtualClock()
    with Sandbox(FLOWS, clock=clock.time, requests_per_minute=None) as sandbox:
        yield World(sandbox, connect(sandbox.url, clock=clock, **CREDENTIALS))


@dataclass
class Case:
    """
    A call, the request that it is, and what its value must be.

    :ivar sent: method and raw path.
    :ivar body: the JSON body; ``None`` where nothing is sent.
    :ivar read: takes out of the value what ``expected`` is compared with.
    """

    make: Callable[[World], Call[Any] | PagedCall[Any]]
    sent: str
    read: Callable[[Any], Any]
    expected: Any
    query: Mapping[str, list[str]] = field(default_factory=dict)
    body: Any = None
    authenticated: bool = True


def is_a_token(value: str) -> bool:
    return value.count(".") == 2 and value.startswith("eyJ")


def ids(items: list[Any]) -> list[int]:
    return [item.id for item in items]


CASES: dict[str, Case] = {
    "log_in": Case(
        lambda _: endpoints.log_in(**CREDENTIALS),
        "POST /rest/v1/token-auth",
        is_a_token,
        True,
        body=CREDENTIALS,
        authenticated=False,
    ),
    "log_in_legacy": Case(
        lambda _: endpoints.log_in_legacy(**CREDENTIALS),
        "POST /rest/v1/token-auth/issue",
        is_a_token,
        True,
        body=CREDENTIALS,
        authenticated=False,
    ),
    "refresh_token": Case(lambda _: endpoints.refresh_token(), "POST /rest/v1/token-auth/refresh", is_a_token, True),
    "switch_tenant": Case(
        lambda _: endpoints.switch_tenant("acme/eu"), "POST /rest/v1/token-auth/tenants/acme%2Feu", is_a_token, True
    ),
    "list_flows": Case(
        lambda _: endpoints.list_flows(q="o", tags=["nightly", "eu"], sort="-name", since="2020-01-01T00:00:00+00:00"),
        "GET /rest/v1/flows",
        ids,
        [7],
        query={
            "q": ["o"],
            "tag": ["nightly", "eu"],
            "sort": ["-name"],
            "since": ["2020-01-01T00:00:00+00:00"],
            **PAGE,
        },
    ),
    "get_flow": Case(
        lambda _: endpoints.get_flow(7),
        "GET /rest/v1/flows/7",
        lambda flow: (flow.id, flow.name, flow.tags, flow.enabled_schedules, "transformations" in flow.raw),
        (7, "Orders", ("nightly", "eu"), 1, True),
    ),
    "replace_flow": Case(
        lambda _: endpoints.replace_flow(10, {"name": "Naïve", "flowType": "x", "tags": ["new"]}),
        "PUT /rest/v1/flows/10",
        lambda flow: (flow.id, flow.name, flow.tags),
        (10, "Naïve", ("new",)),
        body={"name": "Naïve", "flowType": "x", "tags": ["new"]},
    ),
    "run_flow": Case(
        lambda _: endpoints.run_flow(8, {"runDate": "2026-05-09", "city": "Łódź"}, {"parallel": True, "n": [1, 2]}),
        "POST /rest/v1/flows/8/run",
        lambda start: (start.flow_id, start.status, start.audit_id is not None),
        (8, StartStatus.STARTED, True),
        query={"parallel": ["true"], "n": ["1", "2"]},
        body={"runDate": "2026-05-09", "city": "Łódź"},
    ),
    "run_flow_by_name": Case(
        lambda _: endpoints.run_flow_by_name("My Flow/v2", {"a b": "c&d=é"}),
        "POST /rest/v1/flows/flow-name/My%20Flow%2Fv2/run",
        lambda start: (start.flow_id, start.status),
        (8, StartStatus.STARTED),
        query={"a b": ["c&d=é"]},
    ),
    "run_flow_by_name_legacy": Case(
        lambda _: endpoints.run_flow_by_name_legacy("My Flow/v2", {"a": "b"}),
        "POST /plugins/flows/rest/v1/flows/flow-name/My%20Flow%2Fv2/run/",
        lambda start: (start.status, start.exception),
        (StartStatus.FAILED, "disk full"),
        query={"a": ["b"]},
    ),
    "stop_flow": Case(
        lambda world: endpoints.stop_flow(7, world.audit_id, "/v1/flows/{flow_id}/stop?force&auditId={audit_id}"),
        "POST /rest/v1/flows/7/stop",
        lambda value: value,
        None,
        query={"force": [""], "auditId": ["{audit_id}"]},
    ),
    "get_execution": Case(
        lambda world: endpoints.get_execution(7, world.audit_id),
        "GET /rest/v1/executions/7",
        lambda run: (run.flow_id, run.status, run.records, run.user, run.flow_name),
        (7, "success", 100, "sandbox", "Orders"),
        query={"auditId": ["{audit_id}"]},
    ),
    "latest_execution": Case(
        lambda _: endpoints.latest_execution(7, status="success", message_uuid=None),
        "GET /rest/v1/executions/7",
        lambda run: run.records,
        100,
        query={"status": ["success"]},
    ),
    "execution_history": Case(
        lambda _: endpoints.execution_history(7, limit=3),
        "GET /rest/v1/executions/7/history",
        lambda runs: [run.flow_id for run in runs],
        [7],
        query={"limit": ["3"], "offset": ["0"]},
    ),
    "execution_log": Case(
        lambda world: endpoints.execution_log(7, world.audit_id),
        "GET /rest/v1/executions/console/download",
        lambda log: [line.split()[-1] for line in log.splitlines()],
        ["queued", "started", "one", "two", "success"],
        query={"flowId": ["7"], "auditId": ["{audit_id}"]},
    ),
    "executions_of_day": Case(
        lambda _: endpoints.executions_of_day(date=date(2027, 1, 15), include_metrics=True, tenant_id="eu"),
        "GET /rest/v1/metrics/executions",
        lambda runs: [(run.flow_id, run.flow_name, run.status) for run in runs],
        [(7, "Orders", "success")],
        query={"date": ["2027-01-15"], "includeMetrics": ["true"], "tenantId": ["eu"]},
    ),
    "execution_tasks": Case(
        lambda world: endpoints.execution_tasks(world.audit_id, type="extract"),
        "GET /etl/rest/v1/tasks/{audit_id}/",
        lambda tasks: {task.type for task in tasks} <= {"extract"},
        True,
        query={"type": ["extract"]},
    ),
    "metrics_summary": Case(
        lambda _: endpoints.metrics_summary(12),
        "GET /rest/v1/metrics/executions/summary",
        lambda summary: (summary.total, summary.succeeded, summary.failed),
        (1, 1, 0),
        query={"windowHours": ["12"]},
    ),
    "export_flows": Case(
        lambda _: endpoints.export_flows([7, 8], include_connections=False),
        "POST /rest/v1/io/export",
        lambda bundle: [flow["name"] for flow in json.loads(bundle)["flows"]],
        ["Orders", "My Flow/v2"],
        body={"flowIds": [7, 8], "includeConnections": False},
    ),
    "preview_import": Case(
        lambda world: endpoints.preview_import(world.bundle),
        "POST /rest/v1/io/import/preview",
        lambda answer: isinstance(answer, dict),
        True,
        body="bundle",
    ),
    "import_bundle": Case(
        lambda world: endpoints.import_bundle(world.bundle),
        "POST /rest/v1/io/import",
        lambda answer: isinstance(answer, dict),
        True,
        body="bundle",
    ),
    "export_flows_legacy": Case(
        lambda _: endpoints.export_flows_legacy([7, 8]),
        "GET /rest/v1/flows/export",
        lambda dump: isinstance(dump, str) and len(dump) > 100,
        True,
        query={"flows": ["7,8"]},
    ),
    "preview_import_legacy": Case(
        lambda world: endpoints.preview_import_legacy(world.dump),
        "POST /rest/v1/flows/import/preview",
        lambda answer: "flows" in answer,
        True,
        body="dump",
    ),
    "import_bundle_legacy": Case(
        lambda world: endpoints.import_bundle_legacy(world.dump),
        "POST /rest/v1/flows/import",
        lambda answer: isinstance(answer, dict),
        True,
        body="dump",
    ),
    "create_connection": Case(
        lambda _: endpoints.create_connection(CONNECTION),
        "POST /rest/v1/connections",
        lambda made: (made.id is not None, made.name, made.connection_type, made.tags),
        (True, "new-db", "connection.db.postgres", ("eu",)),
        body=CONNECTION,
    ),
    "test_connection": Case(
        lambda _: endpoints.test_connection(CONNECTION),
        "POST /rest/v1/connections/test",
        lambda answer: answer,
        {"success": True},
        body=CONNECTION,
    ),
    "get_connection": Case(
        lambda _: endpoints.get_connection(1),
        "GET /rest/v1/connections/1",
        lambda read: (read.id, read.name, "properties" in read.raw),
        (1, "db", True),
    ),
    "create_schedule": Case(
        lambda _: endpoints.create_schedule(SCHEDULE),
        "POST /rest/v1/schedules",
        lambda made: (made.id is not None, made.flow_id, made.name, made.schedule, made.enabled),
        (True, 7, "Nightly", "0 0 4 * * ?", False),
        body=SCHEDULE,
    ),
    "list_schedules": Case(lambda _: endpoints.list_schedules(), "GET /rest/v1/schedules", ids, [1], query=PAGE),
    "health": Case(
        lambda _: endpoints.health(all_nodes=True),
        "GET /health",
        lambda health: (health.status, health.running_flows, health.raw["db"]["version"]),
        ("UP", 0, "13.0"),
        query={"allNodes": ["true"]},
        authenticated=False,
    ),
    "get_execution_legacy": Case(
        lambda world: endpoints.get_execution_legacy(7, world.audit_id),
        "GET /plugins/dashboard/rest/v1/flows/7",
        lambda run: (run.flow_id, run.status),
        (7, "success"),
        query={"auditId": ["{audit_id}"]},
    ),
    "execution_log_legacy": Case(
        lambda world: endpoints.execution_log_legacy(7, world.audit_id),
        "GET /plugins/dashboard/rest/v1/flows/console/download",
        lambda log: "ended: success" in log,
        True,
        query={"flowId": ["7"], "auditId": ["{audit_id}"]},
    ),
    "pause_schedule": Case(
        lambda _: endpoints.pause_schedule(1), "PUT /rest/v1/schedules/1/disable", lambda value: value, None
    ),
    "resume_schedule": Case(
        lambda _: endpoints.resume_schedule(1), "PUT /rest/v1/schedules/1/enable", lambda value: value, None
    ),
    "audit_events": Case(
        lambda _: endpoints.audit_events(resource_type="flow", since="2020-01-01T00:00:00Z", limit=100),
        "GET /rest/v1/audit",
        lambda events: (events[0].action, events[0].resource_id, events[0].user, events[0].at is not None),
        ("execute", "7", "sandbox", True),
        query={"resourceType": ["flow"], "since": ["2020-01-01T00:00:00Z"], "limit": ["100"], "offset": ["0"]},
    ),
    "audit_events_legacy": Case(
        lambda _: endpoints.audit_events_legacy(with_exceptions=True),
        "GET /plugins/audit/rest/v1/audit",
        lambda events: events[0].action,
        "execute",
        query={"exception": ["true"]},
    ),
    "create_webhook": Case(
        lambda _: endpoints.create_webhook(WEBHOOK),
        "POST /rest/v1/webhooks",
        lambda made: {name: value for name, value in made.to_dict().items() if name != "id"},
        {
            "name": "Hook",
            "description": "d",
            "events": ["Flow.Executed", "SOMETHING_NEW"],
            "enabled": True,
            "url": "https://example.com/hook",
            "method": "POST",
            "content_type": "application/json",
            "include_entity": True,
            "header_names": ["X-Token", "Accept"],
            "basic_user": "etl",
            "flow_includes": [7],
            "flow_excludes": [8],
        },
        body=WEBHOOK,
    ),
    "list_webhooks": Case(
        lambda world: (world.webhook, endpoints.list_webhooks())[1],
        "GET /rest/v1/webhooks",
        lambda webhooks: [each.name for each in webhooks],
        ["Hook"],
        query=PAGE,
    ),
    "delete_webhook": Case(
        lambda world: endpoints.delete_webhook(world.webhook),
        "DELETE /rest/v1/webhooks/1",
        lambda nothing: nothing,
        None,
    ),
    "send_to_listener": Case(
        lambda _: endpoints.send_to_listener("/orders/new one", b'{"order": 1}'),
        "POST /rest/v1/httplistener/orders/new%20one",
        lambda answer: answer["status"],
        "accepted",
        body={"order": 1},
    ),
    "send_to_listener_legacy": Case(
        lambda _: endpoints.send_to_listener_legacy("orders/new one"),
        "POST /plugins/schedules/rest/v1/httplistener/orders/new%20one",
        lambda answer: answer["status"],
        "accepted",
    ),
    "request": Case(
        lambda world: endpoints.request(
            "post", "/v1/flows/8/run?a=1&b", query={"c": [2, 3], "d": None}, json={"p": "q"}, root_url=world.root_url
        ),
        "POST /rest/v1/flows/8/run",
        lambda answer: answer["flowId"],
        8,
        query={"a": ["1"], "b": [""], "c": ["2", "3"]},
        body={"p": "q"},
    ),
}


def test_every_endpoint_has_its_case() -> None:
    made = {
        name
        for name, function in inspect.getmembers(endpoints, inspect.isfunction)
        if function.__module__ == endpoints.__name__
        and not name.startswith("_")
        and str(inspect.signature(function).return_annotation).startswith(("Call[", "PagedCall["))
    }
    assert made == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_request_and_value_of(name: str, world: World) -> None:
    case = CASES[name]
    call = case.make(world)
    bodies = {"bundle": lambda: json.loads(world.bundle), "dump": lambda: {"dump": world.dump}}
    body = bodies[case.body]() if isinstance(case.body, str) else case.body
    before = len(world.sandbox.requests)
    value = world.drive.iterate(call) if isinstance(call, PagedCall) else world.drive.send(call)

    # A list that is short is asked for once more.
    sent = world.sandbox.requests[before if isinstance(call, PagedCall) else -1]
    fill = {"audit_id": world.audit_id}
    assert f"{sent.method} {sent.path}" == case.sent.format(**fill)
    assert sent.query == {key: [each.format(**fill) for each in values] for key, values in case.query.items()}
    assert (json.loads(sent.body) if sent.body else None) == body
    assert sent.headers.get("Content-Type") == (None if body is None else JSON)
    assert ("Authorization" in sent.headers) == case.authenticated
    assert case.read(value) == case.expected


def test_a_bundle_travels_byte_for_byte(world: World) -> None:
    bundle = b' { "flows":[ ],"format" : "etlworks-sandbox-bundle/1", "connections":[] }\r\n'
    world.drive.send(endpoints.import_bundle(bundle))
    assert world.sandbox.requests[-1].body == bundle


def test_a_payload_keeps_its_bytes_and_its_type(world: World) -> None:
    world.drive.send(endpoints.send_to_listener("orders/new one", b"<a>\xff</a>", "text/xml; charset=latin-1"))
    sent = world.sandbox.requests[-1]
    assert (sent.body, sent.headers["Content-Type"]) == (b"<a>\xff</a>", "text/xml; charset=latin-1")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_basic_listener_is_called_without_the_token(world: World, method: str) -> None:
    flow = SandboxFlow(11, "Basic", listener="basic", listener_methods=(method,), listener_auth="basic")
    world.sandbox.add_flow(flow)
    payload = None if method == "GET" else b"{}"
    call = endpoints.send_to_listener(
        "basic", payload, method=method, query={"q": "a b"}, basic=(CREDENTIALS["login"], CREDENTIALS["password"])
    )

    assert world.drive.send(call)["status"] == "accepted"

    sent = world.sandbox.requests[-1]
    assert (sent.method, sent.query, sent.body) == (method, {"q": ["a b"]}, payload or b"")
    assert sent.headers["Authorization"] == "Basic c2FuZGJveDpzYW5kYm94"
    with pytest.raises(EtlworksApiError):
        world.drive.send(endpoints.send_to_listener("basic", method=method))


@pytest.mark.parametrize("code", [401, 429])
def test_a_payload_is_sent_once_whatever_status_its_flow_chooses(world: World, code: int) -> None:
    path = "/rest/v1/httplistener/orders/new%20one"
    world.sandbox.fault("POST", path, status(code), times=None)
    with pytest.raises(EtlworksApiError) as raised:
        world.drive.send(endpoints.send_to_listener("orders/new one", b"{}"))
    assert not raised.value.not_processed
    assert [sent.path for sent in world.sandbox.requests].count(path) == 1


@pytest.mark.parametrize("body", [b"", b"null", b" \n"])
def test_a_flow_without_a_run_has_none(world: World, body: bytes) -> None:
    latest = endpoints.latest_execution(10)
    assert world.drive.send(latest) is None
    world.sandbox.fault("GET", "/rest/v1/executions/10", broken_body(body, content_type=JSON))
    assert world.drive.send(latest) is None


def test_a_run_that_is_not_there_is_an_error(world: World) -> None:
    with pytest.raises(EtlworksNotFound):
        world.drive.send(endpoints.get_execution(10, 5))


def test_a_message_leads_to_its_run(world: World) -> None:
    message = world.drive.send(endpoints.send_to_listener("orders/new one"))["messageUuid"]
    run = world.drive.send(endpoints.latest_execution(9, message_uuid=message))
    assert (run.flow_id, run.message_uuid) == (9, message)


def test_a_list_is_read_to_its_end_page_by_page(world: World) -> None:
    for _ in range(4):
        world.drive.send(endpoints.run_flow(7))
    before = len(world.sandbox.requests)
    runs = world.drive.iterate(endpoints.execution_history(7, limit=2))
    assert [run.audit_id for run in runs] == [run.audit_id for run in reversed(world.sandbox.runs(7))]
    assert [sent.query["offset"] for sent in world.sandbox.requests[before:]] == [["0"], ["2"], ["4"]]


@pytest.mark.parametrize(
    ("length", "cap", "heeds_offset", "tells_total", "asked"),
    [
        pytest.param(0, 200, True, False, 1, id="empty"),
        pytest.param(199, 200, True, False, 2, id="one short page, then an empty one"),
        pytest.param(199, 200, False, False, 2, id="one short page for ever"),
        pytest.param(400, 200, True, False, 3, id="full pages, then an empty one"),
        pytest.param(120, 50, True, False, 4, id="shorter pages than asked for, then an empty one"),
        pytest.param(400, 200, True, True, 2, id="full pages up to the total"),
        pytest.param(120, 50, True, True, 3, id="shorter pages than asked for, up to the total"),
        pytest.param(450, 1000, False, False, 1, id="everything in one answer"),
        pytest.param(200, 1000, False, False, 2, id="everything in one answer as long as a page"),
        pytest.param(200, 1000, False, True, 2, id="everything in one answer, and its total"),
        pytest.param(200, 200, False, False, 2, id="one page for ever"),
    ],
)
def test_every_item_of_a_list_comes_once(connect, length, cap, heeds_offset, tells_total, asked) -> None:
    def answer(request) -> bytes:
        query = dict(pair.split("=") for pair in request.target.partition("?")[2].split("&"))
        offset = int(query["offset"]) if heeds_offset else 0
        size = cap if not heeds_offset else min(int(query["limit"]), cap)
        items = [{"id": each, "name": f"flow {each}"} for each in range(1, length + 1)][offset : offset + size]
        return reply(body=json.dumps(items).encode(), **({"X_Total_Count": str(length)} if tells_total else {}))

    with ScriptedServer(answer) as server:
        flows = connect(server.url).iterate(endpoints.list_flows())
    assert [flow.id for flow in flows] == list(range(1, length + 1))
    assert len(server.received) == asked


def test_a_list_that_ignores_the_offset_ends(connect) -> None:
    page = json.dumps([{"id": each} for each in range(200)]).encode()
    with ScriptedServer(lambda _: reply(body=page, X_Total_Count="100000")) as server:
        flows = connect(server.url).iterate(endpoints.list_flows())
    assert (len(flows), len(server.received)) == (200, 2)


@pytest.mark.parametrize("total", ["", "many", "-1", "²"])
def test_a_total_that_makes_no_sense_is_passed_over(connect, total) -> None:
    with ScriptedServer(lambda _: reply(body=b'[{"id": 1}]', X_Total_Count=total)) as server:
        assert ids(connect(server.url).iterate(endpoints.list_flows())) == [1]


def test_an_absolute_url_of_the_same_host_is_sent_below_its_root(world: World) -> None:
    for url in (f"{world.root_url}/etl/rest/v1/tasks/{world.audit_id}/?type=load", f"{world.root_url}/rest/v1/flows"):
        world.drive.send(endpoints.request("GET", url, root_url=world.root_url))
    first, second = world.sandbox.requests[-2:]
    assert (first.path, first.query) == (f"/etl/rest/v1/tasks/{world.audit_id}/", {"type": ["load"]})
    assert second.path == "/rest/v1/flows"


@pytest.mark.parametrize("path", ["/v1/flows/flow-name/a%2Fb%20c%3Fd", "/v1/a;b=c/~d/@e:f,g!$&'()*+=h"])
def test_a_path_of_ones_own_arrives_as_it_is(world: World, path: str) -> None:
    with pytest.raises(EtlworksNotFound):
        world.drive.send(endpoints.request("GET", path, root_url=world.root_url))
    assert world.sandbox.requests[-1].path == f"/rest{path}"
