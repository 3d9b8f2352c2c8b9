"""
Promote flows from staging to production: a person approves, and what does not work is rolled back.

Needs the connections ``etlworks_staging`` and ``etlworks_production``, and the variable ``etlworks_bundles``: a folder
that all workers share, or the URL of an object store.
"""

from __future__ import annotations

from airflow import __version__ as airflow_version

try:
    from airflow.sdk import dag
except ImportError:  # Airflow 2
    from airflow.decorators import dag

from airflow_provider_etlworks.promotion import promote_flows

# Airflow can ask people since 3.1.
CAN_ASK_PEOPLE = not airflow_version.startswith(("2.", "3.0."))


@dag(schedule=None, tags=["etlworks"])
def etlworks_promotion() -> None:
    """Promote the flows with the tag ``warehouse``, and run one of them to see whether they work."""
    promote_flows(
        source_conn_id="etlworks_staging",
        target_conn_id="etlworks_production",
        path="{{ var.value.etlworks_bundles }}/{{ run_id }}.json",
        tags=["warehouse"],
        pause_schedules=True,
        smoke_flow_name="Daily warehouse refresh",
        approval=CAN_ASK_PEOPLE,
    )


etlworks_promotion()
