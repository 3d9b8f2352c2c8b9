"""When a task stops waiting: the arithmetic of ``timeout``, ``execution_timeout``, and a trigger's deadline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from airflow_provider_etlworks.runs.defaults import TRIGGER_BUFFER

# Seconds before Airflow's own execution_timeout at which we act, so that a last poll and a stop still fit in.
_MARGIN = 10.0


@dataclass(frozen=True)
class Deadline:
    """
    The moment at which a task stops waiting.

    :ivar at: Unix time; ``None`` is never.
    :ivar limit: which argument sets it, and its value, for messages.
    :ivar by_airflow: whether it is ``execution_timeout``.
    """

    at: float | None = None
    limit: str = ""
    by_airflow: bool = False

    @classmethod
    def earliest(cls, began: float, timeout: float | None, execution_timeout: timedelta | None) -> Deadline:
        """
        Return the earlier one of a task's two limits.

        :param began: Unix time of the task's start.
        :param timeout: the operator's ``timeout`` in seconds; ``None`` means no limit.
        :param execution_timeout: Airflow's; ``None`` means no limit.
        """
        own = cls() if timeout is None else cls(began + timeout, f"timeout ({timeout} s)")
        if execution_timeout is None:
            return own
        seconds = execution_timeout.total_seconds()
        of_airflow = began + seconds - min(_MARGIN, seconds / 10)
        if own.at is not None and own.at <= of_airflow:
            return own
        return cls(of_airflow, f"execution_timeout ({execution_timeout})", by_airflow=True)


def trigger_timeout(deadline: float | None, now: float) -> timedelta | None:
    """
    Return how long Airflow waits for a trigger that ends by itself at a deadline.

    :param deadline: Unix time; ``None`` is never.
    :param now: the present Unix time.
    """
    return None if deadline is None else timedelta(seconds=max(0.0, deadline - now) + TRIGGER_BUFFER)
