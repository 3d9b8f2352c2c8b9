"""Sensors, listeners and their example DAGs, run by real schedulers, workers and triggerers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_etlworks.sandbox import SandboxFlow

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.sandbox import Sandbox
    from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

pytestmark = pytest.mark.airflow

EXAMPLES = Path(__file__).parents[2] / "example_dags"

WAITS = """
from airflow_provider_etlworks.sensors.flow import EtlworksFlowExecutionSensor

# Airflow itself fails a task that it reschedules again before it has noticed that the last poke ended.
MODES = {
    "poke": {"mode": "poke", "poke_interval": 1},
    "reschedule": {"mode": "reschedule", "poke_interval": 15},
    "deferrable": {"deferrable": True, "poke_interval": 1},
}

with DAG("waits", schedule=None, start_date=START):
    for task_id, flow_id in FLOWS.items():
        ending, mode = task_id.split("_")
        EtlworksFlowExecutionSensor(
            task_id=task_id,
            flow_id=flow_id,
            since="{{ dag_run.start_date }}",
            soft_fail=ending == "skipped",
            timeout=10 if ending == "never" else 300,
            **MODES[mode],
        )
"""
MODES = ("poke", "reschedule", "deferrable")
FLOWS = {"success": 51_001, "error": 51_002, "skipped": 51_003, "never": 51_004}
STATES = {"success": "success", "error": "failed", "skipped": "skipped", "never": "failed"}
# Each costs Airflow 2 seconds, which with SQLite runs one task at a time; all others are tested without an Airflow.
TASKS = [*(f"success_{mode}" for mode in MODES), "error_poke", "skipped_reschedule", "never_deferrable"]


def test_each_mode_ends_as_the_run(
    local_airflow: LocalAirflow, sandbox: Sandbox, write_dag: Callable[[str, str], str]
) -> None:
    for ending, flow_id in FLOWS.items():
        ends = "success" if ending == "success" else "error"
        sandbox.add_flow(SandboxFlow(flow_id, f"Waited for: {ending}", running=2.0, ends=ends, records=7))
        sandbox.run_by_user(flow_id)  # too early to count
    dag_id = write_dag("waits", f"FLOWS = { ({task: FLOWS[task.split('_')[0]] for task in TASKS})!r}\n{WAITS}")
    run_id = local_airflow.trigger_dag(dag_id)
    local_airflow.wait_until(
        "a sensor looks", lambda: any(each.path.endswith("/51001") for each in sandbox.requests), 120.0
    )
    audit_ids = {ending: sandbox.run_by_user(flow_id) for ending, flow_id in FLOWS.items() if ending != "never"}
    local_airflow.wait_for_dag_run(dag_id, run_id)

    states = {task_id: state for (task_id, _), state in local_airflow.task_states(dag_id, run_id).items()}
    assert states == {task_id: STATES[task_id.split("_")[0]] for task_id in TASKS}
    results = [local_airflow.xcom(dag_id, run_id, f"success_{mode}") for mode in MODES]
    assert results[0] == results[1] == results[2]
    assert (results[0]["audit_id"], results[0]["records"]) == (audit_ids["success"], 7)
    for mode in MODES:
        assert local_airflow.xcom(dag_id, run_id, f"success_{mode}", key="audit_id") == audit_ids["success"]
    assert f"(51002), run {audit_ids['error']} ended: error" in local_airflow.task_log(dag_id, run_id, "error_poke")


def test_the_example_dags_run_unchanged(local_airflow: LocalAirflow, sandbox: Sandbox) -> None:
    names = ("etlworks_wait_for_nightly", "etlworks_send_order", "etlworks_daily_report")
    last_night = sandbox.run_by_schedule(12346)
    for name in names:
        (local_airflow.dags_folder / f"{name}.py").write_text((EXAMPLES / f"{name}.py").read_text())
    for name in names:
        local_airflow.wait_for_dag(name)
    runs = {name: local_airflow.trigger_dag(name) for name in names}
    states = {name: local_airflow.wait_for_dag_run(name, run_id) for name, run_id in runs.items()}

    assert states == dict.fromkeys(names, "success")
    waited, sent, report = (
        local_airflow.xcom(name, runs[name], task_id)
        for name, task_id in zip(names, ("warehouse_refresh", "send_order", "report"), strict=True)
    )
    assert (waited["audit_id"], waited["status"]) == (last_night, "success")
    (run,) = sandbox.runs(12351)
    assert (sent["audit_id"], sent["status"]) == (run.audit_id, "success")
    assert report.startswith("# Etlworks")
    assert "runs ended" in report
