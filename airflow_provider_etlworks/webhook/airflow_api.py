"""Airflow's own public API, as far as the webhook needs it: assets, their events, and their state store."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp

from airflow_provider_etlworks.client.errors import EtlworksConfigError
from airflow_provider_etlworks.client.settings import root_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from airflow_provider_etlworks.hooks.connection import AirflowConnection

_TIMEOUT = 30.0
_PAGE = 100
# As many pages as are read of a list of assets, or of an asset's events.
_MAX_PAGES = 20
_MAX_BYTES = 16 * 1024 * 1024


class AirflowApiError(Exception):
    """
    Airflow's API did not do what was asked. The text has neither credentials nor anything of a body.

    :ivar status: the HTTP status; ``None`` if there was no answer.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class AirflowApi:
    """
    A client of one Airflow's public API, for an event loop. An async context manager.

    It is asynchronous, since the API server that it asks may be the one that it runs in.

    :param url: the address of Airflow, such as ``https://airflow.example.com``.
    :param login: the user's name; ``None`` if ``password`` is a token.
    :param password: the user's password, or a token for the API.
    :param verify: whether to check the server's certificate, or the path of a CA bundle.
    """

    def __init__(self, url: str, login: str | None, password: str, verify: bool | str = True) -> None:
        self._url = url.rstrip("/")
        self._login = login
        self._password = password
        self._verify = verify
        self._token = None if login else password
        self._session: aiohttp.ClientSession | None = None
        self._logging_in = asyncio.Lock()

    @classmethod
    def from_connection(cls, connection: AirflowConnection, base_url: str) -> AirflowApi:
        """
        Return the client that a connection describes.

        :param connection: Host, Port and Scheme of Airflow; Login and Password of a user, or a token as Password.
        :param base_url: Airflow's address if the connection has no Host.
        :raises EtlworksConfigError: the connection cannot work.
        """
        try:
            return cls(*_read_connection(connection, base_url))
        except EtlworksConfigError as error:
            raise EtlworksConfigError(f"Connection {connection.conn_id!r} cannot work. {error}") from None

    async def __aenter__(self) -> AirflowApi:
        tls: ssl.SSLContext | bool = self._verify is not False
        if isinstance(self._verify, str):
            try:
                tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._verify)
            except OSError as error:
                raise AirflowApiError(f"The CA bundle {self._verify!r} cannot be read: {error}") from None
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def asset_ids(self, uri: str) -> list[int]:
        """Return the ids of the active assets with exactly this URI. Their names may differ."""
        # Airflow finds more: URIs that begin with this one come after it.
        query = {"uri_pattern": uri, "order_by": "uri"}
        return [each["id"] async for each in self._items("/assets", query, "assets") if each.get("uri") == uri]

    async def events(self, asset_id: int, since: str) -> AsyncIterator[dict[str, Any]]:
        """
        Yield the events of an asset, newest first.

        :param asset_id: the asset.
        :param since: ISO 8601; only events from then on.
        """
        query = {"asset_id": str(asset_id), "timestamp_gte": since, "order_by": "-timestamp"}
        async for event in self._items("/assets/events", query, "asset_events"):
            yield event

    async def create_event(self, asset_id: int, extra: Mapping[str, Any]) -> None:
        """Create an event of an asset, as a producing task does."""
        await self._call("POST", "/assets/events", json={"asset_id": asset_id, "extra": dict(extra)})

    async def read_state(self, asset_id: int, key: str) -> Any | None:
        """Return what the asset's state store has under a key; ``None`` if there is nothing, or no store."""
        try:
            answer = await self._call("GET", f"/assets/{asset_id}/state-store/{quote(key, safe='')}")
        except AirflowApiError as error:
            if error.status != 404:
                raise
            return None
        return answer.get("value")

    async def write_state(self, asset_id: int, key: str, value: Any) -> None:
        """Put JSON into the asset's state store, which Airflow before 3.3 does not have."""
        await self._call("PUT", f"/assets/{asset_id}/state-store/{quote(key, safe='')}", json={"value": value})

    async def _items(self, path: str, query: Mapping[str, str], name: str) -> AsyncIterator[dict[str, Any]]:
        offset = 0
        for _ in range(_MAX_PAGES):
            answer = await self._call("GET", path, params={**query, "limit": str(_PAGE), "offset": str(offset)})
            items = answer.get(name)
            if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
                raise AirflowApiError(f"Airflow's answer to GET {path} is not a list of {name}.")
            for item in items:
                yield item
            offset += len(items)
            total = answer.get("total_entries")
            if not items or not isinstance(total, int) or offset >= total:
                return

    async def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        token = self._token or await self._new_token(None)
        status, answer = await self._send(method, f"/api/v2{path}", token, **arguments)
        if status == 401 and self._login is not None:
            token = await self._new_token(token)
            status, answer = await self._send(method, f"/api/v2{path}", token, **arguments)
        if not 200 <= status < 300:
            raise AirflowApiError(
                f"Airflow's API answers {status} to {method} /api/v2{path.partition('?')[0]}.", status
            )
        return answer if isinstance(answer, dict) else {}

    async def _new_token(self, rejected: str | None) -> str:
        """Log in, unless somebody else has done so since the rejected token was used."""
        async with self._logging_in:
            if self._token is None or self._token == rejected:
                body = {"username": self._login, "password": self._password}
                status, answer = await self._send("POST", "/auth/token", None, json=body)
                token = answer.get("access_token") if isinstance(answer, dict) else None
                if not 200 <= status < 300 or not isinstance(token, str):
                    raise AirflowApiError(
                        f"Airflow's API answers {status} to POST /auth/token, without a token.", status
                    )
                self._token = token
            return self._token

    async def _send(self, method: str, path: str, token: str | None, **arguments: Any) -> tuple[int, Any]:
        if self._session is None:
            raise RuntimeError("Use this client as `async with api:`; it opens its connections there.")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with self._session.request(
                method, self._url + path, headers=headers, allow_redirects=False, **arguments
            ) as response:
                body = await response.content.read(_MAX_BYTES) if response.status != 204 else b""
                # One read returns what has arrived.
                while body and not response.content.at_eof() and len(body) < _MAX_BYTES:
                    body += await response.content.read(_MAX_BYTES - len(body))
                status = response.status
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise AirflowApiError(f"Airflow's API does not answer: {type(error).__name__}.") from None
        try:
            return status, json.loads(body) if body else None
        except (ValueError, RecursionError):
            return status, None


def _read_connection(connection: AirflowConnection, base_url: str) -> tuple[str, str | None, str, bool | str]:
    url = root_url(connection.host, connection.port, connection.schema) if connection.host else base_url
    if not url:
        raise EtlworksConfigError("It has no Host, and Airflow's [api] base_url is empty.")
    if not connection.password:
        raise EtlworksConfigError("It has no Password.")
    try:
        extra = json.loads(connection.extra or "{}")
    except ValueError:
        extra = None
    verify = extra.get("verify", True) if isinstance(extra, dict) else None
    if isinstance(verify, str):
        verify = {"true": True, "false": False}.get(verify.lower(), verify)
    if not isinstance(verify, (bool, str)):
        raise EtlworksConfigError("Extra must be a JSON object; its field 'verify' is true, false or a path.")
    return url, (connection.login or "").strip() or None, connection.password, verify
