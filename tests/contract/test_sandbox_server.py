"""The sandbox as a server: faults, the shared limit, what it records, how it starts and stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from support.clock import VirtualClock

from airflow_provider_etlworks.sandbox import (
    Sandbox,
    SandboxFlow,
    broken_body,
    delay,
    hang_up,
    redirect,
    status,
    truncated,
)
from airflow_provider_etlworks.sandbox.messages import Request

KEY = {"Authorization": "Bearer sandbox-key"}
RUN = "/rest/v1/flows/7/run"
FLOWS = "/rest/v1/flows"
PATIENCE = 60


@pytest.fixture
def sandbox():
    with Sandbox([SandboxFlow(7, "Seven", running=float("inf"))], requests_per_minute=None) as running:
        yield running


def ask(sandbox: Sandbox, method: str, path: str, **options) -> requests.Response:
    options.setdefault("headers", KEY)
    timeout = options.pop("timeout", PATIENCE)
    return requests.request(method, sandbox.url + path, allow_redirects=False, timeout=timeout, **options)


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Faults


def test_status_fault_answers_with_the_documented_error(sandbox):
    sandbox.fault("POST", RUN, status(503, headers={"Retry-After": "30"}))
    answer = ask(sandbox, "POST", RUN, json={})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
    assert answer.json() == {
        "status": 503,
        "error": "Service Unavailable",
        "message": "An armed fault of the sandbox",
        "path": RUN,
    }
    assert sandbox.runs_started(7) == 0
    assert ask(sandbox, "POST", RUN, json={}).status_code == 200
    assert [seen.status for seen in sandbox.requests] == [503, 200]


def test_status_fault_with_its_own_body(sandbox):
    sandbox.fault("GET", FLOWS, status(502, body="<h1>Bad gateway</h1>"))
    sandbox.fault("GET", FLOWS, status(500, body=b"{}", headers={"content-type": "application/json"}))
    first, second = ask(sandbox, "GET", FLOWS), ask(sandbox, "GET", FLOWS)
    assert (first.status_code, first.text, first.headers["Content-Type"]) == (502, "<h1>Bad gateway</h1>", "text/html")
    assert (second.status_code, second.text, second.headers["Content-Type"]) == (500, "{}", "application/json")


@pytest.mark.parametrize(("carried_out", "runs"), [(True, 1), (False, 0)])
def test_hang_up_after_or_before_processing(sandbox, carried_out, runs):
    sandbox.fault("POST", RUN, hang_up(carried_out=carried_out))
    with pytest.raises(requests.ConnectionError):
        ask(sandbox, "POST", RUN, json={})
    assert sandbox.runs_started(7) == runs
    assert sandbox.requests[-1].status is None


def test_hang_up_can_look_like_a_timeout(sandbox):
    sandbox.fault("POST", RUN, hang_up(carried_out=False, delay=PATIENCE))
    with pytest.raises(requests.ReadTimeout):
        ask(sandbox, "POST", RUN, json={}, timeout=0.2)
    wait_for(lambda: len(sandbox.requests) == 1)
    assert sandbox.runs_started(7) == 0


def test_delay_blocks_no_other_request(sandbox):
    sandbox.fault("POST", RUN, delay(PATIENCE))
    with pytest.raises(requests.ReadTimeout):
        ask(sandbox, "POST", RUN, json={}, timeout=0.2)
    wait_for(lambda: sandbox.runs_started(7) == 1)
    assert ask(sandbox, "GET", FLOWS).status_code == 200


def test_delay_can_process_after_the_client_has_left(sandbox):
    sandbox.fault("POST", RUN, delay(1, carried_out_last=True))
    sent = time.time()
    with pytest.raises(requests.ReadTimeout):
        ask(sandbox, "POST", RUN, json={}, timeout=0.05)
    wait_for(lambda: sandbox.runs_started(7) == 1)
    assert sandbox.runs(7)[0].accepted - sent >= 1


def test_short_delay_returns_the_usual_answer(sandbox):
    sandbox.fault("POST", RUN, delay(0.3))
    begin = time.monotonic()
    assert ask(sandbox, "POST", RUN, json={}).json()["status"] == 0
    assert time.monotonic() - begin >= 0.3


@pytest.mark.parametrize(
    ("fault", "body", "content_type"),
    [
        (broken_body(), None, "text/html"),
        (broken_body(b"", content_type="application/json"), "", "application/json"),
        (broken_body('{"flowId": 7, "aud', content_type="application/json"), '{"flowId": 7, "aud', "application/json"),
    ],
)
def test_broken_body_follows_processing(sandbox, fault, body, content_type):
    sandbox.fault("POST", RUN, fault)
    answer = ask(sandbox, "POST", RUN, json={})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, content_type)
    assert answer.text == body if body is not None else "<html>" in answer.text
    assert sandbox.runs_started(7) == 1


def test_truncated_answer_is_shorter_than_announced(sandbox):
    sandbox.fault("POST", RUN, truncated())
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        ask(sandbox, "POST", RUN, json={})
    assert sandbox.runs_started(7) == 1
    assert ask(sandbox, "GET", FLOWS).status_code == 200


def test_redirect_processes_nothing(sandbox):
    sandbox.fault("POST", RUN, redirect("https://elsewhere.example/", code=307))
    answer = ask(sandbox, "POST", RUN, json={})
    assert (answer.status_code, answer.headers["Location"]) == (307, "https://elsewhere.example/")
    assert sandbox.runs_started() == 0


def test_faults_hit_matching_requests(sandbox):
    sandbox.fault("GET", FLOWS, status(500), times=2, after=1)
    sandbox.fault("GET", FLOWS, status(502))
    codes = [ask(sandbox, "GET", FLOWS).status_code for _ in range(5)]
    assert codes == [502, 500, 500, 200, 200]
    sandbox.fault("*", "/rest/*/7*", status(504), times=None)
    assert ask(sandbox, "GET", FLOWS).status_code == 200
    assert ask(sandbox, "GET", f"{FLOWS}/7").status_code == 504
    assert ask(sandbox, "POST", RUN, json={}).status_code == 504
    sandbox.clear_faults()
    assert ask(sandbox, "POST", RUN, json={}).status_code == 200


def test_fault_path_is_exact_and_raw(sandbox):
    sandbox.add_flow(SandboxFlow(8, "a/b"))
    sandbox.fault("GET", f"{FLOWS}?", status(500))
    sandbox.fault("post", "/rest/v1/flows/flow-name/a%2Fb/run", status(502))
    assert ask(sandbox, "GET", f"{FLOWS}?q=a").status_code == 200
    assert ask(sandbox, "POST", "/rest/v1/flows/flow-name/a%2Fb/run?x=y").status_code == 502


@pytest.mark.parametrize("options", [{"path": "v1/flows"}, {"times": 0}, {"after": -1}])
def test_fault_that_cannot_fire_is_refused(sandbox, options):
    path = options.pop("path", FLOWS)
    with pytest.raises(ValueError, match=r"path|times"):
        sandbox.fault("GET", path, status(500), **options)


# The limit


def test_rate_limit_is_shared_and_slides():
    clock = VirtualClock()
    with Sandbox([], clock=clock.time, requests_per_minute=4) as sandbox:
        body = {"login": "sandbox", "password": "sandbox"}
        token = ask(sandbox, "POST", "/rest/v1/token-auth", json=body).json()["token"]
        other = {"Authorization": f"Bearer {token}"}
        clock.now += 20
        assert [ask(sandbox, "GET", FLOWS, headers=who).status_code for who in (KEY, other, {})] == [200, 200, 401]
        clock.now += 15.5
        for who in (KEY, other):
            refused = ask(sandbox, "GET", FLOWS, headers=who)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "25")
            assert refused.json()["error"] == "Too Many Requests"
        assert ask(sandbox, "GET", "/").status_code == 200
        clock.now += 25
        assert [ask(sandbox, "GET", FLOWS).status_code for _ in range(2)] == [200, 429]
        clock.now += 20
        assert [ask(sandbox, "GET", FLOWS).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_client_that_obeys_retry_after_is_admitted():
    clock = VirtualClock()
    with Sandbox([], clock=clock.time, requests_per_minute=1) as sandbox:
        ask(sandbox, "GET", FLOWS)
        clock.now += 20
        clock.now += int(ask(sandbox, "GET", FLOWS).headers["Retry-After"])
        assert ask(sandbox, "GET", FLOWS).status_code == 200


@pytest.mark.parametrize("no_limit", [None, 0])
def test_rate_limit_can_be_off(no_limit):
    with Sandbox([], requests_per_minute=no_limit) as sandbox, requests.Session() as session:
        assert {session.get(sandbox.url + FLOWS, headers=KEY, timeout=PATIENCE).status_code for _ in range(650)} == {
            200
        }


def test_rate_limit_defaults_to_600():
    with Sandbox([], clock=VirtualClock().time) as sandbox, requests.Session() as session:
        codes = [session.get(sandbox.url + FLOWS, headers=KEY, timeout=PATIENCE).status_code for _ in range(601)]
    assert codes.count(200) == 600
    assert codes[-1] == 429


# What it records


def test_requests_are_recorded_as_sent(sandbox):
    with requests.Session() as session:
        session.headers.update(KEY)
        session.get(f"{sandbox.url}{FLOWS}?tag=a&tag=b%20c&q=", timeout=PATIENCE)
        session.post(sandbox.url + RUN, json={"a": "b"}, timeout=PATIENCE)
    ask(sandbox, "GET", "/rest/v1/flows/a%2Fb")
    first, second, third = sandbox.requests
    assert (first.method, first.path, first.status) == ("GET", FLOWS, 200)
    assert first.query == {"tag": ["a", "b c"], "q": [""]}
    assert (second.headers["content-type"], json.loads(second.body)) == ("application/json", {"a": "b"})
    assert (third.path, third.status) == ("/rest/v1/flows/a%2Fb", 400)
    assert first.at < second.at < third.at <= time.monotonic()
    assert first.connection == second.connection != third.connection


def test_recording_can_be_switched_off():
    with Sandbox([], record=False) as sandbox:
        ask(sandbox, "GET", FLOWS)
        assert sandbox.requests == []


# Starting and stopping


def test_stop_ends_the_thread_and_frees_the_port():
    sandbox = Sandbox([SandboxFlow(7, "Seven", running=float("inf"))])
    sandbox.start()
    threads = threading.active_count()
    port = int(sandbox.url.rpartition(":")[2])
    sandbox.fault("GET", FLOWS, delay(10 * PATIENCE))
    with ThreadPoolExecutor(2) as pool:
        waiting = [
            pool.submit(ask, sandbox, "GET", FLOWS),
            pool.submit(ask, sandbox, "POST", "/plugins/flows/rest/v1/flows/flow-name/Seven/run"),
        ]
        wait_for(lambda: len(sandbox.requests) == 2)
        sandbox.stop()
        for answer in waiting:
            assert isinstance(answer.exception(timeout=PATIENCE), requests.ConnectionError)
    assert threading.active_count() < threads
    assert sandbox.runs_started(7) == 1
    sandbox.stop()
    with Sandbox([], port=port) as again:
        assert again.url == f"http://127.0.0.1:{port}"


def test_sandboxes_share_nothing(sandbox):
    with Sandbox([]) as other:
        assert other.url != sandbox.url
        assert ask(other, "GET", FLOWS).json() == []
    with pytest.raises(RuntimeError):
        sandbox.start()
    with pytest.raises(OSError, match="in use"):
        Sandbox([], port=int(sandbox.url.rpartition(":")[2])).start()


def test_airflow_connection_has_host_and_credentials(sandbox):
    known = json.loads(sandbox.airflow_connection)
    assert (known["conn_type"], known["host"], known["password"]) == ("etlworks", sandbox.url, sandbox.api_key)
    assert "login" not in known
    audit_id = sandbox.run_by_user(7)
    page = known["extra"]["ui_url"].format(flow_id=7, audit_id=audit_id)
    assert "Seven" in requests.get(page, timeout=PATIENCE).text
    with_login = json.loads(sandbox.airflow_connection_with_login)
    assert (with_login["login"], with_login["password"]) == (sandbox.login, sandbox.password)


def test_flow_seconds_are_scaled():
    clock = VirtualClock()
    with Sandbox([SandboxFlow(1, "One", queued=10, running=20)], clock=clock.time, seconds_scale=0.1) as sandbox:
        sandbox.run_by_user(1)
        clock.now += 2.9
        assert sandbox.runs()[0].status == "running"
        clock.now += 0.2
        assert sandbox.runs()[0].status == "success"
    with pytest.raises(ValueError, match="seconds_scale"):
        Sandbox([], seconds_scale=0)


def test_built_in_flows_fit_the_demo():
    sandbox = Sandbox()
    assert {12345, 12346, 12347, 12348} <= set(sandbox.flows)
    nightly = [flow.ends for flow in sandbox.flows.values() if "nightly" in flow.tags]
    assert (nightly.count("warning"), nightly.count("error")) == (1, 1)
    assert nightly.count("success") >= 1
    assert all(2 <= flow.queued + flow.running <= 6 for flow in sandbox.flows.values())
    assert all(flow.log and ("production" in flow.tags) for flow in sandbox.flows.values())
    assert any("warehouse" in flow.tags for flow in sandbox.flows.values())


def calls_made(sandbox: Sandbox, request: Request) -> int:
    calls = 0

    def count(frame, event, argument) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        answer = sandbox._api.answer(request)
    finally:
        sys.setprofile(None)
    assert answer.status == 200
    return calls


@pytest.mark.parametrize("by_audit_id", [True, False])
def test_poll_cost_does_not_grow_with_history(sandbox, by_audit_id):
    def poll() -> int:
        audit_id = sandbox.run_by_user(7)
        query = {"auditId": [str(audit_id)]} if by_audit_id else {}
        return calls_made(sandbox, Request("GET", "/rest/v1/executions/7", query, KEY, b""))

    first = poll()
    for _ in range(2000):
        sandbox.finish(sandbox.run_by_user(7))
    assert poll() <= first + 20


# The command


@pytest.fixture
def command():
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        module = [sys.executable, "-m", "airflow_provider_etlworks.sandbox"]
        process = subprocess.Popen(
            [*module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_serve_until_interrupted(command, tmp_path):
    flows = tmp_path / "flows.yaml"
    flows.write_text("flows:\n  - {id: 5, name: Five}\n", encoding="utf-8")
    process = command("serve", "--port", "0", "--flows", str(flows))
    greeting = []
    for line in process.stdout:
        greeting.append(line)
        if "Ctrl-C" in line:
            break
    text = "".join(greeting)
    assert "sandbox-key" in text
    line = next(line for line in greeting if "AIRFLOW_CONN_ETLWORKS_DEFAULT" in line)
    shell = f"{line.strip()}; printenv AIRFLOW_CONN_ETLWORKS_DEFAULT"
    pasted = subprocess.run(["sh", "-c", shell], check=True, capture_output=True, text=True)
    url = json.loads(pasted.stdout)["host"]
    assert [flow["id"] for flow in requests.get(url + FLOWS, headers=KEY, timeout=PATIENCE).json()] == [5]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    assert "Stopped" in rest


def test_port_in_use_exits_1_with_one_line(command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = command("serve", "--port", str(port))
        output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (1, "")
    assert errors == f"etlworks-sandbox: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_invalid_flows_exit_1_with_one_line(command, tmp_path):
    flows = tmp_path / "flows.yaml"
    flows.write_text("flows:\n  - {id: 5, name: Five, ends: well}\n", encoding="utf-8")
    process = command("serve", "--port", "0", "--flows", str(flows))
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (1, "")
    assert errors.count("\n") == 1
    assert "flows.yaml: flow 1 ('Five'): ends: expected one of success, warning, error, canceled, got 'well'" in errors


@pytest.mark.parametrize("arguments", [[], ["serve", "--port", "99999"], ["serve", "--port", "x"], ["other"]])
def test_wrong_command_line_is_explained(command, arguments):
    process = command(*arguments)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "usage:" in errors


# The fixture for users

USER_TEST = """
import os

import pytest
import requests

from airflow_provider_etlworks.sandbox import SandboxFlow

pytest_plugins = ["airflow_provider_etlworks.sandbox.pytest_plugin"]

{fixture}

def test_my_flows(etlworks_sandbox):
    flows = requests.get(etlworks_sandbox.url + "/rest/v1/flows", headers={{"Authorization": "Bearer sandbox-key"}})
    assert [flow["id"] for flow in flows.json()][:1] == [{first}]
"""

OWN_FLOWS = """
@pytest.fixture
def etlworks_sandbox_flows():
    return [SandboxFlow(42, "Mine")]
"""


@pytest.mark.parametrize(("fixture", "first"), [("", 12345), (OWN_FLOWS, 42)])
def test_plugin_provides_a_sandbox(tmp_path, fixture, first):
    test = tmp_path / "test_mine.py"
    test.write_text(USER_TEST.format(fixture=fixture, first=first), encoding="utf-8")
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "1 passed" in outcome.stdout
