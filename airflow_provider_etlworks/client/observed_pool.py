"""
The connections of the sync client: urllib3's own, which record what happens to a request.

They record whether a byte of it was sent, drop kept-alive connections for requests that must not be repeated, skip
every interim response, and end a response at its time limit.
"""

from __future__ import annotations

import http.client
import io
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from airflow_provider_etlworks.client.transport import Exchange, SendingPaused

if TYPE_CHECKING:
    import socket


CURRENT_EXCHANGE: ContextVar[Exchange] = ContextVar("current_exchange")
"""The exchange of the request that this thread sends now, for the connection that sends it."""


class ObservedAdapter(HTTPAdapter):
    """Sends requests over observed connections, through a proxy or without one."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Create the pools of direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Return the pools of connections through a proxy."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


class _TimedReader(io.RawIOBase):
    """Reads a socket. Each read may last as long as the response may still take."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, exchange: Exchange) -> None:
        self._raw = raw
        self._sock = sock
        self._exchange = exchange

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining = self._exchange.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the time limit of the response is over")
        timeout = self._sock.gettimeout()
        if timeout is None or timeout > remaining:
            self._sock.settimeout(remaining)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock, CURRENT_EXCHANGE.get()))

    def begin(self) -> None:
        """Read the headers of the final response. Python itself skips no interim response but 100."""
        super().begin()
        while self.status < 200 and self.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()


class _ObservedConnection(HTTPConnection):
    response_class = _Response
    _is_established = False

    def connect(self) -> None:
        # The CONNECT is sent here. Nothing counts as sent until the tunnel is established.
        self._is_established = False
        super().connect()
        self._is_established = True

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        if self._is_established:
            exchange = CURRENT_EXCHANGE.get()
            if not exchange.sent and exchange.is_paused():
                raise SendingPaused
            exchange.sent = True
            self.sock.settimeout(exchange.read_timeout)
        super().send(data)

    def getresponse(self) -> Any:
        CURRENT_EXCHANGE.get().expect_response()
        return super().getresponse()


class _ObservedTlsConnection(_ObservedConnection, HTTPSConnection):
    pass


class _ObservedPool(HTTPConnectionPool):
    ConnectionCls = _ObservedConnection

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)
        if CURRENT_EXCHANGE.get().needs_fresh_connection:
            # It connects again.
            connection.close()
        return connection


class _ObservedTlsPool(_ObservedPool, HTTPSConnectionPool):
    ConnectionCls = _ObservedTlsConnection


_POOLS: dict[str, type[HTTPConnectionPool]] = {"http": _ObservedPool, "https": _ObservedTlsPool}
