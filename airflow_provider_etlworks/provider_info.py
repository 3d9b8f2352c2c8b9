"""What Airflow's provider discovery reads."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Describe this provider to Airflow."""
    return {"package-name": "airflow-provider-etlworks", "name": "Etlworks", "description": "Etlworks"}
