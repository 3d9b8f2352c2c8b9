"""The client for workers and scripts, over requests."""

from __future__ import annotations

import http.client
import math
import threading
import time
import zlib
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import requests
import urllib3.exceptions
from requests.structures import CaseInsensitiveDict
from tenacity import Retrying

from airflow_provider_etlworks.client import retry
from airflow_provider_etlworks.client.auth import Authenticator
from airflow_provider_etlworks.client.call import Response
from airflow_provider_etlworks.client.clock import SYSTEM_CLOCK, Clock
from airflow_provider_etlworks.client.errors import EtlworksError, EtlworksRateLimited, EtlworksUnauthorized
from airflow_provider_etlworks.client.metrics import NO_METRICS, Metrics
from airflow_provider_etlworks.client.observed_pool import CURRENT_EXCHANGE, ObservedAdapter
from airflow_provider_etlworks.client.procedure import PageCursor, ReadHead, RequestToken, RunOnce, SendOnce, Sleep
from airflow_provider_etlworks.client.rate_limit import Priority, rate_limiter_for
from airflow_provider_etlworks.client.streaming import CHUNK_SIZE, ResponseBody, head_of
from airflow_provider_etlworks.client.transport import (
    COMMON_HEADERS,
    POOL_SIZE,
    Exchange,
    SendingPaused,
    ca_bundle,
    default_priority,
    priority_after,
    proxy_for,
    redirect_target,
    request_headers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airflow_provider_etlworks.client.call import Call, PagedCall
    from airflow_provider_etlworks.client.procedure import Procedure, Step
    from airflow_provider_etlworks.client.settings import ClientSettings

T = TypeVar("T")


class EtlworksClient:
    """
    A client of one Etlworks instance. Several threads may share it. A context manager.

    :param settings: the instance and the credentials.
    :param clock: reads the time; for tests.
    :param sleep: waits for some seconds; for tests, and for callers that can be interrupted.
    :param priority: that of requests for which the caller names none; ``None`` is ``POLL`` for a call that may be
        repeated, else ``START``.
    :param longest_wait: seconds for which a request may wait for its turn. Then it fails as if Etlworks had answered
        429.
    :param metrics: receives what happens, such as each request.
    """

    def __init__(
        self,
        settings: ClientSettings,
        *,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], None] = time.sleep,
        priority: Priority | None = None,
        longest_wait: float = math.inf,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.clock = clock
        self._sleep = sleep
        self._priority = priority
        self._longest_wait = longest_wait
        self._auth = Authenticator(settings, clock)
        self._rate_limiter = rate_limiter_for(settings, clock)
        self._rate_limiter.join(self, settings.requests_per_minute)
        self._renewing = threading.Lock()
        # Both transports read the environment's proxy and CA bundle through our own code. A session of requests would
        # also read ``.netrc``, keep cookies, and load the bodies of redirects without a limit.
        self._adapter = ObservedAdapter(pool_connections=1, pool_maxsize=POOL_SIZE)
        self._verify = ca_bundle(settings)
        proxy = proxy_for(settings)
        self._proxies = {"http": proxy, "https": proxy} if proxy else {}

    def __enter__(self) -> EtlworksClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections."""
        self._adapter.close()

    def send(self, call: Call[T], *, attempts: int = retry.ATTEMPTS, priority: Priority | None = None) -> T:
        """
        Send a call, with log-in, retries and rate limit.

        :param call: the call, from :mod:`airflow_provider_etlworks.client.endpoints`.
        :param attempts: the most times to send it, if it may be repeated.
        :param priority: its place among the requests of this process that wait; ``None`` is the client's.
        :return: the call's value.
        :raises EtlworksError: it failed; the tree is in :mod:`airflow_provider_etlworks.client.errors`.
        """
        if attempts == 1:
            return self._send_once(call, priority)
        return self._retry(call, attempts, partial(self._send_once, call), priority)

    def iterate(self, paged: PagedCall[T], *, priority: Priority | None = None) -> Iterator[T]:
        """Yield the items of a list. Each page is requested when its first item is needed."""
        cursor = PageCursor(paged)
        while cursor.call is not None:
            yield from cursor.advance(self.send(cursor.call, priority=priority))

    def run(self, procedure: Procedure[T], *, priority: Priority | None = None, attempts: int = retry.ATTEMPTS) -> T:
        """
        Run a procedure, and return its result.

        :param procedure: the procedure.
        :param priority: that of each of its requests; ``None`` is the client's.
        :param attempts: the most times to send each of its calls, if it may be repeated.
        """
        if priority is None:
            priority = self._priority
        try:
            step = next(procedure)
            while True:
                try:
                    value = self._perform(step, priority, attempts)
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

    @contextmanager
    def stream(self, call: Call[Any], *, priority: Priority | None = None) -> Iterator[Iterator[bytes]]:
        """
        Send a call once, and yield its body in chunks, for a response that may be too long to hold.

        :param call: the call.
        :param priority: as for :meth:`send`.
        :raises EtlworksError: it failed, at the start or between two chunks.
        """
        with ExitStack() as stack:
            bearer = self._bearer(priority)
            exchange, response = stack.enter_context(self._open(call, bearer, priority))
            if response.status_code == 401 and self._auth.reject(bearer):
                stack.close()
                exchange, response = stack.enter_context(self._open(call, self._bearer(priority), priority))
            if not response.ok:
                body = b"".join(self._chunks(call, exchange, response))
                raise call.error(_with_body(response, body), self._auth.secrets)
            yield self._chunks(call, exchange, response)

    def receive(
        self,
        call: Call[Any],
        take: Callable[[Iterator[bytes]], T],
        *,
        attempts: int = retry.ATTEMPTS,
        priority: Priority | None = None,
    ) -> T:
        """
        Send a call whose response may be too long to hold, with log-in, retries and rate limit.

        :param call: the call. It may be sent again if it is idempotent.
        :param take: receives the response's body in chunks, and returns the value; it begins again with each attempt.
            What it raises counts as a failure of the call.
        :param attempts: the most times to send it, if it may be repeated.
        :param priority: as for :meth:`send`.
        :return: what ``take`` returned.
        :raises EtlworksError: it failed.
        """

        def attempt(priority: Priority | None) -> T:
            with self.stream(call, priority=priority) as chunks:
                return take(chunks)

        return self._retry(call, attempts, attempt, priority)

    def _retry(
        self, call: Call[Any], attempts: int, attempt: Callable[[Priority | None], T], priority: Priority | None
    ) -> T:
        if priority is None:
            priority = self._priority

        def attempt_with_priority() -> T:
            nonlocal priority
            try:
                return attempt(priority)
            except EtlworksError as error:
                priority = priority_after(error, priority)
                raise

        options = retry.tenacity_options(idempotent=call.idempotent, attempts=attempts)
        value: T = Retrying(sleep=self._sleep, **options)(attempt_with_priority)
        return value

    def _perform(self, step: Step, priority: Priority | None, attempts: int) -> Any:
        if isinstance(step, Sleep):
            return self._sleep(step.seconds)
        if isinstance(step, RequestToken):
            return self._exchange(step.call, step.bearer, priority)
        if isinstance(step, ReadHead):
            with self.stream(step.call, priority=priority) as pieces:
                return head_of(pieces, step.size)
        if isinstance(step, SendOnce):
            return self.send(step.call, attempts=1, priority=priority)
        if isinstance(step, RunOnce):
            return self.run(step.procedure, priority=priority, attempts=1)
        return self.send(step, attempts=attempts, priority=priority)

    def _send_once(self, call: Call[T], priority: Priority | None) -> T:
        if not call.authenticated:
            return self._exchange(call, None, priority)
        bearer = self._bearer(priority)
        try:
            return self._exchange(call, bearer, priority)
        except EtlworksUnauthorized as error:
            # The 401 of a listener may be its author's, after the payload was taken.
            if not self._auth.reject(bearer) or not error.not_processed:
                raise
        return self._exchange(call, self._bearer(priority), priority)

    def _bearer(self, priority: Priority | None) -> str:
        while (bearer := self._auth.bearer()) is None:
            renewals = self._auth.renewals
            with self._renewing:
                if failure := self._auth.failure_since(renewals):
                    raise failure
                if self._auth.bearer() is None:
                    self.run(self._auth.renewal(), priority=priority)
        return bearer

    def _exchange(self, call: Call[T], bearer: str | None, priority: Priority | None) -> T:
        with self._open(call, bearer, priority) as (exchange, response):
            body = b"".join(self._chunks(call, exchange, response))
            return call.result(_with_body(response, body), self._auth.secrets)

    @contextmanager
    def _open(
        self, call: Call[Any], bearer: str | None, priority: Priority | None
    ) -> Iterator[tuple[Exchange, requests.Response]]:
        """Send a call, follow its redirects, and yield the response with its body still unread."""
        url = call.url(self.settings.base_url, self.settings.root_url)
        headers, redirects = {**COMMON_HEADERS, **request_headers(call, bearer)}, 0
        if priority is None:
            priority = default_priority(call) if self._priority is None else self._priority
        while True:
            self._wait_for_turn(call, priority)
            exchange = Exchange(call, self.settings, partial(self._rate_limiter.is_paused, priority))
            try:
                with self._request(call, url, headers, exchange) as response:
                    target = redirect_target(call, url, response.status_code, _headers(response), redirects)
                    if target is None:
                        yield exchange, response
                        return
                    url, redirects = target, redirects + 1
            except SendingPaused:
                continue
            except EtlworksError as error:
                if isinstance(error, EtlworksRateLimited):
                    self._rate_limiter.refuse(error.retry_after)
                    self.metrics.refused()
                raise error.of(self.settings.name) from error.__cause__
            finally:
                if exchange.sent:
                    self._rate_limiter.end()
                    self.metrics.sent(call)
                else:
                    self._rate_limiter.give_back(priority)

    def _wait_for_turn(self, call: Call[Any], priority: Priority) -> None:
        give_up_at = self.clock.monotonic() + self._longest_wait
        while (delay := self._rate_limiter.begin(priority)) > 0:
            if self.clock.monotonic() + delay > give_up_at:
                raise EtlworksRateLimited(
                    f"{call} was not sent: the rate limit does not allow it within {self._longest_wait:g} s.",
                    status=429,
                    retry_after=delay,
                )
            self._sleep(delay)

    def _request(self, call: Call[Any], url: str, headers: Mapping[str, str], exchange: Exchange) -> requests.Response:
        token = CURRENT_EXCHANGE.set(exchange)
        try:
            return self._adapter.send(
                requests.Request(call.method, url, headers=headers, data=call.body).prepare(),
                stream=True,
                timeout=(self.settings.connect_timeout, self.settings.read_timeout),
                verify=self._verify,
                proxies=self._proxies,
            )
        except _FAILURES as error:
            raise exchange.failure(call, self.settings, error) from None
        finally:
            CURRENT_EXCHANGE.reset(token)

    def _chunks(self, call: Call[Any], exchange: Exchange, response: requests.Response) -> Iterator[bytes]:
        body = ResponseBody(str(call), call.max_bytes, response.status_code, _headers(response))
        # The default only from urllib3 2 on.
        response.raw.enforce_content_length = True
        try:
            for data in response.raw.stream(CHUNK_SIZE, decode_content=False):
                yield from body.feed(data)
                if body.is_complete:
                    return
            body.finish()
        except _FAILURES as error:
            raise exchange.failure(call, self.settings, error) from None


# All that the libraries raise. Only the exchange says whether the request was sent.
_FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, zlib.error, OSError)


def _headers(response: requests.Response) -> Mapping[str, str]:
    # Of a repeated header the first one, as aiohttp reads it.
    fields = response.raw.headers
    return CaseInsensitiveDict((name, fields.getlist(name)[0]) for name in fields)


def _with_body(response: requests.Response, body: bytes) -> Response:
    return Response(response.status_code, _headers(response), body)
