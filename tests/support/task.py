"""Stand-ins that the tests share: a clock that never waits, what Airflow gives a task, and Etlworks around them."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
from airflow.exceptions import AirflowException, TaskDeferred

from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.client.procedure import Procedure, ReadHead, SendOnce, Sleep
from airflow_provider_etlworks.client.sync import EtlworksClient
from airflow_provider_etlworks.compat import AirflowFailException, AirflowSkipException, AirflowTaskTimeout
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow
from airflow_provider_etlworks.triggerer import startup
from airflow_provider_etlworks.triggers import flow as triggers_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import pytest

    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.sandbox.runs import SandboxRun

BEGINNING = 1_800_000_000.0
FLOW = 7
FLOW_NAME = "Nightly load"
RUN_PATH = f"/rest/v1/flows/{FLOW}/run"
RECORD_PATH = f"/rest/v1/executions/{FLOW}"
HISTORY_PATH = f"/rest/v1/executions/{FLOW}/history"
STOP_PATH = f"/rest/v1/flows/{FLOW}/stop"
CONN_VARIABLE = "AIRFLOW_CONN_ETLWORKS_DEFAULT"

_CLASSES_THAT_LOG = (
    EtlworksRunFlowOperator,
    EtlworksHook,
    triggers_module.EtlworksFlowExecutionTrigger,
)


class FastClock:
    """Time that passes only while somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self.now = BEGINNING
        self.pauses: list[float] = []
        self._appointments: list[tuple[float, Callable[[], object]]] = []
        self._sleepers: list[float] = []
        self._on_the_way = 0
        self._arrivals = 0

    def at(self, seconds: float, what: Callable[[], object]) -> None:
        """Do something so many seconds after the beginning of time."""
        self._appointments.append((BEGINNING + seconds, what))

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        for appointment in [each for each in self._appointments if each[0] <= self.now]:
            self._appointments.remove(appointment)
            appointment[1]()

    async def sleep_async(self, seconds: float) -> None:
        """Let time pass, once nothing is on its way to a server and nobody wakes up earlier."""
        wake_at = self.now + seconds
        self._sleepers.append(wake_at)
        try:
            while True:
                # Whatever can go on goes on first, what has just arrived included.
                arrivals = self._arrivals
                for _ in range(25):
                    await asyncio.sleep(0)
                if self.now >= wake_at:
                    return
                if self._on_the_way or self._arrivals != arrivals or min(self._sleepers) < wake_at:
                    await asyncio.sleep(0.001)
                else:
                    self.sleep(wake_at - self.now)
        finally:
            self._sleepers.remove(wake_at)

    def stand_still_during(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        """Let no time pass while a coroutine of a class is under way."""
        method = getattr(owner, name)

        async def counted(*args: Any, **kwargs: Any) -> Any:
            self._on_the_way += 1
            try:
                return await method(*args, **kwargs)
            finally:
                self._on_the_way -= 1
                self._arrivals += 1

        monkeypatch.setattr(owner, name, counted)


def carry_out(conversation: Procedure[Any], clock: FastClock, answer: Callable[[Call[Any]], Any]) -> Any:
    """
    Carry out a conversation without a network.

    :param answer: returns a call's value, or the error that it fails with.
    """
    try:
        step = next(conversation)
        while True:
            if isinstance(step, Sleep):
                clock.sleep(step.seconds)
                step = conversation.send(None)
                continue
            value = answer(step.call if isinstance(step, (SendOnce, ReadHead)) else step)
            step = conversation.throw(value) if isinstance(value, EtlworksError) else conversation.send(value)
    except StopIteration as end:
        return end.value


class StateStore:
    """
    Airflow's task state store: keeps JSON across the tries of a task.

    :ivar before_the_start: is called once, as soon as a start is noted: after the last look and before the start.
    """

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.before_the_start: Callable[[], object] | None = None

    def get(self, key: str) -> Any:
        return json.loads(self.kept[key]) if key in self.kept else None

    def set(self, key: str, value: Any) -> None:
        self.kept[key] = json.dumps(value)
        todo, self.before_the_start = self.before_the_start, None
        if todo is not None:
            todo()

    def delete(self, key: str) -> None:
        self.kept.pop(key, None)


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
                start_date=_moment(self.started_at),
                dag_id="nightly",
                task_id="run_flow",
                run_id="scheduled__2026-05-09",
                map_index=self.map_index,
                try_number=self.try_number,
                max_tries=self.max_tries,
                xcoms=self.xcoms,
            ),
            "dag_run": SimpleNamespace(start_date=_moment(self.dag_run_started_at)),
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
        try:
            try:
                went.result = self.operator().execute(context)
            except TaskDeferred as deferred:
                went.deferred = deferred
                went.event = asyncio.run(self._through_the_triggerer(deferred))
                kwargs = json.loads(json.dumps(deferred.kwargs or {}))
                resume = getattr(self.operator(), deferred.method_name)
                went.result = resume(self.context(), event=went.event, **kwargs)
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


