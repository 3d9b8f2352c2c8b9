"""
A real Airflow on this machine, during a ``with`` block.

It has its own directory, database, ports and keys, listens on loopback only, and shares nothing with an Airflow that is
set up for the user. It runs the installed Airflow, 2.11 or 3.
"""

import base64
import contextlib
import importlib.metadata
import json
import os
import re
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import requests
from cryptography.fernet import Fernet

from airflow_provider_etlworks.sandbox.demo import process_guard

T = TypeVar("T")

START_LIMIT = 180.0
STOP_LIMIT = 60.0
POLL_INTERVAL = 0.2
LOG_TAIL_LINES = 30
CALL_REPETITIONS = 3
LOST_TASK_LIMIT = "30"

_JOB_TYPES = {"scheduler": "SchedulerJob", "dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}
_FINAL_DAG_RUN_STATES = ("success", "failed")
_LOG_TIME = re.compile(r"(?<=^\[)20\d\d-[\d:.T-]+|^20\d\d-[\d:.T-]+")
_LOG_CONTEXT = {"dag_id", "run_id", "task_id", "ti_id", "map_index", "try_number", "logger", "filename", "lineno"}


class LocalAirflowError(RuntimeError):
    """The local Airflow did not work as expected; the message contains the reason, if its logs show it."""


@dataclass(frozen=True)
class TaskInstance:
    """One task of one DAG run: its present row in Airflow's database."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    start_date: str | None
    end_date: str | None
    pid: int | None


@dataclass(frozen=True)
class StoredTrigger:
    """One trigger in the database, which waits for a triggerer or runs in one."""

    id: int
    classpath: str
    kwargs: dict[str, Any]


class LocalAirflow:
    """
    Start an Airflow, and kill all its processes at the end of the ``with`` block.

    If the process that entered the block is killed, the processes are killed and the directory is removed, too. Nothing
    else on the machine is touched.

    :param dags_folder: Directory with the DAG files; new files are found within a few seconds.
    :param environment: Further environment variables for Airflow, such as ``AIRFLOW_CONN_…`` or ``AIRFLOW__…``. They
        override the settings made here. Variables of the calling process that begin with ``AIRFLOW`` are not inherited.
    :param home: Directory for configuration, database and logs. It is created if it does not exist, and removed at
        the end. Default: a new temporary one.
    :param keep_home: Keep the directory at the end. Default ``False``.
    :raises ValueError: if the directory is inside the folder with the DAG files.
    :raises LocalAirflowError: on entering, if a component does not start.
    """

    def __init__(
        self,
        dags_folder: Path,
        environment: Mapping[str, str] | None = None,
        home: Path | None = None,
        keep_home: bool = False,
    ) -> None:
        self.version = _installed_version()
        self.dags_folder = dags_folder.resolve()
        self.home = (home or Path(tempfile.gettempdir(), f"airflow-{secrets.token_hex(4)}")).resolve()
        if self.home.is_relative_to(self.dags_folder):
            raise ValueError(f"{self.home} is inside {self.dags_folder}: Airflow would find DAGs in its own files")
        self.keep_home = keep_home
        self.port = _free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.marker = secrets.token_hex(16)
        self._fernet_key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        self.env = {**self._environment(), **(environment or {})}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._process_guard: subprocess.Popen[bytes] | None = None
        self._api_token: str | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components, as in Airflow's command line."""
        if self.version < (3,):
            return ("webserver", "scheduler", "triggerer")
        return ("api-server", "scheduler", "dag-processor", "triggerer")

    # ------------------------------------------------------- start and stop

    def __enter__(self) -> "LocalAirflow":
        try:
            self._start_all()
        except BaseException:
            self._end_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_all()

    def _start_all(self) -> None:
        self._temporary.mkdir(parents=True, exist_ok=True)
        to_remove = "" if self.keep_home else str(self.home)
        self._process_guard = subprocess.Popen(  # noqa: S603  # no part of it comes from outside
            [sys.executable, "-m", process_guard.__name__, self.marker, to_remove],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        if self.version < (3,):
            (self.home / "webserver_config.py").write_text('AUTH_ROLE_PUBLIC = "Admin"\n')
        migration = self.cli("db", "migrate")
        if migration.returncode:
            raise LocalAirflowError(f"Airflow's database could not be created:\n{_tail(migration.stderr)}")
        self._prepare_database()
        ready_conditions = [(component, self._spawn(component)) for component in self.components]
        for component, ready in ready_conditions:
            self._wait_until_started(component, ready)

    def _end_all(self) -> None:
        if self._process_guard is None:
            return
        assert self._process_guard.stdin is not None  # noqa: S101  # stdin is a pipe
        self._process_guard.stdin.close()
        for process in self._running.values():
            process.wait(STOP_LIMIT)
        self._running.clear()
        if self._process_guard.wait(STOP_LIMIT):
            raise LocalAirflowError(f"Airflow's processes were ended, but {self.home} could not be removed")
        self._process_guard = None

    def start(self, component: str) -> None:
        """
        Start a component and wait until it is ready.

        :param component: One of :attr:`components`.
        :raises LocalAirflowError: if it ends at once, or is not ready within three minutes.
        """
        if component in self._running:
            raise LocalAirflowError(f"The {component} is already running")
        self._wait_until_started(component, self._spawn(component))

    def stop(self, component: str) -> None:
        """
        Ask a component to end (SIGTERM), as a deployment does, and wait until it has ended.

        :param component: One of :attr:`components`.
        :raises LocalAirflowError: if it is still running after a minute.
        """
        self.kill(component, signal.SIGTERM)

    def kill(self, component: str, signal_number: int = signal.SIGKILL) -> None:
        """
        Send a signal to a component and wait until it and all its child processes have ended.

        SIGKILL is sent to all of them at the same moment, as if their machine failed. Any other signal is sent to the
        component's main process only.

        :param component: One of :attr:`components`.
        :param signal_number: Default SIGKILL.
        :raises LocalAirflowError: if it does not run, or is still running after a minute. Then it is killed.
        """
        process = self._running.pop(component, None)
        if process is None:
            raise LocalAirflowError(f"The {component} is not running")
        family = process_guard.tree(process.pid)
        if signal_number == signal.SIGKILL:
            process_guard.kill(family)
        else:
            process.send_signal(signal_number)
        try:
            self.wait_until(
                f"the {component} ends after signal {signal_number}",
                lambda: not any(process_guard.alive(member) for member in family),
                STOP_LIMIT,
            )
        finally:
            process_guard.kill(family)
            process.wait()

    def _spawn(self, component: str) -> Callable[[], bool]:
        """Start a component; return a function that checks whether it is ready."""
        ready = self._ready_condition(component)
        with self.component_log(component).open("ab") as log:
            self._running[component] = subprocess.Popen(  # noqa: S603  # no part of it comes from outside
                [sys.executable, "-m", "airflow", *self._command(component)],
                env=self._environment_of(component),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return ready

    def _ready_condition(self, component: str) -> Callable[[], bool]:
        """Return a function that checks whether a component that is about to start is ready."""
        job_type = _JOB_TYPES.get(component)
        if job_type is None:
            return self._ui_is_ready
        last_job = self._last_job(job_type)
        return lambda: self._has_heartbeat(job_type, last_job)

    def _command(self, component: str) -> tuple[str, ...]:
        """Return what starts a component, after ``airflow`` on the command line."""
        if component in ("scheduler", "triggerer"):
            # The UI reads the log files directly; a log server would take three more processes.
            return (component, "--skip-serve-logs")
        if component in ("webserver", "api-server"):
            return (component, "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1")
        return (component,)

    def _environment_of(self, component: str) -> dict[str, str]:  # a deployment's differ
        return self.env

    def _wait_until_started(self, component: str, ready: Callable[[], bool]) -> None:
        self.wait_until(f"the {component} has started", ready, START_LIMIT)

    def _last_job(self, job_type: str) -> int:
        ((last,),) = self._query("SELECT coalesce(max(id), 0) FROM job WHERE job_type = ?", job_type)
        return int(last)

    def _has_heartbeat(self, job_type: str, last_job: int) -> bool:
        # A job row is not enough: Airflow 3.0's triggerer loses a SIGTERM that arrives before its first loop.
        statement = "SELECT 1 FROM job WHERE job_type = ? AND id > ? AND latest_heartbeat > start_date"
        return bool(self._query(statement, job_type, last_job))

    def _ui_is_ready(self) -> bool:
        path = "/health" if self.version < (3,) else "/api/v2/monitor/health"
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            return self._http("GET", path).ok
        return False

    # -------------------------------------------------------------- settings

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        no_proxy = ",".join(filter(None, (inherited.get("NO_PROXY") or inherited.get("no_proxy"), "127.0.0.1")))
        return {
            **inherited,
            process_guard.MARKER: self.marker,
            "AIRFLOW_HOME": str(self.home),
            **{f"AIRFLOW__{name}": value for name, value in self._settings().items()},
            # Airflow 2's executor searches the command `airflow` there.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
            # Process titles must not overwrite the environment, which contains our marker.
            "SPT_NOENV": "1",
            # Files that killed tasks leave behind are removed with the directory.
            "TMPDIR": str(self._temporary),
            "SCARF_ANALYTICS": "false",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
            # Airflow forks, and macOS otherwise crashes the child.
            "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",
            "PYTHONUNBUFFERED": "1",
        }

    def _settings(self) -> dict[str, str]:
        common = {
            "CORE__DAGS_FOLDER": str(self.dags_folder),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "CORE__FERNET_KEY": self._fernet_key,
            "CORE__HOSTNAME_CALLABLE": "socket.gethostname",
            "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
            "CORE__MIN_SERIALIZED_DAG_FETCH_INTERVAL": "0",
            "CORE__PARALLELISM": "4",
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self._database}",
            "LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            "USAGE_DATA_COLLECTION__ENABLED": "False",
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            "SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
            "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
            "TRIGGERER__JOB_HEARTBEAT_SEC": "1",
            # After so many seconds, another triggerer takes over the triggers of a killed one.
            "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
        }
        if self.version < (3,):
            return {
                **common,
                "CORE__EXECUTOR": "SequentialExecutor",
                "API__AUTH_BACKENDS": "airflow.api.auth.backend.default",
                "SCHEDULER__DAG_DIR_LIST_INTERVAL": "1",
                "SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": LOST_TASK_LIMIT,
                "WEBSERVER__BASE_URL": self.base_url,
                "WEBSERVER__SECRET_KEY": secrets.token_hex(32),
            }
        return {
            **common,
            "API__BASE_URL": self.base_url,
            "API__SECRET_KEY": secrets.token_hex(32),
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
            "CORE__EXECUTION_API_SERVER_URL": f"{self.base_url}/execution/",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "1",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": LOST_TASK_LIMIT,
            # A supervisor that just misses the exit of its task's process checks again only after this interval, and
            # triggers yield nothing before that.
            "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        }

    # -------------------------------------------------------------- actions

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """
        Run an ``airflow`` command to its end.

        :param arguments: What follows ``airflow`` on the command line.
        :return: Exit code, standard output and standard error.
        """
        return subprocess.run(  # noqa: S603  # the arguments come from the caller
            [sys.executable, "-m", "airflow", *arguments],
            env=self.env,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def trigger_dag(self, dag_id: str, conf: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
        """
        Start a DAG run, as the button in the UI does. Waits until the DAG is parsed.

        :param dag_id: The DAG.
        :param conf: Configuration of the run. Default: none.
        :param run_id: Its id. Default: a new one.
        :return: The id of the run.
        :raises LocalAirflowError: if the DAG does not exist, or Airflow refuses the run.
        """
        self.wait_for_dag(dag_id)
        run_id = run_id or f"manual__{secrets.token_hex(6)}"
        body: dict[str, Any] = {"dag_run_id": run_id, "conf": dict(conf or {})}
        if self.version >= (3,):
            body["logical_date"] = None
        self._call("POST", f"/dags/{_quoted(dag_id)}/dagRuns", body)
        return run_id

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        """
        Set a task's state, as a person does in the UI.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :param task_id: The task.
        :param state: ``success``, ``failed`` or ``skipped``.
        :param map_index: Which instance of a mapped task. Default -1: the task is not mapped.
        :raises LocalAirflowError: if Airflow refuses.
        """
        path = f"/dags/{_quoted(dag_id)}/dagRuns/{_quoted(run_id)}/taskInstances/{_quoted(task_id)}"
        if map_index >= 0:
            path += f"/{map_index}"
        # Airflow 2 has dry runs by default; Airflow 3 does not know the field.
        really = {"dry_run": False} if self.version < (3,) else {}
        self._call("PATCH", path, {"new_state": state, **really})

    def clear(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> None:
        """
        Clear a task so that it runs again, as a person does in the UI.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :param task_id: The task; nothing downstream of it is cleared.
        :param map_index: Which instance of a mapped task. Default -1: all of them.
        :raises NotImplementedError: for one instance of a mapped task on Airflow 2, whose API cannot do that.
        :raises LocalAirflowError: if Airflow refuses.
        """
        if map_index >= 0 and self.version < (3,):
            raise NotImplementedError("Airflow 2 clears a mapped task as a whole")
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [[task_id, map_index] if map_index >= 0 else task_id],
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self._call("POST", f"/dags/{_quoted(dag_id)}/clearTaskInstances", body)

    def wait_for_question(self, dag_id: str, run_id: str, task_id: str, timeout: float = 120.0) -> dict[str, Any]:
        """
        Wait until a task asks a person for input. Airflow before 3.1 has no such tasks.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :param task_id: The task.
        :param timeout: Seconds. Default 120.
        :return: The question, as Airflow's API returns it: ``subject``, ``body`` in Markdown, ``options``, ….
        :raises LocalAirflowError: if it does not ask in time, or a component died in the meantime.
        """
        self.wait_for_deferral(dag_id, run_id, task_id, timeout=timeout)
        question: dict[str, Any] = self._call("GET", _question_path(dag_id, run_id, task_id))
        return question

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str) -> None:
        """
        Answer a task that asks a person for input, as the buttons in the UI do.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :param task_id: The task, which must be waiting already.
        :param option: One of its options, such as ``Approve``.
        :raises LocalAirflowError: if Airflow refuses.
        """
        body = {"chosen_options": [option], "params_input": {}}
        self._call("PATCH", _question_path(dag_id, run_id, task_id), body)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        answer = self._api(method, path, json=body)
        for _ in range(CALL_REPETITIONS):
            # Another process held sqlite's lock for too long, and nothing was done.
            if answer.status_code != HTTPStatus.INTERNAL_SERVER_ERROR or "Database error" not in answer.text:
                break
            time.sleep(POLL_INTERVAL)
            answer = self._api(method, path, json=body)
        if not answer.ok:
            raise LocalAirflowError(f"Airflow answered {answer.status_code} to {method} {path}: {answer.text}")
        return answer.json() if answer.content else None

    def _api(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """Send a request to Airflow's own API."""
        if self.version < (3,):
            return self._http(method, f"/api/v1{path}", **arguments)
        if self._api_token is None:
            self._api_token = self._http("GET", "/auth/token").json()["access_token"]
        return self._http(method, f"/api/v2{path}", headers={"Authorization": f"Bearer {self._api_token}"}, **arguments)

    def _http(self, method: str, path: str, **arguments: Any) -> requests.Response:
        with requests.Session() as session:
            # Requests within this machine must not use a proxy of the environment.
            session.trust_env = False
            return session.request(method, self.base_url + path, timeout=60, **arguments)

    # --------------------------------------------------------------- queries

    def wait_until(
        self, what: str, condition: Callable[[], T], timeout: float, describe: Callable[[], object] = str
    ) -> T:
        """
        Wait for a condition while the components run.

        :param what: The condition in words, for the error message.
        :param condition: Checked a few times a second, until it returns a true value.
        :param timeout: Seconds.
        :param describe: Returns the present state, for the error message. Default: nothing.
        :return: What ``condition`` returned.
        :raises LocalAirflowError: if the condition is not met in time, or a component died in the meantime.
        """
        give_up = time.monotonic() + timeout
        while not (value := condition()):
            for component, process in self._running.items():
                if process.poll() is not None:
                    raise LocalAirflowError(
                        f"The {component} ended with exit code {process.returncode}:\n{self._log_tail(component)}"
                    )
            if time.monotonic() > give_up:
                logs = "\n".join(f"--- {component}\n{self._log_tail(component)}" for component in self._running)
                raise LocalAirflowError(f"Timed out after {timeout:.0f} s waiting until {what}. {describe()}\n{logs}")
            time.sleep(POLL_INTERVAL)
        return value

    def wait_for_dag(self, dag_id: str, timeout: float = 120.0) -> None:
        """
        Wait until a DAG is parsed and can run.

        :param dag_id: The DAG.
        :param timeout: Seconds. Default 120.
        :raises LocalAirflowError: if it is not parsed in time, or its file cannot be imported.
        """

        def parsed() -> bool:
            if self._query("SELECT 1 FROM serialized_dag WHERE dag_id = ?", dag_id):
                # Airflow 2 stores the DAG in two steps.
                return self._api("GET", f"/dags/{_quoted(dag_id)}").ok
            if errors := self.import_errors():
                raise LocalAirflowError("\n".join(f"{file} cannot be imported:\n{errors[file]}" for file in errors))
            return False

        self.wait_until(f"DAG {dag_id} is parsed", parsed, timeout)

    def import_errors(self) -> dict[str, str]:
        """
        List the DAG files that cannot be imported.

        :return: Traceback by file.
        """
        return {str(file): str(trace) for file, trace in self._query("SELECT filename, stacktrace FROM import_error")}

    def dag_run_state(self, dag_id: str, run_id: str) -> str:
        """
        Return the state of a DAG run.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :return: ``queued``, ``running``, ``success`` or ``failed``; empty if the run does not exist.
        """
        rows = self._query("SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?", dag_id, run_id)
        return str(rows[0]["state"]) if rows else ""

    def wait_for_dag_run(self, dag_id: str, run_id: str, timeout: float = 240.0) -> str:
        """
        Wait until a DAG run has ended.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :param timeout: Seconds. Default 240.
        :return: ``success`` or ``failed``.
        :raises LocalAirflowError: if it has not ended in time, or a component died in the meantime.
        """

        def ended() -> str:
            state = self.dag_run_state(dag_id, run_id)
            return state if state in _FINAL_DAG_RUN_STATES else ""

        return self.wait_until(
            f"run {run_id} of DAG {dag_id} ends", ended, timeout, lambda: self.task_states(dag_id, run_id)
        )

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """
        List the tasks of a DAG run.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :return: One entry for each task, and for each instance of a mapped task, by name and map index.
        """
        rows = self._query(
            "SELECT task_id, map_index, state, try_number, start_date, end_date, pid FROM task_instance"
            " WHERE dag_id = ? AND run_id = ? ORDER BY task_id, map_index",
            dag_id,
            run_id,
        )
        return [TaskInstance(**dict(row)) for row in rows]

    def task_states(self, dag_id: str, run_id: str) -> dict[tuple[str, int], str | None]:
        """
        Return the states of a DAG run's tasks.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :return: State by task id and map index; -1 if the task is not mapped. ``None``: not scheduled yet.
        """
        return {(task.task_id, task.map_index): task.state for task in self.task_instances(dag_id, run_id)}

    def wait_for_task_state(
        self, dag_id: str, run_id: str, task_id: str, *states: str, map_index: int = -1, timeout: float = 120.0
    ) -> str:
        """
        Wait until a task is in one of the given states.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :param task_id: The task.
        :param states: The states to wait for.
        :param map_index: Which instance of a mapped task. Default -1: the task is not mapped.
        :param timeout: Seconds. Default 120.
        :return: The state it is in.
        :raises LocalAirflowError: if it is in none of them in time, or a component died in the meantime.
        """

        def reached() -> str:
            state = self.task_states(dag_id, run_id).get((task_id, map_index))
            return state if state in states else ""

        return self.wait_until(
            f"task {task_id} of DAG {dag_id} is {' or '.join(states)}",
            reached,
            timeout,
            lambda: self.task_states(dag_id, run_id),
        )

    def wait_for_deferral(self, dag_id: str, run_id: str, task_id: str, timeout: float = 120.0) -> None:
        """
        Wait until a task has deferred, or asks a person for input, and the scheduler knows it.

        If a trigger fires, or a person answers, before the scheduler has seen the deferred process exit, Airflow takes
        that exit for a crash of the resumed task.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :param task_id: The task, which is not mapped.
        :param timeout: Seconds. Default 120.
        :raises LocalAirflowError: if it has not deferred in time, or a component died in the meantime.
        """
        self.wait_for_task_state(dag_id, run_id, task_id, "deferred", "awaiting_input", timeout=timeout)
        try_number = {task.task_id: task.try_number for task in self.task_instances(dag_id, run_id)}[task_id]
        one_try = f"{dag_id=}, {task_id=}, {run_id=}, {try_number=}, map_index=-1"
        news = f"Received executor event with state success for task instance TaskInstanceKey({one_try})"
        self.wait_until(f"the scheduler knows that {task_id} waits", lambda: news in self._scheduler_log(), timeout)

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, key: str = "return_value") -> Any:
        """
        Read an XCom of a task.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :param task_id: The task.
        :param map_index: Which instance of a mapped task. Default -1: the task is not mapped.
        :param key: The XCom's key. Default ``return_value``.
        :return: The value; ``None`` if there is none.
        """
        rows = self._query(
            "SELECT CAST(value AS TEXT) AS value FROM xcom"
            " WHERE dag_id = ? AND run_id = ? AND task_id = ? AND map_index = ? AND key = ?",
            *(dag_id, run_id, task_id, map_index, key),
        )
        return json.loads(rows[0]["value"]) if rows else None

    def triggers(self) -> list[StoredTrigger]:
        """
        List the triggers in the database.

        :return: Those that have not ended, oldest first.
        """
        return [
            StoredTrigger(row["id"], row["classpath"], _plain(json.loads(self._decrypted(row["kwargs"]))))
            for row in self._query("SELECT id, classpath, kwargs FROM trigger ORDER BY id")
        ]

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, try_number: int | None = None
    ) -> str:
        """
        Read a task's log, including the part of the triggerer.

        :param dag_id: The DAG.
        :param run_id: The DAG run.
        :param task_id: The task.
        :param map_index: Which instance of a mapped task. Default -1: the task is not mapped.
        :param try_number: Which try. Default: all of them.
        :return: Its lines, sorted by time; empty if nothing was logged.
        """
        folder = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        if map_index >= 0:
            folder /= f"map_index={map_index}"
        lines: list[tuple[str, str]] = []
        for file in sorted(folder.glob(f"attempt={try_number or '*'}.log*")):
            written = ""
            for line in map(_log_line, file.read_text(errors="replace").splitlines()):
                # A line without a time belongs to the previous line.
                written = found.group() if (found := _LOG_TIME.search(line)) else written
                lines.append((written, line))
        return "\n".join(line for _, line in sorted(lines, key=itemgetter(0)))

    def component_log(self, component: str) -> Path:
        """
        Return the log file of a component.

        :param component: One of :attr:`components`.
        :return: The file.
        """
        return self.home / f"{component}.log"

    # --------------------------------------------------------------- helpers

    @property
    def _database(self) -> Path:
        return self.home / "airflow.db"

    @property
    def _temporary(self) -> Path:
        return self.home / "tmp"

    def _decrypted(self, text: str) -> str:
        # Airflow encrypts a trigger's arguments in some cases, and stores them as JSON in others.
        return text if text.startswith("{") else Fernet(self._fernet_key).decrypt(text.encode()).decode()

    def _prepare_database(self) -> None:
        with contextlib.closing(sqlite3.connect(self._database)) as connection:
            # Otherwise each writer blocks all readers, and Airflow has five processes that write.
            connection.execute("PRAGMA journal_mode=WAL")

    def _query(self, statement: str, *values: Any) -> Sequence[Any]:
        uri = f"{self._database.as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(statement, values).fetchall()

    def _scheduler_log(self) -> str:
        return self.component_log("scheduler").read_text(errors="replace")

    def _log_tail(self, component: str) -> str:
        return _tail(self.component_log(component).read_text(errors="replace"))


def _installed_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("apache-airflow"))[:3])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _question_path(dag_id: str, run_id: str, task_id: str) -> str:
    run_path = f"/dags/{_quoted(dag_id)}/dagRuns/{_quoted(run_id)}"
    return f"{run_path}/taskInstances/{_quoted(task_id)}/-1/hitlDetails"


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


def _log_line(line: str) -> str:
    """Format a line of Airflow 3's JSON logs as text; lines of Airflow 2 already are text."""
    try:
        entry = json.loads(line)
        start = [entry.pop("timestamp"), entry.pop("level").upper(), entry.pop("event")]
    except (ValueError, TypeError, KeyError, AttributeError):
        return line
    more = (f"{name}={json.dumps(entry[name], ensure_ascii=False)}" for name in entry if name not in _LOG_CONTEXT)
    return " ".join([*start, *more])


def _plain(stored: Any) -> Any:
    """Return the values without the envelopes of Airflow's serialization."""
    if isinstance(stored, dict):
        for envelope in ("__var", "__data__"):
            if envelope in stored:
                return _plain(stored[envelope])
        return {name: _plain(value) for name, value in stored.items()}
    if isinstance(stored, list):
        return [_plain(value) for value in stored]
    return stored
