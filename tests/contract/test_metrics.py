"""What Airflow's own metrics receive: counters, gauges and timers of a connection, and nothing if metrics are off."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.etlworks import ScriptedServer
from support.task import CONN_VARIABLE, FLOW, RECORD_PATH, RUN_PATH

from airflow_provider_etlworks import compat
from airflow_provider_etlworks.client import endpoints
from airflow_provider_etlworks.client.metrics import NO_METRICS
from airflow_provider_etlworks.hooks import metrics
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.runs.follow import Ending
from airflow_provider_etlworks.runs.types import PollPolicy
from airflow_provider_etlworks.sandbox import hang_up, status
from airflow_provider_etlworks.triggerer.wait_for_run import wait_for_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.etlworks import Etlworks

SWITCH = "AIRFLOW__METRICS__STATSD_ON"
both_modes = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])


class RecordingStats:
    """Airflow's ``Stats``, as far as it is used: keeps each name with its values and its tags."""

    def __init__(self) -> None:
        self.emitted: dict[str, list[float]] = {}
        self.tags: list[dict[str, str]] = []
        self.fault: Exception | None = None

    def incr(self, stat: str, *, tags: dict[str, str]) -> None:
        self._keep(stat, 1, tags)

    def gauge(self, stat: str, value: float, *, tags: dict[str, str]) -> None:
        self._keep(stat, value, tags)

    def timing(self, stat: str, dt: float, *, tags: dict[str, str]) -> None:
        self._keep(stat, dt, tags)

    def timer(self, stat: str, *, tags: dict[str, str]) -> None:
        """Begin to measure; nothing is emitted."""

    def _keep(self, stat: str, value: float, tags: dict[str, str]) -> None:
        if self.fault is not None:
            raise self.fault
        self.emitted.setdefault(stat, []).append(value)
        self.tags.append(tags)

    def count(self, stat: str) -> int:
        return len(self.emitted.get(stat, []))


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> RecordingStats:
    """Let Airflow's metrics be on, and be these."""
    recording = RecordingStats()
    monkeypatch.setenv(SWITCH, "True")
    for name in ("ComponentStats", "TaskStats"):
        # Not setattr, which would put the real one there afterwards.
        monkeypatch.setitem(compat.__dict__, name, recording)
    return recording


def polls_received(etlworks: Etlworks) -> int:
    return sum(each.method == "GET" and "/executions/" in each.path for each in etlworks.sandbox.requests)


@both_modes
def test_each_poll_and_the_detection_lag_are_emitted(
    etlworks: Etlworks, stats: RecordingStats, deferrable: bool
) -> None:
    went = etlworks.task(deferrable=deferrable).run()

    assert went.colour == "success"
    assert stats.count(metrics.POLLS) == polls_received(etlworks) > 3
    (lag,) = stats.emitted[metrics.DETECTION_LAG]
    assert 0 <= lag <= 10_000  # the default poll_interval, in milliseconds
    assert all(tags == {"conn_id": "etlworks_default"} for tags in stats.tags)
    assert stats.count(metrics.STARTS_IN_DOUBT) == stats.count(metrics.LOST_TOUCH) == 0
    assert stats.count(metrics.REQUESTS_REFUSED) == 0
    assert set(stats.emitted.get(metrics.THROTTLE_FACTOR, [])) == ({1.0} if deferrable else set())


@both_modes
def test_each_refused_request_is_counted(etlworks: Etlworks, stats: RecordingStats, deferrable: bool) -> None:
    etlworks.flow(running=600)
    etlworks.sandbox.fault("GET", RECORD_PATH, status(429), times=3, after=3)
    etlworks.sandbox.fault("POST", RUN_PATH, status(429), times=2)

    assert etlworks.task(deferrable=deferrable).run().colour == "success"
    assert stats.count(metrics.REQUESTS_REFUSED) == 5


@pytest.mark.parametrize("carried_out", [True, False])
def test_each_start_in_doubt_is_counted(etlworks: Etlworks, stats: RecordingStats, carried_out: bool) -> None:
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up(carried_out=carried_out))

    assert etlworks.task().run().colour == "success"
    assert stats.count(metrics.STARTS_IN_DOUBT) == 1


def test_start_in_doubt_of_the_hook_is_counted(etlworks: Etlworks, stats: RecordingStats) -> None:
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up())
    EtlworksHook().run_flow(FLOW)
    assert stats.count(metrics.STARTS_IN_DOUBT) == 1


@both_modes
def test_lost_touch_is_counted_once(etlworks: Etlworks, stats: RecordingStats, deferrable: bool) -> None:
    etlworks.sandbox.fault("GET", RECORD_PATH, status(503), times=None, after=3)

    assert etlworks.task(deferrable=deferrable, patience=300).run().colour == "failed"
    assert stats.count(metrics.LOST_TOUCH) == 1
    assert stats.count(metrics.DETECTION_LAG) == 0


