"""Stand-ins for the tests of the client: a clock, both transports behind one interface, a scripted server."""

from __future__ import annotations

import asyncio
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from airflow_provider_etlworks.client.aio import AsyncEtlworksClient
from airflow_provider_etlworks.client.sync import EtlworksClient

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from airflow_provider_etlworks.client.call import Call, PagedCall
    from airflow_provider_etlworks.client.procedure import Procedure
    from airflow_provider_etlworks.client.settings import ClientSettings

GENEROUS = 60.0
"""Seconds after which a test that waits for something has failed."""


class VirtualClock:
    """Time that passes only in ``sleep``, and there at once."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now
        self.slept: list[float] = []
        self._lock = threading.Lock()

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)
        await asyncio.sleep(0)


class Drive:
    """Either client behind the same methods. It keeps every raised error in ``errors``."""

    def __init__(self, settings: ClientSettings, clock: VirtualClock) -> None:
        self.settings = settings
        self.clock = clock
        self.errors: list[BaseException] = []

    def send(self, call: Call[Any], **options: Any) -> Any:
        return self._recorded(lambda: self._send(call, **options))

    def iterate(self, paged: PagedCall[Any]) -> list[Any]:
        return self._recorded(lambda: self._iterate(paged))

    def run(self, procedure: Procedure[Any]) -> Any:
        return self._recorded(lambda: self._run(procedure))

    def send_at_once(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        """Send calls concurrently, and return each one's value or error."""
        results = self._send_at_once(calls, **options)
        self.errors += [each for each in results if isinstance(each, BaseException)]
        return results

    def _recorded(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:
            self.errors.append(error)
            raise

    def _send(self, call: Call[Any], **options: Any) -> Any:
        raise NotImplementedError

    def _iterate(self, paged: PagedCall[Any]) -> list[Any]:
        raise NotImplementedError

    def _run(self, procedure: Procedure[Any]) -> Any:
        raise NotImplementedError

    def _send_at_once(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class SyncDrive(Drive):
    """Drives the client over requests."""

    def __init__(self, settings: ClientSettings, clock: VirtualClock) -> None:
        super().__init__(settings, clock)
        self.client = EtlworksClient(settings, clock=clock, sleep=clock.sleep)

    def _send(self, call: Call[Any], **options: Any) -> Any:
        return self.client.send(call, **options)

    def _iterate(self, paged: PagedCall[Any]) -> list[Any]:
        return list(self.client.iterate(paged))

    def _run(self, procedure: Procedure[Any]) -> Any:
        return self.client.run(procedure)

    def _send_at_once(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        together = threading.Barrier(len(calls))

        def one(call: Call[Any]) -> Any:
            together.wait(GENEROUS)
            return self.client.send(call, **options)

        with ThreadPoolExecutor(len(calls)) as pool:
            futures = [pool.submit(one, call) for call in calls]
        return [future.exception() or future.result() for future in futures]

    def close(self) -> None:
        self.client.close()


class AsyncDrive(Drive):
    """Drives the client over aiohttp, in an event loop of its own."""

    def __init__(self, settings: ClientSettings, clock: VirtualClock) -> None:
        super().__init__(settings, clock)
        self._loop = asyncio.new_event_loop()
        self.client = AsyncEtlworksClient(settings, clock=clock, sleep=clock.sleep_async)
        try:
            self._loop.run_until_complete(self.client.open())
        except BaseException:
            self._loop.close()
            raise

    def _send(self, call: Call[Any], **options: Any) -> Any:
        return self._loop.run_until_complete(self.client.send(call, **options))

    def _iterate(self, paged: PagedCall[Any]) -> list[Any]:
        async def read_all() -> list[Any]:
            return [item async for item in self.client.iterate(paged)]

        return self._loop.run_until_complete(read_all())

    def _run(self, procedure: Procedure[Any]) -> Any:
        return self._loop.run_until_complete(self.client.run(procedure))

    def _send_at_once(self, calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        async def together() -> list[Any]:
            return await asyncio.gather(*(self.client.send(call, **options) for call in calls), return_exceptions=True)

        return self._loop.run_until_complete(together())

    def close(self) -> None:
        self._loop.run_until_complete(self.client.close())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


DRIVES: Mapping[str, type[Drive]] = {"requests": SyncDrive, "aiohttp": AsyncDrive}


def whole_text_of(error: BaseException) -> str:
    """Return everything that an error can show: its text, its repr, and the tracebacks of its whole chain."""
    return "\n".join([str(error), repr(error), *traceback.format_exception(type(error), error, error.__traceback__)])


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
