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
    from airflow_provider_etlworks.sandbox.local_airflow import LocalAirflow

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
    if airflow.version >= (3, 3):
        statement, name = "SELECT value FROM asset_state_store WHERE key LIKE ?", f"etlworks_ends.%.{flow_id}.%"
    else:
        statement, name = "SELECT val FROM variable WHERE key LIKE ?", f"etlworks_ends.%.{flow_id}.%"
    return "".join(str(row[0]) for row in airflow._query(statement, name))


def test_ends_while_the_triggerer_is_dead_are_told_once_when_it_is_back(
    local_airflow: LocalAirflow, sandbox: Sandbox, write_dag: Callable[[str, str], str]
) -> None:
    sandbox.add_flow(SandboxFlow(id=FLOW, name="Watched", records=7))
    old = [sandbox.run_by_schedule(FLOW) for _ in range(3)]
    write_dag("watcher", WATCHER.format(flow_id=FLOW))
    local_airflow.wait_until("the first look is noted", lambda: str(old[-1]) in noted(local_airflow, FLOW), 120.0)
    first = sandbox.run_by_schedule(FLOW)
    local_airflow.wait_until("the first end is noted", lambda: str(first) in noted(local_airflow, FLOW), 120.0)

    local_airflow.kill("triggerer")
    meanwhile = [sandbox.run_by_schedule(FLOW) for _ in range(3)]
    local_airflow.start("triggerer")
    last = sandbox.run_by_schedule(FLOW)
    local_airflow.wait_until("the last end is noted", lambda: str(last) in noted(local_airflow, FLOW), 120.0)

    payloads = told(local_airflow, "watched_flow")
    assert [each["audit_id"] for each in payloads] == [first, *meanwhile, last]
    assert {(each["flow_id"], each["status"], each["records"]) for each in payloads} == {(FLOW, "success", 7)}
