"""What moves between Etlworks instances: exporting, previewing and importing bundles. Knows nothing of Airflow."""
