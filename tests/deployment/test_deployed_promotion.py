"""A promotion whose tasks run on several workers, which share an object store. A person approves through the API."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.deployment import Deployment

PROMOTION = """
from airflow_provider_etlworks.promotion import promote_flows

with DAG("promotion", schedule=None, start_date=START):
    promote_flows(
        source_conn_id="etlworks_default",
        target_conn_id="etlworks_production",
        flow_names=["Orders"],
        path="s3://bundles/{{ run_id }}.json",
        smoke_flow_name="Orders",
    )
"""


def test_promotion_through_an_object_store(
    deployment: Deployment, sandbox: Sandbox, production: Sandbox, write_dag: Callable[[str, str], str]
) -> None:
    flow = SandboxFlow(99_000, "Orders", running=0.5)
    production.add_flow(replace(flow, description="old"))
    sandbox.add_flow(replace(flow, id=99_500, description="new"))
    dag_id = write_dag("promotion", PROMOTION)
    run_id = deployment.trigger_dag(dag_id)
    approval = "promote_flows.approve_import"
    deployment.wait_for_question(dag_id, run_id, approval, timeout=300.0)
    deployment.answer(dag_id, run_id, approval, "Approve")

    assert deployment.wait_for_dag_run(dag_id, run_id, 600.0) == "success"
    assert production.flows[flow.id].description == "new"
    assert len([each for each in production.requests if each.path == "/rest/v1/io/import"]) == 1
    workers = {
        row[0] for row in deployment._query("SELECT hostname FROM task_instance WHERE dag_id = ?", dag_id) if row[0]
    }
    assert workers <= {"worker-1", "worker-2"}
