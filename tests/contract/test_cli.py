"""The commands ``airflow etlworks …``, in this process, and through Airflow's own executable."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import airflow
import pytest
import yaml
from support.cli import parser_of_commands
from support.client import GENEROUS
from support.promotion import IMPORT

from airflow_provider_etlworks.client import sync
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, broken_body, hang_up, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOREVER = float("inf")
FLOWS = [
    SandboxFlow(1, "Orders", tags=("nightly", "shop"), running=0.05, records=12, log=tuple("abcde")),
    SandboxFlow(2, "Customers", tags=("nightly",), ends="warning"),
    SandboxFlow(3, "Bills", ends="error", exception="No such table: bills"),
    SandboxFlow(4, "Stream", running=FOREVER),
    SandboxFlow(5, "[red]Odd[/nothing] \x1b[31mname", running=FOREVER),
]
RUN_ORDERS = "/rest/v1/flows/1/run"

pytestmark = pytest.mark.skipif(
    "cli" not in json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())["properties"],
    reason="Airflow before 3.2 has no commands of providers",
)


@dataclass
class Done:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def airflows_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # A command sets it for its process, and this process goes on.
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")


def connect(monkeypatch: pytest.MonkeyPatch, conn_id: str, sandbox: Sandbox) -> None:
    # Certificates are of no use here, and loading them takes longer than most tests.
    connection = json.loads(sandbox.airflow_connection)
    connection["extra"] = {**connection["extra"], "verify": False}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))


@pytest.fixture
def etlworks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox(FLOWS, requests_per_minute=None) as sandbox:
        connect(monkeypatch, "etlworks_default", sandbox)
        yield sandbox


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command as Airflow does: ``command("run", "1", "--no-wait")``."""
    parser = parser_of_commands()

    def run(*words: str) -> Done:
        code: Any = 0
        try:
            args = parser.parse_args(words)
            args.func(args)
        except SystemExit as end:
            code = end.code
        written = capsys.readouterr()
        assert "sandbox-key" not in written.out + written.err
        assert "Traceback" not in written.err
        return Done(code, written.out, written.err)

    return run


def interrupt_while_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C as soon as the client waits for something; once."""

    presses = iter([KeyboardInterrupt()])

    def sleep(seconds: float) -> None:
        for press in presses:
            raise press
        time.sleep(seconds)

    monkeypatch.setattr(sync, "EtlworksClient", partial(sync.EtlworksClient, sleep=sleep))


# --- flows ----------------------------------------------------------------------------------------------------------


def test_flows_are_listed_as_json(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    done = command("flows", "--tag", "nightly", "--output", "json")
    assert done.code == 0
    assert json.loads(done.out) == [
        {"id": 1, "name": "Orders", "tags": ["nightly", "shop"], "last_status": None, "schedules": 0},
        {"id": 2, "name": "Customers", "tags": ["nightly"], "last_status": None, "schedules": 0},
    ]
    assert yaml.safe_load(command("flows", "--tag", "nightly", "-o", "yaml").out) == json.loads(done.out)
    assert [each["id"] for each in json.loads(command("flows", "--query", "ill", "-o", "json").out)] == [3]


@pytest.mark.parametrize("output", ["table", "plain"])
def test_flows_are_listed_for_people(etlworks: Sandbox, command: Callable[..., Done], output: str) -> None:
    lines = command("flows", "-o", output).out.splitlines()
    assert lines[0].replace("|", " ").split() == ["id", "name", "tags", "last_status", "schedules"]
    (orders,) = [line for line in lines if "Orders" in line]
    assert orders.replace("|", " ").split() == ["1", "Orders", "nightly,", "shop", "0"]
    # Neither markup nor what steers a terminal is taken from a name.
    assert any("[red]Odd[/nothing] name" in line for line in lines)
    assert "\x1b" not in "".join(lines)


def test_errors_are_one_line(etlworks: Sandbox, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("flows", "--conn-id", "nobody_has_this") == Done(
        1, "", "airflow etlworks: The conn_id `nobody_has_this` isn't defined\n"
    )
    etlworks.fault("GET", "/rest/v1/flows", status(403), times=None)
    done = command("flows")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "403" in done.err
    monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_DEFAULT", '{"conn_type": "etlworks", "password": "sandbox-key"}')
    assert "Host" in command("flows").err


def test_a_connection_in_airflows_database_is_found(
    etlworks: Sandbox, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk import Connection
    from airflow.secrets.metastore import MetastoreBackend

    def kept(_: MetastoreBackend, conn_id: str, **__: Any) -> Connection | None:
        found = conn_id == "in_the_database"
        return Connection.from_json(etlworks.airflow_connection, conn_id=conn_id) if found else None

    monkeypatch.setattr(MetastoreBackend, "get_connection", kept)
    assert command("flows", "--conn-id", "in_the_database").code == 0
    assert command("flows", "--conn-id", "elsewhere").code == 1


def test_airflow_loads_next_to_nothing_for_the_commands() -> None:
    script = """
