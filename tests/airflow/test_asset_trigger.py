"""Ends of flows become events of assets, once each, also while the triggerer is down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_etlworks.sandbox import SandboxFlow

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.sandbox import Sandbox
    from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

pytest.importorskip("airflow.sdk", reason="Airflow 2 has no watchers of assets")

pytestmark = pytest.mark.airflow

EXAMPLE = Path(__file__).parents[2] / "example_dags" / "etlworks_asset_watcher.py"
FLOW = 53_001

WATCHER = """
from airflow.sdk import Asset, AssetWatcher
from airflow_provider_etlworks.triggers.asset import EtlworksFlowFinishedTrigger

trigger = EtlworksFlowFinishedTrigger(flow_id={flow_id}, poll_interval=0.5)
asset = Asset("watched_flow", watchers=[AssetWatcher(name="ends", trigger=trigger)])

with DAG("watcher", schedule=[asset], start_date=START):
    BaseOperator(task_id="nothing")
"""


def told(airflow: LocalAirflow, asset: str) -> list[dict[str, Any]]:
    """Return the payloads of an asset's events, in the order in which Airflow stored them."""
    rows = airflow._query(
        "SELECT e.extra FROM asset_event e JOIN asset a ON a.id = e.asset_id WHERE a.name = ? ORDER BY e.id", asset
    )
    return [json.loads(row[0])["payload"] for row in rows]


def noted(airflow: LocalAirflow, flow_id: int) -> str:
    """Return what the trigger has noted, as the database has it."""
    key = f"etlworks_ends.%.{flow_id}.%"
    if airflow.version >= (3, 3):
        rows = airflow._query("SELECT value FROM asset_state_store WHERE key LIKE ?", key)
        return "".join(str(row[0]) for row in rows)
    return "".join(
        airflow._decrypted(row[0]) for row in airflow._query("SELECT val FROM variable WHERE key LIKE ?", key)
    )


def parsed_at(airflow: LocalAirflow, dag_id: str) -> str:
    """Return when Airflow has read the DAG's file last."""
    ((moment,),) = airflow._query("SELECT last_parsed_time FROM dag WHERE dag_id = ?", dag_id)
    return str(moment)


def watchers(airflow: LocalAirflow, flow_id: int) -> list[int]:
    """Return the ids of the triggers that watch a flow."""
    name = "EtlworksFlowFinishedTrigger"
    stored = [each for each in airflow.triggers() if each.classpath.endswith(name)]
    return [each.id for each in stored if each.kwargs["flow_id"] == flow_id]


def test_ends_during_a_triggerer_outage_are_reported_once(
    local_airflow: LocalAirflow, sandbox: Sandbox, write_dag: Callable[[str, str], str]
) -> None:
    sandbox.add_flow(SandboxFlow(id=FLOW, name="Watched", records=7))
    old = [sandbox.run_by_schedule(FLOW) for _ in range(3)]
    write_dag("watcher", WATCHER.format(flow_id=FLOW))
    local_airflow.wait_until("the first look is noted", lambda: str(old[-1]) in noted(local_airflow, FLOW), 120.0)
    (stored,) = watchers(local_airflow, FLOW)
    parsed = parsed_at(local_airflow, "watcher")
    file = local_airflow.dags_folder / "watcher.py"
    file.write_text(f"{file.read_text()}# parsed anew\n")
    first = sandbox.run_by_schedule(FLOW)
    local_airflow.wait_until("the first end is noted", lambda: str(first) in noted(local_airflow, FLOW), 120.0)

    local_airflow.kill("triggerer")
    meanwhile = [sandbox.run_by_schedule(FLOW) for _ in range(3)]
    local_airflow.start("triggerer")
    last = sandbox.run_by_schedule(FLOW)
    local_airflow.wait_until("the last end is noted", lambda: str(last) in noted(local_airflow, FLOW), 120.0)

    # Airflow finds the same trigger in the file each time.
    local_airflow.wait_until("the file is parsed anew", lambda: parsed_at(local_airflow, "watcher") != parsed, 120.0)
    assert watchers(local_airflow, FLOW) == [stored]
    payloads = told(local_airflow, "watched_flow")
    assert [each["audit_id"] for each in payloads] == [first, *meanwhile, last]
    assert {(each["flow_id"], each["status"], each["records"]) for each in payloads} == {(FLOW, "success", 7)}


def test_the_example_dag_runs_when_etlworks_has_run_the_flow(local_airflow: LocalAirflow, sandbox: Sandbox) -> None:
    (local_airflow.dags_folder / EXAMPLE.name).write_text(EXAMPLE.read_text())
    local_airflow.wait_for_dag(EXAMPLE.stem)
    local_airflow.wait_until("the first look is noted", lambda: noted(local_airflow, 12346), 120.0)
    audit_id = sandbox.run_by_schedule(12346)

    def runs() -> list[str]:
        rows = local_airflow._query("SELECT run_id FROM dag_run WHERE dag_id = ?", EXAMPLE.stem)
        return [row[0] for row in rows]

    local_airflow.wait_until("the DAG runs", runs, 120.0)
    (run_id,) = runs()
    assert local_airflow.wait_for_dag_run(EXAMPLE.stem, run_id) == "success"
    assert local_airflow.xcom(EXAMPLE.stem, run_id, "report") == [f"run {audit_id}: success, 96310 records"]
