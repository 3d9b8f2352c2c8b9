"""
An Etlworks to talk to.

``Etlworks`` is the sandbox with an Airflow connection. ``ScriptedServer`` sends any bytes. ``BusyEtlworks`` has
thousands of runs. ``carry_out`` needs no server at all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.client.errors import EtlworksError
from airflow_provider_etlworks.client.procedure import Procedure, ReadHead, SendOnce, Sleep
from airflow_provider_etlworks.client.settings import ClientSettings
from airflow_provider_etlworks.hooks.etlworks import EtlworksHook
from airflow_provider_etlworks.operators.flow import EtlworksRunFlowOperator
from airflow_provider_etlworks.sandbox import Sandbox, SandboxFlow
from airflow_provider_etlworks.triggerer import startup
from airflow_provider_etlworks.triggers import flow as triggers_module
from support.client import GENEROUS
from support.clock import NOON, FastClock, pass_clock_to_clients
from support.state import StateStore
from support.task import CONN_VARIABLE, FLOW, FLOW_NAME, Task, Try

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import pytest

    from airflow_provider_etlworks.client.call import Call
    from airflow_provider_etlworks.sandbox.runs import SandboxRun

_CLASSES_THAT_LOG = (
    EtlworksRunFlowOperator,
    EtlworksHook,
    triggers_module.EtlworksFlowExecutionTrigger,
)


@dataclass
class Received:
    """A request that a :class:`ScriptedServer` received."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


def reply(status: int = 200, body: bytes = b"{}", **headers: str) -> bytes:
    """Return a whole HTTP response. The names of headers are written with ``_`` for ``-``."""
    given = {name.replace("_", "-").title(): value for name, value in headers.items()}
    lines = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close", **given}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Reason\r\n{head}\r\n".encode() + body


@dataclass
class ScriptedServer:
    """
    Sends the bytes that ``answer`` returns for a request, and drops the connection. A context manager.

    :ivar answer: returns the whole response to a request, which is sent as it is; or yields it part by part.
    :ivar tls: makes it an https server.
    :ivar received: the requests, in order.
    :ivar closing: is set when the server ends, for an ``answer`` that waits.
    """

    answer: Callable[[Received], bytes | Iterable[bytes]] = lambda _: reply()
    tls: ssl.SSLContext | None = None
    received: list[Received] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> ScriptedServer:
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Received(self.command, self.path, self.headers, body)
                script.received.append(request)
                self.close_connection = True
                answer = script.answer(request)
                for part in [answer] if isinstance(answer, bytes) else answer:
                    self.wfile.write(part)

            def log_message(self, *_: Any) -> None:
                """Keep the terminal quiet."""

        for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "CONNECT"):
            setattr(Handler, f"do_{method}", Handler.answer)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                """A client that hangs up first is not a failure of the server."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(GENEROUS)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"


def silent_server() -> ScriptedServer:
    """Make a server that accepts requests and never responds."""

    def answer(_: Received) -> bytes:
        # Without a limit: it must not help a client that does not give up.
        server.closing.wait()
        return b""

    server = ScriptedServer(answer)
    return server


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
        pass_clock_to_clients(monkeypatch, self.clock)
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


@dataclass
class ServedRun:
    """A run: ``ends`` and ``started`` are in the loop's seconds."""

    flow_id: int
    audit_id: int
    ends: float = float("inf")
    started: float = 0.0
    status: str = "success"

    def record(self, now: float) -> dict[str, Any]:
        over = now >= self.ends
        return {
            "flowId": self.flow_id,
            "auditId": self.audit_id,
            "status": self.status if over else "running",
            "started": int((NOON + self.started) * 1000),
            "ended": int((NOON + self.ends) * 1000) if over else None,
        }


@dataclass
class Asked:
    """A request as the server got it."""

    at: float
    path: str
    audit_id: int | None


Body = Any


