"""The demos: they start a real Airflow next to the sandbox, and run example DAGs in it."""
