"""A task deferred by the previous release goes on under this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.deployment import Deployment

    from airflow_provider_etlworks.sandbox import Sandbox

GOLDEN = Path(__file__).parents[1] / "golden" / "trigger-0.1.0.json"

DEFERRED_RUN = """
with DAG("upgraded", schedule=None, start_date=START):
    EtlworksRunFlowOperator(task_id="run", flow_id={flow_id}, deferrable=True, poll_interval=2)
"""


def test_trigger_of_the_previous_release_goes_on(
    deployment: Deployment, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> None:
    (flow_id,) = add_flows(1, running=900.0)
    dag_id = write_dag("upgraded", DEFERRED_RUN.format(flow_id=flow_id))
    run_id = deployment.trigger_dag(dag_id)
    deployment.wait_for_task_state(dag_id, run_id, "run", "deferred", timeout=300.0)
    (run,) = sandbox.runs(flow_id)
    for triggerer in ("triggerer-1", "triggerer-2"):
        deployment.stop(triggerer)
    (stored,) = [each for each in deployment.triggers() if each.kwargs.get("flow_id") == flow_id]
    classpath, arguments = json.loads(GOLDEN.read_text())
    assert stored.classpath == classpath
    arguments |= {
        "flow_id": flow_id,
        "audit_id": run.audit_id,
        "etlworks_conn_id": "etlworks_default",
        "deadline": None,
    }
    encrypted = Fernet(deployment._fernet_key).encrypt(json.dumps(arguments).encode()).decode()
    deployment.execute("UPDATE trigger SET kwargs = %s WHERE id = %s", encrypted, stored.id)
    for triggerer in ("triggerer-1", "triggerer-2"):
        deployment.start(triggerer)
    sandbox.finish(run.audit_id)

    assert deployment.wait_for_dag_run(dag_id, run_id, 300.0) == "success"
    assert sandbox.runs_started(flow_id) == 1