@pytest.mark.parametrize("is_going", [True, False])
def test_sensor_has_a_lag_only_if_the_run_was_going(etlworks: Etlworks, stats: RecordingStats, is_going: bool) -> None:
    etlworks.flow(running=120)
    audit_id = etlworks.sandbox.run_by_schedule(FLOW)
    etlworks.clock.sleep(1 if is_going else 3600)

    waiting = wait_for_run(
        FLOW,
        audit_id=audit_id,
        message_uuid=None,
        since=None,
        policy=PollPolicy(poll_interval=10),
        repetition_grace=0,
        pause=0,
        conn_id="etlworks_default",
        root_url=None,
        log=logging.root,
    )

    assert asyncio.run(waiting).followed.ending is Ending.FINISHED
    assert stats.count(metrics.DETECTION_LAG) == is_going


# --- Airflow's metrics must not disturb -----------------------------------------------------------------------------


@both_modes
def test_broken_backend_ends_nothing(etlworks: Etlworks, stats: RecordingStats, deferrable: bool) -> None:
    stats.fault = RuntimeError("The backend is broken.")
    etlworks.sandbox.fault("POST", RUN_PATH, hang_up())

    assert etlworks.task(deferrable=deferrable).run().colour == "success"
    assert stats.emitted == {}
    warnings = etlworks.warnings("cannot emit", "The backend is broken.")
    # One for each object that emits: that of the task, of its client, and of the triggerer.
    assert 1 <= len(warnings) <= 6


