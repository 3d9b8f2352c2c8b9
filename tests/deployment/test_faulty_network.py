"""Five hundred runs through a proxy that breaks every tenth request."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.deployment import Deployment, FaultyProxy

    from airflow_provider_etlworks.sandbox import Sandbox

# Flows of each kind, and how long their runs take. Those on workers are short: each of them holds one of the few slots.
GOOD, BAD = 225, 25
RUNNING = {"deferred": 10.0, "on_worker": 0.5}

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
    bad = {kind: add_flows(BAD, running=seconds, ends="error") for kind, seconds in RUNNING.items()}
    good = {kind: add_flows(GOOD, running=seconds) for kind, seconds in RUNNING.items()}
    expected = {
        (kind, index): state for kind in RUNNING for index, state in enumerate(["failed"] * BAD + ["success"] * GOOD)
    }
    flows = {kind: [*bad[kind], *good[kind]] for kind in RUNNING}
    dag_id = write_dag("faulty_network", MAPPED_RUNS.format(**flows))
    proxy.breaks.every = 10
    began = time.monotonic()
    try:
        run_id = deployment.trigger_dag(dag_id)
        # Without retries: a fault of the network is not a failure of the task.
        deployment.wait_for_dag_run(dag_id, run_id, 1500.0)
    finally:
        proxy.breaks.every = 0

    started = {flow_id: sandbox.runs_started(flow_id) for kind in RUNNING for flow_id in flows[kind]}
    states = deployment.task_states(dag_id, run_id)
    record_property("started", sum(started.values()))
    wrong = [key for key in expected if states[key] != expected[key]]
    record_property("right colors", len(expected) - len(wrong))
    record_property("requests", len(proxy.received))
    record_property("faults", proxy.broken)
    record_property("seconds", round(time.monotonic() - began))
    assert not wrong, "\n".join(
        f"{key} is {states[key]}:\n{deployment.task_log(dag_id, run_id, *key)}" for key in wrong
    )
    assert started == dict.fromkeys(started, 1)
    assert proxy.broken > len(started) // 10
