"""What Airflow gives a task, and the way of a task through its tries."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.exceptions import AirflowException, TaskDeferred

from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.compat import AirflowFailException, AirflowSkipException, AirflowTaskTimeout
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from support.clock import moment
from support.state import StateStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from support.etlworks import Etlworks

FLOW = 7
FLOW_NAME = "Nightly load"
RUN_PATH = f"/rest/v1/flows/{FLOW}/run"
RECORD_PATH = f"/rest/v1/executions/{FLOW}"
HISTORY_PATH = f"/rest/v1/executions/{FLOW}/history"
STOP_PATH = f"/rest/v1/flows/{FLOW}/stop"
CONN_VARIABLE = "AIRFLOW_CONN_ETLWORKS_DEFAULT"


class TaskInstance(SimpleNamespace):
    """What the operator uses of Airflow's: the numbers of the try, and XComs that must be JSON."""

    start_date: datetime
    try_number: int
    max_tries: int
    xcoms: dict[str, Any]

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))


@dataclass
class Try:
    """
    How one try of a task went.

    :ivar colour: ``success``, ``failed``, ``failed for good`` (no retry), ``timed out`` or ``skipped``.
    :ivar result: what the task returned.
    :ivar error: what it raised.
    :ivar event: what the trigger told; ``None`` where the task was not deferred.
    :ivar deferred: how it was deferred.
    :ivar accepted: audit ids of the runs that Etlworks started for it.
    """

    colour: str = "success"
    result: dict[str, Any] | None = None
    error: BaseException | None = None
    event: dict[str, Any] | None = None
    deferred: TaskDeferred | None = None
    accepted: list[int] = field(default_factory=list)

    @property
    def report(self) -> str:
        """What the log of the failed task says last."""
        return str(getattr(self.error, "report", self.error))


@dataclass
class Task:
    """A task instance of the run operator, taken through its tries as Airflow would."""

    etlworks: Etlworks
    arguments: dict[str, Any]
    store: StateStore | None = field(default_factory=StateStore)
    try_number: int = 0
    max_tries: int = 3
    xcoms: dict[str, Any] = field(default_factory=dict)
    started_at: float = 0.0
    dag_run_started_at: float = 0.0
    map_index: int = -1

    def operator(self) -> EtlworksRunFlowOperator:
        return EtlworksRunFlowOperator(task_id="run_flow", **self.arguments)

    def context(self) -> dict[str, Any]:
        return {
            "ti": TaskInstance(
                start_date=moment(self.started_at),
                dag_id="nightly",
                task_id="run_flow",
                run_id="scheduled__2026-05-09",
                map_index=self.map_index,
                try_number=self.try_number,
                max_tries=self.max_tries,
                xcoms=self.xcoms,
            ),
            "dag_run": SimpleNamespace(start_date=moment(self.dag_run_started_at)),
            **({} if self.store is None else {"task_state_store": self.store}),
        }

    def clear(self) -> None:
        """Do to the task instance what clearing it in Airflow does."""
        self.max_tries = self.try_number + self.max_tries

    def next_try(self) -> dict[str, Any]:
        """Begin a try, and return its context."""
        self.try_number += 1
        self.started_at = self.etlworks.clock.time()
        self.xcoms.clear()
        return self.context()

    def run(self) -> Try:
        """Make one try, through the triggerer where it defers."""
        went, before = Try(), self.etlworks.sandbox.runs_started()
        self.etlworks.tries.append(went)
        context = self.next_try()
        execute = partial(self.operator().execute, context)
        try:
            while went.result is None:
                try:
                    went.result = execute()
                except TaskDeferred as deferred:  # a task may be deferred several times
                    went.deferred = deferred
                    went.event = asyncio.run(self._through_the_triggerer(deferred))
                    kwargs = json.loads(json.dumps(deferred.kwargs or {}))
                    resume = getattr(self.operator(), deferred.method_name)
                    execute = partial(resume, self.context(), event=went.event, **kwargs)
        except AirflowSkipException as error:
            went.colour, went.error = "skipped", error
        except AirflowFailException as error:
            went.colour, went.error = "failed for good", error
        except AirflowTaskTimeout as error:
            went.colour, went.error = "timed out", error
        except (EtlworksError, AirflowException) as error:
            went.colour, went.error = "failed", error
        json.dumps([went.result, went.event])
        ours = [run for run in self.etlworks.sandbox.runs()[before:] if self.etlworks.is_ours(run)]
        went.accepted = [run.audit_id for run in ours]
        return went

    async def _through_the_triggerer(self, deferred: TaskDeferred) -> Any:
        return await only_event(stored_and_loaded(deferred.trigger))


def stored_and_loaded(trigger: Any) -> Any:
    """Take a trigger through the database, as a restart of the triggerer does."""
    path, kwargs = json.loads(json.dumps(trigger.serialize()))
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)(**kwargs)


async def only_event(trigger: Any) -> Any:
    """Run a trigger to its end, and return its one event, taken through the database."""
    (event,) = [event async for event in trigger.run()]
    return json.loads(json.dumps(event.payload))


def record_of(audit_id: int, **fields: Any) -> dict[str, Any]:
    """Return a FlowAuditRecord as the server writes it."""
    return {"auditId": audit_id, "flowId": FLOW, "flowName": FLOW_NAME, **fields}


def secrets_in(texts: Iterable[str], secrets: Mapping[str, str]) -> list[str]:
    """Return the names of the secrets that can be read in the texts."""
    read_all = "\n".join(texts)
    return [name for name, secret in secrets.items() if secret in read_all]
