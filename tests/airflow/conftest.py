"""One real Airflow and one sandbox, shared by all tests of this folder: starting them takes longer than any test."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from airflow_provider_etlworks.sandbox import Sandbox
from airflow_provider_etlworks.sandbox.demo.local_airflow import LocalAirflow

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

LOG_LINES = 100
WEBHOOK_SECRET = "webhook-secret-of-the-tests"

# What a DAG file may import under one name from Airflow 2 and 3.
DAG_FILE_HEADER = """
from datetime import datetime, timedelta, timezone

try:
    from airflow.sdk import DAG, BaseOperator, task
except ImportError:
    from airflow import DAG
    from airflow.decorators import task
    from airflow.models import BaseOperator

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
"""


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Run the Etlworks that ``local_airflow`` is connected to."""
    with Sandbox(requests_per_minute=None) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def production() -> Iterator[Sandbox]:
    """Run the Etlworks that flows are promoted to."""
    with Sandbox(requests_per_minute=None) as production:
        yield production


@pytest.fixture(scope="session")
def local_airflow(
    sandbox: Sandbox, production: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    """
    Run an Airflow whose connections lead to the sandboxes.

    ``etlworks_default`` (API key), ``etlworks_staging`` and ``etlworks_login`` to ``sandbox``, ``etlworks_production``
    to ``production``. The webhook is on, with ``WEBHOOK_SECRET``.
    """
    folder = tmp_path_factory.mktemp("dags")
    connections = {
        "AIRFLOW_CONN_ETLWORKS_DEFAULT": sandbox.airflow_connection,
        "AIRFLOW_CONN_ETLWORKS_STAGING": sandbox.airflow_connection,
        "AIRFLOW_CONN_ETLWORKS_PRODUCTION": production.airflow_connection,
        "AIRFLOW_VAR_ETLWORKS_BUNDLES": str(tmp_path_factory.mktemp("bundles")),
        "AIRFLOW_CONN_ETLWORKS_LOGIN": sandbox.airflow_connection_with_login,
        "AIRFLOW_CONN_ETLWORKS_WEBHOOK": json.dumps({"conn_type": "generic", "password": WEBHOOK_SECRET}),
        # Without a host, it is this Airflow's own API.
        "AIRFLOW_CONN_ETLWORKS_WEBHOOK_AIRFLOW": '{"conn_type": "http", "login": "airflow", "password": "airflow"}',
    }
    with LocalAirflow(folder, connections) as airflow:
        yield airflow


@pytest.fixture(autouse=True)
def whole_airflow(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start what a test that failed half-way has left stopped, so that it fails alone."""
    shared = request.getfixturevalue("local_airflow") if "local_airflow" in request.fixturenames else None
    yield
    for component in shared.components if shared else ():
        if component not in shared._running:
            shared.start(component)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what Airflow's components have written last where a test fails."""
    report = yield
    airflow = getattr(item, "funcargs", {}).get("local_airflow")
    if report.failed and airflow is not None:
        for component in airflow.components:
            lines = airflow.component_log(component).read_text(errors="replace").splitlines()
            report.sections.append((f"The end of the {component}'s log", "\n".join(lines[-LOG_LINES:])))
    return report


@pytest.fixture(scope="session")
def write_dag(local_airflow: LocalAirflow) -> Callable[[str, str], str]:
    """
    Return a function that writes a DAG file and waits until Airflow has parsed it.

    It takes the DAG's id and the file's text, which may use the names in ``DAG_FILE_HEADER``, and returns the id.
    """

    def write(dag_id: str, text: str) -> str:
        (local_airflow.dags_folder / f"{dag_id}.py").write_text(DAG_FILE_HEADER + text)
        local_airflow.wait_for_dag(dag_id)
        return dag_id

    return write
