"""The sandbox answers as the documented API does: every row of the contract's tables, over real HTTP."""

from __future__ import annotations

import base64
import json
import threading
import time
from datetime import datetime, timedelta, timezone

import jwt
import pytest
import requests
from support.clock import VirtualClock

from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow

NOON = datetime(2026, 5, 9, 12, tzinfo=timezone.utc).timestamp()
KEY = {"Authorization": "Bearer sandbox-key"}
TERMINAL = {"success", "warning", "error", "canceled"}

FLOWS = [
    SandboxFlow(1, "Orders", tags=("nightly", "warehouse"), queued=2, running=10, records=100, log=("one", "two")),
    SandboxFlow(2, "My Flow/v2", tags=("nightly",), running=5, ends="warning"),
    SandboxFlow(3, "Ledger", running=5, ends="error", exception="disk full\nat line 7", connections=("ledger-db",)),
    SandboxFlow(4, "Clicks", running=float("inf"), streaming=True, schedule="0 0 4 * * ?"),
    SandboxFlow(5, "Forever", running=float("inf")),
    SandboxFlow(6, "Listener", running=5, listener="orders/new"),
    SandboxFlow(7, "Late", running=10, visible_after=3),
    SandboxFlow(8, "Stopped by itself", ends="canceled"),
    SandboxFlow(9, "Quick", records=7),
]


class Etlworks:
    """A sandbox with a clock of its own, and a way to ask it."""

    def __init__(self, **options) -> None:
        self.clock = VirtualClock(NOON)
        self.sandbox = Sandbox(FLOWS, clock=self.clock.time, requests_per_minute=None, stop_takes=60, **options)

    def ask(self, method: str, path: str, **options) -> requests.Response:
        options.setdefault("headers", KEY)
        return requests.request(method, self.sandbox.url + path, timeout=30, **options)

    def get(self, path: str, **query):
        response = self.ask("GET", path, params=query)
        assert response.status_code == 200, response.text
        return response.json()

    def start(self, flow_id: int, **parameters: str) -> int:
        response = self.ask("POST", f"/rest/v1/flows/{flow_id}/run", json=parameters)
        assert response.json()["status"] == 0, response.text
        return response.json()["auditId"]

    def record(self, flow_id: int, audit_id: int):
        return self.get(f"/rest/v1/executions/{flow_id}", auditId=audit_id)

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    def refused(self, status: int, method: str, path: str, **options) -> str:
        """Ask for something that is refused, check the documented error body and return its message."""
        response = self.ask(method, path, **options)
        phrases = {
            400: "Bad Request",
            401: "Unauthorized",
            403: "Forbidden",
            404: "Not Found",
            405: "Method Not Allowed",
            409: "Conflict",
            415: "Unsupported Media Type",
        }
        assert response.status_code == status, response.text
        body = response.json()
        sent = path.partition("?")[0]
        assert body == {"status": status, "error": phrases[status], "message": body["message"], "path": sent}
        return body["message"]


@pytest.fixture
def etlworks():
    known = Etlworks()
    with known.sandbox:
        yield known


@pytest.fixture
def make_etlworks():
    made = []

    def make(**options) -> Etlworks:
        made.append(Etlworks(**options))
        made[-1].sandbox.start()
        return made[-1]

    yield make
    for one in made:
        one.sandbox.stop()


# Authentication


@pytest.mark.parametrize("path", ["/rest/v1/token-auth", "/rest/v1/token-auth/issue"])
def test_log_in_returns_a_token_with_expiry(make_etlworks, path):
    etlworks = make_etlworks(token_lifetime=600)
    answer = etlworks.ask("POST", path, json={"login": "sandbox", "password": "sandbox"}, headers={}).json()
    claims = jwt.decode(answer["token"], options={"verify_signature": False})
    assert (claims["sub"], claims["iat"], claims["exp"]) == ("sandbox", NOON, NOON + 600)
    assert jwt.get_unverified_header(answer["token"])["alg"] == "HS256"
    assert set(answer) == {"token"}
    bearer = {"Authorization": f"Bearer {answer['token']}"}
    assert etlworks.ask("GET", "/rest/v1/flows", headers=bearer).status_code == 200
    etlworks.wait(599)
    assert etlworks.ask("GET", "/rest/v1/flows", headers=bearer).status_code == 200
    etlworks.wait(1)
    assert "expired" in etlworks.refused(401, "GET", "/rest/v1/flows", headers=bearer)
    assert etlworks.sandbox.log_ins == 1


def test_issue_path_only(make_etlworks):
    etlworks = make_etlworks(issue_path_only=True)
    body = {"login": "sandbox", "password": "sandbox"}
    etlworks.refused(404, "POST", "/rest/v1/token-auth", json=body, headers={})
    assert etlworks.ask("POST", "/rest/v1/token-auth/issue", json=body, headers={}).json()["token"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"login": "sandbox", "password": "wrong"}, 401),
        ({"login": "somebody", "password": "sandbox"}, 401),
        ({"login": "sandbox"}, 400),
        ({"login": "", "password": ""}, 400),
        ({"login": "sandbox", "password": 1}, 400),
    ],
)
def test_wrong_log_in_is_refused(etlworks, body, status):
    etlworks.refused(status, "POST", "/rest/v1/token-auth", json=body, headers={})
    assert etlworks.sandbox.log_ins == 0


def log_in(etlworks: Etlworks) -> dict[str, str]:
    body = {"login": "sandbox", "password": "sandbox"}
    return {"Authorization": f"Bearer {etlworks.ask('POST', '/rest/v1/token-auth', json=body).json()['token']}"}


def test_only_a_valid_token_is_refreshed(make_etlworks):
    etlworks = make_etlworks(token_lifetime=600)
    bearer = log_in(etlworks)
    etlworks.wait(500)
    renewed = etlworks.ask("POST", "/rest/v1/token-auth/refresh", headers=bearer).json()["token"]
    etlworks.wait(500)
    renewed_bearer = {"Authorization": f"Bearer {renewed}"}
    assert etlworks.ask("GET", "/rest/v1/flows", headers=renewed_bearer).status_code == 200
    etlworks.refused(401, "POST", "/rest/v1/token-auth/refresh", headers=bearer)
    etlworks.refused(400, "POST", "/rest/v1/token-auth/refresh", headers=KEY)
    assert etlworks.sandbox.refreshes == 1


def test_revoked_tokens_are_refused(etlworks):
    bearer = log_in(etlworks)
    etlworks.sandbox.revoke_tokens()
    etlworks.refused(401, "GET", "/rest/v1/flows", headers=bearer)
    assert etlworks.ask("GET", "/rest/v1/flows", headers=log_in(etlworks)).status_code == 200
    assert etlworks.ask("GET", "/rest/v1/flows", headers=KEY).status_code == 200


