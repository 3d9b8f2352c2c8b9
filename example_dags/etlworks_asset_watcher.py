"""Run a DAG whenever a flow ends that Etlworks itself schedules. Needs Airflow 3."""

from __future__ import annotations

from airflow import __version__ as airflow_version

# Airflow 2 has no asset watchers, so this file has no DAG there.
if not airflow_version.startswith("2."):
    from airflow.sdk import AssetWatcher, dag, task

    from airflow_provider_etlworks.assets import flow_asset
    from airflow_provider_etlworks.triggers.asset import EtlworksFlowFinishedTrigger

    warehouse = flow_asset(
        12346,
        host="app.etlworks.com",
        name="etlworks_warehouse",
        watchers=[
            AssetWatcher(
                name="warehouse_refreshed",
                trigger=EtlworksFlowFinishedTrigger(flow_id=12346, poll_interval=5),
            )
        ],
    )

    @dag(schedule=[warehouse], tags=["etlworks"])
    def etlworks_asset_watcher() -> None:
        """Use the data that the flow has loaded."""

        @task(inlets=[warehouse])
        def report(triggering_asset_events: dict[object, list[object]] | None = None) -> list[str]:
            """Return the runs of the flow that triggered this DAG run."""
            runs = [event.extra["payload"] for events in (triggering_asset_events or {}).values() for event in events]
            return [f"run {run['audit_id']}: {run['status']}, {run['records']} records" for run in runs]

        report()

    etlworks_asset_watcher()
