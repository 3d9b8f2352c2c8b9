from __future__ import annotations

import importlib.metadata
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest
import requests

from airflow_provider_etlworks.sandbox.demo import process_guard
from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow, LocalAirflowError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psutil

pytestmark = pytest.mark.airflow

WAITING_DAG = """
try:
    from airflow.providers.standard.triggers.file import FileTrigger
except ImportError:
    from airflow.triggers.file import FileTrigger

class WaitForFile(BaseOperator):
    template_fields = ("path",)

    def __init__(self, *, path, **kwargs):
        super().__init__(**kwargs)
        self.path = path

    def execute(self, context):
        self.log.info("deferring until the file is there")
        context["ti"].xcom_push(key="path", value=self.path)
        self.defer(trigger=FileTrigger(filepath=self.path, poke_interval=0.5), method_name="resume")

    def resume(self, context, event=None):
        self.log.info("resumed")
        return {"number": 1, "nothing": None, "text": "ü"}

with DAG("waiting", schedule=None, start_date=START):
    WaitForFile(task_id="wait", path="{{ dag_run.conf['path'] }}")
"""


@pytest.fixture(scope="module")
def waiting_dag(write_dag: Callable[[str, str], str]) -> str:
    return write_dag("waiting", WAITING_DAG)


@pytest.fixture
def dags_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dags"
    folder.mkdir()
    return folder


def eventually(condition: Callable[[], bool], limit: float = 120.0) -> bool:
    give_up = time.monotonic() + limit
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.1)
    return condition()


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(process_guard.alive(process) for process in processes)


# First those that start an Airflow of their own, while the shared one does not need the processor yet.


