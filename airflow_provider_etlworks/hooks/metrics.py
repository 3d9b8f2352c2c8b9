"""Airflow's own metrics (``[metrics]``): what happens with a connection becomes counters, gauges and timers."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks import compat
from airflow_provider_etlworks.client.metrics import NO_METRICS, Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.client.models import Execution

log = logging.getLogger(__name__)

POLLS = "etlworks.polls"
REQUESTS_REFUSED = "etlworks.requests_refused"
THROTTLE_FACTOR = "etlworks.throttle_factor"
STARTS_IN_DOUBT = "etlworks.starts_in_doubt"
LOST_TOUCH = "etlworks.lost_touch"
DETECTION_LAG = "etlworks.detection_lag"

# A run's record, a flow's history, and a day's list; not a log.
_PATHS_OF_RUNS = re.compile(r"/v1/executions/\d+(/history)?|/v1/metrics/executions")
# Airflow drops a metric with any other character, if it writes tags into the name.
_NOT_IN_A_TAG = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST_TAG = 100


class AirflowMetrics(Metrics):
    """
    Emits the metrics of a connection. Whatever Airflow's metrics raise is logged once, and ends nothing.

    :param stats: Airflow's ``Stats``.
    :param conn_id: the Airflow connection.
    """

    __slots__ = ("_gauge", "_incr", "_tags", "_timing", "_warned")

    def __init__(self, stats: Any, conn_id: str | None) -> None:
        self._tags = {"conn_id": _NOT_IN_A_TAG.sub("_", conn_id or "none")[:_LONGEST_TAG]}
        self._warned = False
        # Airflow opens its backend, and reads its list of names, now and not with the first metric.
        stats.timer(DETECTION_LAG, tags=self._tags)
        self._incr, self._gauge, self._timing = stats.incr, stats.gauge, stats.timing

    def sent(self, call: Call[Any]) -> None:
        """Count a request that reads runs."""
        if _PATHS_OF_RUNS.fullmatch(call.path):
            self._emit(self._incr, POLLS)

    def refused(self) -> None:
        """Count a request that Etlworks answered with 429."""
        self._emit(self._incr, REQUESTS_REFUSED)

    def throttled(self, factor: float) -> None:
        """Set by what the intervals between polls are multiplied."""
        self._emit(self._gauge, THROTTLE_FACTOR, round(factor, 2))

    def start_in_doubt(self) -> None:
        """Count a start in doubt."""
        self._emit(self._incr, STARTS_IN_DOUBT)

    def lost_touch(self) -> None:
        """Count a task that ends without the result of its run."""
        self._emit(self._incr, LOST_TOUCH)

    def run_read(self, execution: Execution | None, now: float, since: float = 0.0) -> None:
        """Measure the time from the end of a run until now, if its end was waited for."""
        if execution is None or not execution.is_terminal or execution.ended_at is None:
            return
        ended_at = execution.ended_at.timestamp()
        if ended_at >= since:
            self._emit(self._timing, DETECTION_LAG, 1000 * max(0.0, now - ended_at))

    def _emit(self, emit: Callable[..., Any], name: str, *value: float) -> None:
        try:
            emit(name, *value, tags=self._tags)
        except Exception as error:  # noqa: BLE001  # no fault of a metrics backend may end a run
            if not self._warned:
                self._warned = True
                log.warning("Airflow cannot emit the metric %s; the task goes on without it. %r", name, error)


def task_metrics(conn_id: str | None) -> Metrics:
    """
    Return the metrics of a connection in the process of a task.

    :param conn_id: the Airflow connection.
    """
    return _metrics("TaskStats", conn_id) if _are_on() else NO_METRICS


async def component_metrics(conn_id: str | None) -> Metrics:
    """
    Return the metrics of a connection in one of Airflow's own processes, without holding its event loop.

    :param conn_id: the Airflow connection.
    """
    return await asyncio.to_thread(_metrics, "ComponentStats", conn_id) if _are_on() else NO_METRICS


def _are_on() -> bool:
    settings = ("statsd_on", "statsd_datadog_enabled", "otel_on")
    return any(compat.conf.getboolean("metrics", name, fallback=False) for name in settings)


def _metrics(stats: str, conn_id: str | None) -> Metrics:
    try:
        return AirflowMetrics(getattr(compat, stats), conn_id)
    except Exception as error:  # noqa: BLE001  # no fault of a metrics backend may end a run
        log.warning("Airflow's metrics cannot be used for connection %s: %r", conn_id, error)
        return NO_METRICS
