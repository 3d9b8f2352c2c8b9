"""Components of a deployment are killed, restarted and cut off while runs go on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from support.deployment import Deployment

    from airflow_provider_etlworks.sandbox import Sandbox

# In the DAG files' header.
RETRIES = 3

MAPPED_RUNS = """
with DAG({dag_id!r}, schedule=None, start_date=START):
    EtlworksRunFlowOperator.partial(
        task_id="deferred", deferrable=True, poll_interval=2, **RETRIES
    ).expand(flow_id={deferred!r})
    EtlworksRunFlowOperator.partial(task_id="on_worker", poll_interval=2, **RETRIES).expand(flow_id={on_worker!r})
"""

DEFERRED_RUNS = """
with DAG({dag_id!r}, schedule=None, start_date=START):
    EtlworksRunFlowOperator.partial(task_id="run", deferrable=True, poll_interval=2).expand(flow_id={flows!r})
"""


def runs_started(sandbox: Sandbox, flow_ids: Sequence[int]) -> int:
    return sum(sandbox.runs_started(flow_id) for flow_id in flow_ids)


def assert_each_ran_once(sandbox: Sandbox, flow_ids: Sequence[int]) -> None:
    assert {flow_id: sandbox.runs_started(flow_id) for flow_id in flow_ids} == dict.fromkeys(flow_ids, 1)


def statuses(sandbox: Sandbox, flow_ids: Sequence[int]) -> set[str]:
    return {run.status for flow_id in flow_ids for run in sandbox.runs(flow_id)}


def wait_until_deferred(deployment: Deployment, dag_id: str, run_id: str, number: int) -> None:
    """Wait until so many tasks have deferred, and triggerers run their triggers."""
    deployment.wait_until(
        f"{number} tasks wait in the triggerers",
        lambda: (
            deployment.count_states(dag_id, run_id).get("deferred", 0) >= number
            and None not in deployment.owners_of_triggers()
        ),
        600.0,
        lambda: (deployment.count_states(dag_id, run_id), deployment.owners_of_triggers()),
    )


def test_each_component_killed_twice_starts_no_run_twice(
    deployment: Deployment, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> None:
    good, bad = add_flows(216, running=8.0), add_flows(24, running=8.0, ends="error")
    deferred, on_worker = [*good[:180], *bad[:20]], [*good[180:], *bad[20:]]
    dag_id = write_dag("kills", MAPPED_RUNS.format(dag_id="kills", deferred=deferred, on_worker=on_worker))
    run_id = deployment.trigger_dag(dag_id)
    victims = ("triggerer-1", "worker-1", "scheduler-1", "triggerer-2", "worker-2", "scheduler-2")
    for number, victim in enumerate(victims, start=1):
        some = 35 * number
        deployment.wait_until(f"{some} runs", lambda some=some: runs_started(sandbox, [*good, *bad]) >= some, 600.0)
        deployment.replace(victim)

    deployment.wait_for_dag_run(dag_id, run_id, 1200.0)
    flow_of = {
        **{("deferred", index): flow_id for index, flow_id in enumerate(deferred)},
        **{("on_worker", index): flow_id for index, flow_id in enumerate(on_worker)},
    }
    states = {flow_of[key]: state for key, state in deployment.task_states(dag_id, run_id).items()}
    assert states == {**dict.fromkeys(good, "success"), **dict.fromkeys(bad, "failed")}
    assert_each_ran_once(sandbox, good)
    # A try starts a failed flow anew, unless it goes on with the run of a killed try.
    assert all(1 <= sandbox.runs_started(flow_id) <= 1 + RETRIES for flow_id in bad)


def test_deploy_stops_nothing(
    deployment: Deployment, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> None:
    deferred, on_worker = add_flows(40, running=60.0), add_flows(4, running=30.0)
    flows = [*deferred, *on_worker]
    dag_id = write_dag("deploy", MAPPED_RUNS.format(dag_id="deploy", deferred=deferred, on_worker=on_worker))
    run_id = deployment.trigger_dag(dag_id)
    deployment.wait_until("half of the runs go on", lambda: runs_started(sandbox, flows) >= len(flows) // 2, 300.0)
    for component in ("triggerer-1", "worker-1", "triggerer-2", "worker-2"):
        deployment.restart(component)

    assert deployment.wait_for_dag_run(dag_id, run_id, 900.0) == "success"
    assert_each_ran_once(sandbox, flows)
    assert statuses(sandbox, flows) == {"success"}


def test_triggerer_cut_off_from_the_database_reports_nothing_twice(
    deployment: Deployment, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> None:
    flows = add_flows(20, running=600.0)
    dag_id = write_dag("cut_off", DEFERRED_RUNS.format(dag_id="cut_off", flows=flows))
    run_id = deployment.trigger_dag(dag_id)
    wait_until_deferred(deployment, dag_id, run_id, len(flows))
    with deployment.cut_off("triggerer-1"):
        deployment.wait_until(
            "the other triggerer runs all triggers",
            lambda: deployment.owners_of_triggers() == {"triggerer-2": len(flows)},
            300.0,
            deployment.owners_of_triggers,
        )
    # Both have followed all runs since: the one that was cut off ends its own only when it learns of the other.
    for flow_id in flows:
        sandbox.finish(sandbox.runs(flow_id)[-1].audit_id)

    assert deployment.wait_for_dag_run(dag_id, run_id, 600.0) == "success"
    assert_each_ran_once(sandbox, flows)
    assert statuses(sandbox, flows) == {"success"}
    assert not [each for each in sandbox.requests if "/stop" in each.path and str(flows[0]) in each.path]


def test_hundred_tasks_marked_as_failed_stop_their_runs(
    deployment: Deployment, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> None:
    if deployment.version < (3, 3):
        pytest.skip("Airflow 3.3 brought what this needs")
    flows = add_flows(100, running=900.0)
    dag_id = write_dag("marked", DEFERRED_RUNS.format(dag_id="marked", flows=flows))
    run_id = deployment.trigger_dag(dag_id)
    wait_until_deferred(deployment, dag_id, run_id, len(flows))
    with ThreadPoolExecutor(20) as people:
        list(people.map(lambda index: deployment.mark(dag_id, run_id, "run", "failed", index), range(len(flows))))

    def going() -> list[int]:
        return [run.audit_id for flow_id in flows for run in sandbox.runs(flow_id) if not run.stop_requested]

    deployment.wait_until("all runs are stopped", lambda: not going(), 300.0, going)
    assert_each_ran_once(sandbox, flows)
