"""The clients that are made from one connection: each for a purpose, with the time-outs that fit it."""

from __future__ import annotations

from typing import TYPE_CHECKING

# The transports are imported when they are used: a DAG file may import the hook.
from airflow_provider_etlworks import client
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.hooks.metrics import task_metrics

if TYPE_CHECKING:
    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.settings import ClientSettings
    from airflow_provider_etlworks.client.sync import EtlworksClient

# Seconds beyond the read time-out for a whole response, so that one that arrives byte by byte ends in time, too.
_SHORT_OVERTIME = 0.5
# A task that is killed has about five seconds left.
_URGENT_CONNECT_TIMEOUT = 1.0
_URGENT_READ_TIMEOUT = 2.0
_URGENT_WAIT = 1.0
# Etlworks may work on an export, a preview or an import for minutes before it answers.
_BUNDLE_READ_TIMEOUT = 600.0


def standard_client(settings: ClientSettings) -> EtlworksClient:
    """Return a client with the connection's own time-outs."""
    return client.EtlworksClient(settings, metrics=task_metrics(settings.name))


def async_client(settings: ClientSettings) -> AsyncEtlworksClient:
    """Return a client for an event loop, with the connection's own time-outs."""
    return client.AsyncEtlworksClient(settings)


def bundle_client(settings: ClientSettings) -> EtlworksClient:
    """Return a client that waits up to ten minutes for an answer, as an export or an import can take."""
    read_timeout = max(settings.read_timeout, _BUNDLE_READ_TIMEOUT)
    return standard_client(settings.with_timeouts(connect=settings.connect_timeout, read=read_timeout))


def urgent_client(settings: ClientSettings) -> EtlworksClient:
    """
    Return a client for what a killed task still has to do, with time-outs of a second or two.

    It has connections of its own, so that it works while a signal has interrupted another call. Its requests go before
    all others, once also during a ``Retry-After``. It emits no metrics: the signal may have interrupted a metric that
    holds a lock.
    """
    settings = settings.with_timeouts(
        connect=_URGENT_CONNECT_TIMEOUT, read=_URGENT_READ_TIMEOUT, max_overtime=_SHORT_OVERTIME
    )
    return client.EtlworksClient(settings, priority=Priority.STOP, longest_wait=_URGENT_WAIT)


def test_client(settings: ClientSettings, seconds: float) -> EtlworksClient:
    """
    Return a client for the connection test, which has so many seconds for a log-in and a call.

    It does not wait for the rate limit.
    """
    each = seconds / 2 - _SHORT_OVERTIME
    settings = settings.with_timeouts(connect=each * 3 / 7, read=each * 4 / 7, max_overtime=_SHORT_OVERTIME)
    return client.EtlworksClient(settings, longest_wait=0.0)