def test_super_admin_switches_the_tenant(etlworks):
    bearer = log_in(etlworks)
    token = etlworks.ask("POST", "/rest/v1/token-auth/tenants/42", headers=bearer).json()["token"]
    etlworks.ask("GET", "/rest/v1/flows", headers={"Authorization": f"Bearer {token}"})
    etlworks.ask("GET", "/rest/v1/flows", headers=bearer)
    assert [(seen.user, seen.tenant) for seen in etlworks.sandbox.requests[-2:]] == [
        ("sandbox", "42"),
        ("sandbox", None),
    ]
    refreshed = etlworks.ask("POST", "/rest/v1/token-auth/refresh", headers={"Authorization": f"Bearer {token}"})
    assert jwt.decode(refreshed.json()["token"], options={"verify_signature": False})["tenant"] == "42"


@pytest.mark.parametrize(
    "authorization",
    [None, "", "sandbox-key", "Bearer", "Bearer  sandbox-key", "bearer sandbox-key", "Bearer wrong", "Bearer a.b.c"],
)
@pytest.mark.parametrize(
    "path", ["/rest/v1/flows", "/plugins/audit/rest/v1/audit", "/etl/rest/v1/tasks/1/", "/rest/v1/nothing"]
)
def test_request_without_a_valid_bearer_is_refused(etlworks, path, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    etlworks.refused(401, "GET", path, headers=headers)


def test_token_with_a_foreign_signature_is_refused(etlworks):
    claims = {"sub": "sandbox", "iat": NOON, "exp": NOON + 600, "generation": 0}
    forged = jwt.encode(claims, "x" * 32, algorithm="HS256")
    etlworks.refused(401, "GET", "/rest/v1/flows", headers={"Authorization": f"Bearer {forged}"})


# Errors


def test_unknown_path_answers_404(etlworks):
    for path in ("/rest/v1/nothing", "/v1/flows", "/rest/v1/flows/", "/rest"):
        etlworks.refused(404, "GET", path)


def test_wrong_method_answers_405_with_the_allowed_ones(etlworks):
    etlworks.refused(405, "DELETE", "/rest/v1/flows/1")
    assert etlworks.ask("GET", "/rest/v1/flows/1/run").headers["Allow"] == "POST"
    assert etlworks.ask("POST", "/rest/v1/flows/1").headers["Allow"] == "GET, PUT"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/rest/v1/flows/99"),
        ("PUT", "/rest/v1/flows/99"),
        ("POST", "/rest/v1/flows/99/run"),
        ("POST", "/rest/v1/flows/99/stop"),
        ("POST", "/rest/v1/flows/flow-name/Nothing/run"),
        ("POST", "/plugins/flows/rest/v1/flows/flow-name/Nothing/run"),
        ("GET", "/rest/v1/executions/99"),
        ("GET", "/rest/v1/executions/99?auditId=1"),
        ("GET", "/rest/v1/executions/99?messageId=x"),
        ("GET", "/rest/v1/executions/99/history"),
        ("GET", "/rest/v1/executions/1"),
        ("GET", "/rest/v1/executions/1?auditId=1"),
        ("GET", "/rest/v1/executions/1?messageId=x"),
        ("POST", "/rest/v1/flows/1/stop"),
        ("GET", "/rest/v1/executions/console/download?flowId=1&auditId=1"),
        ("GET", "/rest/v1/flows/export?flows=1,99"),
        ("GET", "/etl/rest/v1/tasks/1"),
        ("GET", "/rest/v1/connections/99"),
        ("PUT", "/rest/v1/schedules/99/enable"),
        ("POST", "/rest/v1/httplistener/nothing"),
    ],
)
def test_unknown_resource_answers_404(etlworks, method, path):
    body = {"json": {"name": "x"}} if method == "PUT" else {}
    if path.endswith("99/run"):
        body = {"json": {}}
    etlworks.refused(404, method, path, **body)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/rest/v1/flows/abc", "flowId"),
        ("/rest/v1/flows/-1", "flowId"),
        ("/rest/v1/executions/1?auditId=abc", "auditId"),
        ("/rest/v1/executions/1?auditId=" + "9" * 5000, "auditId"),
        ("/rest/v1/executions/1/history?limit=0", "limit"),
        ("/rest/v1/executions/1/history?offset=-1", "offset"),
        ("/rest/v1/executions/1/history?since=yesterday", "since"),
        ("/rest/v1/executions/console/download?flowId=1", "auditId"),
        ("/rest/v1/flows?sort=tags", "sort"),
        ("/rest/v1/flows?sort=nothing", "sort"),
        ("/rest/v1/flows/export", "flows"),
    ],
)
def test_bad_query_parameter_is_named(etlworks, path, named):
    assert f"'{named}'" in etlworks.refused(400, "GET", path)


POSTS_WITH_A_BODY = [
    "/rest/v1/token-auth",
    "/rest/v1/flows/1/run",
    "/rest/v1/io/export",
    "/rest/v1/io/import",
    "/rest/v1/io/import/preview",
    "/rest/v1/flows/import",
    "/rest/v1/flows/import/preview",
    "/rest/v1/connections",
    "/rest/v1/connections/test",
    "/rest/v1/schedules",
    "/rest/v1/webhooks",
]


@pytest.mark.parametrize("path", POSTS_WITH_A_BODY)
def test_body_must_be_a_json_object(etlworks, path):
    json_type = {**KEY, "Content-Type": "application/json; charset=utf-8"}
    etlworks.refused(415, "POST", path, data="{}")
    etlworks.refused(415, "POST", path, data=b"{}", headers={**KEY, "Content-Type": "text/plain"})
    for malformed in (b"", b"{", b"}{}", b"\xff\xfe{", b"[" * 100_000):
        assert "Malformed JSON" in etlworks.refused(400, "POST", path, data=malformed, headers=json_type)
    for other in (b"[]", b'"text"', b"null", b"1"):
        assert "JSON object" in etlworks.refused(400, "POST", path, data=other, headers=json_type)
    assert etlworks.sandbox.runs() == []


