"""The client for the triggerer, over aiohttp."""

from __future__ import annotations

import asyncio
import importlib
import ssl
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import aiohttp
from tenacity import AsyncRetrying
from yarl import URL

from airflow_provider_etlworks.client import retry
from airflow_provider_etlworks.client.auth import Authenticator
from airflow_provider_etlworks.client.call import Response
from airflow_provider_etlworks.client.clock import SYSTEM_CLOCK, Clock
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksRateLimited, EtlworksUnauthorized
from airflow_provider_etlworks.client.procedure import ReadHead, RequestToken, SendOnce, Sleep
from airflow_provider_etlworks.client.rate_limit import rate_limiter_for
from airflow_provider_etlworks.client.transport import (
    COMMON_HEADERS,
    POOL_SIZE,
    ca_bundle,
    proxy_for,
    redirect_target,
    request_headers,
    unreachable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from airflow_provider_etlworks.client.call import Call, Page, PagedCall
    from airflow_provider_etlworks.client.procedure import Procedure, Step
    from airflow_provider_etlworks.client.settings import ClientSettings

T = TypeVar("T")

# Longer than the longest pause between two looks at a run, so that polling does not connect anew each time.
_KEEP_ALIVE = 75.0


class AsyncEtlworksClient:
    """
    Talks to one Etlworks instance from an event loop. An async context manager.

    :param settings: the instance and the credentials.
    :param clock: tells the time; for tests.
    :param sleep: waits for some seconds; for tests.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.sleep = sleep
        self._auth = Authenticator(settings, clock)
        self._rate_limiter = rate_limiter_for(settings, clock)
        self._renewing = asyncio.Lock()
        # Instead of a limit of the pool itself: the time-out to connect would count while one waits in there.
        self._free_connections = asyncio.Semaphore(POOL_SIZE)
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None
        # A run's record is asked for thousands of times, and parsing its URL takes longer than reading the answer.
        self._urls: WeakKeyDictionary[Call[Any], URL] = WeakKeyDictionary()

    async def __aenter__(self) -> AsyncEtlworksClient:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> AsyncEtlworksClient:
        """Open the pool, and return this client. ``async with`` does it too."""
        # It takes hundreds of milliseconds: not on the event loop.
        tls, self._proxy = await asyncio.to_thread(_prepare, self.settings)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE, ssl=tls),
            timeout=aiohttp.ClientTimeout(
                total=None,
                # A tunnel through a proxy is an exchange of its own, which no other limit holds for.
                connect=self.settings.connect_timeout + self.settings.read_timeout,
                sock_connect=self.settings.connect_timeout,
                sock_read=self.settings.read_timeout,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=COMMON_HEADERS,
        )
        return self

    async def close(self) -> None:
        """Close the pooled connections."""
        if self._session is not None:
            await self._session.close()

    async def send(self, call: Call[T], *, attempts: int = retry.ATTEMPTS) -> T:
        """Carry out a call, as :meth:`EtlworksClient.send` does."""
        if attempts == 1:
            return await self._send_once(call)
        rules = retry.tenacity_options(idempotent=call.idempotent, attempts=attempts)
        return await AsyncRetrying(sleep=self.sleep, **rules)(self._send_once, call)

    async def iterate(self, paged: PagedCall[T]) -> AsyncIterator[T]:
        """Yield the items of a list, asking for each page when it is needed."""
        call: Call[Page[T]] | None = paged.first()
        offset = 0
        previous: Page[T] | None = None
        while call is not None:
            page = await self.send(call)
            if page.repeats(previous):
                return
            for item in page.items:
                yield item
            offset += len(page.items)
            call, previous = paged.following(offset, page), page

    async def run(self, conversation: Procedure[T]) -> T:
        """Carry out a conversation, and return its result."""
        try:
            step = next(conversation)
            while True:
                try:
                    value = await self._take(step)
                except EtlworksError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(value)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()

    async def _take(self, step: Step) -> Any:
        if isinstance(step, Sleep):
            return await self.sleep(step.seconds)
        if isinstance(step, RequestToken):
            return await self._exchange(step.call, step.bearer)
        if isinstance(step, ReadHead):
            # Nothing in an event loop reads a long text, so this one holds it whole.
            return (await self.send(step.call, attempts=1))[: step.size]
        return await (self.send(step.call, attempts=1) if isinstance(step, SendOnce) else self.send(step))

    async def _send_once(self, call: Call[T]) -> T:
        if not call.authenticated:
            return await self._exchange(call, None)
        bearer = await self._bearer()
        try:
            return await self._exchange(call, bearer)
        except EtlworksUnauthorized:
            if not self._auth.reject(bearer):
                raise
        return await self._exchange(call, await self._bearer())

    async def _bearer(self) -> str:
        while (bearer := self._auth.bearer()) is None:
            renewals = self._auth.renewals
            async with self._renewing:
                if failure := self._auth.failure_since(renewals):
                    raise failure
                if self._auth.bearer() is None:
                    await self.run(self._auth.renewal())
        return bearer

    async def _exchange(self, call: Call[T], bearer: str | None) -> T:
        headers, url = request_headers(call, bearer), self._url(call)
        answer = await self._ask(call, url, headers)
        redirects = 0
        while target := redirect_target(call, str(url), answer, redirects):
            url, redirects = URL(target, encoded=True), redirects + 1
            answer = await self._ask(call, url, headers)
        try:
            return call.result(answer, self._auth.secrets)
        except EtlworksRateLimited as error:
            if error.retry_after is not None:
                self._rate_limiter.pause(error.retry_after)
            raise

    def _url(self, call: Call[Any]) -> URL:
        url = self._urls.get(call)
        if url is None:
            url = URL(call.url(self.settings.base_url, self.settings.root_url), encoded=True)
            self._urls[call] = url
        return url

    async def _ask(self, call: Call[Any], url: URL, headers: Mapping[str, str]) -> Response:
        """Send one request, when its turn has come, and read the whole answer."""
        if self._session is None:
            raise RuntimeError("Use this client as `async with client:`; it opens its connections there.")
        for wait in self._rate_limiter.delays():
            await self.sleep(wait)
        try:
            async with (
                self._free_connections,
                self._session.request(
                    call.method,
                    url,
                    headers=headers,
                    data=call.body,
                    # A request without a body has no type either.
                    skip_auto_headers=None if call.method == "GET" else ("Content-Type",),
                    allow_redirects=False,
                    proxy=self._proxy,
                ) as response,
            ):
                return Response(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise unreachable(call, self.settings, error, not_processed=_never_sent(error)) from None


def _never_sent(error: BaseException) -> bool:
    """Whether a request certainly never left: no connection came to be."""
    return isinstance(
        error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
    )


def _prepare(settings: ClientSettings) -> tuple[ssl.SSLContext | bool, str | None]:
    """Read certificates and find the proxy; import what the first token takes."""
    importlib.import_module("jwt")
    verify = ca_bundle(settings)
    tls = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify
    return tls, proxy_for(settings)
