"""Wait for last night's run of a flow that Etlworks itself schedules, and use its result."""

from __future__ import annotations

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task

from airflow_provider_etlworks.sensors.flow import EtlworksFlowExecutionSensor


# In production, use a schedule such as "0 6 * * *", two hours after the flow's own schedule.
@dag(schedule=None, tags=["etlworks"])
def etlworks_wait_for_nightly() -> None:
    """Wait for the newest run of the last twelve hours, without holding a worker slot."""
    refresh = EtlworksFlowExecutionSensor(
        task_id="warehouse_refresh",
        flow_id=12346,
        since="{{ (dag_run.start_date - macros.timedelta(hours=12)).isoformat() }}",
        deferrable=True,
        poke_interval=2,
        timeout=4 * 3600,
    )

    @task
    def report(result: dict[str, object]) -> str:
        """Return a summary of the run."""
        return f"{result['records']} records since {result['started_at']}, see {result['url']}"

    report(refresh.output)


etlworks_wait_for_nightly()
