"""
Etlworks's own examples run against the sandbox.

Their texts are not ours to ship: they are read from a directory outside the repository, and without it these tests
are skipped. A snippet is run as it was written, with three exceptions:

* The instance's address, the key, and login and password are the sandbox's.
* The Python snippets lost their indentation when the texts were saved. Only white space at the beginning of lines is
  put back.
* The ellipsis in ``[12345, 12346, 12347, 12348, …]`` stands for more flows, and is left out.

A snippet gets what it takes for granted: environment variables and, for Python, the lines of an earlier snippet on the
same page. PowerShell snippets are not run. The oldest text, 004, has addresses but no commands: those requests are
written here, from the addresses and methods that it names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, status

SEEDS = Path(os.environ.get("ETLWORKS_SEEDS", Path(__file__).parents[2].parent / "shared" / "seeds"))
PATIENCE = 120
SET_UP = ("003", "import os, time, requests", "def run_and_wait", "0000")
RUN_AND_WAIT = ("003", "import os, time, requests", "print(run_and_wait", "0000011221111232321")

TOOLS = {"python": (), "curl": ("bash", "curl"), "bash": ("bash", "curl", "jq")}


def seed(number: str) -> str:
    found = sorted(SEEDS.glob(f"{number}_*.txt"))
    if not found:
        pytest.skip(f"no text {number} of the vendor's in {SEEDS}; set ETLWORKS_SEEDS to their directory")
    return found[0].read_text(encoding="utf-8")


def snippet(number: str, begin: str, until: str | None, levels: str | None = None) -> str:
    """Return the lines from the one that begins with ``begin``, up to the one that begins with ``until``."""
    lines = [line.strip() for line in seed(number).splitlines() if line.strip()]
    lines = lines[next(position for position, line in enumerate(lines) if line.startswith(begin)) :]
    if until is not None:
        lines = lines[: next(position for position, line in enumerate(lines) if line.startswith(until))]
    if levels is not None:
        assert len(lines) == len(levels)
        lines = [" " * 4 * int(level) + line for level, line in zip(levels, lines, strict=True)]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Example:
    """A snippet, what it takes for granted, and what we change in it."""

    kind: str
    source: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    prelude: str = ""
    after: str = ""
    changes: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def text(self, url: str) -> str:
        text = self.prelude + "".join(snippet(*source) for source in (*self.before, self.source)) + self.after
        for old, new in self.changes.items():
            assert text.count(old) == 1, f"expected once: {old}"
            text = text.replace(old, new)
        return text.replace("https://app.etlworks.com", url).replace("YOUR_API_KEY", "sandbox-key")


CURL = "curl -s -X POST"
EXAMPLES = {
    "001 cURL": Example("curl", ("001", "# List your flows", "import requests")),
    "001 Python": Example(
        "python", ("001", "import requests", "export", "000000011100"), prelude="API_KEY = 'sandbox-key'\n"
    ),
    "001 Bash": Example("curl", ("001", "export ETLWORKS_URL=", "$env:")),
    "002 log in": Example(
        "curl",
        ("002", f"{CURL} https://app.etlworks.com/rest/v1/token-auth", "# →"),
        changes={"alice@example.com": "sandbox", '"…"': '"sandbox"'},
    ),
    "002 list": Example("curl", ("002", "curl -s https://app.etlworks.com/rest/v1/flows", "You should see")),
    "002 run": Example("curl", ("002", f"{CURL} https://app.etlworks.com/rest/v1/flows", "The response is")),
    "003 run and wait, cURL": Example("bash", ("003", "FLOW_ID=12345", "import os")),
    "003 run and wait, Python": Example(
        "python", ("003", "import os, time, requests", "run_and_wait () {", "00000112211112323210")
    ),
    # Its body, "${2:-{}}", has a brace too many: Bash ends the expansion at the first one and appends the second.
    "003 run and wait, Bash": Example("bash", ("003", "run_and_wait () {", "function Invoke-Flow")),
    "003 connection": Example("curl", ("003", f'{CURL} "$ETLWORKS_URL/v1/connections"', "The {{secret")),
    "003 schedule": Example(
        "curl",
        ("003", f'{CURL} "$ETLWORKS_URL/v1/schedules"', "Query the audit log"),
        variables={"SCHEDULE_ID": "1"},
    ),
    "003 audit": Example("python", ("003", "from datetime import", "Export and import", "000111001"), before=(SET_UP,)),
    "003 export and import": Example("curl", ("003", "# Export flow + dependencies", "Bulk-tag")),
    "003 tags": Example("python", ("003", "summaries =", "Build a metrics", "010111221"), before=(SET_UP,)),
    "003 summary": Example("curl", ("003", 'curl -s "$ETLWORKS_URL/v1/metrics', "# →")),
    "003 webhook": Example("curl", ("003", f'{CURL} "$ETLWORKS_URL/v1/webhooks"', "Etlworks signs")),
    "003 pages": Example("python", ("003", "def paginate", "Pattern: retry", "01122232323201"), before=(SET_UP,)),
    "003 retry": Example(
        "python",
        ("003", "import time, random", "Pattern: parallel", "0012233221"),
        before=(SET_UP,),
        after='print(len(call_with_retry("GET", f"{BASE}/v1/flows")))\n',
    ),
    "003 fan-out": Example(
        "python",
        ("003", "from concurrent.futures", None, "000100"),
        before=(RUN_AND_WAIT,),
        changes={", …]": "]"},
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What a snippet printed, and the instances it talked to."""

    output: str
    staging: Sandbox
    production: Sandbox

    def answers(self) -> list[object]:
        """Return the JSON documents printed one after another, each on a line or not."""
        decoder, rest, found = json.JSONDecoder(), self.output.strip(), []
        while rest:
            value, end = decoder.raw_decode(rest)
            found.append(value)
            rest = rest[end:].lstrip()
        return found


