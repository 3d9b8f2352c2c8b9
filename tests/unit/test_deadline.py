"""When a task stops waiting: its own time-out or Airflow's, whichever is earlier."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airflow_provider_etlworks.runs.defaults import TRIGGER_BUFFER
from airflow_provider_etlworks.worker.deadline import Deadline, trigger_timeout

BEGAN = 1_800_000_000.0


@pytest.mark.parametrize(
    ("timeout", "execution_timeout", "after", "limit"),
    [
        (None, None, None, ""),
        (600, None, 600, "timeout (600 s)"),
        # A last poll and a stop fit into the ten seconds, or the tenth, before Airflow's own limit.
        (None, 1800, 1790, "execution_timeout (0:30:00)"),
        (None, 50, 45, "execution_timeout (0:00:50)"),
        (600, 1800, 600, "timeout (600 s)"),
        (1790, 1800, 1790, "timeout (1790 s)"),
        (1791, 1800, 1790, "execution_timeout (0:30:00)"),
    ],
)
def test_earlier_limit_counts(
    timeout: float | None, execution_timeout: float | None, after: float | None, limit: str
) -> None:
    of_airflow = None if execution_timeout is None else timedelta(seconds=execution_timeout)

    deadline = Deadline.earliest(BEGAN, timeout, of_airflow)

    assert deadline.at == (None if after is None else BEGAN + after)
    assert deadline.limit == limit
    assert deadline.by_airflow == limit.startswith("execution_timeout")


@pytest.mark.parametrize(
    ("deadline", "seconds"), [(None, None), (BEGAN + 60, 60 + TRIGGER_BUFFER), (BEGAN - 60, TRIGGER_BUFFER)]
)
def test_airflow_waits_longer_for_a_trigger_than_the_deadline(deadline: float | None, seconds: float | None) -> None:
    assert trigger_timeout(deadline, BEGAN) == (None if seconds is None else timedelta(seconds=seconds))
