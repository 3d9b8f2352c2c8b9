"""Flows run by real schedulers, workers and triggerers: what a DAG author and an on-call engineer see."""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_etlworks.sandbox import SandboxFlow, delay

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.sandbox import Sandbox
    from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

pytestmark = pytest.mark.airflow

FLOW_IDS = count(50_001)
NOT_DEFERRED_ANY_MORE = ("success", "failed", "up_for_retry")
# A person waits no longer than this for a killed task's run to stop.
STOPPED_WITHIN = 15.0

RUN_FLOW = """
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator

with DAG({dag_id!r}, schedule=None, start_date=START):
    EtlworksRunFlowOperator(task_id="run", {arguments})
"""


def since_airflow(version: tuple[int, ...]) -> pytest.MarkDecorator:
    from airflow import __version__

    installed = tuple(int(part) for part in __version__.split(".")[:2])
    wanted = ".".join(map(str, version))
    return pytest.mark.skipif(installed < version, reason=f"Airflow {wanted} brought what this needs")


@pytest.fixture
def add_flow(sandbox: Sandbox) -> Callable[..., int]:
    def add(**properties: Any) -> int:
        flow_id = next(FLOW_IDS)
        sandbox.add_flow(SandboxFlow(**{"id": flow_id, "name": f"Flow {flow_id}", "running": 1.0, **properties}))
        return flow_id

    return add


@pytest.fixture
def run_flow_dag(write_dag: Callable[[str, str], str]) -> Callable[..., str]:
    """Return a function that makes a DAG with the one task ``run``, and returns its id."""

    def make(name: str, **arguments: Any) -> str:
        listed = {"poll_interval": 0.5, **arguments}
        text = RUN_FLOW.format(dag_id=name, arguments=", ".join(f"{key}={value}" for key, value in listed.items()))
        return write_dag(name, text)

    return make


def wait_for_run(airflow: LocalAirflow, sandbox: Sandbox, flow_id: int, *, number: int = 1) -> int:
    """Wait until the flow was started so many times, and return the newest run's audit id."""
    airflow.wait_until(f"flow {flow_id} has run {number}", lambda: sandbox.runs_started(flow_id) >= number, 120.0)
    return sandbox.runs(flow_id)[-1].audit_id


def wait_for_trigger(airflow: LocalAirflow, sandbox: Sandbox, dag_id: str, run_id: str, audit_id: int) -> None:
    """Wait until a triggerer follows the run."""
    airflow.wait_for_deferral(dag_id, run_id, "run")

    def looks() -> int:
        return sum(each.query.get("auditId") == [str(audit_id)] for each in sandbox.requests)

    before = looks()
    airflow.wait_until("the trigger looks at the run", lambda: looks() > before, 120.0)


def extra_links(airflow: LocalAirflow, dag_id: str, run_id: str, task_id: str) -> dict[str, str | None]:
    """Return the links that the UI shows beside a task."""
    is_old = airflow.version < (3,)
    path = f"/api/v{1 if is_old else 2}/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links"
    headers = {}
    if not is_old:
        headers["Authorization"] = f"Bearer {airflow._http('GET', '/auth/token').json()['access_token']}"
    answer = airflow._http("GET", path, headers=headers)
    answer.raise_for_status()
    links: dict[str, str | None] = answer.json() if is_old else answer.json()["extra_links"]
    return links


def kill_worker_of(airflow: LocalAirflow, dag_id: str, run_id: str) -> None:
    """Kill the process that runs the task, as an out-of-memory killer does."""
    (task,) = airflow.task_instances(dag_id, run_id)
    assert task.pid is not None
    os.kill(task.pid, signal.SIGKILL)


ENDINGS = {"success": "success", "warning": "success", "error": "failed", "canceled": "failed"}


