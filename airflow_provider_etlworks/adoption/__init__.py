"""Schedules of Etlworks, taken over by Airflow: translated, written as a DAG file, and turned off in Etlworks."""
