"""Components of a deployment are killed, restarted and cut off while runs go on."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

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
    EtlworksRunFlowOperator.partial(
        task_id="run", deferrable=True, poll_interval=2, **RETRIES
    ).expand(flow_id={flows!r})
"""


class DagRun(NamedTuple):
    """A DAG run, and the flows that it runs."""

    dag_id: str
    run_id: str
    flows: list[int]


@pytest.fixture(scope="module")
def waiting(
    deployment: Deployment, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> dict[str, DagRun]:
    """Start the DAG runs for which the tests' disturbances need no quiet; their deferred runs end when a test says."""
    on_worker, flows = add_flows(4, running=15.0), {}
    for dag_id, number in {"deploy": 40, "cut_off": 20, "marked": 100}.items():
        flows[dag_id] = add_flows(number, running=3600.0)
        if dag_id == "deploy":
            write_dag(dag_id, MAPPED_RUNS.format(dag_id=dag_id, deferred=flows[dag_id], on_worker=on_worker))
        else:
            write_dag(dag_id, DEFERRED_RUNS.format(dag_id=dag_id, flows=flows[dag_id]))
    flows["deploy"] += on_worker
    return {dag_id: DagRun(dag_id, deployment.trigger_dag(dag_id), flows[dag_id]) for dag_id in flows}


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
    deployment: Deployment,
    sandbox: Sandbox,
    write_dag: Callable[[str, str], str],
    add_flows: Callable[..., list[int]],
    record_property: Callable[[str, object], None],
) -> None:
    good, bad = add_flows(228, running=8.0), add_flows(12, running=8.0, ends="error")
    deferred, on_worker = [*good[:190], *bad[:10]], [*good[190:], *bad[10:]]
    dag_id = write_dag("kills", MAPPED_RUNS.format(dag_id="kills", deferred=deferred, on_worker=on_worker))
    began = time.monotonic()
    run_id = deployment.trigger_dag(dag_id)
    # What a killed worker had taken from the queue waits for two minutes, so none of the last is a worker.
    victims = ("triggerer-1", "worker-1", "scheduler-1", "worker-2", "triggerer-2", "scheduler-2")
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
    expected = {**dict.fromkeys(good, "success"), **dict.fromkeys(bad, "failed")}
    record_property("tasks", len(states))
    record_property("right colors", sum(states[flow_id] == expected[flow_id] for flow_id in states))
    record_property("runs of good flows", runs_started(sandbox, good))
    record_property("seconds", round(time.monotonic() - began))
    assert states == expected
    assert_each_ran_once(sandbox, good)
    # A try starts a failed flow anew, unless it goes on with the run of a killed try.
    assert all(1 <= sandbox.runs_started(flow_id) <= 1 + RETRIES for flow_id in bad)


def wait_until_alone(deployment: Deployment, triggerer: str, number: int) -> None:
    """Wait until one triggerer runs all triggers, at least so many."""
    deployment.wait_until(
        f"{triggerer} runs all triggers",
        lambda: set(owners := deployment.owners_of_triggers()) == {triggerer} and owners[triggerer] >= number,
        300.0,
        deployment.owners_of_triggers,
    )


def finish_all(sandbox: Sandbox, flow_ids: Sequence[int]) -> None:
    for flow_id in flow_ids:
        for run in sandbox.runs(flow_id):
            if run.status == "running":
                sandbox.finish(run.audit_id)


