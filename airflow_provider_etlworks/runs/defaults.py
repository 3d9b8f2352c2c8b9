"""Defaults of how runs are followed. A DAG file imports them, so nothing else is here."""

from __future__ import annotations

DEFAULT_POLL_INTERVAL = 10.0
"""Seconds between two polls of a young run."""

DEFAULT_PATIENCE = 1800.0
"""Seconds for which the status of a run may be unreadable."""

TRIGGER_BUFFER = 120.0
"""Seconds after a trigger's deadline at which Airflow ends it, if it has not ended by itself."""

DEFAULT_REPETITION_GRACE = 10.0
"""Seconds after the bad end of a schedule's run in which its repetition by Etlworks may still appear: an assumption."""