def test_the_users_own_airflow_settings_are_not_passed_on(
    monkeypatch: pytest.MonkeyPatch, dags_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_CONN_ETLWORKS_DEFAULT", "the user's own")
    airflow = LocalAirflow(dags_folder, {"AIRFLOW_CONN_OTHER": "ours"}, home=tmp_path / "home")
    assert airflow.env["AIRFLOW__CORE__EXECUTOR"] in ("SequentialExecutor", "LocalExecutor")
    assert "AIRFLOW_CONN_ETLWORKS_DEFAULT" not in airflow.env
    assert airflow.env["AIRFLOW_CONN_OTHER"] == "ours"
    assert airflow.env["AIRFLOW_HOME"] == str(tmp_path / "home")


def test_home_among_the_dag_files_is_refused(dags_folder: Path) -> None:
    with pytest.raises(ValueError, match="is inside"):
        LocalAirflow(dags_folder, home=dags_folder / "home")


def test_early_death_of_a_component_shows_its_log(dags_folder: Path, tmp_path: Path) -> None:
    airflow = LocalAirflow(dags_folder, {"AIRFLOW__CORE__EXECUTOR": "no_such_module.Executor"}, home=tmp_path / "home")
    with pytest.raises(LocalAirflowError, match=r"(?s)The scheduler ended with exit code 1.*no_such_module"), airflow:
        pytest.fail("It cannot start")
    assert process_guard.marked(airflow.marker) == set()
    assert not airflow.home.exists()


def test_nothing_is_left_when_the_body_raises(dags_folder: Path, tmp_path: Path) -> None:
    (dags_folder / "busy.py").write_text(
        textwrap.dedent("""
            import subprocess, sys
            from datetime import datetime, timezone
            try:
                from airflow.sdk import DAG, task
            except ImportError:
                from airflow import DAG
                from airflow.decorators import task

            @task
            def busy():
                sleeper = [sys.executable, "-c", "import time; time.sleep(3600)"]
                subprocess.Popen(sleeper, start_new_session=True).wait()

            with DAG("busy", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=timezone.utc)):
                busy()
        """)
    )
    airflow = LocalAirflow(dags_folder, home=tmp_path / "home")
    processes: list[psutil.Process] = []

    def sleeper_runs() -> bool:
        processes[:] = process_guard.marked(airflow.marker)
        return any("time.sleep(3600)" in " ".join(process.cmdline()) for process in processes)

    def run_and_raise() -> None:
        with airflow:
            airflow.trigger_dag("busy")
            airflow.wait_until("the task's own child process runs", sleeper_runs, 120)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_and_raise()
    assert all_gone(processes)
    assert not airflow.home.exists()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_the_process_gets_a_signal(
    ending: signal.Signals, dags_folder: Path, tmp_path: Path
) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

        with LocalAirflow(Path(sys.argv[1]), home=Path(sys.argv[2])):
            raise SystemExit("It came up before it was interrupted")
    """)
    home = tmp_path / "home"
    command = [sys.executable, "-c", script, str(dags_folder), str(home)]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = home / "triggerer.log"
    assert eventually(lambda: log.exists() or parent.poll() is not None)
    processes = process_guard.tree(parent.pid)
    # The guardian, three components at least, and the parent itself.
    assert len(processes) >= 5

    parent.send_signal(ending)

    _, errors = parent.communicate(timeout=120)
    assert parent.returncode == -ending, errors
    assert eventually(lambda: all_gone(processes))
    assert eventually(lambda: not home.exists())


def test_the_installed_airflow_is_the_one_that_runs(local_airflow: LocalAirflow) -> None:
    api = "api/v1" if local_airflow.version < (3,) else "api/v2"
    answer = requests.get(f"{local_airflow.base_url}/{api}/version", timeout=60)
    assert answer.json()["version"] == importlib.metadata.version("apache-airflow")


def test_every_component_is_healthy(local_airflow: LocalAirflow) -> None:
    path = "health" if local_airflow.version < (3,) else "api/v2/monitor/health"
    names = {"metadatabase", "scheduler", "triggerer"} | ({"dag_processor"} if local_airflow.version >= (3,) else set())

    def healthy() -> bool:
        health = requests.get(f"{local_airflow.base_url}/{path}", timeout=60).json()
        return {name for name in names if health[name]["status"] == "healthy"} == names

    # A heartbeat can be late on a busy machine.
    local_airflow.wait_until("every component is healthy", healthy, 120)


def test_the_ui_opens_without_a_password(local_airflow: LocalAirflow) -> None:
    with requests.Session() as browser:
        if local_airflow.version < (3,):
            answer = browser.get(f"{local_airflow.base_url}/home", timeout=60)
            assert "/login" not in answer.url
        else:
            browser.get(f"{local_airflow.base_url}/api/v2/auth/login", timeout=60)
            answer = browser.get(f"{local_airflow.base_url}/ui/config", timeout=60)
        assert answer.status_code == 200


def test_deferred_task_passes_through_the_triggerer(
    local_airflow: LocalAirflow, waiting_dag: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    run_id = local_airflow.trigger_dag(waiting_dag, {"path": str(file)})
    local_airflow.wait_for_deferral(waiting_dag, run_id, "wait")
    (trigger,) = [each for each in local_airflow.triggers() if each.classpath.endswith("FileTrigger")]
    assert trigger.kwargs["filepath"] == str(file)
    assert local_airflow.dag_run_state(waiting_dag, run_id) == "running"

    file.touch()

    assert local_airflow.wait_for_dag_run(waiting_dag, run_id) == "success"
    assert local_airflow.task_states(waiting_dag, run_id) == {("wait", -1): "success"}
    assert local_airflow.xcom(waiting_dag, run_id, "wait") == {"number": 1, "nothing": None, "text": "ü"}
    assert local_airflow.xcom(waiting_dag, run_id, "wait", key="path") == str(file)
    assert local_airflow.xcom(waiting_dag, run_id, "wait", key="never pushed") is None
    log = local_airflow.task_log(waiting_dag, run_id, "wait")
    story = ("deferring until the file is there", "TriggerEvent<", "resumed")
    positions = [log.find(sentence) for sentence in story]
    assert -1 not in positions
    assert positions == sorted(positions)


def test_killed_triggerer_can_be_started_again(local_airflow: LocalAirflow, waiting_dag: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    run_id = local_airflow.trigger_dag(waiting_dag, {"path": str(file)})
    local_airflow.wait_for_deferral(waiting_dag, run_id, "wait")

    local_airflow.kill("triggerer", signal.SIGKILL)
    with pytest.raises(LocalAirflowError, match="not running"):
        local_airflow.kill("triggerer", signal.SIGKILL)
    file.touch()
    local_airflow.start("triggerer")

    assert local_airflow.wait_for_dag_run(waiting_dag, run_id) == "success"


def test_hanging_component_is_killed(local_airflow: LocalAirflow, monkeypatch: pytest.MonkeyPatch) -> None:
    process = local_airflow._running["triggerer"]
    family = process_guard.tree(process.pid)
    monkeypatch.setattr("airflow_provider_etlworks.sandbox.demo.local_airflow.STOP_LIMIT", 1.0)

    with pytest.raises(LocalAirflowError, match="waiting until the triggerer ends after signal"):
        local_airflow.kill("triggerer", signal.SIGCONT)

    assert eventually(lambda: all_gone(family))
    local_airflow.start("triggerer")


def test_user_marks_and_clears_a_task(local_airflow: LocalAirflow, waiting_dag: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    run_id = local_airflow.trigger_dag(waiting_dag, {"path": str(file)}, run_id="marked+cleared")
    local_airflow.wait_for_deferral(waiting_dag, run_id, "wait")

    local_airflow.mark(waiting_dag, run_id, "wait", "failed")
    assert local_airflow.wait_for_dag_run(waiting_dag, run_id) == "failed"

    local_airflow.clear(waiting_dag, run_id, "wait")
    local_airflow.wait_for_deferral(waiting_dag, run_id, "wait")
    file.touch()
    assert local_airflow.wait_for_dag_run(waiting_dag, run_id) == "success"
    (task,) = local_airflow.task_instances(waiting_dag, run_id)
    assert task.try_number == 2
    assert "resumed" not in local_airflow.task_log(waiting_dag, run_id, "wait", try_number=1)
    assert "resumed" in local_airflow.task_log(waiting_dag, run_id, "wait", try_number=2)


def test_refusal_of_airflow_is_reported(local_airflow: LocalAirflow, waiting_dag: str) -> None:
    with pytest.raises(LocalAirflowError, match="Airflow answered 404"):
        local_airflow.mark(waiting_dag, "no such run", "wait", "failed")


def test_broken_dag_file_is_reported(local_airflow: LocalAirflow) -> None:
    file = local_airflow.dags_folder / "broken.py"
    file.write_text("from airflow import DAG\nimport no_such_module\n")
    try:
        with pytest.raises(LocalAirflowError, match="no_such_module"):
            local_airflow.wait_for_dag("broken")
    finally:
        file.unlink()
        local_airflow.wait_until("the import error is gone", lambda: not local_airflow.import_errors(), 120)