@pytest.mark.parametrize("rest", ["}", " }", "\n{}", " garbage \x00\x1b[31m" + 100_000 * "x"])
def test_text_after_the_json_value_is_ignored_with_a_warning(etlworks, caplog, rest):
    json_type = {**KEY, "Content-Type": "application/json"}
    response = etlworks.ask("POST", "/rest/v1/flows/1/run", data='{"a": "b"}' + rest, headers=json_type)
    assert (response.status_code, response.json()["status"]) == (200, 0)
    assert [run.parameters for run in etlworks.sandbox.runs()] == [{"a": "b"}]
    (line,) = caplog.messages
    assert line.startswith(f"POST /rest/v1/flows/1/run: ignored {len(rest)} characters after the JSON value: ")
    assert line.isprintable()
    assert len(line) < 200


def test_white_space_around_the_json_value_is_no_warning(etlworks, caplog):
    json_type = {**KEY, "Content-Type": "application/json"}
    response = etlworks.ask("POST", "/rest/v1/flows/1/run", data='\r\n {"a": "b"} \t\n', headers=json_type)
    assert response.status_code == 200
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"params": {"a": "b"}}, "params"),
        ({"a": "b", "count": 1}, "count"),
        ({"on": True}, "on"),
        ({"nothing": None}, "nothing"),
        ({"list": ["a"]}, "list"),
        ({"half\ud800": 1}, "half\ud800"),
    ],
)
def test_run_parameters_must_be_a_flat_map_of_strings(etlworks, body, named):
    assert f"'{named}'" in etlworks.refused(400, "POST", "/rest/v1/flows/1/run", json=body)
    assert etlworks.sandbox.runs_started() == 0


# Flows


def test_flow_list_has_the_documented_fields(etlworks):
    flows = etlworks.get("/rest/v1/flows", limit=2)
    assert [flow["id"] for flow in flows] == [flow.id for flow in FLOWS]
    assert flows[0] == {
        "id": 1,
        "name": "Orders",
        "description": "",
        "flowType": "ETL.database.event",
        "tags": ["nightly", "warehouse"],
        "enabledSchedules": 0,
        "disabledSchedules": 0,
        "latestFinishedStatus": None,
        "createdBy": "alice@example.com",
        "created": int(NOON * 1000),
        "modifiedBy": "alice@example.com",
        "modified": int(NOON * 1000),
    }


def test_flow_list_shows_the_latest_finished_status(etlworks):
    for flow_id in (2, 3):
        etlworks.start(flow_id)
    etlworks.wait(5)
    etlworks.start(3)
    told = {flow["id"]: flow["latestFinishedStatus"] for flow in etlworks.get("/rest/v1/flows")}
    assert (told[2], told[3], told[1]) == ("warning", "error", None)


def test_flow_list_is_filtered_and_sorted(etlworks):
    def ids(**query):
        return [flow["id"] for flow in etlworks.get("/rest/v1/flows", **query)]

    assert ids(q="LED") == [3]
    assert ids(tag="nightly") == [1, 2]
    assert ids(tag=["nightly", "warehouse"]) == [1]
    assert ids(sort="name", tag="nightly") == [2, 1]
    assert ids(sort="-id")[:2] == [9, 8]
    etlworks.wait(10)
    moment = datetime.fromtimestamp(etlworks.clock.now, timezone.utc).isoformat()
    etlworks.wait(10)
    flow = etlworks.get("/rest/v1/flows/3")
    assert etlworks.ask("PUT", "/rest/v1/flows/3", json=flow).status_code == 200
    assert ids(since=moment) == [3]
    assert ids(since="2026-05-09T11:59:59Z") == [flow.id for flow in FLOWS]


def test_flow_is_read_whole(etlworks):
    flow = etlworks.get("/rest/v1/flows/3")
    summary = next(one for one in etlworks.get("/rest/v1/flows") if one["id"] == 3)
    assert summary.items() <= flow.items()
    assert flow["connections"] == [{"id": 1, "name": "ledger-db"}]
    assert {"properties", "transformations", "mappings", "nestedFlows"} <= set(flow)


def test_put_replaces_the_whole_flow(etlworks):
    flow = etlworks.get("/rest/v1/flows/3")
    flow |= {"tags": ["new"], "properties": {"retries": "3"}, "description": "ledger"}
    changed = etlworks.ask("PUT", "/rest/v1/flows/3", json=flow).json()
    assert changed == etlworks.get("/rest/v1/flows/3")
    assert (changed["tags"], changed["properties"], changed["modifiedBy"]) == (["new"], {"retries": "3"}, "sandbox")
    assert changed["modified"] > flow["modified"]
    assert etlworks.sandbox.flows[3].tags == ("new",)
    partial = etlworks.ask("PUT", "/rest/v1/flows/3", json={"name": "Ledger"}).json()
    assert (partial["tags"], partial["properties"], partial["connections"]) == ([], {}, [])
    assert (partial["description"], partial["flowType"]) == ("", "")


def test_put_of_an_older_version_conflicts(etlworks):
    first = etlworks.get("/rest/v1/flows/3")
    assert etlworks.ask("PUT", "/rest/v1/flows/3", json={**first, "tags": ["mine"]}).status_code == 200
    etlworks.refused(409, "PUT", "/rest/v1/flows/3", json={**first, "tags": ["yours"]})
    assert etlworks.get("/rest/v1/flows/3")["tags"] == ["mine"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"name": ""}, 400),
        ({"name": "  "}, 400),
        ({"name": 7}, 400),
        ({"id": 4}, 400),
        ({"tags": "nightly"}, 400),
        ({"tags": [1]}, 400),
        ({"modified": "today"}, 400),
        ({"connections": [{"id": 99}]}, 400),
        ({"connections": [{"id": []}]}, 400),
        ({"connections": ["ledger-db"]}, 400),
        ({"name": "Orders"}, 409),
    ],
)
def test_invalid_put_changes_nothing(etlworks, change, status):
    before = etlworks.get("/rest/v1/flows/3")
    etlworks.refused(status, "PUT", "/rest/v1/flows/3", json={**before, **change})
    assert etlworks.get("/rest/v1/flows/3") == before


# Runs


def test_run_passes_through_the_documented_statuses(etlworks):
    answer = etlworks.ask("POST", "/rest/v1/flows/1/run", json={"runDate": "2026-05-09"}).json()
    audit_id = answer["auditId"]
    assert answer == {"flowId": 1, "auditId": audit_id, "status": 0}
    record = etlworks.record(1, audit_id)
    assert (record["status"], record["started"], record["ended"], record["records"]) == ("queued", None, None, 0)
    etlworks.wait(7)
    record = etlworks.record(1, audit_id)
    assert (record["status"], record["started"], record["records"]) == ("running", int((NOON + 2) * 1000), 50)
    etlworks.wait(5)
    assert etlworks.record(1, audit_id) == {
        "auditId": audit_id,
        "parentAuditId": None,
        "retries": 0,
        "flowId": 1,
        "flowName": "Orders",
        "eventId": None,
        "eventName": None,
        "messageId": None,
        "status": "success",
        "started": int((NOON + 2) * 1000),
        "ended": int((NOON + 12) * 1000),
        "user": "sandbox",
        "records": 100,
        "exception": None,
    }
    assert etlworks.sandbox.runs(1)[0].parameters == {"runDate": "2026-05-09"}


