"""What people do with DAGs: each does with our operator what it does with any."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def most_at_once(sandbox: Sandbox, flows: list[int]) -> int:
    """Return how many runs of flows went on at the same time at most."""
    runs = [run for flow_id in flows for run in sandbox.runs(flow_id)]
    return max(sum(other.started <= run.started < (other.ended or run.started + 1) for other in runs) for run in runs)


def test_backfill_runs_day_after_day(
    deployment: Deployment, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> None:
    (flow_id,) = add_flows(1, running=0.5)
    dag_id = write_dag("backfilled", BACKFILLED.format(flow_id=flow_id))
    days = ("2024-02-01", "2024-02-04")
    interval = ("--from-date", days[0], "--to-date", days[1])
    created = deployment.cli("backfill", "create", "--dag-id", dag_id, *interval, "--reprocess-behavior", "completed")
    assert created.returncode == 0, created.stderr
    deployment.wait_until(
        "all days have run",
        lambda: (
            [
                row[0]
                for row in deployment._query(
                    "SELECT state FROM dag_run WHERE dag_id = ? AND run_type = 'backfill'", dag_id
                )
            ].count("success")
            >= 4
        ),
        600.0,
        lambda: deployment._query("SELECT run_id, state FROM dag_run WHERE dag_id = ?", dag_id),
    )
    assert [run.parameters["day"] for run in sandbox.runs(flow_id)] == [f"2024-02-0{day}" for day in (1, 2, 3, 4)]


def test_clear_with_downstream_runs_both_again(
    deployment: Deployment, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> None:
    flows = add_flows(2, running=0.5)
    dag_id = write_dag("chain", CHAIN.format(flows=flows))
    run_id = deployment.trigger_dag(dag_id)
    assert deployment.wait_for_dag_run(dag_id, run_id, 300.0) == "success"
    body = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["run_0"], "include_downstream": True}
    deployment._call("POST", f"/dags/{dag_id}/clearTaskInstances", {**body, "only_failed": False})
    assert deployment.wait_for_dag_run(dag_id, run_id, 300.0) == "success"
    assert [sandbox.runs_started(flow_id) for flow_id in flows] == [2, 2]


def test_pool_with_deferred_slots_and_active_task_limit_hold(
    deployment: Deployment, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> None:
    in_pool, few = add_flows(6, running=3.0), add_flows(6, running=3.0)
    pool = {"name": "two_slots", "slots": 2, "description": "", "include_deferred": True}
    deployment._call("POST", "/pools", pool)
    dag_id = write_dag("limited", LIMITED.format(in_pool=in_pool, few=few))
    run_id = deployment.trigger_dag(dag_id)
    assert deployment.wait_for_dag_run(dag_id, run_id, 600.0) == "success"
    assert most_at_once(sandbox, in_pool) <= pool["slots"]
    assert all(sandbox.runs_started(flow_id) == 1 for flow_id in [*in_pool, *few])


def test_failing_flow_is_retried_with_back_off_and_calls_back_once(
    deployment: Deployment, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> None:
    (flow_id,) = add_flows(1, running=0.5, ends="error", exception="ORA-00001: unique constraint")
    dag_id = write_dag("failing", FAILING.format(flow_id=flow_id))
    run_id = deployment.trigger_dag(dag_id)
    assert deployment.wait_for_dag_run(dag_id, run_id, 600.0) == "failed"
    assert sandbox.runs_started(flow_id) == 3
    log = deployment.task_log(dag_id, run_id, "run")
    assert "ORA-00001" in log
    (task,) = deployment.task_instances(dag_id, run_id)
    assert (task.state, task.try_number) == ("failed", 3)
