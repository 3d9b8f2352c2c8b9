"""A sandbox in a process of its own, so that its work is not counted as a triggerer's."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_etlworks.sandbox import Fault, Recorded, Sandbox, SandboxFlow

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.connection import Connection
    from types import TracebackType

POLL, DAY, HISTORY, OTHER = "polls", "lists of a day", "histories", "other"


class Received(NamedTuple):
    """A request that came: when, by the machine's monotonic clock, of what kind, and the status of its answer."""

    at: float
    kind: str
    status: int | None


@dataclass(frozen=True)
class Traffic:
    """
    What a server received between two moments.

    :ivar kinds: requests of each kind.
    :ivar most_in_a_minute: the most requests in any 60 seconds.
    :ivar connections: TCP connections they came by.
    :ivar waits: for each run that was polled twice or more, the seconds between its polls.
    :ivar polled: how many runs were polled.
    """

    kinds: Mapping[str, int]
    most_in_a_minute: int
    connections: int
    waits: list[list[float]] = field(repr=False)
    polled: int

    @property
    def requests(self) -> int:
        return sum(self.kinds.values())


class EtlworksProcess:
    """
    A sandbox in a process of its own. A context manager.

    :param seconds: how long the one run of each flow takes; the flows are numbered from 1.
    :param administrator: whether the user may see the list of a day's runs.
    """

    def __init__(self, seconds: list[float], *, administrator: bool) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(theirs, seconds, administrator), daemon=True)

    def __enter__(self) -> EtlworksProcess:
        self._process.start()
        self.connections: dict[str, str] = self._pipe.recv()
        self.url: str = self._pipe.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(("stop",))
        self._process.join()

    def start_runs(self) -> list[tuple[int, int]]:
        """Start a run of each flow; return their flow ids and audit ids."""
        return self._ask("start_runs")

    def traffic(self, since: float, until: float) -> Traffic:
        """Return what came between two moments of the machine's monotonic clock."""
        return self._ask("traffic", since, until)

    def revoke_tokens(self) -> None:
        self._ask("revoke_tokens")

    def fault(self, fault: Fault, times: int) -> None:
        """Let the next requests meet a fault."""
        self._ask("fault", fault, times)

    def received(self, since: float) -> list[Received]:
        """Return the requests that came after a moment of the machine's monotonic clock."""
        return self._ask("received", since)

    def log_ins(self) -> int:
        return self._ask("log_ins")

    def _ask(self, *command: Any) -> Any:
        self._pipe.send(command)
        return self._pipe.recv()


def _serve(pipe: Connection, seconds: list[float], administrator: bool) -> None:
    flows = [SandboxFlow(number, f"Flow {number}", running=each) for number, each in enumerate(seconds, 1)]
    with Sandbox(flows, requests_per_minute=None, administrator=administrator) as sandbox:
        pipe.send({"key": sandbox.airflow_connection, "login": sandbox.airflow_connection_with_login})
        pipe.send(sandbox.url)
        while True:
            match pipe.recv():
                case ("stop",):
                    return
                case ("start_runs",):
                    pipe.send([(flow.id, sandbox.run_by_user(flow.id)) for flow in flows])
                case ("traffic", since, until):
                    pipe.send(_traffic(sandbox, since, until))
                case ("revoke_tokens",):
                    pipe.send(sandbox.revoke_tokens())
                case ("log_ins",):
                    pipe.send(sandbox.log_ins)
                case ("fault", fault, times):
                    pipe.send(sandbox.fault("*", "*", fault, times=times))
                case ("received", since):
                    pipe.send([Received(each.at, _kind(each.path), each.status) for each in _received(sandbox, since)])


def _traffic(sandbox: Sandbox, since: float, until: float) -> Traffic:
    received = _received(sandbox, since, until)
    polls: dict[str, list[float]] = defaultdict(list)
    for request in received:
        if _kind(request.path) == POLL:
            polls[request.path].append(request.at)
    return Traffic(
        kinds=Counter(_kind(request.path) for request in received),
        most_in_a_minute=_most_in(60, [request.at for request in received]),
        connections=len({request.connection for request in received}),
        waits=[[later - earlier for earlier, later in pairwise(each)] for each in polls.values() if len(each) > 1],
        polled=len(polls),
    )


def _received(sandbox: Sandbox, since: float, until: float = math.inf) -> list[Recorded]:
    return [request for request in list(sandbox.requests) if since <= request.at <= until]


def _kind(path: str) -> str:
    if path == "/rest/v1/metrics/executions":
        return DAY
    if path.endswith("/history"):
        return HISTORY
    return POLL if path.startswith("/rest/v1/executions/") else OTHER


def _most_in(seconds: float, moments: list[float]) -> int:
    most = first = 0
    for last, moment in enumerate(moments):
        while moment - moments[first] > seconds:
            first += 1
        most = max(most, last - first + 1)
    return most