@pytest.mark.parametrize(("flow_id", "status"), [(1, "success"), (2, "warning"), (3, "error"), (8, "canceled")])
def test_run_ends_with_each_status(etlworks, flow_id, status):
    audit_id = etlworks.start(flow_id)
    etlworks.wait(60)
    record = etlworks.record(flow_id, audit_id)
    assert record["status"] == status
    assert record["ended"] is not None
    assert record["exception"] == ("disk full\nat line 7" if status == "error" else None)


def test_audit_ids_grow(etlworks):
    started = [etlworks.start(flow_id) for flow_id in (1, 2, 3, 5)]
    assert started == sorted(set(started))


def test_flow_has_one_run_at_a_time(etlworks):
    etlworks.start(1)
    again = etlworks.ask("POST", "/rest/v1/flows/1/run", json={})
    assert (again.status_code, again.json()) == (200, {"flowId": 1, "status": 1})
    assert etlworks.sandbox.runs_started(1) == 1
    etlworks.start(2)
    etlworks.wait(12)
    etlworks.start(1)
    assert (etlworks.sandbox.runs_started(1), etlworks.sandbox.runs_started()) == (2, 3)


def test_already_running_can_name_the_run(make_etlworks):
    etlworks = make_etlworks(tells_running_audit_id=True)
    audit_id = etlworks.start(5)
    again = etlworks.ask("POST", "/rest/v1/flows/5/run", json={}).json()
    assert again == {"flowId": 5, "auditId": audit_id, "status": 1}


@pytest.mark.parametrize("places", [(), ("record",), ("log",), ("record", "log")])
def test_parameters_are_echoed_where_asked(make_etlworks, places):
    etlworks = make_etlworks(echo_parameters=places)
    audit_id = etlworks.ask("POST", "/rest/v1/flows/1/run", json={"runDate": "2026-05-09"}).json()["auditId"]
    record = etlworks.ask("GET", f"/rest/v1/executions/1?auditId={audit_id}").json()
    log = etlworks.ask("GET", f"/rest/v1/executions/console/download?flowId=1&auditId={audit_id}").text
    assert record.get("parameters") == ({"runDate": "2026-05-09"} if "record" in places else None)
    assert ("Parameter runDate = '2026-05-09'" in log) is ("log" in places)


def test_echo_of_parameters_has_known_places():
    with pytest.raises(ValueError, match="echo_parameters"):
        Sandbox(echo_parameters=("header",))


def test_run_by_name_takes_parameters_from_the_url(etlworks):
    name = "My%20Flow%2Fv2"
    answer = etlworks.ask("POST", f"/rest/v1/flows/flow-name/{name}/run?runDate=2026-05-09&region=a%26b&empty=").json()
    assert (answer["flowId"], answer["status"]) == (2, 0)
    run = etlworks.sandbox.runs(2)[0]
    assert run.parameters == {"runDate": "2026-05-09", "region": "a&b", "empty": ""}
    assert etlworks.sandbox.requests[-1].path == f"/rest/v1/flows/flow-name/{name}/run"


def test_flow_name_is_one_path_segment(etlworks):
    etlworks.refused(404, "POST", "/rest/v1/flows/flow-name/My%20Flow/v2/run")
    etlworks.refused(404, "POST", "/rest/v1/flows/flow-name/my%20flow%2Fv2/run")
    etlworks.refused(400, "POST", "/rest/v1/flows/flow-name/Orders/run", json={"a": "b"})
    assert etlworks.sandbox.runs_started() == 0


@pytest.mark.parametrize("ending", ["run", "run/"])
def test_legacy_run_by_name_answers_when_the_run_ends(etlworks, ending):
    legacy = "/plugins/flows/rest/v1/flows/flow-name/{}/" + ending
    assert etlworks.ask("POST", legacy.format("Quick") + "?patientid=123").json() == {"status": 0}
    assert etlworks.sandbox.runs(9)[0].parameters == {"patientid": "123"}
    answers = []
    asking = threading.Thread(target=lambda: answers.append(etlworks.ask("POST", legacy.format("Ledger")).json()))
    asking.start()
    wait_for(lambda: etlworks.sandbox.runs_started(3) == 1)
    assert answers == []
    assert etlworks.ask("POST", legacy.format("Ledger")).json()["status"] == 1
    etlworks.wait(5)
    asking.join(timeout=60)
    assert answers == [{"status": 1, "exception": "disk full\nat line 7"}]
    assert etlworks.ask("POST", legacy.format("Stopped%20by%20itself")).json()["status"] == 1


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stop_takes_time(etlworks):
    audit_id = etlworks.start(5)
    etlworks.wait(10)
    stop = f"/rest/v1/flows/5/stop?auditId={audit_id}"
    assert etlworks.ask("POST", stop).json() == {"flowId": 5, "auditId": audit_id, "status": 2}
    record = etlworks.record(5, audit_id)
    assert (record["status"], record["ended"]) == ("canceled", None)
    etlworks.wait(59)
    assert etlworks.ask("POST", stop).json()["status"] == 2
    assert etlworks.ask("POST", "/rest/v1/flows/5/run", json={}).json()["status"] == 1
    etlworks.wait(1)
    record = etlworks.record(5, audit_id)
    assert (record["status"], record["ended"]) == ("error", int((NOON + 70) * 1000))
    assert "stopped by sandbox" in record["exception"]
    assert etlworks.ask("POST", stop).json()["status"] == 3
    assert etlworks.sandbox.runs(5)[0].stop_requested
    etlworks.start(5)


def test_stopped_streaming_flow_ends_as_success(etlworks):
    clicks, orders = etlworks.start(4), etlworks.start(1)
    for flow_id in (4, 1):
        etlworks.ask("POST", f"/rest/v1/flows/{flow_id}/stop")
    etlworks.wait(60)
    assert etlworks.record(4, clicks)["status"] == "success"
    assert etlworks.record(1, orders)["status"] == "error"


def test_stop_without_audit_id_stops_the_newest_run(etlworks):
    older = etlworks.sandbox.run_by_user(5)
    newer = etlworks.sandbox.run_by_user(5)
    assert etlworks.ask("POST", "/rest/v1/flows/5/stop").json()["auditId"] == newer
    assert [etlworks.record(5, one)["status"] for one in (older, newer)] == ["running", "canceled"]
    etlworks.refused(404, "POST", f"/rest/v1/flows/1/stop?auditId={older}")