@dataclass
class BusyEtlworks:
    """
    Etlworks with many runs. An async context manager.

    :ivar day: gives the list of a day's runs: by ``offset``, a JSON value, or a whole response. Default: honest.
    :ivar history: the same of a flow's history.
    :ivar answer: may answer any request instead.
    :ivar list_takes: seconds that the list of a day takes.
    :ivar stopped: when it accepted the stop of which run.
    """

    runs: dict[int, ServedRun] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    day: Callable[[int], Body] | None = None
    history: Callable[[int], Body] | None = None
    answer: Callable[[web.Request], Body] | None = None
    list_takes: float = 0.0
    connections: set[Any] = field(default_factory=set)
    stopped: list[tuple[float, int]] = field(default_factory=list)

    async def __aenter__(self) -> BusyEtlworks:
        app = web.Application()
        app.router.add_get("/rest/v1/executions/{flow_id}", self._record)
        app.router.add_get("/rest/v1/executions/{flow_id}/history", self._history)
        app.router.add_get("/rest/v1/metrics/executions", self._day)
        app.router.add_post("/rest/v1/flows/{flow_id}/stop", self._stop)
        self._runner = web.AppRunner(app, keepalive_timeout=1e9, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def run(self, audit_id: int, **fields: Any) -> ServedRun:
        run = self.runs[audit_id] = ServedRun(**{"flow_id": audit_id + 100_000, "audit_id": audit_id, **fields})
        return run

    def settings(self, requests_per_minute: int = 300, **fields: Any) -> ClientSettings:
        fields = {"password": "key", "verify": False, **fields}
        return ClientSettings(f"http://127.0.0.1:{self.port}", requests_per_minute=requests_per_minute, **fields)

    def polls(self, audit_id: int) -> list[float]:
        """Return when a run's own record was read."""
        return [each.at for each in self.asked if each.audit_id == audit_id]

    def lists(self, part: str = "metrics") -> list[Asked]:
        return [each for each in self.asked if each.audit_id is None and part in each.path]

    def most_in_a_minute(self, since: float = 0.0) -> int:
        """Return how many requests came in the busiest 60 seconds."""
        times = [each.at for each in self.asked if each.at >= since]
        most, first = 0, 0
        for last, at in enumerate(times):
            while at - times[first] >= 60:
                first += 1
            most = max(most, last - first + 1)
        return most

    async def _record(self, request: web.Request) -> web.StreamResponse:
        if "auditId" not in request.query:
            own = self._note(request)
            flow_id = int(request.match_info["flow_id"])
            newest = max((run for run in self.runs.values() if run.flow_id == flow_id), key=lambda run: run.audit_id)
            return own if own is not None else _json(newest.record(_now()))
        audit_id = int(request.query["auditId"])
        own = self._note(request, audit_id)
        return own if own is not None else _json(self.runs[audit_id].record(_now()))

    async def _day(self, request: web.Request) -> web.StreamResponse:
        own = self._note(request)
        if own is not None:
            return own
        today = datetime.fromtimestamp(NOON + _now(), timezone.utc).date()
        asked = request.query.get("date")
        offset = int(request.query["offset"]) if asked is None else (today - date.fromisoformat(asked)).days
        listed = self.day(offset) if self.day else self.honest_day(offset)
        await asyncio.sleep(self.list_takes)
        return _json(listed)

    async def _history(self, request: web.Request) -> web.StreamResponse:
        own = self._note(request)
        if own is not None:
            return own
        flow_id = int(request.match_info["flow_id"])
        if self.history:
            return _json(self.history(flow_id))
        limit, offset, now = int(request.query["limit"]), int(request.query["offset"]), _now()
        of_flow = [run for run in self.runs.values() if run.flow_id == flow_id]
        newest_first = sorted(of_flow, key=lambda run: -run.audit_id)
        return _json([run.record(now) for run in newest_first[offset : offset + limit]])

    async def _stop(self, request: web.Request) -> web.StreamResponse:
        own = self._note(request)
        if own is None:
            self.stopped.append((_now(), int(request.query["auditId"])))
        return own if own is not None else _json({})

    def honest_day(self, offset: int, *, at: float | None = None, without: Sequence[int] = ()) -> list[dict[str, Any]]:
        """Return the list of a day, as it stood at a time, without some runs."""
        now = _now()
        today = (NOON + now) // 86400
        flows: dict[int, list[dict[str, Any]]] = {}
        for run in self.runs.values():
            if run.audit_id not in without and (NOON + run.started) // 86400 == today - offset:
                flows.setdefault(run.flow_id, []).append(run.record(now if at is None else at))
        return [{"flowId": flow_id, "name": str(flow_id), "executions": runs} for flow_id, runs in flows.items()]

    def _note(self, request: web.Request, audit_id: int | None = None) -> web.StreamResponse | None:
        self.asked.append(Asked(_now(), request.path, audit_id))
        self.connections.add(request.transport)
        own = self.answer(request) if self.answer else None
        return None if own is None else _json(own)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _json(value: Any) -> web.StreamResponse:
    if isinstance(value, web.StreamResponse):
        return value
    return web.Response(body=json.dumps(value).encode(), content_type="application/json")
