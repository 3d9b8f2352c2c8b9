"""Fixtures for the tests of DAGs: ``pytest_plugins = ["airflow_provider_etlworks.sandbox.pytest_plugin"]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_provider_etlworks.sandbox.server import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_provider_etlworks.sandbox.flows import SandboxFlow


@pytest.fixture
def etlworks_sandbox_flows() -> Iterable[SandboxFlow] | None:
    """Return the flows of ``etlworks_sandbox``. Override this fixture to use your own; default the built-in flows."""
    return None


@pytest.fixture
def etlworks_sandbox(etlworks_sandbox_flows: Iterable[SandboxFlow] | None) -> Iterator[Sandbox]:
    """Run a sandbox on a free port during a test, without a rate limit."""
    with Sandbox(etlworks_sandbox_flows, requests_per_minute=None) as sandbox:
        yield sandbox