def test_record_can_lag_behind_the_start(etlworks):
    audit_id = etlworks.start(7)
    path = f"/rest/v1/executions/7?auditId={audit_id}"
    etlworks.refused(404, "GET", path)
    etlworks.refused(404, "GET", "/rest/v1/executions/7")
    assert etlworks.get("/rest/v1/executions/7/history") == []
    assert etlworks.ask("POST", "/rest/v1/flows/7/run", json={}).json()["status"] == 1
    etlworks.wait(3)
    assert etlworks.record(7, audit_id)["status"] == "running"


def test_newest_run_and_newest_with_a_status(etlworks):
    first = etlworks.start(2)
    etlworks.wait(5)
    second = etlworks.start(2)
    assert etlworks.get("/rest/v1/executions/2")["auditId"] == second
    assert etlworks.get("/rest/v1/executions/2", status="warning")["auditId"] == first
    etlworks.refused(404, "GET", "/rest/v1/executions/2?status=error")
    etlworks.refused(404, "GET", f"/rest/v1/executions/3?auditId={first}")


def test_history_is_paged_newest_first(etlworks):
    started = [etlworks.sandbox.run_by_user(9) for _ in range(205)]
    path = "/rest/v1/executions/9/history"
    first = etlworks.ask("GET", path)
    assert first.headers["X-Total-Count"] == "205"
    assert [run["auditId"] for run in first.json()] == started[:-51:-1]
    assert len(etlworks.get(path, limit=1000)) == 200
    assert [run["auditId"] for run in etlworks.get(path, limit=200, offset=200)] == started[4::-1]
    assert etlworks.get(path, offset=205) == []
    etlworks.wait(10)
    recent = etlworks.sandbox.run_by_user(9)
    since = (datetime.fromtimestamp(etlworks.clock.now, timezone.utc) - timedelta(seconds=1)).isoformat()
    assert [run["auditId"] for run in etlworks.get(path, since=since)] == [recent]


def test_scheduled_run_names_its_schedule(etlworks):
    audit_id = etlworks.sandbox.run_by_schedule(4)
    schedule = etlworks.get("/rest/v1/schedules")[0]
    record = etlworks.record(4, audit_id)
    assert (record["eventId"], record["eventName"]) == (schedule["id"], schedule["name"])
    assert record["user"] == "scheduler"
    assert etlworks.sandbox.runs(4)[0].event_id == schedule["id"]


def test_finish_and_forget(etlworks):
    audit_id = etlworks.start(5)
    etlworks.sandbox.finish(audit_id, "warning")
    assert etlworks.record(5, audit_id)["status"] == "warning"
    with pytest.raises(ValueError, match="already ended"):
        etlworks.sandbox.finish(audit_id)
    etlworks.sandbox.forget(audit_id)
    etlworks.refused(404, "GET", f"/rest/v1/executions/5?auditId={audit_id}")
    etlworks.refused(404, "GET", "/rest/v1/executions/5")
    assert etlworks.get("/rest/v1/executions/5/history") == []
    assert etlworks.sandbox.runs_started(5) == 1
    with pytest.raises(KeyError):
        etlworks.sandbox.finish(1)


def test_log_grows_and_is_an_attachment(etlworks):
    orders, ledger = etlworks.start(1), etlworks.start(3)

    def log(flow_id, audit_id):
        query = {"flowId": flow_id, "auditId": audit_id}
        return etlworks.ask("GET", "/rest/v1/executions/console/download", params=query)

    assert "started" not in log(1, orders).text
    etlworks.wait(7)
    assert ("one" in log(1, orders).text, "two" in log(1, orders).text) == (True, False)
    etlworks.wait(5)
    whole = log(1, orders)
    lines = whole.text.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "Flow 'Orders' queued",
        "Flow 'Orders' started",
        "one",
        "two",
        "Flow 'Orders' ended: success",
    ]
    assert lines[1].startswith("2026-05-09 12:00:02.000 ")
    assert whole.headers["Content-Disposition"] == f'attachment; filename="flow-1-{orders}.log"'
    assert whole.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "ERROR disk full\n" in log(3, ledger).text


def test_runs_of_a_day(etlworks):
    yesterday = etlworks.start(2)
    etlworks.wait(86400)
    today = [etlworks.start(2), etlworks.start(1)]
    etlworks.wait(5)
    day = etlworks.get("/rest/v1/metrics/executions", offset=0)
    assert [(flow["flowId"], flow["name"]) for flow in day] == [(2, "My Flow/v2"), (1, "Orders")]
    assert all(flow["icon"] for flow in day)
    assert day[0]["executions"] == [
        {
            "flowId": 2,
            "auditId": today[0],
            "status": "warning",
            "user": "sandbox",
            "started": int((NOON + 86400) * 1000),
            "ended": int((NOON + 86405) * 1000),
            "records": 0,
        }
    ]
    assert day[1]["executions"][0]["status"] == "running"
    before = etlworks.get("/rest/v1/metrics/executions", offset=1)
    assert [run["auditId"] for flow in before for run in flow["executions"]] == [yesterday]
    assert etlworks.get("/rest/v1/metrics/executions", offset=2) == []
    assert etlworks.get("/rest/v1/metrics/executions", date="2026-05-10") == day
    assert etlworks.get("/rest/v1/metrics/executions", date="2026-05-09") == before
    with_metrics = etlworks.get("/rest/v1/metrics/executions", includeMetrics="true")[0]["executions"][0]
    assert {"exception", "metrics"} <= set(with_metrics)
    assert "'date'" in etlworks.refused(400, "GET", "/rest/v1/metrics/executions?date=10.5.2026")
    assert "'offset'" in etlworks.refused(400, "GET", "/rest/v1/metrics/executions?date=2026-05-10&offset=0")


@pytest.mark.parametrize(
    ("zone", "day"), [("Pacific/Auckland", "2026-05-10"), ("Pacific/Honolulu", "2026-05-09"), ("UTC", "2026-05-09")]
)
def test_day_is_that_of_the_tenants_time_zone(make_etlworks, zone, day):
    etlworks = make_etlworks(time_zone=zone)
    audit_id = etlworks.start(2)
    for query in ({}, {"offset": 0}, {"date": day}):
        (flow,) = etlworks.get("/rest/v1/metrics/executions", **query)
        assert [run["auditId"] for run in flow["executions"]] == [audit_id]
    assert etlworks.get("/rest/v1/metrics/executions", offset=1) == []


