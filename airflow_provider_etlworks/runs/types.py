"""The values that identify a run, and say how it is polled."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_etlworks.runs.defaults import DEFAULT_PATIENCE, DEFAULT_POLL_INTERVAL


@dataclass(frozen=True, slots=True)
class RunRef:
    """
    One run of one flow.

    :ivar flow_id: the flow.
    :ivar audit_id: the run.
    """

    flow_id: int
    audit_id: int

    def __str__(self) -> str:
        """Name the run, for logs and messages."""
        return f"run {self.audit_id} of flow {self.flow_id}"


@dataclass(frozen=True, slots=True)
class PollPolicy:
    """
    How often a run is polled, and when polling ends without a result.

    :ivar poll_interval: seconds between two polls of a young run; an old run is polled less often.
    :ivar patience: seconds for which the status may be unreadable.
    :ivar deadline: Unix time of the last poll; ``None`` is never.
    :ivar started_at: Unix time, by our clock, at which we started the run: its age is counted from there. ``None`` if
        somebody else started it, or if the time is not known: then its record says when it started.
    """

    poll_interval: float = DEFAULT_POLL_INTERVAL
    patience: float = DEFAULT_PATIENCE
    deadline: float | None = None
    started_at: float | None = None
