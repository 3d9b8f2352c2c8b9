"""The client for workers and scripts, over requests."""

from __future__ import annotations

import ssl
import threading
import time
from contextlib import ExitStack, contextmanager
from http.cookiejar import DefaultCookiePolicy
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from tenacity import Retrying

from airflow_provider_etlworks.client import retry
from airflow_provider_etlworks.client.auth import Authenticator
from airflow_provider_etlworks.client.call import Response
from airflow_provider_etlworks.client.clock import SYSTEM_CLOCK, Clock
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksRateLimited, EtlworksUnauthorized
from airflow_provider_etlworks.client.procedure import ReadHead, RequestToken, SendOnce, Sleep
from airflow_provider_etlworks.client.rate_limit import rate_limiter_for
from airflow_provider_etlworks.client.streaming import head_of
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
    from collections.abc import Callable, Iterator

    from airflow_provider_etlworks.client.call import Call, Page, PagedCall
    from airflow_provider_etlworks.client.procedure import Procedure, Step
    from airflow_provider_etlworks.client.settings import ClientSettings

T = TypeVar("T")

_CHUNK = 65_536
# Bytes that are read of an error that takes the place of a long answer.
_LONGEST_ERROR = 4 * _CHUNK


class EtlworksClient:
    """
    Talks to one Etlworks instance. Usable from several threads, and as a context manager.

    :param settings: the instance and the credentials.
    :param clock: tells the time; for tests.
    :param sleep: waits for some seconds; for tests, and for callers that can be interrupted.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self._sleep = sleep
        self._auth = Authenticator(settings, clock)
        self._rate_limiter = rate_limiter_for(settings, clock)
        self._renewing = threading.Lock()
        self._session = requests.Session()
        self._session.headers.update(COMMON_HEADERS)
        # Proxy and CA bundle from the environment are read by us, the same way for both transports, and no ``.netrc``
        # may replace our bearer.
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        self._session.verify = ca_bundle(settings)
        if proxy := proxy_for(settings):
            self._session.proxies = {"http": proxy, "https": proxy}
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=POOL_SIZE)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    def __enter__(self) -> EtlworksClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._session.close()

    def send(self, call: Call[T], *, attempts: int = retry.ATTEMPTS) -> T:
        """
        Carry out a call, with log-in, retries and rate limit.

        :param call: what to ask, from :mod:`airflow_provider_etlworks.client.endpoints`.
        :param attempts: how many times to send it at most, where it may be repeated.
        :return: the call's value.
        :raises EtlworksError: it failed; the tree is in :mod:`airflow_provider_etlworks.client.errors`.
        """
        if attempts == 1:
            return self._send_once(call)
        rules = retry.tenacity_options(idempotent=call.idempotent, attempts=attempts)
        value: T = Retrying(sleep=self._sleep, **rules)(self._send_once, call)
        return value

    def iterate(self, paged: PagedCall[T]) -> Iterator[T]:
        """Yield the items of a list, asking for each page when it is needed."""
        call: Call[Page[T]] | None = paged.first()
        offset = 0
        previous: Page[T] | None = None
        while call is not None:
            page = self.send(call)
            if page.repeats(previous):
                return
            yield from page.items
            offset += len(page.items)
            call, previous = paged.following(offset, page), page

    def run(self, conversation: Procedure[T]) -> T:
        """Carry out a conversation, and return its result."""
        try:
            step = next(conversation)
            while True:
                try:
                    value = self._take(step)
                except EtlworksError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(value)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()

    @contextmanager
    def stream(self, call: Call[Any]) -> Iterator[Iterator[bytes]]:
        """
        Carry out a call whose answer may be too long to hold, once, and give its body in pieces.

        :raises EtlworksError: it failed, at the start or between two pieces.
        """
        with ExitStack() as stack:
            bearer = self._bearer()
            response = stack.enter_context(self._open(call, bearer))
            if response.status_code == 401 and self._auth.reject(bearer):
                response = stack.enter_context(self._open(call, self._bearer()))
            if not response.ok:
                said = b"".join(islice(self._pieces(call, response), _LONGEST_ERROR // _CHUNK))
                raise call.error(_answer(response, said), self._auth.secrets)
            yield self._pieces(call, response)

    def receive(self, call: Call[Any], take: Callable[[Iterator[bytes]], T], *, attempts: int = retry.ATTEMPTS) -> T:
        """
        Carry out a call whose answer may be too long to hold, with log-in, retries and rate limit.

        :param call: what to ask. It may be asked again where it is repeatable.
        :param take: is given the answer's body in pieces, and returns what is wanted of it; it begins anew with each
            attempt. What it raises is handled as any other failure of the call.
        :param attempts: how many times to send it at most, where it may be repeated.
        :return: what ``take`` returned.
        :raises EtlworksError: it failed.
        """

        def once() -> T:
            with self.stream(call) as pieces:
                return take(pieces)

        value: T = Retrying(sleep=self._sleep, **retry.tenacity_options(idempotent=call.idempotent, attempts=attempts))(
            once
        )
        return value

    def _take(self, step: Step) -> Any:
        if isinstance(step, Sleep):
            return self._sleep(step.seconds)
        if isinstance(step, RequestToken):
            return self._exchange(step.call, step.bearer)
        if isinstance(step, ReadHead):
            with self.stream(step.call) as pieces:
                return head_of(pieces, step.size)
        return self.send(step.call, attempts=1) if isinstance(step, SendOnce) else self.send(step)

    def _send_once(self, call: Call[T]) -> T:
        if not call.authenticated:
            return self._exchange(call, None)
        bearer = self._bearer()
        try:
            return self._exchange(call, bearer)
        except EtlworksUnauthorized:
            if not self._auth.reject(bearer):
                raise
        return self._exchange(call, self._bearer())

    def _bearer(self) -> str:
        while (bearer := self._auth.bearer()) is None:
            renewals = self._auth.renewals
            with self._renewing:
                if failure := self._auth.failure_since(renewals):
                    raise failure
                if self._auth.bearer() is None:
                    self.run(self._auth.renewal())
        return bearer

    def _exchange(self, call: Call[T], bearer: str | None) -> T:
        with self._open(call, bearer) as response:
            body = b"".join(self._pieces(call, response))
            return call.result(_answer(response, body), self._auth.secrets)

    @contextmanager
    def _open(self, call: Call[Any], bearer: str | None) -> Iterator[requests.Response]:
        """Send a call, follow its redirects, and give the answer with its body still to be read."""
        url = call.url(self.settings.base_url, self.settings.root_url)
        headers, redirects = request_headers(call, bearer), 0
        while True:
            for wait in self._rate_limiter.delays():
                self._sleep(wait)
            try:
                response = self._session.request(
                    call.method,
                    url,
                    headers=headers,
                    data=call.body,
                    timeout=(self.settings.connect_timeout, self.settings.read_timeout),
                    allow_redirects=False,
                    stream=True,
                )
            except requests.RequestException as error:
                raise unreachable(call, self.settings, error, not_processed=_never_sent(error)) from None
            with response:
                target = redirect_target(call, url, _answer(response, b""), redirects)
                if target is None:
                    try:
                        yield response
                    except EtlworksRateLimited as error:
                        if error.retry_after is not None:
                            self._rate_limiter.pause(error.retry_after)
                        raise
                    return
                url, redirects = target, redirects + 1

    def _pieces(self, call: Call[Any], response: requests.Response) -> Iterator[bytes]:
        # The default only from urllib3 2 on.
        response.raw.enforce_content_length = True
        try:
            yield from response.iter_content(_CHUNK)
        except requests.RequestException as error:
            raise unreachable(call, self.settings, error, not_processed=False) from None


def _answer(response: requests.Response, body: bytes) -> Response:
    return Response(response.status_code, response.headers, body)


_NO_CONNECTION = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.ProxyError,
    ssl.SSLCertVerificationError,
)


def _never_sent(error: BaseException) -> bool:
    """Whether a request certainly never left: no connection came to be."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _NO_CONNECTION):
            return True
        reason = getattr(seen, "reason", None) or (seen.args[0] if seen.args else None)
        seen = reason if isinstance(reason, BaseException) else seen.__cause__
    return False
