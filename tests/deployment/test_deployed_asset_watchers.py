"""Two triggerers watch a flow for an asset, and one of them is killed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.deployment import Deployment

    from airflow_provider_etlworks.sandbox import Sandbox

WATCHERS = """
from airflow.sdk import Asset, AssetWatcher

from airflow_provider_etlworks.triggers.asset import EtlworksFlowFinishedTrigger

for flow_id in {flows!r}:
    trigger = EtlworksFlowFinishedTrigger(flow_id=flow_id, poll_interval=1)
    asset = Asset(f"flow_{{flow_id}}", watchers=[AssetWatcher(name=f"watcher_{{flow_id}}", trigger=trigger)])
    with DAG(f"after_flow_{{flow_id}}", schedule=[asset], start_date=START):

        @task
        def nothing():
            pass

        nothing()
"""


def runs_reported(deployment: Deployment, flow_id: int) -> list[int]:
    """Return the audit ids in the events of a flow's asset, oldest first."""
    rows = deployment._query(
        "SELECT e.extra FROM asset_event e JOIN asset a ON a.id = e.asset_id WHERE a.name = ? ORDER BY e.id",
        f"flow_{flow_id}",
    )
    extras = [row[0] if isinstance(row[0], dict) else json.loads(row[0]) for row in rows]
    return [extra["payload"]["audit_id"] for extra in extras]


def test_killed_triggerer_loses_no_completed_run(
    deployment: Deployment, sandbox: Sandbox, write_dag: Callable[[str, str], str], add_flows: Callable[..., list[int]]
) -> None:
    flows = add_flows(4, running=1.0)
    write_dag("watchers", WATCHERS.format(flows=flows))
    expected: dict[int, list[int]] = {flow_id: [] for flow_id in flows}

    def run_all() -> None:
        for flow_id in flows:
            expected[flow_id].append(sandbox.run_by_schedule(flow_id))

    def wait_until_reported() -> None:
        deployment.wait_until(
            "all completed runs are reported",
            lambda: all(set(expected[flow_id]) <= set(runs_reported(deployment, flow_id)) for flow_id in flows),
            300.0,
            lambda: {flow_id: (expected[flow_id], runs_reported(deployment, flow_id)) for flow_id in flows},
        )

    deployment.wait_until(
        "each flow is watched",
        lambda: all(f"etlworks_ends.etlworks_default.{flow_id}" in checkpoints(deployment) for flow_id in flows),
        300.0,
    )
    run_all()
    wait_until_reported()
    for victim in ("triggerer-1", "triggerer-2"):
        run_all()
        deployment.kill(victim)
        run_all()
        wait_until_reported()
        deployment.start(victim)
        run_all()
    wait_until_reported()
    # At least once: a triggerer killed between storing an event and its checkpoint reports the run again.
    for flow_id in flows:
        assert set(runs_reported(deployment, flow_id)) == set(expected[flow_id])


def checkpoints(deployment: Deployment) -> str:
    """Return the keys of the stored checkpoints."""
    table, column = ("asset_state_store", "key") if deployment.version >= (3, 3) else ("variable", "key")
    return " ".join(str(row[0]) for row in deployment._query(f"SELECT {column} FROM {table}"))  # noqa: S608
