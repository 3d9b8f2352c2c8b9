"""Airflow triggers for Etlworks."""
