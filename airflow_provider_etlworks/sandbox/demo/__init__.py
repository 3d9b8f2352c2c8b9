"""The demos: they start a real Airflow beside the sandbox, and run example DAGs in it."""
