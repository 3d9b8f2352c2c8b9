"""What every test has: an Airflow home of its own, and nothing of the machine's settings."""

from __future__ import annotations

import os
import tempfile

_AIRFLOW_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")

# Before anything imports Airflow, which reads its settings once.
for _name in list(os.environ):
    if _name.startswith("AIRFLOW") or _name.lower() in {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}:
        del os.environ[_name]
os.environ["AIRFLOW_HOME"] = _AIRFLOW_HOME.name
