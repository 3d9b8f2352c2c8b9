"""
A local server that implements the documented Etlworks API, for demos and for tests of DAGs.

``with Sandbox() as sandbox:`` starts one in this process; ``etlworks-sandbox serve`` starts a separate process.
"""

from airflow_provider_etlworks.sandbox.faults import (
    Fault,
    broken_body,
    delay,
    hang_up,
    redirect,
    status,
    truncated,
)
from airflow_provider_etlworks.sandbox.flows import SandboxFlow, built_in_flows, load_flows
from airflow_provider_etlworks.sandbox.runs import SandboxRun
from airflow_provider_etlworks.sandbox.server import Recorded, Sandbox

__all__ = [
    "Fault",
    "Recorded",
    "Sandbox",
    "SandboxFlow",
    "SandboxRun",
    "broken_body",
    "built_in_flows",
    "delay",
    "hang_up",
    "load_flows",
    "redirect",
    "status",
    "truncated",
]
