"""Etlworks over HTTP. Knows nothing of Airflow, and is usable without it."""
