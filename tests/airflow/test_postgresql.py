"""What Etlworks says must not harm Airflow's PostgreSQL, nor a triggerer or a task beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.postgresql import HOW_TO_INSTALL, PostgresAirflow, postgresql, server_binaries

from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.airflow, pytest.mark.timeout(900)]

# PostgreSQL's jsonb refuses NUL; a pipe of UTF-8 refuses half a surrogate pair, which Java makes by cutting an emoji.
HOSTILE_TEXTS = {
    "nul": "ORA-00001\x00: unique constraint\x00",
    "surrogate": "cannot load \ud83d file",
    "long": "x\ud83d\x00" * 200_000,
}

DAG_FILE = """
from datetime import datetime, timezone

try:
    from airflow.sdk import DAG
except ImportError:
    from airflow import DAG

from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator

with DAG("hostile", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=timezone.utc)):
    for deferrable in (True, False):
        for flow_id, ends in {flows!r}:
            EtlworksRunFlowOperator(
                task_id=f"{{'deferred' if deferrable else 'on_worker'}}_{{ends}}_{{flow_id}}",
                flow_id=flow_id + (0 if deferrable else 100),
                poll_interval=1,
                deferrable=deferrable,
            )
    EtlworksRunFlowOperator(task_id="beside", flow_id=1, poll_interval=1, deferrable=True)
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(requests_per_minute=None) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def postgres_airflow(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresAirflow]:
    binaries = server_binaries()
    if binaries is None:
        pytest.skip(HOW_TO_INSTALL)
    pytest.importorskip("psycopg2", reason=HOW_TO_INSTALL)
    connections = {"AIRFLOW_CONN_ETLWORKS_DEFAULT": sandbox.airflow_connection}
    with (
        postgresql(binaries) as url,
        PostgresAirflow(tmp_path_factory.mktemp("dags"), url, connections) as airflow,
    ):
        yield airflow


def hostile_flows(sandbox: Sandbox) -> list[tuple[int, str]]:
    """Add flows whose runs end badly or well with hostile texts, each for a deferred task and one on a worker."""
    flows = []
    for number, (kind, text) in enumerate(HOSTILE_TEXTS.items()):
        for ends in ("error", "success"):
            flow_id = 1000 + 10 * number + (ends == "error")
            for offset in (0, 100):
                name = f"Flow {flow_id + offset} {kind} {text[:50]}"
                sandbox.add_flow(
                    SandboxFlow(flow_id + offset, name, running=2.0, ends=ends, exception=text, owner=text)
                )
            flows.append((flow_id, ends))
    return flows


def test_hostile_texts_harm_neither_database_nor_triggerer(postgres_airflow: PostgresAirflow, sandbox: Sandbox) -> None:
    airflow = postgres_airflow
    flows = hostile_flows(sandbox)
    sandbox.add_flow(SandboxFlow(1, "Beside", running=20.0))
    (airflow.dags_folder / "hostile.py").write_text(DAG_FILE.format(flows=flows))
    airflow.wait_for_dag("hostile")
    triggerer = airflow._running["triggerer"]

    run_id = airflow.trigger_dag("hostile")
    airflow.wait_for_dag_run("hostile", run_id, 600.0)

    expected = {
        f"{where}_{ends}_{flow_id}": "success" if ends == "success" else "failed"
        for where in ("deferred", "on_worker")
        for flow_id, ends in flows
    }
    states = {task_id: state for (task_id, _), state in airflow.task_states("hostile", run_id).items()}
    assert states == {**expected, "beside": "success"}
    assert triggerer.poll() is None, "the triggerer ended"
    assert airflow._running["triggerer"] is triggerer
    for flow_id, _ in [*flows, (1, "")]:
        assert sandbox.runs_started(flow_id) == 1