def test_older_report_ignores_the_date(make_etlworks):
    etlworks = make_etlworks(takes_dates=False)
    etlworks.start(2)
    assert etlworks.get("/rest/v1/metrics/executions", date="2020-01-01") == etlworks.get("/rest/v1/metrics/executions")


def test_metrics_summary(etlworks):
    assert etlworks.get("/rest/v1/metrics/executions/summary") == {
        "total": 0,
        "succeeded": 0,
        "failed": 0,
        "avgDurationMs": 0,
        "p95DurationMs": 0,
    }
    etlworks.start(2)
    etlworks.wait(7200)
    for flow_id in (1, 2, 3, 5):
        etlworks.start(flow_id)
    etlworks.wait(60)
    assert etlworks.get("/rest/v1/metrics/executions/summary", windowHours=1) == {
        "total": 3,
        "succeeded": 2,
        "failed": 1,
        "avgDurationMs": 6667,
        "p95DurationMs": 10000,
    }
    assert etlworks.get("/rest/v1/metrics/executions/summary", windowHours=24)["total"] == 4


@pytest.mark.parametrize("slash", ["", "/"])
def test_tasks_of_a_run(etlworks, slash):
    audit_id = etlworks.start(1)
    path = f"/etl/rest/v1/tasks/{audit_id}{slash}"
    assert etlworks.get(path) == []
    etlworks.wait(12)
    extract, load = etlworks.get(path)
    assert (extract["type"], extract["started"], extract["duration"]) == ("extract", int((NOON + 2) * 1000), 5000)
    assert (load["type"], load["started"], load["recordsProcessed"]) == ("load", int((NOON + 7) * 1000), 100)
    assert etlworks.get(path, type="load") == [load]
    assert etlworks.get(path, type="hwm") == []
    etlworks.refused(400, "GET", path + "?type=other")


# Promotion


def export(etlworks: Etlworks, **body) -> requests.Response:
    return etlworks.ask("POST", "/rest/v1/io/export", json=body)


def test_export_is_deterministic(etlworks):
    first = export(etlworks, flowIds=[3, 1], includeConnections=True)
    etlworks.start(3)
    etlworks.wait(100)
    assert export(etlworks, flowIds=[1, 3], includeConnections=True).content == first.content
    bundle = first.json()
    assert [flow["name"] for flow in bundle["flows"]] == ["Orders", "Ledger"]
    assert [connection["name"] for connection in bundle["connections"]] == ["ledger-db"]
    assert "{{secret:ledger-db}}" in first.text
    assert export(etlworks, flowIds=[3], includeConnections=False).json()["connections"] == []
    flow = etlworks.get("/rest/v1/flows/3")
    changed = []
    for properties in ({"a": "b", "c": "d"}, {"c": "d", "a": "b"}):
        flow["modified"] = None
        etlworks.ask("PUT", "/rest/v1/flows/3", json={**flow, "properties": properties})
        changed.append(export(etlworks, flowIds=[3, 1], includeConnections=True).content)
    assert changed[0] == changed[1] != first.content


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"flowIds": []}, 400),
        ({"flowIds": ["1"]}, 400),
        ({"flowIds": [True]}, 400),
        ({"flowIds": 1}, 400),
        ({"flowIds": [1], "includeConnections": "yes"}, 400),
        ({"flowIds": [99]}, 404),
    ],
)
def test_export_of_nothing_is_refused(etlworks, body, status):
    etlworks.refused(status, "POST", "/rest/v1/io/export", json=body)


@pytest.mark.parametrize("form", ["newer", "older"])
def test_flow_moves_to_another_instance(make_etlworks, form):
    staging, production = make_etlworks(), make_etlworks()
    flow = staging.get("/rest/v1/flows/3")
    staging.ask("PUT", "/rest/v1/flows/3", json={**flow, "tags": ["promoted"], "properties": {"a": "b"}})
    staging.sandbox.add_flow(SandboxFlow(77, "Brand new", running=3, ends="warning", connections=("new-db",)))
    if form == "newer":
        bundle = export(staging, flowIds=[3, 77], includeConnections=True).content
        paths = ("/rest/v1/io/import/preview", "/rest/v1/io/import")
    else:
        dump = staging.ask("GET", "/rest/v1/flows/export", params={"flows": "3,77"})
        assert dump.headers["Content-Type"].startswith("text/plain")
        bundle = json.dumps({"dump": dump.text}).encode()
        paths = ("/rest/v1/flows/import/preview", "/rest/v1/flows/import")
    headers = {**KEY, "Content-Type": "application/json"}
    before = production.get("/rest/v1/flows")
    preview = production.ask("POST", paths[0], data=bundle, headers=headers).json()
    assert set(preview) == {"graph", "flows", "connections", "formats", "schedules"}
    told = {"id": 77, "name": "Brand new", "type": "ETL.database.event", "icon": "flow", "listener": False}
    assert preview["flows"]["77"] == told
    assert preview["graph"] == {"3": ["ledger-db"], "77": ["new-db"]}
    assert {one["name"] for one in preview["connections"].values()} == {"ledger-db", "new-db"}
    assert production.get("/rest/v1/flows") == before

    result = production.ask("POST", paths[1], data=bundle, headers=headers).json()
    assert result["success"] is True
    assert [(flow["name"], flow["id"], flow["action"]) for flow in result["flows"]] == [
        ("Ledger", 3, "replaced"),
        ("Brand new", 10, "created"),
    ]
    arrived = production.get("/rest/v1/flows/3")
    assert (arrived["tags"], arrived["properties"], arrived["modifiedBy"]) == (["promoted"], {"a": "b"}, "sandbox")
    assert production.get("/rest/v1/flows/10")["connections"][0]["name"] == "new-db"
    audit_id = production.start(10)
    production.wait(3)
    assert production.record(10, audit_id)["status"] == "warning"


def test_flow_that_runs_forever_can_be_moved(make_etlworks):
    staging, production = make_etlworks(), make_etlworks()
    bundle = export(staging, flowIds=[5]).json()
    assert production.ask("POST", "/rest/v1/io/import", json=bundle).status_code == 200
    assert production.sandbox.flows[5].running == float("inf")


def test_legacy_export_of_all_flows(etlworks):
    dump = etlworks.ask("GET", "/rest/v1/flows/export", params={"flows": "all"}).text
    assert len(json.loads(base64.b64decode(dump))["flows"]) == len(FLOWS)
    etlworks.refused(400, "GET", "/rest/v1/flows/export?flows=1,x")
    for bad in ("not base64!", base64.b64encode(b"{").decode(), base64.b64encode(b"[]").decode()):
        etlworks.refused(400, "POST", "/rest/v1/flows/import", json={"dump": bad})


