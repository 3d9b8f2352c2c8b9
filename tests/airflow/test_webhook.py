"""A post of Etlworks updates an asset through the API server's own API, and the watcher does not repeat it."""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_provider_etlworks.sandbox import SandboxFlow

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.sandbox import Sandbox
    from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

pytest.importorskip("airflow.sdk", reason="Airflow 2 has no plugins with FastAPI apps")

pytestmark = pytest.mark.airflow

FLOW = 54_001
SECRET = "webhook-secret-of-the-tests"

DAG_FILE = '''
from airflow.sdk import AssetWatcher
from airflow_provider_etlworks.assets import flow_asset
from airflow_provider_etlworks.triggers.asset import EtlworksFlowFinishedTrigger

trigger = EtlworksFlowFinishedTrigger(flow_id={flow_id}, poll_interval=0.5)
asset = flow_asset({flow_id}, host="{host}", watchers=[AssetWatcher(name="ends", trigger=trigger)])

with DAG("posted", schedule=[asset], start_date=START):

    @task
    def nothing():
        """Succeed."""

    nothing()
'''


def post(airflow: LocalAirflow, audit_id: int, secret: str = SECRET) -> int:
    body = {
        "eventId": str(uuid.uuid4()),
        "eventType": "Flow.Executed",
        "entityId": audit_id,
        "entityUrl": f"https://app.etlworks.com/rest/v1/flows/{FLOW}?auditId={audit_id}",
    }
    url = f"{airflow.base_url}/etlworks/webhook"
    return requests.post(url, json=body, headers={"X-Etlworks-Webhook-Secret": secret}, timeout=60).status_code


def events(airflow: LocalAirflow, uri: str) -> list[dict[str, Any]]:
    rows = airflow._query(
        "SELECT e.extra FROM asset_event e JOIN asset a ON a.id = e.asset_id WHERE a.uri = ? ORDER BY e.id", uri
    )
    return [json.loads(row[0]) for row in rows]


def dag_runs(airflow: LocalAirflow) -> list[str]:
    return [str(row[0]) for row in airflow._query("SELECT state FROM dag_run WHERE dag_id = 'posted' ORDER BY id")]


def test_posted_end_runs_the_dag_once(
    local_airflow: LocalAirflow, sandbox: Sandbox, write_dag: Callable[[str, str], str]
) -> None:
    from airflow_provider_etlworks.assets import flow_uri

    sandbox.add_flow(SandboxFlow(FLOW, "Posted", records=5))
    uri = flow_uri(FLOW, sandbox.url)
    write_dag("posted", DAG_FILE.format(flow_id=FLOW, host=sandbox.url))
    key = f"etlworks_ends.%.{FLOW}.%"
    select = "SELECT value FROM asset_state_store WHERE key LIKE ?"
    if local_airflow.version >= (3, 3):
        local_airflow.wait_until("the first poll is stored", lambda: local_airflow._query(select, key), 120.0)
    local_airflow.kill("triggerer")

    audit_id = sandbox.run_by_schedule(FLOW)
    assert post(local_airflow, audit_id, "wrong") == 401
    began = time.monotonic()
    assert post(local_airflow, audit_id) == 202
    local_airflow.wait_until("the DAG runs", lambda: dag_runs(local_airflow), 120.0)
    print(f"From the post to the DAG run: {time.monotonic() - began:.2f} s")  # noqa: T201  # for docs/performance.md
    (event,) = events(local_airflow, uri)
    assert (event["payload"]["audit_id"], event["payload"]["records"]) == (audit_id, 5)
    assert post(local_airflow, audit_id) == 202
    local_airflow.wait_until("the DAG has run", lambda: dag_runs(local_airflow) == ["success"], 120.0)

    local_airflow.start("triggerer")
    if local_airflow.version < (3, 3):
        return

    def is_done() -> bool:
        return any(str(audit_id) in str(row[0]) for row in local_airflow._query(select, key))

    local_airflow.wait_until("the watcher counts it as done", is_done, 120.0)
    later = sandbox.run_by_schedule(FLOW)
    local_airflow.wait_until("the watcher reports the next", lambda: len(events(local_airflow, uri)) > 1, 120.0)
    assert [each["payload"]["audit_id"] for each in events(local_airflow, uri)] == [audit_id, later]
    log = local_airflow.component_log("api-server").read_text(errors="replace")
    assert "is updated" in log
    assert SECRET not in log
