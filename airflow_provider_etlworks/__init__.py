"""Apache Airflow provider for Etlworks: run, follow and promote Etlworks flows from DAGs."""

__version__ = "0.1.0"
