"""Run every flow that has a tag, in parallel. If a flow fails, only its own task fails."""

from __future__ import annotations

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task

from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator


@dag(schedule=None, tags=["etlworks"])
def etlworks_fan_out() -> None:
    """Run every flow with the tag ``nightly``."""

    @task
    def flows_with_tag(tag: str) -> list[int]:
        """Return the ids of the flows that have the tag at present."""
        from airflow_provider_etlworks.hooks.etlworks import EtlworksHook

        return [flow.id for flow in EtlworksHook().list_flows(tags=[tag])]

    EtlworksRunFlowOperator.partial(
        task_id="run_flow",
        deferrable=True,
        poll_interval=2,
        map_index_template="{{ task.flow_id }}",
    ).expand(flow_id=flows_with_tag("nightly"))


etlworks_fan_out()