@pytest.fixture(scope="module")
def run_all(tmp_path_factory):
    """Start every snippet that can run here, each with instances of its own; their pauses of 5 s pass together."""
    instances, running = [], {}
    with ThreadPoolExecutor(len(EXAMPLES)) as pool:
        for name, example in EXAMPLES.items():
            if missing_tools(example) or not SEEDS.is_dir():
                continue
            staging, production = Sandbox().start(), Sandbox().start()
            instances += [staging, production]
            if name == "003 retry":
                staging.fault("GET", "/rest/v1/flows", status(503))
                staging.fault("GET", "/rest/v1/flows", status(429, headers={"Retry-After": "1"}))
            directory = tmp_path_factory.mktemp("snippet")
            running[name] = pool.submit(run_one, example, staging, production, directory)
        yield running
    for instance in instances:
        instance.stop()


def run_one(example: Example, staging: Sandbox, production: Sandbox, directory: Path) -> Outcome:
    program = [sys.executable, "-"] if example.kind == "python" else ["bash", "-e", "-o", "pipefail"]
    finished = subprocess.run(
        program,
        input=example.text(staging.url),
        capture_output=True,
        encoding="utf-8",
        cwd=directory,
        timeout=PATIENCE,
        check=False,
        env={
            **os.environ,
            "PYTHONIOENCODING": "utf-8",
            "ETLWORKS_URL": f"{staging.url}/rest",
            "ETLWORKS_API_KEY": staging.api_key,
            "ETLWORKS_PROD_URL": f"{production.url}/rest",
            "PROD_API_KEY": production.api_key,
            **example.variables,
        },
    )
    assert finished.returncode == 0, finished.stderr
    assert {seen.status for seen in staging.requests} <= {200, 201, 429, 503}, finished.stdout
    return Outcome(finished.stdout, staging, production)


def missing_tools(example: Example) -> list[str]:
    return [tool for tool in TOOLS[example.kind] if shutil.which(tool) is None]


@pytest.fixture
def outcome(request, run_all) -> Outcome:
    name = request.param
    missing = missing_tools(EXAMPLES[name])
    if missing:
        pytest.skip(f"this machine has no {', no '.join(missing)}")
    seed(EXAMPLES[name].source[0])
    return run_all[name].result(timeout=2 * PATIENCE)


def of(*names: str):
    return pytest.mark.parametrize("outcome", names, indirect=True)


@of("001 cURL", "001 Bash")
def test_list_then_run(outcome):
    flows, started = outcome.answers()
    assert {12345, 12346, 12347, 12348} <= {flow["id"] for flow in flows}
    assert (started["flowId"], started["status"]) == (12345, 0)
    assert outcome.staging.runs()[0].parameters == {"runDate": "2026-05-09"}


@of("001 Python")
def test_list_then_run_python(outcome):
    assert outcome.output == f"{outcome.staging.runs(12345)[0].audit_id}\n"


@of("002 log in")
def test_log_in(outcome):
    (answer,) = outcome.answers()
    assert set(answer) == {"token"}
    assert outcome.staging.log_ins == 1


@of("002 list")
def test_first_request(outcome):
    (flows,) = outcome.answers()
    shown = json.loads(snippet("002", "[", "401 Unauthorized"))[0]
    assert set(flows[0]) == set(shown)
    assert (flows[0]["id"], flows[0]["name"], flows[0]["tags"]) == (shown["id"], shown["name"], shown["tags"])


@of("002 run")
def test_first_write_call(outcome):
    (started,) = outcome.answers()
    shown = json.loads(re.search(r'\{[^{}]*"auditId": [^{}]*\}', seed("002"))[0])
    assert set(started) == set(shown)
    assert (started["flowId"], started["status"]) == (shown["flowId"], shown["status"])


@of("003 run and wait, cURL", "003 run and wait, Python", "003 run and wait, Bash")
def test_run_and_wait(outcome):
    (run,) = outcome.staging.runs()
    assert (run.flow_id, run.status, run.parameters) == (12345, "success", {"runDate": "2026-05-09"})
    assert "success" in outcome.output
    polls = [seen for seen in outcome.staging.requests if seen.path == "/rest/v1/executions/12345"]
    assert len(polls) == 2
    assert polls[0].query == {"auditId": [str(run.audit_id)]}


