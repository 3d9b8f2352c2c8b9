"""Airflow operators for Etlworks."""
