"""The client for the triggerer, over aiohttp."""

from __future__ import annotations

import asyncio
import time
import zlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import aiohttp
from tenacity import AsyncRetrying
from yarl import URL

from airflow_provider_etlworks.client import retry
from airflow_provider_etlworks.client.auth import Authenticator
from airflow_provider_etlworks.client.call import Response
from airflow_provider_etlworks.client.clock import SYSTEM_CLOCK, Clock
from airflow_provider_etlworks.client.dispatcher import dispatcher_for
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksRateLimited, EtlworksUnauthorized
from airflow_provider_etlworks.client.metrics import NO_METRICS, Metrics
from airflow_provider_etlworks.client.procedure import PageCursor, ReadHead, RequestToken, RunOnce, SendOnce, Sleep
from airflow_provider_etlworks.client.rate_limit import Priority
from airflow_provider_etlworks.client.streaming import MAX_ERROR_BYTES, ResponseBody
from airflow_provider_etlworks.client.transport import (
    COMMON_HEADERS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    Exchange,
    SendingPaused,
    ca_bundle,
    default_priority,
    priority_after,
    proxy_for,
    redirect_target,
    request_headers,
    tls_context,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from aiohttp.connector import Connection

    from airflow_provider_etlworks.client.call import Call, PagedCall
    from airflow_provider_etlworks.client.dispatcher import Dispatcher, Turn
    from airflow_provider_etlworks.client.procedure import Procedure, Step
    from airflow_provider_etlworks.client.settings import ClientSettings

T = TypeVar("T")

# The exchange of the request that this task sends now.
_CURRENT_EXCHANGE: ContextVar[_AsyncExchange] = ContextVar("current_exchange")

# Longer than the longest time between two polls of a run, so that not every poll needs a new connection.
_KEEP_ALIVE = 75.0


class AsyncEtlworksClient:
    """
    A client of one Etlworks instance, for an event loop. An async context manager.

    :param settings: the instance and the credentials.
    :param clock: reads the time; for tests.
    :param sleep: waits for some seconds; for tests.
    :param metrics: receives what happens, such as each request.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.clock = clock
        self.sleep = sleep
        self._auth = Authenticator(settings, clock)
        self._renewing = asyncio.Lock()
        self._dispatcher: Dispatcher | None = None
        self._session: aiohttp.ClientSession | None = None
        # For requests that must not be repeated: a server may drop a kept-alive connection at any time.
        self._fresh_session: aiohttp.ClientSession | None = None
        self._watchdog = _Watchdog()
        self._proxy: str | None = None
        self._memos: WeakKeyDictionary[Call[Any], _Memo] = WeakKeyDictionary()

    async def __aenter__(self) -> AsyncEtlworksClient:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> AsyncEtlworksClient:
        """Open the pool, and return this client. ``async with`` does it too."""
        # Reading certificates takes hundreds of milliseconds, which must not block the event loop.
        tls, self._proxy = await asyncio.to_thread(_prepare, self.settings)
        self._dispatcher = dispatcher_for(self.settings, self.clock, self.sleep)
        self._dispatcher.rate_limiter.join(self, self.settings.requests_per_minute)
        # Not the pool's own limit: the time-out to connect would include the time in its queue.
        self._session = _session(aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE, ssl=tls), self.settings)
        self._fresh_session = _session(aiohttp.TCPConnector(limit=0, force_close=True, ssl=tls), self.settings)
        return self

    async def close(self) -> None:
        """Close the pooled connections."""
        self._watchdog.cancel()
        for session in (self._session, self._fresh_session):
            if session is not None:
                await session.close()

    @property
    def dispatcher(self) -> Dispatcher:
        """
        Grants turns to the requests of all clients with these credentials in this event loop.

        :raises RuntimeError: the client is not open.
        """
        if self._dispatcher is None:
            raise RuntimeError("Use this client as `async with client:`; it opens its connections there.")
        return self._dispatcher

    async def send(
        self,
        call: Call[T],
        *,
        attempts: int = retry.ATTEMPTS,
        priority: Priority | None = None,
        turn: Turn | None = None,
    ) -> T:
        """
        Send a call, as :meth:`EtlworksClient.send` does.

        :param call: the call.
        :param attempts: the most times to send it, if it may be repeated.
        :param priority: its place among the requests that wait; ``None`` is ``POLL`` for a call that may be repeated,
            else ``START``.
        :param turn: a turn that the caller has taken already; its priority counts.
        """
        turn = turn or self.dispatcher.turn(default_priority(call) if priority is None else priority)
        if attempts == 1:
            return await self._send_once(call, turn)
        options = retry.tenacity_options(idempotent=call.idempotent, attempts=attempts)
        return await AsyncRetrying(sleep=self.sleep, **options)(self._send_once, call, turn)

    async def iterate(self, paged: PagedCall[T], *, priority: Priority | None = None) -> AsyncIterator[T]:
        """Yield the items of a list. Each page is requested when its first item is needed."""
        cursor = PageCursor(paged)
        while cursor.call is not None:
            for item in cursor.advance(await self.send(cursor.call, priority=priority)):
                yield item

    async def run(
        self,
        procedure: Procedure[T],
        *,
        priority: Priority | None = None,
        turn: Turn | None = None,
        attempts: int = retry.ATTEMPTS,
    ) -> T:
        """
        Run a procedure, and return its result.

        :param procedure: the procedure.
        :param priority: that of each of its requests; ``None`` as for :meth:`send`.
        :param turn: a turn that the caller has taken already, for all its requests: it waits again before each but the
            first, and its priority counts.
        :param attempts: the most times to send each of its calls, if it may be repeated.
        """
        try:
            step = next(procedure)
            while True:
                try:
                    value = await self._perform(step, priority, turn, attempts)
                except EtlworksError as error:
                    priority = priority_after(error, priority)
                    step = procedure.throw(error)
                else:
                    step = procedure.send(value)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            procedure.close()

    async def _perform(self, step: Step, priority: Priority | None, turn: Turn | None, attempts: int) -> Any:
        if isinstance(step, Sleep):
            return await self.sleep(step.seconds)
        if isinstance(step, RequestToken):
            turn = turn or self.dispatcher.turn(Priority.POLL if priority is None else priority)
            return await self._exchange(step.call, step.bearer, turn)
        if isinstance(step, ReadHead):
            # Nothing in an event loop reads long texts, so the whole text is held.
            return (await self.send(step.call, attempts=1, priority=priority, turn=turn))[: step.size]
        if isinstance(step, SendOnce):
            return await self.send(step.call, attempts=1, priority=priority, turn=turn)
        if isinstance(step, RunOnce):
            return await self.run(step.procedure, priority=priority, turn=turn, attempts=1)
        return await self.send(step, attempts=attempts, priority=priority, turn=turn)

    async def _send_once(self, call: Call[T], turn: Turn) -> T:
        if not call.authenticated:
            return await self._exchange(call, None, turn)
        bearer = self._auth.bearer() or await self._new_bearer(turn)
        try:
            return await self._exchange(call, bearer, turn)
        except EtlworksUnauthorized as error:
            # The 401 of a listener may be its author's, after the payload was taken.
            if not self._auth.reject(bearer) or not error.not_processed:
                raise
        return await self._exchange(call, self._auth.bearer() or await self._new_bearer(turn), turn)

    async def _new_bearer(self, turn: Turn) -> str:
        # The log-in needs a turn itself, and everybody who waits for it might hold one.
        turn.release(sent=False)
        while (bearer := self._auth.bearer()) is None:
            renewals = self._auth.renewals
            async with self._renewing:
                if failure := self._auth.failure_since(renewals):
                    raise failure
                if self._auth.bearer() is None:
                    await self.run(self._auth.renewal(), priority=turn.priority)
        return bearer

    async def _exchange(self, call: Call[T], bearer: str | None, turn: Turn) -> T:
        headers, memo = request_headers(call, bearer), self._memo(call)
        try:
            url, redirects = memo.url, 0
            while isinstance(response := await self._request(call, url, headers, turn, redirects), str):
                url, redirects = URL(response, encoded=True), redirects + 1
            return self._result(call, response, turn, memo)
        except EtlworksError as error:
            raise error.of(self.settings.name) from error.__cause__

    def _result(self, call: Call[T], response: Response, turn: Turn, memo: _Memo) -> T:
        if not call.is_polled:
            return self._read_response(call, response, turn)
        fingerprint = hash((response.status, response.headers.get("Content-Type"), response.body))
        if fingerprint != memo.fingerprint:
            memo.value = self._read_response(call, response, turn)
            memo.fingerprint = fingerprint
        value: T = memo.value
        return value

    def _read_response(self, call: Call[T], response: Response, turn: Turn) -> T:
        try:
            return call.result(response, self._auth.secrets)
        except EtlworksRateLimited as error:
            self.dispatcher.rate_limiter.refuse(error.retry_after)
            self.metrics.refused()
            if turn.priority is Priority.STOP:
                turn.priority = Priority.LAST_POLL
            raise

    def _memo(self, call: Call[Any]) -> _Memo:
        memo = self._memos.get(call)
        if memo is None:
            memo = _Memo(URL(call.url(self.settings.base_url, self.settings.root_url), encoded=True))
            self._memos[call] = memo
        return memo

    async def _request(
        self, call: Call[Any], url: URL, headers: Mapping[str, str], turn: Turn, redirects: int
    ) -> Response | str:
        """Send one request when its turn comes. Return the whole response, or the URL that it redirects to."""
        session = self._session if call.idempotent else self._fresh_session
        if session is None:
            raise RuntimeError("Use this client as `async with client:`; it opens its connections there.")
        while True:
            if not turn.is_granted:
                await turn.take()
            exchange = _AsyncExchange(call, self.settings, turn.is_paused)
            exchange.watchdog = self._watchdog
            _CURRENT_EXCHANGE.set(exchange)
            try:
                async with session.request(
                    call.method,
                    url,
                    headers=headers,
                    data=call.body,
                    # A request without a body has no type either.
                    skip_auto_headers=None if call.method == "GET" else ("Content-Type",),
                    allow_redirects=False,
                    proxy=self._proxy,
                ) as response:
                    # A redirect counts whatever its body is.
                    if (target := redirect_target(call, url, response.status, response.headers, redirects)) is not None:
                        return target
                    result = Response(response.status, response.headers, await _read(call, response))
            except SendingPaused:
                continue
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, zlib.error) as error:
                raise exchange.failure(call, self.settings, error) from None
            finally:
                self._watchdog.forget(exchange)
                turn.release(sent=exchange.sent)
                if exchange.sent:
                    self.metrics.sent(call)
            if exchange.is_aborted:
                # A body without a length looks complete when its connection is closed.
                raise exchange.failure(call, self.settings, asyncio.TimeoutError())
            return result


class _Memo:
    """
    What is kept of a call that may be sent again: a run's record is polled thousands of times.

    Parsing the URL takes longer than reading the response, and most responses are the same as the one before.

    :ivar fingerprint: of the last response that had a value. Not the response, which takes more memory.
    :ivar value: that value.
    """

    __slots__ = ("fingerprint", "url", "value")

    def __init__(self, url: URL) -> None:
        self.url = url
        self.fingerprint: int | None = None
        self.value: Any = None


class _Watchdog:
    """Closes the connection of each overdue response. One timer serves all, since almost every response is in time."""

    def __init__(self) -> None:
        self._exchanges: set[_AsyncExchange] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next_check = float("inf")

    def watch(self, exchange: _AsyncExchange) -> None:
        self._exchanges.add(exchange)
        if exchange.deadline < self._next_check:
            self.cancel()
            self._check_at(exchange.deadline)

    def forget(self, exchange: _AsyncExchange) -> None:
        self._exchanges.discard(exchange)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _check_at(self, deadline: float) -> None:
        self._next_check = deadline
        self._timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self._check)

    def _check(self) -> None:
        self._next_check, now = float("inf"), time.monotonic()
        for exchange in [each for each in self._exchanges if each.deadline <= now]:
            self._exchanges.discard(exchange)
            exchange.is_aborted = True
            if exchange.transport is not None:
                # This ends the wait for the response.
                exchange.transport.abort()
        if self._exchanges:
            self._check_at(min(exchange.deadline for exchange in self._exchanges))


class _AsyncExchange(Exchange):
    __slots__ = ("is_aborted", "transport", "watchdog")

    is_aborted: bool
    transport: asyncio.Transport | None
    watchdog: _Watchdog


class _ObservedRequest(aiohttp.ClientRequest):
    """A request that records that it is sent. The CONNECT for a tunnel is not one of these."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        exchange = _CURRENT_EXCHANGE.get()
        if exchange.sent:
            # aiohttp itself repeats a dropped GET, without a pause and past our rate limit. Our own rules repeat it.
            raise aiohttp.ServerDisconnectedError
        if exchange.is_paused():
            raise SendingPaused
        exchange.sent = True
        exchange.expect_response()
        exchange.is_aborted, exchange.transport = False, conn.transport
        exchange.watchdog.watch(exchange)
        return await super().send(conn)


def _session(connector: aiohttp.TCPConnector, settings: ClientSettings) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(
            # Our watchdog limits the whole response, at less cost.
            total=None,
            # A tunnel through a proxy needs a request of its own, which no other time-out limits.
            connect=settings.connect_timeout + settings.read_timeout,
            sock_connect=settings.connect_timeout,
            sock_read=settings.read_timeout,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=COMMON_HEADERS,
        request_class=_ObservedRequest,
        auto_decompress=False,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    )


async def _read(call: Call[Any], response: aiohttp.ClientResponse) -> bytes:
    if len(response.raw_headers) >= MAX_HEADERS:
        raise aiohttp.ClientPayloadError(f"more than {MAX_HEADERS} header lines")
    length = response.content_length
    if length is not None and length <= MAX_ERROR_BYTES and "Content-Encoding" not in response.headers:
        # Almost every response: nothing to decompress, and within all limits.
        return await response.read()
    body = ResponseBody(str(call), call.max_bytes, response.status, response.headers)
    chunks: list[bytes] = []
    async for data in response.content.iter_any():
        chunks += body.feed(data)
        if body.is_complete:
            break
    else:
        body.finish()
    return b"".join(chunks)


def _prepare(settings: ClientSettings) -> tuple[ssl.SSLContext | bool, str | None]:
    """Read certificates and find the proxy."""
    verify = ca_bundle(settings)
    return (tls_context(verify) if isinstance(verify, str) else verify), proxy_for(settings)