@of("003 connection")
def test_create_connection(outcome):
    (connection,) = outcome.answers()
    assert (connection["name"], connection["tags"]) == ("warehouse-prod", ["production", "warehouse"])
    assert connection["properties"]["field.connection.password"] == "{{secret:warehouse_pw}}"
    assert connection["id"] > 0


@of("003 schedule")
def test_create_pause_and_resume_schedule(outcome):
    created, paused, resumed = outcome.answers()
    assert (created["flowId"], created["schedule"], created["enabled"]) == (12345, "0 0 4 * * ?", True)
    assert [(one["id"], one["enabled"]) for one in (paused, resumed)] == [(1, False), (1, True)]


@of("003 audit")
def test_query_audit_log(outcome):
    lines = outcome.output.splitlines()
    assert len(lines) == len(outcome.staging.flows)
    assert all(re.fullmatch(r"\d{13} alice@example\.com create +flow \d+", line) for line in lines)


@of("003 export and import")
def test_export_and_import(outcome):
    preview, imported = outcome.answers()
    assert "12345" in preview["flows"]
    assert [(flow["id"], flow["action"]) for flow in imported["flows"]] == [(12345, "replaced")]
    assert imported["success"] is True
    assert {seen.path for seen in outcome.production.requests} == {"/rest/v1/io/import/preview", "/rest/v1/io/import"}
    assert {seen.status for seen in outcome.production.requests} == {200}


@of("003 tags")
def test_tag_flows(outcome):
    tagged = [flow for flow in outcome.staging.flows.values() if "warehouse-pipeline" in flow.tags]
    assert sorted(flow.id for flow in tagged) == [12346, 12347]
    assert outcome.output == "".join(f" tagged: {flow.name}\n" for flow in tagged)
    assert all("production" in flow.tags and flow.connections for flow in tagged)


@of("003 summary")
def test_summary(outcome):
    (summary,) = outcome.answers()
    assert set(summary) == {"total", "succeeded", "failed", "avgDurationMs", "p95DurationMs"}


@of("003 webhook")
def test_create_webhook(outcome):
    (webhook,) = outcome.answers()
    assert (webhook["events"], webhook["flowIncludes"]) == (["FLOW_FAILED", "FLOW_SUCCESS"], [12345])


@of("003 pages")
def test_page_through_list(outcome):
    assert outcome.output == "".join(f"{flow.id} {flow.name}\n" for flow in outcome.staging.flows.values())


@of("003 retry")
def test_retry(outcome):
    assert outcome.output == f"{len(outcome.staging.flows)}\n"
    assert [seen.status for seen in outcome.staging.requests] == [503, 429, 200]


@of("003 fan-out")
def test_fan_out(outcome):
    assert outcome.output == " 4 run, 0 failed\n"
    assert sorted(run.flow_id for run in outcome.staging.runs()) == [12345, 12346, 12347, 12348]


# The oldest text


def address(text: str, path: str) -> tuple[str, str]:
    """Check that the text has this address, and return the method it names with it."""
    found = re.search(rf"https?://[\w.:]+({re.escape(path)})(?![\w/?]).*?METHOD: (\w+)", text, re.DOTALL)
    assert found, path
    return found[2], found[1]


def test_addresses_of_the_oldest_text():
    if shutil.which("curl") is None:
        pytest.skip("this machine has no curl")
    text = seed("004")
    flows = [
        SandboxFlow(1, "my-flow"),
        SandboxFlow(2, "flow_with_parameters"),
        SandboxFlow(3, "Patients", listener="hl7/patient"),
    ]
    with Sandbox(flows) as etlworks:

        def curl(method: str, path: str, *options: str):
            command = ["curl", "-s", "--fail", "-X", method, etlworks.url + path, *options]
            return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE).stdout)

        body = re.search(r"REQUEST BODY: (\{.*?\}\"\})", text)[1]
        body = body.replace("{user}", etlworks.login).replace("{password}", etlworks.password)
        issue = address(text, "/rest/v1/token-auth/issue")
        token = curl(*issue, "-H", "Content-Type: application/json", "-d", body)["token"]
        bearer = ("-H", f"Authorization:Bearer {token}")

        listened = curl(*address(text, "/plugins/schedules/rest/v1/httplistener/hl7/patient"), *bearer, "-d", "<hl7/>")
        assert listened["messageUuid"] == etlworks.runs(3)[0].message_id

        by_name = "/plugins/flows/rest/v1/flows/flow-name/"
        for path, flow_id, parameters in [
            ("my-flow/run", 1, {}),
            ("my-flow/run/?patientid=123", 1, {"patientid": "123"}),
            ("flow_with_parameters/run?roleid=2", 2, {"roleid": "2"}),
        ]:
            assert curl(*address(text, by_name + path), *bearer) == {"status": 0}
            assert etlworks.runs(flow_id)[-1].parameters == parameters

        events = curl(*address(text, "/plugins/audit/rest/v1/audit"), *bearer)
        assert {"login", "execute"} <= {event["action"] for event in events}