def test_deploy_stops_nothing(deployment: Deployment, sandbox: Sandbox, waiting: dict[str, DagRun]) -> None:
    dag_id, run_id, flows = waiting["deploy"]
    deployment.wait_until("half of the runs go on", lambda: runs_started(sandbox, flows) >= len(flows) // 2, 300.0)
    for component in ("triggerer-1", "worker-1", "triggerer-2", "worker-2"):
        deployment.restart(component)
    deployment.wait_until("all runs go on", lambda: runs_started(sandbox, flows) >= len(flows), 300.0)
    finish_all(sandbox, flows)

    assert deployment.wait_for_dag_run(dag_id, run_id, 900.0) == "success"
    assert_each_ran_once(sandbox, flows)
    assert statuses(sandbox, flows) == {"success"}


def test_triggerer_cut_off_from_the_database_reports_nothing_twice(
    deployment: Deployment, sandbox: Sandbox, waiting: dict[str, DagRun]
) -> None:
    dag_id, run_id, flows = waiting["cut_off"]
    wait_until_deferred(deployment, dag_id, run_id, len(flows))
    with deployment.cut_off("triggerer-1"):
        minute = time.monotonic() + 60.0
        wait_until_alone(deployment, "triggerer-2", len(flows))
        deployment.wait_until("a minute has passed", lambda: time.monotonic() >= minute, 120.0)
    # Both have followed all runs since: the one that was cut off ends its own only when it learns of the other.
    finish_all(sandbox, flows)

    assert deployment.wait_for_dag_run(dag_id, run_id, 600.0) == "success"
    assert_each_ran_once(sandbox, flows)
    assert statuses(sandbox, flows) == {"success"}
    stopped = [each.path for each in sandbox.requests if "/stop" in each.path]
    assert not [path for path in stopped for flow_id in flows if str(flow_id) in path]


def test_frozen_triggerer_stops_nothing(deployment: Deployment, sandbox: Sandbox, waiting: dict[str, DagRun]) -> None:
    """Another triggerer takes its triggers over. When it goes on, Airflow cancels them as if a person had."""
    if deployment.version < (3, 3):
        pytest.skip("Airflow 3.3 brought this")
    dag_id, run_id, flows = waiting["marked"]
    wait_until_deferred(deployment, dag_id, run_id, len(flows))
    logs = deployment.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / "task_id=run"

    def busiest() -> tuple[str, int] | None:
        """Return the triggerer with the most of the triggers, and their number, once it runs them all."""
        rows = deployment._query(
            "SELECT job.hostname, job.id, count(*) FROM task_instance ti JOIN trigger ON trigger.id = ti.trigger_id"
            " JOIN job ON job.id = trigger.triggerer_id WHERE ti.dag_id = ? GROUP BY 1, 2 ORDER BY 3 DESC",
            dag_id,
        )
        name, job, number = rows[0]
        running = len(list(logs.glob(f"map_index=*/*.trigger.{job}.log")))
        return (name, number) if running >= number else None

    victim, number = deployment.wait_until("a triggerer runs its triggers", busiest, 300.0)
    (other,) = {"triggerer-1", "triggerer-2"} - {victim}
    with deployment.frozen(victim):
        wait_until_alone(deployment, other, len(flows))

    def let_go() -> int:
        """Count the tasks whose log says that their trigger was cancelled."""
        return sum("its task still waits for it" in file.read_text() for file in logs.glob("map_index=*/*.trigger.*"))

    deployment.wait_until("it has let go of its triggers", lambda: let_go() >= number, 300.0, let_go)

    assert deployment.count_states(dag_id, run_id) == {"deferred": len(flows)}
    assert_each_ran_once(sandbox, flows)
    assert statuses(sandbox, flows) == {"running"}


def test_hundred_tasks_marked_as_failed_stop_their_runs(
    deployment: Deployment, sandbox: Sandbox, waiting: dict[str, DagRun]
) -> None:
    if deployment.version < (3, 3):
        pytest.skip("Airflow 3.3 brought what this needs")
    dag_id, run_id, flows = waiting["marked"]
    wait_until_deferred(deployment, dag_id, run_id, len(flows))
    with ThreadPoolExecutor(20) as people:
        list(people.map(lambda index: deployment.mark(dag_id, run_id, "run", "failed", index), range(len(flows))))

    def going() -> list[int]:
        return [run.audit_id for flow_id in flows for run in sandbox.runs(flow_id) if not run.stop_requested]

    deployment.wait_until("all runs are stopped", lambda: not going(), 300.0, going)
    assert_each_ran_once(sandbox, flows)
