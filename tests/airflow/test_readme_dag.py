"""The README's first DAG, pasted and run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_etlworks.sandbox import Sandbox
    from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

pytestmark = pytest.mark.airflow

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_dag_runs_its_flow(local_airflow: LocalAirflow, sandbox: Sandbox) -> None:
    text = README.read_text()
    (dag_file,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (first_line_on_airflow_2,) = re.findall(r"On Airflow 2, the first line is `(.*?)`", text)
    if local_airflow.version < (3,):
        dag_file = f"{first_line_on_airflow_2}\n{dag_file.partition(chr(10))[2]}"
    (local_airflow.dags_folder / "from_readme.py").write_text(dag_file)
    before = sandbox.runs_started(12345)
    run_id = local_airflow.trigger_dag("nightly_billing")
    assert local_airflow.wait_for_dag_run("nightly_billing", run_id) == "success"
    assert sandbox.runs_started(12345) == before + 1
    run = sandbox.runs(12345)[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run.parameters["runDate"])
    result = local_airflow.xcom("nightly_billing", run_id, "stripe_to_snowflake")
    assert (result["flow_id"], result["audit_id"], result["status"]) == (12345, run.audit_id, "success")