def test_each_ending_has_the_same_color_and_result_in_every_mode(
    local_airflow: LocalAirflow, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flow: Callable[..., int]
) -> None:
    flows = {
        (ending, mode): add_flow(ends=ending, records=7, exception="it broke" if ending == "error" else None)
        for ending in ENDINGS
        for mode in ("sync", "deferrable")
    }
    tasks = [
        f"    EtlworksRunFlowOperator(task_id='{ending}_{mode}', poll_interval=0.5, deferrable={mode == 'deferrable'}, "
        + (f"flow_name='Flow {flow_id}')" if ending in ("warning", "error") else f"flow_id={flow_id})")
        for (ending, mode), flow_id in flows.items()
    ]
    header = RUN_FLOW.partition("    Etlworks")[0].format(dag_id="endings")
    dag_id = write_dag("endings", header + "\n".join(tasks))
    run_id = local_airflow.trigger_dag(dag_id)
    local_airflow.wait_for_dag_run(dag_id, run_id)

    states = {task_id: state for (task_id, _), state in local_airflow.task_states(dag_id, run_id).items()}
    assert states == {f"{ending}_{mode}": ENDINGS[ending] for ending, mode in flows}
    for (ending, mode), flow_id in flows.items():
        (run,) = sandbox.runs(flow_id)
        task_id = f"{ending}_{mode}"
        assert local_airflow.xcom(dag_id, run_id, task_id, key="audit_id") == run.audit_id
        result = local_airflow.xcom(dag_id, run_id, task_id)
        log = local_airflow.task_log(dag_id, run_id, task_id)
        assert f"Run {run.audit_id} of flow {flow_id} is accepted" in log
        if ENDINGS[ending] == "failed":
            assert result is None
            assert f"ended: {ending}" in log
            continue
        assert set(result) == {
            "flow_id", "audit_id", "status", "started_at", "ended_at", "duration_seconds", "records", "url",
        }  # fmt: skip
        assert (result["flow_id"], result["audit_id"], result["status"]) == (flow_id, run.audit_id, ending)
        assert (result["records"], result["duration_seconds"]) == (7, 1.0)
        assert str(run.audit_id) in result["url"]
    for mode in ("sync", "deferrable"):
        log = local_airflow.task_log(dag_id, run_id, f"error_{mode}")
        assert "it broke" in log
        assert "The last lines of the log of run" in log


def test_the_link_is_there_while_the_run_is_going(
    local_airflow: LocalAirflow, sandbox: Sandbox, run_flow_dag: Callable[..., str], add_flow: Callable[..., int]
) -> None:
    flow_id = add_flow(running=float("inf"))
    dag_id = run_flow_dag("linked", flow_id=flow_id, deferrable=True)
    run_id = local_airflow.trigger_dag(dag_id)
    audit_id = wait_for_run(local_airflow, sandbox, flow_id)
    local_airflow.wait_for_deferral(dag_id, run_id, "run")
    (waiting,) = [each for each in local_airflow.triggers() if each.kwargs.get("audit_id") == audit_id]
    assert waiting.classpath == "airflow_provider_etlworks.triggers.flow.EtlworksFlowExecutionTrigger"
    link = extra_links(local_airflow, dag_id, run_id, "run")["Open in Etlworks"]
    assert link is not None
    assert link.startswith(sandbox.url)
    assert str(audit_id) in link
    sandbox.finish(audit_id)
    assert local_airflow.wait_for_dag_run(dag_id, run_id) == "success"


def test_killed_triggerer_loses_nothing(
    local_airflow: LocalAirflow, sandbox: Sandbox, run_flow_dag: Callable[..., str], add_flow: Callable[..., int]
) -> None:
    flow_id = add_flow(running=float("inf"))
    dag_id = run_flow_dag("triggerer_killed", flow_id=flow_id, deferrable=True)
    run_id = local_airflow.trigger_dag(dag_id)
    audit_id = wait_for_run(local_airflow, sandbox, flow_id)
    wait_for_trigger(local_airflow, sandbox, dag_id, run_id, audit_id)
    local_airflow.kill("triggerer", signal.SIGKILL)
    local_airflow.start("triggerer")
    local_airflow.stop("triggerer")
    local_airflow.start("triggerer")
    wait_for_trigger(local_airflow, sandbox, dag_id, run_id, audit_id)
    assert sandbox.runs(flow_id)[-1].status == "running"
    sandbox.finish(audit_id)
    assert local_airflow.wait_for_dag_run(dag_id, run_id) == "success"
    assert sandbox.runs_started(flow_id) == 1


