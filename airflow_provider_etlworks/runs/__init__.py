"""The life of a run: how it is started, found, polled, stopped and judged. Knows nothing of Airflow."""
