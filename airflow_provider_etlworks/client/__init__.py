"""
Etlworks over HTTP, usable without Airflow::

    from airflow_provider_etlworks.client import ClientSettings, EtlworksClient, endpoints

    with EtlworksClient(ClientSettings("https://app.etlworks.com", password=key)) as client:
        flow = client.send(endpoints.get_flow(12345))

A name is imported when it is first used: the sync client needs requests, the async one aiohttp, and most users need
only one of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_etlworks.client import endpoints
    from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
    from airflow_provider_etlworks.client.call import Call, PagedCall, Response
    from airflow_provider_etlworks.client.errors import EtlworksError
    from airflow_provider_etlworks.client.models import Execution, ExecutionStatus, Flow, FlowStart, StartStatus
    from airflow_provider_etlworks.client.procedure import Procedure, SendOnce, Sleep, read_all
    from airflow_provider_etlworks.client.settings import ClientSettings, root_url
    from airflow_provider_etlworks.client.sync import EtlworksClient

__all__ = [
    "AsyncEtlworksClient",
    "Call",
    "ClientSettings",
    "EtlworksClient",
    "EtlworksError",
    "Execution",
    "ExecutionStatus",
    "Flow",
    "FlowStart",
    "PagedCall",
    "Procedure",
    "Response",
    "SendOnce",
    "Sleep",
    "StartStatus",
    "endpoints",
    "read_all",
    "root_url",
]

_MODULES = {
    "aio": ("AsyncEtlworksClient",),
    "call": ("Call", "PagedCall", "Response"),
    "errors": ("EtlworksError",),
    "models": ("Execution", "ExecutionStatus", "Flow", "FlowStart", "StartStatus"),
    "procedure": ("Procedure", "SendOnce", "Sleep", "read_all"),
    "settings": ("ClientSettings", "root_url"),
    "sync": ("EtlworksClient",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    if name == "endpoints":
        return importlib.import_module(f"{__name__}.endpoints")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
