"""Airflow hooks for Etlworks."""