@pytest.mark.parametrize("action", ["failed", "success", "cleared"])
@since_airflow((3, 3))
def test_user_who_ends_a_deferred_task_stops_its_run(
    action: str,
    local_airflow: LocalAirflow,
    sandbox: Sandbox,
    run_flow_dag: Callable[..., str],
    add_flow: Callable[..., int],
) -> None:
    flow_id = add_flow(running=float("inf"))
    dag_id = run_flow_dag(f"ended_by_hand_{action}", flow_id=flow_id, deferrable=True)
    run_id = local_airflow.trigger_dag(dag_id)
    audit_id = wait_for_run(local_airflow, sandbox, flow_id)
    wait_for_trigger(local_airflow, sandbox, dag_id, run_id, audit_id)
    if action == "cleared":
        local_airflow.clear(dag_id, run_id, "run")
    else:
        local_airflow.mark(dag_id, run_id, "run", action)
    run = lambda: next(each for each in sandbox.runs(flow_id) if each.audit_id == audit_id)  # noqa: E731
    local_airflow.wait_until("the run is stopped", lambda: run().status != "running", 4 * STOPPED_WITHIN)
    if action == "cleared":
        second = wait_for_run(local_airflow, sandbox, flow_id, number=2)
        sandbox.finish(second)
        assert local_airflow.wait_for_dag_run(dag_id, run_id) == "success"
        assert local_airflow.xcom(dag_id, run_id, "run", key="audit_id") == second
    assert sandbox.runs_started(flow_id) == (2 if action == "cleared" else 1)


@pytest.mark.parametrize("deferrable", [False, True])
@since_airflow((3, 3))
def test_worker_killed_before_the_response_to_the_start(
    deferrable: bool,
    local_airflow: LocalAirflow,
    sandbox: Sandbox,
    run_flow_dag: Callable[..., str],
    add_flow: Callable[..., int],
) -> None:
    flow_id = add_flow(running=float("inf"))
    sandbox.fault("POST", f"/rest/v1/flows/{flow_id}/run", delay(60.0))
    dag_id = run_flow_dag(
        f"killed_before_answer_{deferrable}",
        flow_id=flow_id, deferrable=deferrable, retries=1, retry_delay="timedelta(seconds=1)",
    )  # fmt: skip
    run_id = local_airflow.trigger_dag(dag_id)
    audit_id = wait_for_run(local_airflow, sandbox, flow_id)
    kill_worker_of(local_airflow, dag_id, run_id)
    going_on = "deferred" if deferrable else "running"
    local_airflow.wait_until(
        "the second try follows the run",
        lambda: local_airflow.xcom(dag_id, run_id, "run", key="audit_id") == audit_id,
        180.0,
    )
    local_airflow.wait_for_task_state(dag_id, run_id, "run", going_on)
    sandbox.finish(audit_id)
    assert local_airflow.wait_for_dag_run(dag_id, run_id) == "success"
    assert sandbox.runs_started(flow_id) == 1