class Etlworks:
    """
    An Etlworks with one flow, the Airflow connection to it, and a clock that both sides share.

    :param caplog: keeps what operator, hook, trigger and client log.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.clock = FastClock()
        self.tries: list[Try] = []
        self.logged = caplog
        self._monkeypatch = monkeypatch
        self._others: set[int] = set()
        self.sandbox = Sandbox(
            [SandboxFlow(FLOW, FLOW_NAME, running=30)], requests_per_minute=None, clock=self.clock.time, stop_takes=5
        )
        caplog.set_level(logging.DEBUG)
        for each in _CLASSES_THAT_LOG:
            monkeypatch.setattr(each, "log", logging.getLogger(f"seen.{each.__name__}"))
        self.clock.stand_still_during(monkeypatch, aiohttp.ClientSession, "_request")
        self.clock.stand_still_during(monkeypatch, aiohttp.ClientResponse, "read")
        self.clock.stand_still_during(monkeypatch, EtlworksHook, "read_settings")
        self.clock.stand_still_during(monkeypatch, AsyncEtlworksClient, "open")
        for client, sleep in ((EtlworksClient, self.clock.sleep), (AsyncEtlworksClient, self.clock.sleep_async)):
            defaults = client.__init__.__kwdefaults__
            monkeypatch.setitem(defaults, "clock", self.clock)
            monkeypatch.setitem(defaults, "sleep", sleep)
        monkeypatch.setattr(startup, "SHORTEST_STARTUP_DELAY", 0.0)
        monkeypatch.setattr(startup, "LONGEST_STARTUP_DELAY", 0.0)

    def __enter__(self) -> Etlworks:
        self.sandbox.start()
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.sandbox.stop()

    def connect(self, **changes: Any) -> None:
        """Set the Airflow connection: the API key's, with some fields or parts of Extra changed."""
        fields = json.loads(self.sandbox.airflow_connection)
        own = {name: changes.pop(name) for name in ("host", "login", "password", "port", "schema") if name in changes}
        # Certificates are of no use here, and loading them takes longer than most tests.
        fields["extra"] = {**fields["extra"], "requests_per_minute": 0, "verify": False, **changes}
        self._monkeypatch.setenv(CONN_VARIABLE, json.dumps({**fields, **own}))

    def flow(self, **behaviour: Any) -> None:
        """Say how the runs of the flow go."""
        self.sandbox.add_flow(SandboxFlow(**{"id": FLOW, "name": FLOW_NAME, "running": 30, **behaviour}))

    def tell_running_audit_id(self) -> None:
        """Let "already running" carry the audit id of the run that is in the way."""
        api = self.sandbox._api
        api.settings = replace(api.settings, tells_running_audit_id=True)

    def echo_parameters(self, *places: str) -> None:
        """Let the record or the log of a run show its parameters."""
        self.sandbox._organization._echo_parameters = places

    def task(self, *, store: bool = True, **arguments: Any) -> Task:
        """Return a task that runs the flow."""
        if "flow_id" not in arguments and "flow_name" not in arguments:
            arguments["flow_id"] = FLOW
        now = self.clock.time()
        return Task(self, arguments, store=StateStore() if store else None, dag_run_started_at=now, started_at=now)

    def run_of_somebody_else(self, user: str = "alice@example.com") -> int:
        """Start a run that is not ours, and return its audit id."""
        audit_id = self.sandbox.run_by_user(FLOW, user)
        self._others.add(audit_id)
        return audit_id

    def is_ours(self, run: SandboxRun) -> bool:
        return run.audit_id not in self._others and run.event_id is None

    def asked(self, method: str, path: str) -> int:
        """Return how many requests of this kind came."""
        return sum(each.method == method and each.path == path for each in self.sandbox.requests)

    @property
    def log_text(self) -> str:
        return "\n".join(record.getMessage() for record in self.logged.records)

    def warnings(self, *parts: str) -> list[str]:
        """Return the logged warnings that have all these parts."""
        said = [each.getMessage() for each in self.logged.records if each.levelno >= logging.WARNING]
        return [each for each in said if all(part in each for part in parts)]

    def assert_one_run_per_try(self) -> None:
        """Check what must hold at the end of every test: at most one run per try, and its colour is that run's."""
        for went in self.tries:
            assert len(went.accepted) <= 1, f"one try started the runs {went.accepted}"
            if went.result is not None and went.result.get("status") is not None and went.accepted:
                assert went.result["audit_id"] == went.accepted[0]


def record_of(audit_id: int, **fields: Any) -> dict[str, Any]:
    """Return a FlowAuditRecord as the server writes it."""
    return {"auditId": audit_id, "flowId": FLOW, "flowName": FLOW_NAME, **fields}


def secrets_in(texts: Iterable[str], secrets: Mapping[str, str]) -> list[str]:
    """Return the names of the secrets that can be read in the texts."""
    read_all = "\n".join(texts)
    return [name for name, secret in secrets.items() if secret in read_all]


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=timezone.utc)
