"""
An Airflow as platform teams run it: PostgreSQL, Celery over Redis, and two of each component that may have a twin.

Each component is a machine of its own to Airflow: it has its own host name, and those of the triggerers reach the
database over a network link that a test can cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.sandbox.demo import process_guard
from support.every_nth import EveryNth
from support.postgresql import PostgresAirflow, free_port
from support.proxy import Break, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOW_TO_INSTALL = (
    "needs PostgreSQL's and Redis's servers (Debian: apt-get install postgresql redis-server) and the packages of the "
    "dependency group `deployment`"
)

_START_LIMIT = 60.0
# Tasks that one Celery worker runs at the same time.
_CONCURRENCY = 4
_JOB_TYPES = {"scheduler": "SchedulerJob", "triggerer": "TriggererJob"}
_HOST_NAME = "import os\n\n\ndef get():\n    return os.environ['DEPLOYMENT_HOST']\n"


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """
    Run a Redis that keeps nothing.

    :return: its URL.
    """
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        port = free_port()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(["redis-server", *options], stdout=log, stderr=log)
        try:
            _wait_until_open(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def object_store(bucket: str) -> Iterator[dict[str, str]]:
    """
    Run an S3 with one empty bucket.

    :return: the environment variables with which fsspec finds it.
    """
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="local",
            aws_secret_access_key="local",
            region_name="us-east-1",
        ).create_bucket(Bucket=bucket)
        yield environment
    finally:
        server.stop()


class FaultyProxy(Proxy):
    """
    A proxy that breaks the connection of some requests: before it forwards them, after the answer, or inside it.

    :ivar breaks: which requests.
    """

    def __init__(self) -> None:
        super().__init__()
        self.breaks = EveryNth()
        self.broken = 0

    def _take_break(self, method: str, target: str) -> Break | None:
        with self._lock:
            if not self.breaks.picks(method, target):
                return None
            self.broken += 1
            return (Break.BEFORE_FORWARDING, Break.AFTER_RESPONSE, Break.INSIDE_RESPONSE)[self.broken % 3]


def with_extra(connection: str, **extra: Any) -> str:
    """Return an Airflow connection with further fields in its extra."""
    fields = json.loads(connection)
    return json.dumps({**fields, "extra": {**fields["extra"], **extra}})


def has_redis() -> bool:
    """Return whether this machine has the server."""
    return shutil.which("redis-server") is not None


def _wait_until_open(port: int) -> None:
    give_up = time.monotonic() + _START_LIMIT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
        else:
            return


class Link:
    """
    A network link to a server. While it is cut, nothing passes: neither answers nor errors. A context manager.

    :param port: the server's port on this machine.
    :ivar port: the port on which the link listens.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._open = threading.Event()
        self._open.set()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Link:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._open.set()
        self._drop()

    def cut(self) -> None:
        """Let nothing pass any more."""
        self._open.clear()

    def restore(self) -> None:
        """Let new connections pass. Those from before the cut are dropped, as after a time-out of the network."""
        self._drop()
        self._open.set()

    def _drop(self) -> None:
        dropped, self._sockets = self._sockets, []
        for each in dropped:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._open.wait()
        with contextlib.suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._sockets += [client, server]
            threading.Thread(target=self._pass, args=(server, client), daemon=True).start()
            self._pass(client, server)

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        # Whoever hangs up first ends both directions.
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self._open.wait()
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Deployment(PostgresAirflow):
    """
    A deployment with two schedulers, two triggerers and two Celery workers.

    :param dags_folder: the folder with the DAG files.
    :param database_url: PostgreSQL's URL.
    :param redis_url: the URL of Celery's broker.
    :param links: the triggerers' links to the database, by component.
    :param environment: further environment variables.
    """

    def __init__(
        self,
        dags_folder: Path,
        database_url: str,
        redis_url: str,
        links: dict[str, Link],
        environment: dict[str, str],
    ) -> None:
        self.links = links
        self._host_names = tempfile.TemporaryDirectory(prefix="host-name-")
        Path(self._host_names.name, "deployment_host_name.py").write_text(_HOST_NAME)
        super().__init__(
            dags_folder,
            database_url,
            {
                "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
                # More would wait in Celery's queue, which Airflow takes for a fault of Celery after a while.
                "AIRFLOW__CORE__PARALLELISM": "24",
                "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "300",
                "AIRFLOW__CORE__MAX_MAP_LENGTH": "1024",
                "AIRFLOW__CORE__HOSTNAME_CALLABLE": "deployment_host_name.get",
                "AIRFLOW__CELERY__BROKER_URL": redis_url,
                "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database_url}",
                "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(_CONCURRENCY),
                # What a killed worker had taken from the queue is another worker's after so many seconds.
                "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "120",
                "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "180",
                # Two schedulers that look more often take the time that the tasks need.
                "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
                "AIRFLOW__TRIGGERER__CAPACITY": "1000",
                # On a busy machine, a triggerer that is well may be late by more than the local Airflow's five seconds.
                "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
                "PYTHONPATH": os.pathsep.join(filter(None, (self._host_names.name, os.environ.get("PYTHONPATH")))),
                "DEPLOYMENT_HOST": "elsewhere",
                **environment,
            },
        )
        # As where packages are installed once: else each task's process compiles what it imports.
        self.env |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self.home / "bytecode")}

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components. Those with a number have a twin."""
        twins = tuple(f"{name}-{number}" for name in ("scheduler", "triggerer", "worker") for number in (1, 2))
        return ("api-server", "dag-processor", *twins)

    def restart(self, component: str) -> None:
        """End a component as a deploy does, and start it again."""
        self.stop(component)
        self.start(component)

    def replace(self, component: str) -> None:
        """Kill a component without notice, and start it again."""
        self.kill(component)
        self.start(component)

    @contextlib.contextmanager
    def cut_off(self, component: str) -> Iterator[None]:
        """
        Cut a triggerer off from the database during a block.

        Airflow may end it for that; then it is started again afterwards, as an orchestrator does.
        """
        process = self._running.pop(component)
        self.links[component].cut()
        try:
            yield
        finally:
            self.links[component].restore()
            if process.poll() is None:
                self._running[component] = process
            else:
                self.start(component)

    @contextlib.contextmanager
    def frozen(self, component: str) -> Iterator[None]:
        """Let a component stand still during a block, as a machine without time for it does."""
        family = process_guard.tree(self._running[component].pid)
        for process in family:
            process.suspend()
        try:
            yield
        finally:
            for process in family:
                process.resume()

    def owners_of_triggers(self) -> dict[str | None, int]:
        """Count the triggers by the component that runs them."""
        rows = self._query(
            "SELECT job.hostname, count(*) FROM trigger LEFT JOIN job ON job.id = trigger.triggerer_id GROUP BY 1"
        )
        return {name: int(number) for name, number in rows}

    def execute(self, statement: str, *values: Any) -> None:
        """Change the database, for what Airflow itself has no way to do."""
        import psycopg2

        url = self.env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
        with contextlib.closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(statement, values)

    def count_states(self, dag_id: str, run_id: str) -> dict[str | None, int]:
        """Count the tasks of a DAG run by state."""
        rows = self._query(
            "SELECT state, count(*) FROM task_instance WHERE dag_id = ? AND run_id = ? GROUP BY state", dag_id, run_id
        )
        return {state: int(number) for state, number in rows}

    def _command(self, component: str) -> tuple[str, ...]:
        kind, _, number = component.rpartition("-")
        if kind == "worker":
            # No log server: the log files are on this machine. No gossip: the workers need not know each other.
            options = (
                "--skip-serve-logs",
                "--without-gossip",
                "--without-mingle",
                "--pid",
                f"{self.home}/{component}.pid",
            )
            return ("celery", "worker", "--celery-hostname", component, *options)
        return super()._command(kind if number.isdecimal() else component)

    def _environment_of(self, component: str) -> dict[str, str]:
        environment = {**self.env, "DEPLOYMENT_HOST": component}
        if link := self.links.get(component):
            before, _, _ = self.env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].rpartition(":")
            environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"{before}:{link.port}/postgres"
        return environment

    def _ready_condition(self, component: str) -> Callable[[], bool]:
        kind, _, number = component.rpartition("-")
        if not number.isdecimal():
            return super()._ready_condition(component)
        if kind == "worker":
            log = self.component_log(component)
            already = log.read_text(errors="replace").count(" ready.") if log.exists() else 0
            return lambda: log.read_text(errors="replace").count(" ready.") > already
        job_type = _JOB_TYPES[kind]
        last_job = self._last_job(job_type)
        statement = "SELECT 1 FROM job WHERE job_type = ? AND hostname = ? AND id > ? AND latest_heartbeat > start_date"
        return lambda: bool(self._query(statement, job_type, component, last_job))

    def _scheduler_log(self) -> str:
        logs = (self.component_log(f"scheduler-{number}") for number in (1, 2))
        return "".join(log.read_text(errors="replace") for log in logs)

    def __exit__(self, *arguments: object) -> None:
        super().__exit__(*arguments)  # type: ignore[arg-type]
        self._host_names.cleanup()
