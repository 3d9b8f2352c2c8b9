"""Airflow sensors for Etlworks."""
