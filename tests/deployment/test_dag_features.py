"""What people do with DAGs: each does with our operator what it does with any."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.deployment import Deployment

    from airflow_provider_etlworks.sandbox import Sandbox

BACKFILLED = """
with DAG(
    "backfilled", schedule="@daily", start_date=START, end_date=datetime(2024, 3, 1, tzinfo=timezone.utc), catchup=False
):
    EtlworksRunFlowOperator(
        task_id="run", flow_id={flow_id}, parameters={{"day": "{{{{ ds }}}}"}}, deferrable=True, poll_interval=1,
        on_already_running="wait", depends_on_past=True,
    )
"""

CHAIN = """
with DAG("chain", schedule=None, start_date=START):
    first, second = (
        EtlworksRunFlowOperator(task_id=f"run_{{number}}", flow_id=flow_id, deferrable=True, poll_interval=1)
        for number, flow_id in enumerate({flows!r})
    )
    first >> second
"""

LIMITED = """
with DAG("limited", schedule=None, start_date=START):
    EtlworksRunFlowOperator.partial(
        task_id="in_pool", pool="two_slots", deferrable=True, poll_interval=1
    ).expand(flow_id={in_pool!r})
    EtlworksRunFlowOperator.partial(
        task_id="few", max_active_tis_per_dag=2, deferrable=True, poll_interval=1
    ).expand(flow_id={few!r})
"""

FAILING = """
def report(context):
    print("CALLBACK", context["ti"].task_id, type(context["exception"]).__name__, context["exception"])

with DAG("failing", schedule=None, start_date=START):
    EtlworksRunFlowOperator(
        task_id="run", flow_id={flow_id}, deferrable=True, poll_interval=1, retries=2,
        retry_delay=timedelta(seconds=1), retry_exponential_backoff=True, max_retry_delay=timedelta(seconds=5),
        on_failure_callback=report,
    )
"""


POOL = {"name": "two_slots", "slots": 2, "description": "", "include_deferred": True}
FIRST_DAY, LAST_DAY = "2024-02-01", "2024-02-04"


class Flows(NamedTuple):
    """The flows that each DAG runs."""

    backfilled: int
    chain: list[int]
    in_pool: list[int]
    few: list[int]
    failing: int


@pytest.fixture(scope="module")
def flows(add_flows: Callable[..., list[int]]) -> Flows:
    (backfilled,), chain = add_flows(1, running=0.5), add_flows(2, running=0.5)
    in_pool, few = add_flows(6, running=2.0), add_flows(6, running=2.0)
    (failing,) = add_flows(1, running=0.5, ends="error", exception="ORA-00001: unique constraint")
    return Flows(backfilled, chain, in_pool, few, failing)


@pytest.fixture(scope="module")
def dag_runs(deployment: Deployment, flows: Flows, write_dag: Callable[[str, str], str]) -> dict[str, str]:
    """Start a run of each DAG, and the backfill. They do not disturb each other. Return the runs' ids by DAG."""
    write_dag("backfilled", BACKFILLED.format(flow_id=flows.backfilled))
    write_dag("chain", CHAIN.format(flows=flows.chain))
    write_dag("limited", LIMITED.format(in_pool=flows.in_pool, few=flows.few))
    write_dag("failing", FAILING.format(flow_id=flows.failing))
    deployment._call("POST", "/pools", POOL)
    run_ids = {dag_id: deployment.trigger_dag(dag_id) for dag_id in ("chain", "limited", "failing")}
    deployment.wait_for_dag("backfilled")
    days = ("--from-date", FIRST_DAY, "--to-date", LAST_DAY)
    backfill = ("backfill", "create", "--dag-id", "backfilled", *days, "--reprocess-behavior", "completed")
    created = deployment.cli(*backfill)
    assert created.returncode == 0, created.stderr
    return run_ids


def most_at_once(sandbox: Sandbox, flows: list[int]) -> int:
    """Return how many runs of flows went on at the same time at most."""
    runs = [run for flow_id in flows for run in sandbox.runs(flow_id)]
    return max(sum(other.started <= run.started < (other.ended or run.started + 1) for other in runs) for run in runs)


@pytest.mark.usefixtures("dag_runs")
def test_backfill_runs_day_after_day(deployment: Deployment, sandbox: Sandbox, flows: Flows) -> None:
    deployment.wait_until(
        "all days have run",
        lambda: (
            [
                row[0]
                for row in deployment._query(
                    "SELECT state FROM dag_run WHERE dag_id = 'backfilled' AND run_type = 'backfill'"
                )
            ].count("success")
            >= 4
        ),
        600.0,
        lambda: deployment._query("SELECT run_id, state FROM dag_run WHERE dag_id = 'backfilled'"),
    )
    days = [run.parameters["day"] for run in sandbox.runs(flows.backfilled)]
    assert days == [f"2024-02-0{day}" for day in (1, 2, 3, 4)]


def test_clear_with_downstream_runs_both_again(
    deployment: Deployment, sandbox: Sandbox, flows: Flows, dag_runs: dict[str, str]
) -> None:
    run_id = dag_runs["chain"]
    assert deployment.wait_for_dag_run("chain", run_id, 300.0) == "success"
    body = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["run_0"], "include_downstream": True}
    deployment._call("POST", "/dags/chain/clearTaskInstances", {**body, "only_failed": False})
    assert deployment.wait_for_dag_run("chain", run_id, 300.0) == "success"
    assert [sandbox.runs_started(flow_id) for flow_id in flows.chain] == [2, 2]


def test_pool_with_deferred_slots_and_active_task_limit_hold(
    deployment: Deployment, sandbox: Sandbox, flows: Flows, dag_runs: dict[str, str]
) -> None:
    assert deployment.wait_for_dag_run("limited", dag_runs["limited"], 600.0) == "success"
    assert most_at_once(sandbox, flows.in_pool) <= POOL["slots"]
    assert all(sandbox.runs_started(flow_id) == 1 for flow_id in [*flows.in_pool, *flows.few])


def test_failing_flow_is_retried_with_back_off_and_calls_back_once(
    deployment: Deployment, sandbox: Sandbox, flows: Flows, dag_runs: dict[str, str]
) -> None:
    run_id = dag_runs["failing"]
    assert deployment.wait_for_dag_run("failing", run_id, 600.0) == "failed"
    assert sandbox.runs_started(flows.failing) == 3
    log = deployment.task_log("failing", run_id, "run")
    assert "ORA-00001" in log
    assert log.count("CALLBACK run ") == 1
    (task,) = deployment.task_instances("failing", run_id)
    assert (task.state, task.try_number) == ("failed", 3)
