from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import types
from typing import TYPE_CHECKING, ClassVar

import pytest

from airflow_provider_etlworks.sandbox import SandboxFlow
from airflow_provider_etlworks.sandbox.demo import examples, process_guard
from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflowError, TaskInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

START_LIMIT = 240.0
END_LIMIT = 60.0


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Keep track of the demos a test has started, so that none outlives it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(started: list[subprocess.Popen[str]], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "airflow_provider_etlworks.sandbox", "demo", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started.append(process)
    return process


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if text in line:
            return output
    pytest.fail(f"The demo ended without {text!r}:\n{output}")


def assert_interrupted(process: subprocess.Popen[str]) -> None:
    family = process_guard.tree(process.pid)
    # The guardian, three components at least, and the demo itself.
    assert len(family) >= 5

    process.send_signal(signal.SIGINT)

    output, _ = process.communicate(timeout=END_LIMIT)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    give_up = time.monotonic() + END_LIMIT
    while any(map(process_guard.alive, family)) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert [member for member in family if process_guard.alive(member)] == []


def table(output: str) -> dict[str, list[str]]:
    """Read the table: the other cells by the first."""
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in output.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.airflow
def test_the_demo_shows_the_examples_and_then_ends_on_ctrl_c(started: list[subprocess.Popen[str]]) -> None:
    process = start(started, "--keep")
    output = read_until(process, "Ctrl-C stops and removes everything")

    rows = table(output)
    assert rows["etlworks_run_flow / stripe_to_snowflake"][0] == "success"
    assert re.fullmatch(r"\d+ of flow 12345: success", rows["etlworks_run_flow / stripe_to_snowflake"][2])
    of_fan_out = {label: cells for label, cells in rows.items() if "etlworks_fan_out / run_flow #" in label}
    endings = {cells[2].split()[-1]: cells[0] for cells in of_fan_out.values()}
    assert endings == {"success": "success", "warning": "success", "error": "failed"}
    assert [cells[0] for cells in of_fan_out.values()].count("failed") == 1
    assert all(re.fullmatch(r"\d+\.\d s", cells[1]) for cells in rows.values() if cells[0] in ("success", "failed"))
    assert "and that is intended" in output
    assert re.search(r"http://127\.0\.0\.1:\d+/dags/etlworks_run_flow/\S+", output)
    # One line for each change, with the time.
    assert re.search(r"^ *\d+\.\d s  etlworks_run_flow / stripe_to_snowflake: deferred$", output, re.MULTILINE)

    assert_interrupted(process)


@pytest.mark.airflow
def test_ctrl_c_during_the_start_leaves_nothing(started: list[subprocess.Popen[str]]) -> None:
    process = start(started)
    read_until(process, "Starting Airflow")
    give_up = time.monotonic() + START_LIMIT
    while len(process_guard.tree(process.pid)) < 5 and time.monotonic() < give_up:
        time.sleep(0.1)

    assert_interrupted(process)


class StandInSandbox:
    """A sandbox whose runs have ended: number 1 well, number 2 in error."""

    url = "http://sandbox"
    airflow_connection = "{}"
    flows = types.MappingProxyType({10: SandboxFlow(10, "Good"), 20: SandboxFlow(20, "Bad")})

    def __enter__(self) -> StandInSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run_by_schedule(self, flow_id: int) -> int:
        return 0

    def runs(self) -> list[types.SimpleNamespace]:
        return [
            types.SimpleNamespace(audit_id=1, flow_id=10, status="success"),
            types.SimpleNamespace(audit_id=2, flow_id=20, status="error"),
        ]


class StandInAirflow:
    """An Airflow whose DAG runs have ended. ``tasks`` has state and audit id by DAG."""

    version = (3, 3, 2)
    base_url = "http://airflow"
    components = ("api-server", "scheduler")
    tasks: ClassVar[dict[str, tuple[str, int | None]]] = {}

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> StandInAirflow:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def trigger_dag(self, dag_id: str) -> str:
        return f"run-of-{dag_id}"

    def dag_run_state(self, dag_id: str, run_id: str) -> str:
        return "success"

    def wait_until(self, what: str, condition: Callable[[], bool], timeout: float) -> None:
        assert condition(), what

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        return [TaskInstance("run_flow", -1, self.tasks[dag_id][0], 1, "2026-01-01 00:00:00", "2026-01-01 00:00:07", 1)]

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int, key: str) -> int | None:
        return self.tasks[dag_id][1]

    def task_log(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
        return f"the log of {dag_id}"


@pytest.mark.parametrize(
    ("run_flow", "fan_out", "code", "told"),
    [
        (("success", 1), ("failed", 2), 0, "etlworks_fan_out / run_flow fails, and that is intended"),
        (("success", 1), ("success", 2), 1, "etlworks_fan_out / run_flow should not be success"),
        (("failed", 1), ("failed", 2), 1, "the log of etlworks_run_flow"),
        (("upstream_failed", 1), ("failed", 2), 1, "etlworks_run_flow / run_flow should not be upstream_failed"),
        (("success", 1), ("success", 1), 1, "etlworks_fan_out: expected 1 failed tasks, got 0"),
        (("success", None), ("failed", 2), 1, "etlworks_run_flow: no task has started a run in Etlworks"),
    ],
)
def test_the_exit_code_says_whether_everything_ended_as_documented(
    run_flow: tuple[str, int | None],
    fan_out: tuple[str, int | None],
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(StandInAirflow, "tasks", {"etlworks_run_flow": run_flow, "etlworks_fan_out": fan_out})
    monkeypatch.setattr(examples, "LocalAirflow", StandInAirflow)
    monkeypatch.setattr(examples, "Sandbox", StandInSandbox)
    assert examples.main() == code
    output = capsys.readouterr().out
    assert told in output
    assert ("Everything ended as it should" in output) == (code == 0)
    assert re.search(r"Waiting until api-server, scheduler have started: .* \d+ s at most", output)
    assert re.search(r"Waiting until etlworks_run_flow and etlworks_fan_out have ended: .* \d+ s at most", output)
    assert "http://" not in output  # nothing answers there any more


def test_failed_start_of_airflow_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise LocalAirflowError("The scheduler ended with exit code 1:\nno more disk [red]")

    monkeypatch.setattr(StandInAirflow, "__enter__", refuse)
    monkeypatch.setattr(examples, "LocalAirflow", StandInAirflow)
    monkeypatch.setattr(examples, "Sandbox", StandInSandbox)
    assert examples.main() == 1
    assert "no more disk [red]" in capsys.readouterr().out


def test_every_example_dag_has_what_it_needs() -> None:
    text = "".join(file.read_text() for file in examples.example_dags_folder().glob("*.py"))
    connections = {"etlworks_default", *re.findall(r'_conn_id="(\w+)"', text)}
    with examples.environments() as (_, production, variables):
        assert {f"AIRFLOW_CONN_{conn_id.upper()}" for conn_id in connections} <= set(variables)
        assert {f"AIRFLOW_VAR_{name.upper()}" for name in re.findall(r"var\.value\.(\w+)", text)} <= set(variables)
        # What etlworks_wait_for_nightly waits for.
        assert production.runs(examples.SCHEDULED_FLOW)


def test_the_example_dags_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = {"etlworks_run_flow.py", "etlworks_fan_out.py"}
    assert names <= {file.name for file in examples.example_dags_folder().iterdir()}

    package = tmp_path / "airflow_provider_etlworks"
    monkeypatch.setattr(examples, "__file__", str(package / "sandbox" / "demo" / "examples.py"))
    with pytest.raises(FileNotFoundError, match="No example DAGs in"):
        examples.example_dags_folder()
    for folder in (tmp_path / "example_dags", package / "example_dags"):
        folder.mkdir(parents=True)
        (folder / "a.py").touch()
        assert examples.example_dags_folder() == folder