import json, sys
import airflow.cli.cli_config
already = set(sys.modules)
from airflow_provider_etlworks.cli.definition import get_etlworks_cli_commands
get_etlworks_cli_commands()
print(json.dumps(sorted(set(sys.modules) - already)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.removeprefix("airflow_provider_etlworks.") for name in json.loads(done.stdout.splitlines()[-1])}
    assert "cli.definition" in loaded
    assert loaded <= {
        "airflow_provider_etlworks", "cli", "cli.definition", "provider_info", "runs", "runs.defaults",
    }  # fmt: skip


# --- run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", ["1", "Orders"])
def test_a_run_is_started_once_and_followed(etlworks: Sandbox, command: Callable[..., Done], flow: str) -> None:
    done = command(
        "run", flow, "--param", "day=2026-05-09", "--param", "filter=a=b", "--poll-interval", "0.05", "-o", "json"
    )
    (run,) = etlworks.runs()
    result = json.loads(done.out)
    assert done.code == 0
    assert (result["flow_id"], result["audit_id"], result["status"]) == (1, run.audit_id, "success")
    assert result["records"] == 12
    assert run.parameters == {"day": "2026-05-09", "filter": "a=b"}
    assert f"Run {run.audit_id} of flow 1 is accepted" in done.err
    assert f"Run {run.audit_id} ended: success" in done.err


@pytest.mark.parametrize(
    ("words", "code"), [(["1"], 0), (["2"], 0), (["2", "--fail-on-warning"], 1), (["3"], 1), (["4", "--no-wait"], 0)]
)
def test_the_exit_code_is_that_of_the_runs_end(
    etlworks: Sandbox, command: Callable[..., Done], words: list[str], code: int
) -> None:
    done = command("run", *words, "--poll-interval", "0.05", "-o", "plain")
    assert done.code == code
    assert f"audit_id          {etlworks.runs()[0].audit_id}" in done.out
    if code == 1:
        assert f"Its log: airflow etlworks log {words[0]} {etlworks.runs()[0].audit_id}" in done.err
    if words == ["3"]:
        assert "No such table: bills" in done.err


def test_a_canceled_run_has_an_exit_code_of_its_own(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    etlworks.add_flow(SandboxFlow(6, "Canceled", ends="canceled"))
    assert command("run", "6", "--poll-interval", "0.05").code == 3


def test_timeout_leaves_the_run_going(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    done = command("run", "4", "--timeout", "0.1", "--poll-interval", "0.05", "-o", "json")
    assert done.code == 4
    assert json.loads(done.out)["status"] == "running"
    assert "may still be going. It was still going after 0.1 s." in done.err
    assert etlworks.runs()[0].status == "running"


def test_unreadable_run_is_not_a_failed_run(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    etlworks.fault("GET", "/rest/v1/executions/4", status(403), times=None, after=1)
    done = command("run", "4", "--poll-interval", "0.05", "-o", "json")
    assert done.code == 4
    assert json.loads(done.out)["audit_id"] == etlworks.runs()[0].audit_id


def test_a_lost_answer_does_not_start_the_flow_twice(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    etlworks.fault("POST", RUN_ORDERS, hang_up())
    done = command("run", "1", "--poll-interval", "0.05")
    assert (done.code, etlworks.runs_started(1)) == (0, 1)
    assert "The start is in doubt" in done.err


def test_a_flow_that_is_running_already_is_not_started(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    other = etlworks.run_by_user(4)
    done = command("run", "4")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"airflow etlworks: Flow 4 is already running: its run is {other}. Nothing was started.\n"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "1", "--param", "s3cret"],
        ["run", "1", "--timeout", "0"],
        ["run", "1", "--poll-interval", "soon"],
        ["log", "1", "first"],
        ["log", "1", "2", "--lines", "0"],
        ["promote", "--source-conn-id", "a", "--target-conn-id", "b"],
        ["promote", "--source-conn-id", "a", "--target-conn-id", "b", "--path", "bundle.json", "--yes"],
        ["promote", "--source-conn-id", "a", "--target-conn-id", "b", "--path", "bundle.json", "--flow-id", "1"],
    ],
)
def test_wrong_usage_is_refused_before_anything_is_sent(
    etlworks: Sandbox, command: Callable[..., Done], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    done = command(*words)
    assert (done.code, done.out, etlworks.requests) == (2, "", [])
    assert "s3cret" not in done.err


@pytest.mark.parametrize("stop", [False, True])
def test_interrupt_reports_the_run(
    etlworks: Sandbox, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    interrupt_while_waiting(monkeypatch)
    done = command("run", "4", *(["--stop-on-interrupt"] if stop else []))
    (run,) = etlworks.runs()
    assert (done.code, done.out) == (130, "")
    assert run.stop_requested is stop
    said = "Etlworks accepted the stop of run {}" if stop else "Run {} of flow 4 goes on"
    assert f"Interrupted. {said.format(run.audit_id)}" in done.err


def test_an_interrupt_in_the_middle_of_a_start_finds_the_run(
    etlworks: Sandbox, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The answer is lost, and the history does not have the run at once: the client waits before it polls again.
    etlworks.fault("POST", "/rest/v1/flows/4/run", hang_up())
    etlworks.fault("GET", "/rest/v1/executions/4/history", broken_body(b"[]", content_type="application/json"), after=1)
    etlworks.fault("GET", "/rest/v1/executions/4", status(404), after=1)
    interrupt_while_waiting(monkeypatch)
    done = command("run", "4")
    assert done.code == 130
    assert f"Run {etlworks.runs()[0].audit_id} of flow 4 goes on" in done.err


def test_interrupt_before_the_start(
    etlworks: Sandbox, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    etlworks.fault("GET", "/rest/v1/executions/4", status(503))
    interrupt_while_waiting(monkeypatch)
    done = command("run", "4")
    assert (done.code, etlworks.runs()) == (130, [])
    assert "Interrupted. Nothing was started." in done.err


# --- log ------------------------------------------------------------------------------------------------------------


def test_the_end_of_a_log_is_shown(etlworks: Sandbox, command: Callable[..., Done]) -> None:
    secret = SandboxFlow(7, "Talkative", log=("The key is sandbox-key", "\x1b[2Jgone", "last"))
    etlworks.add_flow(secret)
    audit_id = json.loads(command("run", "7", "--poll-interval", "0.05", "-o", "json").out)["audit_id"]
    # Before them, the sandbox tells of the run's start, and after them of its end.
    whole = command("log", "Talkative", str(audit_id))
    assert whole.code == 0
    assert "The key is ***" in whole.out
    assert " gone\n" in whole.out
    assert "\x1b" not in whole.out
    assert command("log", "7", str(audit_id), "--lines", "2").out == "".join(whole.out.splitlines(True)[-2:])
    assert command("log", "7", "99").code == 1


# --- promote --------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A standard input on which a person types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch, etlworks: Sandbox) -> Iterator[Sandbox]:
    with Sandbox([SandboxFlow(11, "Orders")], requests_per_minute=None) as sandbox:
        connect(monkeypatch, "staging", etlworks)
        connect(monkeypatch, "production", sandbox)
        yield sandbox


def promotion(bundle: Path, *words: str) -> list[str]:
    ends = ["--source-conn-id", "staging", "--target-conn-id", "production"]
    return ["promote", *ends, "--path", str(bundle), "--tag", "nightly", "--flow-id", "3", *words]


def names(sandbox: Sandbox) -> list[str]:
    return sorted(flow.name for flow in sandbox.flows.values())


def test_flows_are_promoted_with_a_backup(production: Sandbox, command: Callable[..., Done], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    done = command(*promotion(bundle, "--yes"))
    assert (done.code, names(production)) == (0, ["Bills", "Customers", "Orders"])
    assert "| flow | Orders | replaced |" in done.out
    assert "| flow | Bills | new |" in done.out
    assert "Imported 'Orders', 'Customers', 'Bills' into http" in done.err
    backup = json.loads((tmp_path / "bundle.json.backup.meta.json").read_text())
    assert backup["flow_names"] == ["Orders"]
    assert bundle.read_text() not in done.out + done.err
    assert {each.stat().st_mode & 0o077 for each in tmp_path.iterdir()} == {0}


@pytest.mark.parametrize(
    ("answer", "promoted"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_a_person_is_asked_at_the_terminal(
    production: Sandbox,
    command: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    promoted: bool,
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    done = command(*promotion(tmp_path / "bundle.json"))
    assert f"Import this into {production.url}? [y/N]" in done.err
    assert (done.code == 0, "Bills" in names(production)) == (promoted, promoted)
    assert ("Nothing was imported." in done.err) is not promoted


def test_promotion_into_the_source_is_refused(
    production: Sandbox, command: Callable[..., Done], tmp_path: Path
) -> None:
    words = promotion(tmp_path / "bundle.json", "--yes")
    done = command(*[word.replace("production", "staging") for word in words])
    assert (done.code, done.out) == (1, "")
    assert "which is also the target" in done.err


def test_a_refused_import_is_a_failure(production: Sandbox, command: Callable[..., Done], tmp_path: Path) -> None:
    refusal = broken_body(json.dumps({"success": False, "message": "No space left"}), content_type="application/json")
    production.fault("POST", IMPORT, refusal)
    done = command(*promotion(tmp_path / "bundle.json", "--yes"))
    assert done.code == 1
    assert "No space left" in done.err.splitlines()[-1]


def test_an_interrupted_import_may_have_been_applied(
    production: Sandbox, command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its answer is lost, and the target shows nothing yet, so that the client waits.
    production.fault("POST", IMPORT, hang_up(carried_out=False))
    interrupt_while_waiting(monkeypatch)
    done = command(*promotion(tmp_path / "bundle.json", "--yes"))
    assert done.code == 130
    assert "it may have been applied, or not" in done.err.splitlines()[-1]


def test_interrupt_before_the_import(
    production: Sandbox, command: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    terminal = Terminal()
    monkeypatch.setattr(terminal, "readline", interrupted)
    monkeypatch.setattr(sys, "stdin", terminal)
    done = command(*promotion(tmp_path / "bundle.json"))
    assert (done.code, names(production)) == (130, ["Orders"])
    assert done.err.endswith("Interrupted. Nothing was imported.\n")


# --- Airflow's own executable ---------------------------------------------------------------------------------------


def airflow_process(*words: str) -> subprocess.Popen[str]:
    # Unbuffered, Python notices a broken pipe only in the write after the one that it cuts short.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-m", "airflow", "etlworks", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_airflow_has_the_commands(etlworks: Sandbox) -> None:
    process = airflow_process("run", "3", "--poll-interval", "0.1", "-o", "json")
    out, err = process.communicate(timeout=GENEROUS)
    assert process.returncode == 1, err
    assert json.loads(out)["status"] == "error"
    assert "No such table: bills" in err


def test_ctrl_c_ends_the_wait_and_not_the_run(etlworks: Sandbox) -> None:
    process = airflow_process("run", "4")
    assert process.stderr is not None
    for line in process.stderr:
        if "is running" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=GENEROUS)
    assert (process.returncode, out) == (130, "")
    (run,) = etlworks.runs()
    assert f"Interrupted. Run {run.audit_id} of flow 4 goes on" in err
    assert run.status == "running"


def test_broken_pipe_prints_no_traceback(etlworks: Sandbox) -> None:
    for number in range(100, 1100):
        etlworks.add_flow(SandboxFlow(number, f"A flow with a rather long name, number {number}"))
    process = airflow_process("flows", "-o", "json")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "[\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=GENEROUS) == 1
