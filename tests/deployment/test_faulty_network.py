"""Five hundred runs through a proxy that breaks every tenth request."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.deployment import Deployment, FaultyProxy

    from airflow_provider_etlworks.sandbox import Sandbox

# Airflow lets a DAG run map a task to a number of instances in one go; the workers have few slots.
DEFERRED, ON_WORKER, BAD = 440, 60, 50

MAPPED_RUNS = """
with DAG("faulty_network", schedule=None, start_date=START):
    EtlworksRunFlowOperator.partial(
        task_id="deferred", etlworks_conn_id="etlworks_through_proxy", deferrable=True, poll_interval=5
    ).expand(flow_id={deferred!r})
    EtlworksRunFlowOperator.partial(
        task_id="on_worker", etlworks_conn_id="etlworks_through_proxy", poll_interval=1
    ).expand(flow_id={on_worker!r})
"""


def test_five_hundred_runs_with_a_fault_on_every_tenth_request(
    deployment: Deployment,
    sandbox: Sandbox,
    proxy: FaultyProxy,
    write_dag: Callable[[str, str], str],
    add_flows: Callable[..., list[int]],
    record_property: Callable[[str, object], None],
) -> None:
    bad, good = add_flows(BAD, running=10.0, ends="error"), add_flows(DEFERRED + ON_WORKER - BAD, running=10.0)
    # Those on workers are short: each of them holds one of the few slots.
    flows = [*bad, *good]
    deferred, on_worker = flows[:DEFERRED], flows[DEFERRED:]
    for flow_id in on_worker:
        sandbox.add_flow(replace(sandbox.flows[flow_id], running=0.5))
    dag_id = write_dag("faulty_network", MAPPED_RUNS.format(deferred=deferred, on_worker=on_worker))
    proxy.every = 10
    began = time.monotonic()
    try:
        run_id = deployment.trigger_dag(dag_id)
        # Without retries: a fault of the network is not a failure of the task.
        deployment.wait_for_dag_run(dag_id, run_id, 1500.0)
    finally:
        proxy.every = 0

    record_property("seconds", round(time.monotonic() - began))
    record_property("requests", len(proxy.received))
    record_property("broken", proxy.broken)
    states = deployment.task_states(dag_id, run_id)
    by_flow = {flow_id: states["deferred", index] for index, flow_id in enumerate(deferred)}
    by_flow |= {flow_id: states["on_worker", index] for index, flow_id in enumerate(on_worker)}
    assert by_flow == {**dict.fromkeys(bad, "failed"), **dict.fromkeys(good, "success")}
    assert {flow_id: sandbox.runs_started(flow_id) for flow_id in flows} == dict.fromkeys(flows, 1)
    assert proxy.broken > len(flows) // 10
