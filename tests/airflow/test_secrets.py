"""Comes last in this folder: searches all that the tests before it left in Airflow for the secrets they used."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from airflow_provider_etlworks.sandbox import SandboxFlow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_etlworks.sandbox import Sandbox
    from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

pytestmark = pytest.mark.airflow

FLOW_ID = 60_001
# Followed on a worker and in the triggerer, with an API key and with a login, and with a secret among the parameters.
SECRETIVE = """
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator

with DAG("secretive", schedule=None, start_date=START):
    previous = None
    for conn_id in ("etlworks_default", "etlworks_login"):
        for deferrable in (False, True):
            run = EtlworksRunFlowOperator(
                task_id=f"{conn_id}_{deferrable}", flow_id=%d, etlworks_conn_id=conn_id, deferrable=deferrable,
                parameters={"key": %r}, poll_interval=0.5, trigger_rule="all_done",
            )
            if previous:
                previous >> run
            previous = run
"""


def everything_in(airflow: LocalAirflow) -> Iterator[tuple[str, str]]:
    """Yield the text of every file of Airflow, and of every table of its database."""
    for path in sorted(airflow.home.rglob("*")):
        if path.is_file() and not path.name.startswith("airflow.db"):
            yield str(path.relative_to(airflow.home)), path.read_bytes().decode("utf-8", "replace")
    with closing(sqlite3.connect(f"file:{airflow.home / 'airflow.db'}?mode=ro", uri=True)) as database:
        yield "database", "\n".join(database.iterdump())
    yield "triggers", repr(airflow.triggers())


def test_no_secret_is_anywhere_in_airflow(
    local_airflow: LocalAirflow, sandbox: Sandbox, write_dag: Callable[[str, str], str]
) -> None:
    sandbox.add_flow(SandboxFlow(FLOW_ID, "Secretive", running=3.0, ends="error", exception="Bearer abc.def refused"))
    # Airflow 3.0 itself stores rendered fields unmasked, whatever the operator.
    masks = local_airflow.version[:2] != (3, 0)
    parameter = "{{ conn.etlworks_default.password }}" if masks else "no secret"
    dag_id = write_dag("secretive", SECRETIVE % (FLOW_ID, parameter))
    run_id = local_airflow.trigger_dag(dag_id)
    local_airflow.wait_for_dag_run(dag_id, run_id)
    runs = sandbox.runs(FLOW_ID)
    assert [run.parameters for run in runs] == [{"key": sandbox.api_key if masks else parameter}] * 4
    assert sandbox.log_ins > 0

    texts = dict(everything_in(local_airflow))
    log = "".join(text for name, text in texts.items() if "task_id=etlworks_login_True" in name)
    assert f"Run {runs[-1].audit_id} of flow {FLOW_ID} is accepted" in log, "the search looks in the right place"
    assert "secretive" in texts["database"]
    secrets = re.compile(rf"{re.escape(sandbox.api_key)}|eyJ[\w-]+\.eyJ[\w-]+|abc\.def")
    found = {
        f"{name}: {text[max(0, hit.start() - 80) : hit.end()]}"
        for name, text in texts.items()
        for hit in secrets.finditer(text)
    }
    assert found == set()