def other_type(bundle):
    bundle["flows"][0]["flowType"] = "other"


def other_connection_type(bundle):
    bundle["connections"][0]["connectionType"] = "other"


def same_connection_twice(bundle):
    bundle["connections"] *= 2


def same_flow_twice(bundle):
    bundle["flows"] *= 2


def no_name(bundle):
    del bundle["flows"][0]["name"]


def bad_behaviour(bundle):
    bundle["flows"][0]["sandbox"]["ends"] = "well"


def no_format(bundle):
    del bundle["format"]


def flows_are_numbers(bundle):
    bundle["flows"] = [1]


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (other_type, 409),
        (other_connection_type, 409),
        (same_connection_twice, 400),
        (same_flow_twice, 409),
        (no_name, 400),
        (bad_behaviour, 400),
        (no_format, 400),
        (flows_are_numbers, 400),
    ],
)
def test_invalid_bundle_changes_nothing(etlworks, spoil, status):
    bundle = export(etlworks, flowIds=[3], includeConnections=True).json()
    spoil(bundle)
    before = etlworks.get("/rest/v1/flows/3"), etlworks.get("/rest/v1/connections/1")
    for path in ("/rest/v1/io/import/preview", "/rest/v1/io/import"):
        etlworks.refused(status, "POST", path, json=bundle)
    assert (etlworks.get("/rest/v1/flows/3"), etlworks.get("/rest/v1/connections/1")) == before


# Connections, schedules, webhooks, audit, listeners


def test_connection_is_created_read_and_tested(etlworks):
    body = {
        "name": "warehouse-prod",
        "description": "Production warehouse",
        "connectionType": "connection.db.postgres",
        "properties": {"field.connection.template.host": "warehouse.internal"},
        "tags": ["production"],
    }
    created = etlworks.ask("POST", "/rest/v1/connections", json=body)
    assert created.status_code == 201
    assert body.items() <= created.json().items()
    assert etlworks.get(f"/rest/v1/connections/{created.json()['id']}") == created.json()
    etlworks.refused(409, "POST", "/rest/v1/connections", json=body)
    assert "'connectionType'" in etlworks.refused(400, "POST", "/rest/v1/connections", json={"name": "x"})
    assert etlworks.ask("POST", "/rest/v1/connections/test", json=body).json() == {"success": True}
    body["properties"] = {"field.connection.template.host": "nowhere.invalid"}
    failed = etlworks.ask("POST", "/rest/v1/connections/test", json=body)
    assert (failed.status_code, failed.json()["success"]) == (200, False)
    assert "nowhere.invalid" in failed.json()["message"]


def test_schedule_is_created_listed_paused_and_resumed(etlworks):
    body = {"name": "Daily", "description": "", "flowId": 1, "schedule": "0 0 4 * * ?", "enabled": True, "tags": ["a"]}
    created = etlworks.ask("POST", "/rest/v1/schedules", json=body)
    assert created.status_code == 201
    assert body.items() <= created.json().items()
    schedule_id = created.json()["id"]
    listed = etlworks.get("/rest/v1/schedules", flowId=1, limit=1)
    assert [(one["id"], one["flowId"]) for one in listed] == [(1, 4), (schedule_id, 1)]
    assert {
        "id", "name", "tags", "description", "flowId", "enabled", "schedule", "emailSuccess", "emailFailure", "emails",
        "retries", "delayBetweenRetries", "expectedTime", "debug", "logStep", "keepMessage", "keepEmptyAudit",
    } <= set(listed[1])  # fmt: skip

    def counts():
        flow = etlworks.get("/rest/v1/flows/1")
        return flow["enabledSchedules"], flow["disabledSchedules"]

    assert counts() == (1, 0)
    for _ in range(2):
        assert etlworks.ask("PUT", f"/rest/v1/schedules/{schedule_id}/disable").json()["enabled"] is False
        assert counts() == (0, 1)
    assert etlworks.ask("PUT", f"/rest/v1/schedules/{schedule_id}/enable").json()["enabled"] is True
    assert counts() == (1, 0)
    etlworks.refused(404, "PUT", f"/rest/v1/schedules/{schedule_id}/pause")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"flowId": 99}, "flowId"),
        ({"flowId": "1"}, "flowId"),
        ({"flowId": True}, "flowId"),
        ({"name": ""}, "name"),
        ({"schedule": None}, "schedule"),
        ({"retries": "2"}, "retries"),
        ({"emails": ["a@example.com"]}, "emails"),
        ({"enabled": "yes"}, "enabled"),
        ({"tags": [1]}, "tags"),
    ],
)
def test_bad_schedule_field_is_named(etlworks, change, named):
    body = {"name": "Daily", "flowId": 1, "schedule": "0 0 4 * * ?", **change}
    assert f"'{named}'" in etlworks.refused(400, "POST", "/rest/v1/schedules", json=body)
    assert [one["flowId"] for one in etlworks.get("/rest/v1/schedules")] == [4]


def test_webhook_repeats_its_secrets(etlworks):
    body = {
        "name": "warehouse-flow-events",
        "events": ["FLOW_FAILED", "FLOW_SUCCESS"],
        "url": "https://your-app.example.com/etlworks-events",
        "secret": "for-hmac",
        "flowIncludes": [1],
        "headers": [{"key": "X-Token", "value": "abc"}],
        "basicUser": "etl",
        "basicPass": "hunter2",
    }
    created = etlworks.ask("POST", "/rest/v1/webhooks", json=body)
    assert created.status_code == 201
    assert (created.json()["flowIncludes"], created.json()["enabled"]) == ([1], True)
    assert body.items() <= created.json().items()
    assert "'events'" in etlworks.refused(400, "POST", "/rest/v1/webhooks", json={**body, "events": []})
    assert "'method'" in etlworks.refused(400, "POST", "/rest/v1/webhooks", json={**body, "method": "PUT"})
    assert "'headers'" in etlworks.refused(400, "POST", "/rest/v1/webhooks", json={**body, "headers": [{"key": "a"}]})
    assert etlworks.ask("POST", "/rest/v1/webhooks", json={**body, "url": ""}).status_code == 201
    assert [each["id"] for each in etlworks.get("/rest/v1/webhooks")] == [1, 2]
    assert etlworks.ask("DELETE", "/rest/v1/webhooks/1").status_code == 200
    etlworks.refused(404, "DELETE", "/rest/v1/webhooks/1")
    assert [each["id"] for each in etlworks.get("/rest/v1/webhooks")] == [2]


