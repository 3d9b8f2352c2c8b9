"""The sandbox as a server: a thread with its own event loop, and an object to control and inspect it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from zoneinfo import ZoneInfo

from aiohttp import web

from airflow_provider_etlworks.sandbox import control, pages
from airflow_provider_etlworks.sandbox.api import Api, Settings
from airflow_provider_etlworks.sandbox.faults import Carried, Fault, Faults, Reply
from airflow_provider_etlworks.sandbox.flows import ENDINGS, SandboxFlow, built_in_flows
from airflow_provider_etlworks.sandbox.limits import RateLimit
from airflow_provider_etlworks.sandbox.messages import Answer, Request
from airflow_provider_etlworks.sandbox.organization import Organization
from airflow_provider_etlworks.sandbox.pages import FAULTS_PAGE, RUN_PATH
from airflow_provider_etlworks.sandbox.tokens import API_KEY, LOGIN, PASSWORD, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from types import TracebackType

    from airflow_provider_etlworks.sandbox.runs import Run, SandboxRun

LATER_POLL_INTERVAL = 0.02
SHUTDOWN_GRACE = 0.2
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - a key of this table, nothing binds here


@dataclass
class Recorded:
    """
    A request the sandbox received.

    :param method: The HTTP method.
    :param path: The path as it was sent, still percent-encoded, without the query.
    :param query: The query, decoded: each name's values in order.
    :param headers: The headers; names in any case.
    :param body: The body as it was sent.
    :param at: When it was received, in seconds of ``time.monotonic()``.
    :param connection: The client's port, which identifies the TCP connection.
    :param status: The HTTP status of the answer; None before the answer, and if the sandbox hung up.
    :param user: The user; empty if there were no valid credentials.
    :param tenant: The tenant of the token, if it has one.
    """

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    at: float
    connection: int
    status: int | None = None
    user: str = ""
    tenant: str | None = None


class Sandbox:
    """
    A local server that implements the documented Etlworks API. A context manager: it runs inside ``with``.

    :param flows: Its flows; default those of a small company, see ``built_in_flows``.
    :param host: Address to listen on; default only this machine.
    :param port: Port to listen on; default a free one.
    :param token_lifetime: Seconds a token lives. Default 86400.
    :param issue_path_only: Answer 404 to ``/rest/v1/token-auth``, like a server that has only the older log-in path.
    :param requests_per_minute: The organization's limit; 0 or None means no limit. Default 600.
    :param seconds_scale: Multiplies the seconds of every flow; 0.1 makes all runs ten times faster. Default 1.
    :param administrator: Whether the user is an administrator and super admin. Default True.
    :param stop_takes: Seconds between a stop and the end of the run. Default 1.
    :param tells_running_audit_id: Whether "already running" contains the audit id of the run that is going.
        Default False.
    :param echo_parameters: What shows the parameters of a run: ``record``, ``log``, both. Default nothing.
    :param time_zone: Name of the tenant's time zone, in which the days of the daily report begin. Default ``UTC``.
    :param takes_dates: Whether that report takes a date. Default True; False ignores it, as an older server does.
    :param api_user: Whether the user has the role API User, which may call listeners only. Default False.
    :param api_keys: Whether API keys work for the user's role. Default True.
    :param audit_keys: The shape of the audit log, which differs between releases: ``long`` or ``short``. Default
        ``long``.
    :param clock: Returns the time in seconds. It is used for runs, tokens and the rate limit. Default ``time.time``.
    :param record: Whether to keep every request in ``requests``. Default True.
    :raises ValueError: two flows share an id, a name or a listener path, or ``seconds_scale`` is not above 0, or
        ``echo_parameters`` has another word.
    """

    api_key = API_KEY
    login = LOGIN
    password = PASSWORD

    def __init__(
        self,
        flows: Iterable[SandboxFlow] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token_lifetime: float = 86400.0,
        issue_path_only: bool = False,
        requests_per_minute: int | None = 600,
        seconds_scale: float = 1.0,
        administrator: bool = True,
        stop_takes: float = 1.0,
        tells_running_audit_id: bool = False,
        echo_parameters: Collection[str] = (),
        time_zone: str = "UTC",
        takes_dates: bool = True,
        api_user: bool = False,
        api_keys: bool = True,
        audit_keys: str = "long",
        clock: Callable[[], float] = time.time,
        record: bool = True,
    ) -> None:
        if seconds_scale <= 0:
            raise ValueError(f"seconds_scale: expected a number above 0, got {seconds_scale!r}")
        if unknown := set(echo_parameters) - {"record", "log"}:
            raise ValueError(f"echo_parameters: expected 'record' and 'log', got {unknown!r}")
        self.requests: list[Recorded] = []
        self._host = host
        self._port = port
        self._record = record
        self._faults = Faults()
        self._organization = Organization(
            built_in_flows() if flows is None else flows,
            clock=clock,
            time_scale=seconds_scale,
            stop_takes=stop_takes,
            echo_parameters=echo_parameters,
        )
        self._tokens = Tokens(token_lifetime, clock)
        zone = ZoneInfo(time_zone)
        if audit_keys not in ("long", "short"):
            raise ValueError(f"audit_keys: expected 'long' or 'short', got {audit_keys!r}")
        settings = Settings(
            administrator,
            issue_path_only,
            tells_running_audit_id,
            time_zone=zone,
            takes_dates=takes_dates,
            api_user=api_user,
            api_keys=api_keys,
            audit_keys=audit_keys,
        )
        self._api = Api(self._organization, self._tokens, RateLimit(requests_per_minute, clock), settings)
        # The server's thread processes requests, while tests read the state from their own threads.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def start(self) -> Sandbox:
        """
        Start the server.

        :return: The sandbox itself.
        :raises OSError: the server cannot listen on the address.
        :raises RuntimeError: it is already running.
        """
        if self._thread is not None:
            raise RuntimeError("This sandbox is already running")
        listening: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listening)), name="etlworks-sandbox", daemon=True
        )
        self._thread.start()
        try:
            self._port = listening.result()
        except (OSError, OverflowError):
            self._thread.join()
            self._thread = None
            raise
        return self

    def stop(self) -> None:
        """Stop the server, drop all connections and end the thread. Recorded requests and runs stay readable."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The server's address, such as ``http://127.0.0.1:54321``, without ``/rest``."""
        host = _ANY_ADDRESS.get(self._host, self._host)
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def airflow_connection(self) -> str:
        """An Airflow connection with the API key, as JSON text for ``AIRFLOW_CONN_ETLWORKS_DEFAULT``."""
        return self._connection({"password": API_KEY})

    @property
    def airflow_connection_with_login(self) -> str:
        """An Airflow connection with login and password, as JSON text for ``AIRFLOW_CONN_ETLWORKS_DEFAULT``."""
        return self._connection({"login": LOGIN, "password": PASSWORD})

    @property
    def flows(self) -> Mapping[int, SandboxFlow]:
        """The flows by id, with the names and tags they have now."""
        with self._lock:
            return self._organization.plans()

    def add_flow(self, flow: SandboxFlow) -> None:
        """
        Add a flow, or replace the one with the same id.

        :raises ValueError: another flow has its name or listener path.
        """
        with self._lock:
            self._organization.add_flow(flow)

    @property
    def schedules(self) -> Mapping[int, Mapping[str, Any]]:
        """The schedules by id, as the API shows them: ``flowId``, ``enabled``, …."""
        with self._lock:
            return {schedule_id: dict(each) for schedule_id, each in self._organization.schedules.items()}

    def fault(self, method: str, path: str, fault: Fault, *, times: int | None = 1, after: int = 0) -> None:
        """
        Arm a fault. If several faults match a request, the one that was armed first applies.

        :param method: The HTTP method, or ``*``.
        :param path: The path from the root, still percent-encoded and without the query, such as
            ``/rest/v1/flows/7/run``; ``*`` matches any characters.
        :param fault: The fault.
        :param times: To how many requests it applies; None: to all, until ``clear_faults``. Default 1.
        :param after: How many matching requests pass first. Default 0.
        :raises ValueError: the path does not begin with ``/`` or ``*``, or a number is invalid.
        """
        with self._lock:
            self._faults.arm(method, path, fault, times, after)

    def clear_faults(self) -> None:
        """Disarm all faults."""
        with self._lock:
            self._faults.clear()

    def runs(self, flow_id: int | None = None) -> list[SandboxRun]:
        """Return every run started so far, oldest first: of one flow, or of all."""
        with self._lock:
            runs, now = self._organization.runs, self._organization.clock()
            return [run.snapshot(now) for run in (runs.all_runs() if flow_id is None else runs.of_flow(flow_id))]

    def runs_started(self, flow_id: int | None = None) -> int:
        """Return the number of runs started so far: of one flow, or of all."""
        with self._lock:
            runs = self._organization.runs
            return len(runs.all_runs() if flow_id is None else runs.of_flow(flow_id))

    @property
    def log_ins(self) -> int:
        """The number of successful log-ins."""
        return self._tokens.log_ins

    @property
    def refreshes(self) -> int:
        """The number of refreshed tokens."""
        return self._tokens.refreshes

    def revoke_tokens(self) -> None:
        """Refuse every token issued so far. The API key stays valid."""
        with self._lock:
            self._tokens.revoke_all()

    def run_by_schedule(self, flow_id: int) -> int:
        """
        Start a run as the flow's own schedule does, whether or not another run is going.

        :return: The audit id.
        :raises KeyError: the flow does not exist.
        """
        with self._lock:
            return self._organization.run_by_schedule(self.flows[flow_id]).audit_id

    def run_by_user(self, flow_id: int, user: str = "alice@example.com") -> int:
        """
        Start a run as another person does in Etlworks, whether or not another run is going.

        :return: The audit id.
        :raises KeyError: the flow does not exist.
        """
        with self._lock:
            return self._organization.begin_run(self.flows[flow_id], user).audit_id

    def finish(self, audit_id: int, status: str = "success") -> None:
        """
        End a run now.

        :param audit_id: The run.
        :param status: The status it ends with.
        :raises KeyError: the run does not exist.
        :raises ValueError: it has already ended, or a run cannot end with this status.
        """
        if status not in ENDINGS:
            raise ValueError(f"status: expected one of {', '.join(ENDINGS)}, got {status!r}")
        with self._lock:
            run, now = self._run(audit_id), self._organization.clock()
            if run.ended(now) is not None:
                raise ValueError(f"Run {audit_id} has already ended: {run.status(now)}")
            run.finished = (now, status)

    def forget(self, audit_id: int) -> None:
        """
        Answer 404 to every request for a run from now on, and leave it out of every list.

        :raises KeyError: the run does not exist.
        """
        with self._lock:
            self._organization.runs.forget(self._run(audit_id))

    def _run(self, audit_id: int) -> Run:
        run = self._organization.runs.find(audit_id)
        if run is None:
            raise KeyError(audit_id)
        return run

    def _connection(self, credentials: Mapping[str, str]) -> str:
        extra = {"ui_url": self.url + RUN_PATH}
        return json.dumps({"conn_type": "etlworks", "host": self.url, **credentials, "extra": extra})

    async def _serve(self, listening: Future[int]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        runner = web.ServerRunner(web.Server(self._respond, access_log=None), shutdown_timeout=SHUTDOWN_GRACE)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except (OSError, OverflowError) as error:
            await runner.cleanup()
            listening.set_exception(error)
            return
        listening.set_result(runner.addresses[0][1])
        await self._stopping.wait()
        await runner.cleanup()

    async def _respond(self, http: web.BaseRequest) -> web.StreamResponse:
        received, peer = time.monotonic(), http.get_extra_info("peername")
        path, _, query = http.raw_path.partition("?")
        body = await http.content.read()
        asked = parse_qs(query, keep_blank_values=True)
        request = Request(http.method, path, asked, http.headers, body)
        # Not a part of Etlworks: faults do not apply, and tests do not see it.
        if path.startswith(control.PREFIX):
            with self._lock:
                return _response(control.answer(request, self._organization, self._faults))
        if path == FAULTS_PAGE:
            with self._lock:
                return _response(pages.faults(self._faults))
        # A client that has already disconnected has no port.
        recorded = Recorded(http.method, path, asked, http.headers, body, received, peer[1] if peer else 0)
        if self._record:
            self.requests.append(recorded)
        with self._lock:
            fault = self._faults.take(http.method, path)
        answer = await (self._answer(request) if fault is None else self._fail(request, fault))
        recorded.user, recorded.tenant = request.user, request.tenant
        if answer is None:
            return _hang_up(http)
        recorded.status = answer.status
        if fault is not None and fault.reply is Reply.TRUNCATED:
            return await _truncate(http, answer)
        return _response(answer)

    async def _fail(self, request: Request, fault: Fault) -> Answer | None:
        answer: Answer | None = None
        if fault.carried is Carried.BEFORE_DELAY:
            answer = await self._answer(request)
        await asyncio.sleep(fault.delay)
        if fault.carried is Carried.AFTER_DELAY:
            answer = await self._answer(request)
        if fault.reply is Reply.HANG_UP:
            return None
        return fault.replacement(request.path) if fault.reply is Reply.REPLACED else answer

    async def _answer(self, request: Request) -> Answer:
        with self._lock:
            outcome = self._api.answer(request)
        while not isinstance(outcome, Answer):
            await asyncio.sleep(LATER_POLL_INTERVAL)
            with self._lock:
                outcome = outcome() or outcome
        return outcome


def _response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers=_headers(answer))


def _hang_up(http: web.BaseRequest) -> web.Response:
    if http.transport is not None:
        http.transport.abort()
    # aiohttp requires a response, although the connection is closed.
    return web.Response()


async def _truncate(http: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=_headers(answer))
    response.content_length = len(answer.body) + 1
    await response.prepare(http)
    await response.write(answer.body[: len(answer.body) // 2])
    if http.transport is not None:
        http.transport.close()
    return response


def _headers(answer: Answer) -> dict[str, str]:
    return {"Content-Type": answer.content_type, **answer.headers}
