"""Receives what Etlworks posts when runs end, in Airflow's API server, and updates the flows' assets."""