def test_audit_log_is_newest_first(etlworks):
    etlworks.wait(60)
    etlworks.start(1)
    log_in(etlworks)
    since = datetime.fromtimestamp(NOON + 1, timezone.utc).isoformat()
    events = etlworks.get("/rest/v1/audit", since=since)
    assert events == [
        {
            "timestamp": int((NOON + 60) * 1000),
            "user": "sandbox",
            "action": action,
            "resourceType": kind,
            "resourceId": resource,
        }
        for action, kind, resource in [("login", "user", None), ("execute", "flow", 1)]
    ]
    assert [one["action"] for one in etlworks.get("/rest/v1/audit", since=since, resourceType="flow")] == ["execute"]
    paged = etlworks.ask("GET", "/rest/v1/audit", params={"limit": 1, "offset": 1})
    assert (len(paged.json()), paged.json()[0]["action"]) == (1, "execute")
    assert int(paged.headers["X-Total-Count"]) > 2
    for _ in range(1100):
        etlworks.sandbox.run_by_user(9)
    assert len(etlworks.get("/plugins/audit/rest/v1/audit")) == 1000


def test_audit_log_of_another_release_has_short_keys(make_etlworks):
    etlworks = make_etlworks(audit_keys="short")
    etlworks.start(1)
    for path in ("/rest/v1/audit", "/plugins/audit/rest/v1/audit"):
        event = etlworks.get(path, limit=1)[0]
        assert set(event) == {"id", "an", "md", "ur", "tn", "rt", "in", "hip", "cip", "dn", "dt"}
        assert (event["md"], event["ur"], event["rt"]) == ("execute", "sandbox", True)
        assert "ex" in etlworks.get(path, exception="true")[0]


def test_health_needs_no_credentials(etlworks):
    etlworks.start(1)
    health = etlworks.ask("GET", "/health", headers={}).json()
    assert (health["status"], health["db"]["running.flows"]) == ("UP", 1)
    assert etlworks.ask("GET", "/health?allNodes=true", headers={}).json()["nodes"] == [health]


def test_api_user_may_call_listeners_only(make_etlworks):
    etlworks = make_etlworks(api_user=True)
    assert "API User" in etlworks.refused(403, "GET", "/rest/v1/flows")
    assert etlworks.ask("POST", "/rest/v1/httplistener/orders/new").status_code == 200


def test_disabled_api_keys_are_refused(make_etlworks):
    etlworks = make_etlworks(api_keys=False)
    assert "disabled" in etlworks.refused(401, "GET", "/rest/v1/flows")


@pytest.mark.parametrize("root", ["/rest/v1/httplistener", "/plugins/schedules/rest/v1/httplistener"])
def test_listener_run_is_found_by_message(etlworks, root):
    def post():
        answer = etlworks.ask(
            "POST", f"{root}/orders/new", data=b"a;b\n1;2", headers={**KEY, "Content-Type": "text/csv"}
        )
        assert answer.json()["status"] == "accepted"
        return answer.json()["messageUuid"]

    first, second = post(), post()
    record = etlworks.get("/rest/v1/executions/6", messageId=first)
    assert (record["flowId"], record["messageId"], record["status"]) == (6, first, "running")
    assert etlworks.get("/rest/v1/executions/6", messageId=second)["auditId"] > record["auditId"]
    etlworks.refused(404, "GET", f"/rest/v1/executions/1?messageId={first}")
    assert etlworks.sandbox.requests[0].body == b"a;b\n1;2"
    etlworks.refused(405, "GET", f"{root}/orders/new")


def test_listener_has_its_own_methods_authentication_and_receipt(etlworks):
    etlworks.sandbox.add_flow(
        SandboxFlow(
            77, "Puts", listener="puts", listener_methods=("PUT", "DELETE"), listener_auth="basic", receipt="auditId"
        )
    )
    path, basic = "/rest/v1/httplistener/puts", {"Authorization": "Basic c2FuZGJveDpzYW5kYm94"}
    etlworks.refused(401, "PUT", path)
    etlworks.refused(401, "PUT", path, headers={"Authorization": "Basic d3Jvbmc6d3Jvbmc="})
    etlworks.refused(405, "POST", path, headers=basic)
    for method in ("PUT", "DELETE"):
        answer = etlworks.ask(method, path, headers=basic).json()
        assert answer["auditId"] == etlworks.sandbox.runs(77)[-1].audit_id
        assert "messageUuid" not in answer
    etlworks.refused(401, "GET", "/rest/v1/httplistener/unknown", headers={})
    etlworks.refused(404, "GET", "/rest/v1/httplistener/unknown")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/rest/v1/audit"),
        ("GET", "/plugins/audit/rest/v1/audit"),
        ("GET", "/rest/v1/metrics/executions"),
        ("GET", "/rest/v1/metrics/executions/summary"),
        ("POST", "/rest/v1/webhooks"),
        ("GET", "/rest/v1/webhooks"),
        ("DELETE", "/rest/v1/webhooks/1"),
        ("GET", "/etl/rest/v1/tasks/1/"),
        ("POST", "/rest/v1/token-auth/tenants/1"),
    ],
)
def test_administrator_role_is_required(make_etlworks, method, path):
    operator = make_etlworks(administrator=False)
    operator.refused(403, method, path)
    assert make_etlworks().ask(method, path).status_code != 403
    operator.start(1)


# Pages


def test_pages_are_public_and_escaped(etlworks):
    evil = "<script>alert(1)</script>"
    etlworks.sandbox.add_flow(
        SandboxFlow(66, evil, running=10, log=(evil,), ends="error", exception=evil, tags=(evil,))
    )
    audit_id = etlworks.start(66)
    front = etlworks.ask("GET", "/", headers={})
    assert front.headers["Content-Type"] == "text/html; charset=utf-8"
    assert f"/ui/flows/66/runs/{audit_id}" in front.text
    page = f"/ui/flows/66/runs/{audit_id}"
    running = etlworks.ask("GET", page, headers={})
    assert ("http-equiv='refresh'" in running.text, "running" in running.text) == (True, True)
    etlworks.wait(10)
    ended = etlworks.ask("GET", page, headers={})
    assert ("http-equiv='refresh'" in ended.text, "class='error'" in ended.text) == (False, True)
    assert "2026-05-09 12:00:10 UTC" in ended.text
    for shown in (front, running, ended):
        assert "<script>" not in shown.text
        assert "&lt;script&gt;" in shown.text
    etlworks.refused(404, "GET", f"/ui/flows/1/runs/{audit_id}", headers={})
