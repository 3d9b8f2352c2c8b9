"""The commands ``airflow etlworks …``."""
