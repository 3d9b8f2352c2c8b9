"""Run one flow, wait for it in the triggerer, and use its result downstream."""

from __future__ import annotations

try:
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2
    from airflow.decorators import dag, task

from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator


@dag(schedule=None, tags=["etlworks"])
def etlworks_run_flow() -> None:
    """Run one flow, then report its result."""
    run = EtlworksRunFlowOperator(
        task_id="stripe_to_snowflake",
        flow_id=12345,
        parameters={"runDate": "{{ dag_run.start_date | ds }}"},
        deferrable=True,
        poll_interval=2,
    )

    @task
    def report(result: dict[str, object]) -> str:
        """Return a summary of the run."""
        return f"{result['records']} records in {result['duration_seconds']} s, see {result['url']}"

    report(run.output)


etlworks_run_flow()
