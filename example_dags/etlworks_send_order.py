"""Send a payload to the listener of a flow, and follow the run that it starts."""

from __future__ import annotations

try:
    from airflow.sdk import dag
except ImportError:  # Airflow 2
    from airflow.decorators import dag

from airflow_provider_etlworks.operators.listener import EtlworksHttpListenerOperator


@dag(schedule=None, tags=["etlworks"], params={"order": 4711})
def etlworks_send_order() -> None:
    """Post an order to ``httplistener/orders/new``, where flow 12351 listens, and wait until its run ends."""
    EtlworksHttpListenerOperator(
        task_id="send_order",
        path="orders/new",
        payload={"order": "{{ params.order }}", "day": "{{ dag_run.start_date | ds }}"},
        flow_id=12351,
        wait_for_completion=True,
        deferrable=True,
        poll_interval=2,
    )


etlworks_send_order()