@both_modes
def test_backend_that_cannot_be_opened_ends_nothing(
    etlworks: Etlworks, stats: RecordingStats, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    monkeypatch.setattr(stats, "timer", lambda *_, **__: 1 / 0)

    assert etlworks.task(deferrable=deferrable).run().colour == "success"
    assert stats.emitted == {}
    assert etlworks.warnings("metrics cannot be used", "ZeroDivisionError")


@both_modes
def test_nothing_is_imported_while_metrics_are_off(
    etlworks: Etlworks, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    for name in ("ComponentStats", "TaskStats"):
        monkeypatch.setitem(compat._IMPORTED_LATE, name, ("nowhere:Stats", "nowhere:Stats"))

    assert etlworks.task(deferrable=deferrable).run().colour == "success"
    assert EtlworksHook().client.metrics is NO_METRICS
    assert asyncio.run(metrics.component_metrics("etlworks_default")) is NO_METRICS
    assert not etlworks.warnings("metrics")
    # It would show.
    monkeypatch.setenv(SWITCH, "True")
    assert EtlworksHook().client.metrics is NO_METRICS
    assert etlworks.warnings("metrics cannot be used", "nowhere")


@pytest.mark.parametrize("switch", ["STATSD_ON", "STATSD_DATADOG_ENABLED", "OTEL_ON"])
def test_each_backend_switches_metrics_on(stats: RecordingStats, monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    monkeypatch.delenv(SWITCH)
    assert metrics.task_metrics("etlworks_default") is NO_METRICS
    monkeypatch.setenv(f"AIRFLOW__METRICS__{switch}", "True")
    metrics.task_metrics("etlworks_default").lost_touch()
    assert stats.count(metrics.LOST_TOUCH) == 1


@pytest.mark.parametrize(
    ("conn_id", "tag"),
    [
        ("etlworks_default", "etlworks_default"),
        ("etl-works.eu", "etl-works.eu"),
        ("etl works,eu=1|c\n:ä/#", "etl_works_eu_1_c_____"),
        ("x" * 250, "x" * 100),
        (None, "none"),
    ],
)
def test_tag_has_only_characters_that_each_backend_takes(stats: RecordingStats, conn_id: str | None, tag: str) -> None:
    metrics.task_metrics(conn_id).lost_touch()
    assert stats.tags == [{"conn_id": tag}]


def test_only_requests_for_runs_are_polls(stats: RecordingStats) -> None:
    emitting = metrics.task_metrics("etlworks_default")
    for call in (
        endpoints.get_execution(7, 1),
        endpoints.latest_execution(7),
        endpoints.execution_history(7).first(),
        endpoints.executions_of_day(),
    ):
        emitting.sent(call)
    assert stats.count(metrics.POLLS) == 4
    for other in (endpoints.execution_log(7, 1), endpoints.list_flows().first(), endpoints.run_flow(7, {}, {})):
        emitting.sent(other)
    assert stats.count(metrics.POLLS) == 4


# --- Airflow's own backends -----------------------------------------------------------------------------------------

# Runs tasks in a new interpreter, set up as Airflow sets up the process of a task and a triggerer.
TASKS = """
import importlib, json, os
from types import SimpleNamespace

for place in ("airflow.observability", "airflow.sdk.observability"):
    try:
        factory = importlib.import_module(place + ".metrics.stats_utils").get_stats_factory
    except ImportError:  # before Airflow 3.2, it needs no set-up
        continue
    importlib.import_module(place + ".stats").initialize(factory=factory(), export_legacy_names=True)

from support.task import FLOW, RECORD_PATH, RUN_PATH, Task

from airflow_provider_etlworks.client.clock import SYSTEM_CLOCK
from airflow_provider_etlworks.client.endpoints import get_execution
from airflow_provider_etlworks.client.errors import EtlworksRateLimited
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow, hang_up, status
from airflow_provider_etlworks.triggerer import startup

startup.SHORTEST_STARTUP_DELAY = startup.LONGEST_STARTUP_DELAY = startup.SCHEDULER_NOTICES_WITHIN = 0.0
with Sandbox([SandboxFlow(FLOW, "Load", running=2)]) as sandbox:
    os.environ["AIRFLOW_CONN_ETLWORKS_DEFAULT"] = sandbox.airflow_connection
    etlworks = SimpleNamespace(sandbox=sandbox, clock=SYSTEM_CLOCK, tries=[], is_ours=lambda _: True)
    arguments = {"flow_id": FLOW, "poll_interval": 1.0, "deferrable": True}
    sandbox.fault("POST", RUN_PATH, hang_up())
    colours = [Task(etlworks, arguments).run().colour]
    sandbox.fault("GET", RECORD_PATH, status(503), times=None, after=3)
    colours.append(Task(etlworks, {**arguments, "patience": 0.5}).run().colour)
    sandbox.clear_faults()
    sandbox.fault("GET", RECORD_PATH, status(429))
    try:
        EtlworksHook().client.send(get_execution(FLOW, 1), attempts=1)
    except EtlworksRateLimited as error:
        colours.append(str(error.status))
    polls = sum(each.method == "GET" and "/executions/" in each.path for each in sandbox.requests)

if os.environ.get("AIRFLOW__METRICS__OTEL_ON"):
    import gc

    from opentelemetry.sdk.metrics import MeterProvider

    # Of the task's process and of the triggerer, which are one here.
    for each in gc.get_objects():
        if type(each) is MeterProvider:
            each.force_flush()
print(json.dumps([colours, polls]))
"""


def run_tasks(**switches: object) -> int:
    """Run the tasks with metrics, and return how many polls the server has received."""
    tests = Path(__file__).parents[1]
    settings = {f"AIRFLOW__METRICS__{name.upper()}": str(value) for name, value in switches.items()}
    environment = {**os.environ, **settings, "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "0", "PYTHONPATH": str(tests)}
    environment.pop(CONN_VARIABLE, None)
    done = subprocess.run([sys.executable, "-c", TASKS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    colours, polls = json.loads(done.stdout.splitlines()[-1])
    assert colours == ["success", "failed", "429"], done.stderr
    return int(polls)


def test_statsd_receives_each_metric() -> None:
    pytest.importorskip("statsd")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        polls = run_tasks(
            statsd_on=True,
            statsd_host="127.0.0.1",
            statsd_port=server.getsockname()[1],
            # Writes the tags into the names: otherwise StatsD has none.
            statsd_influxdb_enabled=True,
        )
        lines = list(packets(server))

    ours = [line.removeprefix("airflow.") for line in lines if line.startswith("airflow.etlworks.")]
    values: dict[str, list[str]] = {}
    for line in ours:
        name, _, value = line.partition(",conn_id=etlworks_default:")
        values.setdefault(name, []).append(value)
    assert values.pop(metrics.POLLS) == polls * ["1|c"]
    assert values.pop(metrics.STARTS_IN_DOUBT) == ["1|c"]
    assert values.pop(metrics.LOST_TOUCH) == ["1|c"]
    assert values.pop(metrics.REQUESTS_REFUSED) == ["1|c"]
    assert set(values.pop(metrics.THROTTLE_FACTOR)) == {"1.0|g"}
    (lag,) = values.pop(metrics.DETECTION_LAG)
    assert lag.endswith("|ms")
    assert float(lag.removesuffix("|ms")) >= 0
    assert values == {}


def packets(server: socket.socket) -> Iterator[str]:
    """Yield what a socket has received so far."""
    while True:
        try:
            yield server.recv(65_536).decode()
        except BlockingIOError:
            return


def test_opentelemetry_receives_each_metric() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with ScriptedServer() as collector:
        run_tasks(otel_on=True, otel_host="127.0.0.1", otel_port=collector.port)
        # Its encoding has texts as they are.
        received = b"".join(each.body for each in collector.received if each.target == "/v1/metrics")

    for name in (
        metrics.POLLS,
        metrics.REQUESTS_REFUSED,
        metrics.THROTTLE_FACTOR,
        metrics.STARTS_IN_DOUBT,
        metrics.LOST_TOUCH,
        metrics.DETECTION_LAG,
    ):
        assert f"airflow.{name}".encode() in received
    assert b"conn_id" in received
    assert b"etlworks_default" in received
