"""Two sandboxes, staging and production, and the operators that promote flows from the one to the other."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.exceptions import AirflowException

from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.compat import AirflowFailException
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.operators.promotion import (
    EtlworksExportOperator,
    EtlworksImportOperator,
    EtlworksImportPreviewOperator,
)
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow
from support.clock import FastClock, moment, pass_clock_to_clients
from support.state import StateStore
from support.task import TaskInstance

if TYPE_CHECKING:
    import pytest

EXPORT = "/rest/v1/io/export"
PREVIEW = "/rest/v1/io/import/preview"
IMPORT = "/rest/v1/io/import"
NEWER = "/rest/v1/io/*"
FLOWS = "/rest/v1/flows"

SECRET_IN_BUNDLE = "{{secret:orders-db}}"


def staging_flows() -> list[SandboxFlow]:
    return [
        SandboxFlow(1, "Orders", tags=("nightly",), connections=("orders-db",)),
        SandboxFlow(2, "Customers", tags=("nightly", "warehouse")),
        SandboxFlow(3, "Invoices | €", tags=("finance",)),
    ]


@dataclass
class Went:
    """
    How one try of a task went.

    :ivar colour: ``success``, ``failed``, or ``failed for good``.
    """

    colour: str = "success"
    result: dict[str, Any] | None = None
    error: BaseException | None = None

    @property
    def said(self) -> str:
        return str(self.error)


@dataclass
class Task:
    """A task instance of one of the operators, taken through its tries."""

    operator: Any
    context: dict[str, Any]

    def run(self) -> Went:
        """Make one try."""
        self.context["ti"].try_number += 1
        went = Went()
        try:
            went.result = json.loads(json.dumps(self.operator.execute(self.context)))
        except AirflowFailException as error:
            went.colour, went.error = "failed for good", error
        except (EtlworksError, AirflowException) as error:
            went.colour, went.error = "failed", error
        return went

    def clear(self) -> None:
        """Do to the task instance what clearing it in Airflow does."""
        self.context["ti"].max_tries += 4


@dataclass
class Promotion:
    """
    Staging, with three flows, and production, with two flows of its own; and a place for bundles.

    :ivar directory: a directory of this machine.
    """

    monkeypatch: pytest.MonkeyPatch
    logged: pytest.LogCaptureFixture
    directory: Path
    clock: FastClock = field(default_factory=FastClock)

    def __post_init__(self) -> None:
        self.staging = self._sandbox(staging_flows())
        self.production = self._sandbox(
            [SandboxFlow(11, "Orders", connections=("orders-db",)), SandboxFlow(12, "Reports")]
        )
        self.logged.set_level(logging.DEBUG)
        for each in (EtlworksHook, EtlworksExportOperator, EtlworksImportPreviewOperator, EtlworksImportOperator):
            self.monkeypatch.setattr(each, "log", logging.getLogger(f"seen.{each.__name__}"))
        pass_clock_to_clients(self.monkeypatch, self.clock)

    def _sandbox(self, flows: list[SandboxFlow]) -> Sandbox:
        return Sandbox(flows, requests_per_minute=None, clock=self.clock.time)

    def __enter__(self) -> Promotion:
        self.staging.start()
        self.production.start()
        self.connect("staging", self.staging.url)
        self.connect("production", self.production.url)
        # So that a change in a test differs from the beginning.
        self.clock.sleep(1000)
        return self

    def __exit__(self, *_: object) -> None:
        self.staging.stop()
        self.production.stop()

    def connect(self, conn_id: str, url: str, **fields: Any) -> None:
        """Set an Airflow connection: with the API key, unless ``fields`` say otherwise."""
        given = {"conn_type": "etlworks", "host": url, "password": Sandbox.api_key, **fields}
        given.setdefault("extra", {"requests_per_minute": 0})
        self.monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(given))

    @property
    def path(self) -> str:
        return str(self.directory / "bundle.json")

    def task(self, operator: Any, *, store: bool = True) -> Task:
        """Return a task; without ``store`` as before Airflow 3.3."""
        now = self.clock.time()
        context: dict[str, Any] = {
            "ti": TaskInstance(start_date=moment(now), try_number=0, max_tries=3, xcoms={}),
            "dag_run": SimpleNamespace(start_date=moment(now)),
        }
        if store:
            context["task_state_store"] = StateStore()
        return Task(operator, context)

    def exporting(self, **arguments: Any) -> Task:
        given = {"path": self.path, "etlworks_conn_id": "staging", **arguments}
        return self.task(EtlworksExportOperator(task_id="export", **given))

    def previewing(self, **arguments: Any) -> Task:
        given = {"path": self.path, "etlworks_conn_id": "production", **arguments}
        return self.task(EtlworksImportPreviewOperator(task_id="preview", **given))

    def importing(self, *, store: bool = True, **arguments: Any) -> Task:
        given = {"path": self.path, "etlworks_conn_id": "production", **arguments}
        return self.task(EtlworksImportOperator(task_id="import", **given), store=store)

    def exported(self, **arguments: Any) -> dict[str, Any]:
        """Export, by default all flows, and return the result."""
        went = self.exporting(**(arguments or {"flow_ids": [1, 2, 3]})).run()
        assert went.result is not None, went.error
        return went.result

    def names(self, sandbox: Sandbox) -> list[str]:
        return sorted(flow.name for flow in sandbox.flows.values())

    def asked(self, sandbox: Sandbox, method: str, path: str) -> int:
        """Return how many requests of this kind came."""
        return sum(each.method == method and each.path == path for each in sandbox.requests)

    def imports(self) -> int:
        """Return how many imports production was sent."""
        return self.asked(self.production, "POST", IMPORT)

    def log_text(self) -> str:
        return "\n".join(record.getMessage() for record in self.logged.records)


def sha256_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
