"""One deployment and one sandbox for all tests of this folder: starting them takes a minute."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from support.deployment import (
    HOW_TO_INSTALL,
    Deployment,
    FaultyProxy,
    Link,
    has_redis,
    object_store,
    redis_server,
    with_extra,
)
from support.postgresql import postgresql, server_binaries

from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

_LOG_LINES = 60

DAG_FILE_HEADER = """
from datetime import datetime, timedelta, timezone

from airflow.sdk import DAG, task

from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator

START = datetime(2024, 1, 1, tzinfo=timezone.utc)
RETRIES = {"retries": 3, "retry_delay": timedelta(seconds=1)}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests the time that a whole deployment takes, and skip them if it cannot be had."""
    from airflow import __version__

    for item in items:
        if "tests/deployment/" in item.nodeid:
            item.add_marker(pytest.mark.timeout(1800))
            if int(__version__.split(".")[0]) < 3:
                item.add_marker(pytest.mark.skip(reason="the deployment is one of Airflow 3"))


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(requests_per_minute=None, echo_parameters=("record",)) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def production() -> Iterator[Sandbox]:
    """Run the Etlworks that flows are promoted to."""
    with Sandbox(requests_per_minute=None) as production:
        yield production


@pytest.fixture(scope="session")
def proxy() -> Iterator[FaultyProxy]:
    """Run the proxy of the connection ``etlworks_through_proxy``."""
    with FaultyProxy() as proxy:
        yield proxy


@pytest.fixture(scope="session")
def deployment(
    sandbox: Sandbox, production: Sandbox, proxy: FaultyProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    binaries = server_binaries()
    if binaries is None or not has_redis():
        pytest.skip(HOW_TO_INSTALL)
    for package in ("psycopg2", "airflow.providers.celery", "redis", "moto.server", "s3fs"):
        pytest.importorskip(package, reason=HOW_TO_INSTALL)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgresql(binaries))
        port = int(url.rpartition(":")[2].partition("/")[0])
        links = {f"triggerer-{number}": stack.enter_context(Link(port)) for number in (1, 2)}
        # Mapped tasks can tell their runs apart only by a key.
        connection = with_extra(sandbox.airflow_connection, run_key_parameter="airflowRun")
        environment = {
            "AIRFLOW_CONN_ETLWORKS_DEFAULT": connection,
            "AIRFLOW_CONN_ETLWORKS_PRODUCTION": production.airflow_connection,
            "AIRFLOW_CONN_ETLWORKS_THROUGH_PROXY": with_extra(connection, proxy=proxy.url),
            **stack.enter_context(object_store("bundles")),
        }
        folder: Path = tmp_path_factory.mktemp("dags")
        redis = stack.enter_context(redis_server())
        yield stack.enter_context(Deployment(folder, url, redis, links, environment))


@pytest.fixture(autouse=True)
def whole_deployment(deployment: Deployment) -> Iterator[None]:
    """Start what a test that failed half-way has left stopped, so that it fails alone."""
    yield
    for component in deployment.components:
        if component not in deployment._running:
            deployment.start(component)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the components have written last if a test fails."""
    report = yield
    deployment = getattr(item, "funcargs", {}).get("deployment")
    if report.failed and deployment is not None:
        for component in deployment.components:
            lines = deployment.component_log(component).read_text(errors="replace").splitlines()
            report.sections.append((f"The end of the {component}'s log", "\n".join(lines[-_LOG_LINES:])))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests have measured."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        if report.when == "call" and report.user_properties:
            figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {figures}")


@pytest.fixture(scope="session")
def write_dag(deployment: Deployment) -> Callable[[str, str], str]:
    """Return a function that writes a DAG file and returns the DAG's id. Airflow may still have to parse it."""

    def write(dag_id: str, text: str) -> str:
        (deployment.dags_folder / f"{dag_id}.py").write_text(DAG_FILE_HEADER + text)
        return dag_id

    return write


@pytest.fixture(scope="session")
def add_flows(sandbox: Sandbox) -> Callable[..., list[int]]:
    """Return a function that adds a number of flows to the sandbox, and returns their ids."""
    next_id = 100_000

    def add(number: int, **properties: Any) -> list[int]:
        nonlocal next_id
        ids = list(range(next_id, next_id + number))
        next_id += number
        for flow_id in ids:
            sandbox.add_flow(SandboxFlow(**{"id": flow_id, "name": f"Flow {flow_id}", "running": 5.0, **properties}))
        return ids

    return add