@pytest.mark.parametrize("ending", ["success", "error", None])
@since_airflow((3, 3))
def test_worker_killed_while_it_follows_the_run(
    ending: str | None,
    local_airflow: LocalAirflow,
    sandbox: Sandbox,
    run_flow_dag: Callable[..., str],
    add_flow: Callable[..., int],
) -> None:
    flow_id = add_flow(running=float("inf"))
    dag_id = run_flow_dag(
        f"killed_while_following_{ending}",
        flow_id=flow_id, deferrable=False, retries=1, retry_delay="timedelta(seconds=1)",
    )  # fmt: skip
    run_id = local_airflow.trigger_dag(dag_id)
    audit_id = wait_for_run(local_airflow, sandbox, flow_id)
    local_airflow.wait_until(
        "the audit id is told", lambda: local_airflow.xcom(dag_id, run_id, "run", key="audit_id") == audit_id, 60.0
    )
    kill_worker_of(local_airflow, dag_id, run_id)
    if ending is not None:
        sandbox.finish(audit_id, ending)
    last = audit_id if ending != "error" else wait_for_run(local_airflow, sandbox, flow_id, number=2)
    if ending != "success":
        seen = len(sandbox.requests)
        local_airflow.wait_until(
            "the second try follows a run",
            lambda: any(str(last) in each.query.get("auditId", []) for each in sandbox.requests[seen:]),
            180.0,
        )
        sandbox.finish(last)
    assert local_airflow.wait_for_dag_run(dag_id, run_id) == "success"
    assert sandbox.runs_started(flow_id) == (2 if ending == "error" else 1)
    assert local_airflow.xcom(dag_id, run_id, "run")["audit_id"] == last


def test_execution_timeout_stops_the_run_in_both_modes(
    local_airflow: LocalAirflow, sandbox: Sandbox, run_flow_dag: Callable[..., str], add_flow: Callable[..., int]
) -> None:
    flows = {
        run_flow_dag(
            f"timed_out_{deferrable}", flow_id=(flow_id := add_flow(running=float("inf"))),
            deferrable=deferrable, execution_timeout="timedelta(seconds=20)",
        ): flow_id
        for deferrable in (True, False)
    }  # fmt: skip
    started = [(dag_id, local_airflow.trigger_dag(dag_id)) for dag_id in flows]
    for dag_id, run_id in started:
        assert local_airflow.wait_for_dag_run(dag_id, run_id) == "failed"
        (run,) = sandbox.runs(flows[dag_id])
        assert run.status != "running"
        assert "imeout" in local_airflow.task_log(dag_id, run_id, "run")


def test_killed_worker_task_stops_its_run(
    local_airflow: LocalAirflow, sandbox: Sandbox, run_flow_dag: Callable[..., str], add_flow: Callable[..., int]
) -> None:
    flow_id = add_flow(running=float("inf"))
    dag_id = run_flow_dag("marked_while_running", flow_id=flow_id, deferrable=False)
    run_id = local_airflow.trigger_dag(dag_id)
    audit_id = wait_for_run(local_airflow, sandbox, flow_id)
    local_airflow.wait_until(
        "the audit id is told", lambda: local_airflow.xcom(dag_id, run_id, "run", key="audit_id") == audit_id, 60.0
    )
    local_airflow.mark(dag_id, run_id, "run", "failed")
    local_airflow.wait_until("the run is stopped", lambda: sandbox.runs(flow_id)[-1].status != "running", 60.0)
    assert local_airflow.wait_for_dag_run(dag_id, run_id) == "failed"
    assert sandbox.runs_started(flow_id) == 1


def test_many_mapped_tasks_at_once(
    local_airflow: LocalAirflow, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flow: Callable[..., int]
) -> None:
    # Airflow 2 with SQLite runs one task at a time. tests/deployment has hundreds.
    flows = [add_flow(running=0.5) for _ in range(25 if local_airflow.version >= (3,) else 5)]
    header = RUN_FLOW.partition("    Etlworks")[0].format(dag_id="mapped")
    dag_id = write_dag(
        "mapped",
        header + "    EtlworksRunFlowOperator.partial(task_id='run', deferrable=True, poll_interval=0.5,"
        f" parameters={{'index': '{{{{ ti.map_index }}}}'}}).expand(flow_id={flows})",
    )
    run_id = local_airflow.trigger_dag(dag_id)
    assert local_airflow.wait_for_dag_run(dag_id, run_id, timeout=600.0) == "success"
    assert [sandbox.runs_started(flow_id) for flow_id in flows] == [1] * len(flows)
    results = [local_airflow.xcom(dag_id, run_id, "run", map_index=index) for index in range(len(flows))]
    assert [result["flow_id"] for result in results] == flows
