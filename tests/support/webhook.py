"""Airflow's API server as the webhook sees it: our app in it, and the public API that it calls."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastapi import FastAPI

AIRFLOW_LOGIN, AIRFLOW_PASSWORD = "watcher-user", "airflow-password-4711"


@dataclass
class FakeAirflow:
    """
    The part of Airflow's public API that has assets. An async context manager.

    :ivar assets: URI by id.
    :ivar events: the events, in the order in which they were created.
    :ivar states: what each asset's state store has, by asset and key.
    :ivar has_store: whether there are state stores, as from Airflow 3.3 on.
    :ivar answer: may answer any request instead.
    """

    now: Callable[[], float]
    assets: dict[int, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    states: dict[tuple[int, str], Any] = field(default_factory=dict)
    has_store: bool = True
    answer: Callable[[web.Request], web.Response | None] = lambda _: None
    requests: list[str] = field(default_factory=list)
    log_ins: int = 0
    token: str = ""

    async def __aenter__(self) -> FakeAirflow:
        app = web.Application(middlewares=[self._check])
        app.router.add_post("/auth/token", self._log_in)
        app.router.add_get("/api/v2/assets", self._list_assets)
        app.router.add_get("/api/v2/assets/events", self._list_events)
        app.router.add_post("/api/v2/assets/events", self._create_event)
        app.router.add_get("/api/v2/assets/{id}/state-store/{key}", self._read_state)
        app.router.add_put("/api/v2/assets/{id}/state-store/{key}", self._write_state)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def connection(self) -> str:
        """The connection to this Airflow, as an environment variable has it."""
        return json.dumps({"conn_type": "http", "host": self.url, "login": AIRFLOW_LOGIN, "password": AIRFLOW_PASSWORD})

    @property
    def reported(self) -> list[int]:
        """The audit ids of all events."""
        return [each["extra"]["payload"]["audit_id"] for each in self.events]

    def add_event(self, asset_id: int, extra: dict[str, Any]) -> dict[str, Any]:
        at = datetime.fromtimestamp(self.now(), timezone.utc)
        event = {"id": len(self.events) + 1, "asset_id": asset_id, "extra": extra, "timestamp": at.isoformat()}
        self.events.append(event)
        return event

    @web.middleware
    async def _check(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        own = self.answer(request)
        if own is not None:
            return own
        if request.path != "/auth/token" and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"detail": "Not authenticated"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _log_in(self, request: web.Request) -> web.Response:
        if await request.json() != {"username": AIRFLOW_LOGIN, "password": AIRFLOW_PASSWORD}:
            return web.json_response({"detail": "Invalid credentials"}, status=401)
        self.log_ins += 1
        self.token = f"token-of-airflow-{self.log_ins}"
        return web.json_response({"access_token": self.token}, status=201)

    async def _list_assets(self, request: web.Request) -> web.Response:
        part = request.query["uri_pattern"]
        found = [{"id": number, "uri": uri} for number, uri in self.assets.items() if part in uri]
        return self._page(request, "assets", found)

    async def _list_events(self, request: web.Request) -> web.Response:
        asset_id, since = int(request.query["asset_id"]), datetime.fromisoformat(request.query["timestamp_gte"])
        assert request.query["order_by"] == "-timestamp"
        found = [
            each
            for each in reversed(self.events)
            if each["asset_id"] == asset_id and datetime.fromisoformat(each["timestamp"]) >= since
        ]
        return self._page(request, "asset_events", found)

    @staticmethod
    def _page(request: web.Request, name: str, found: list[dict[str, Any]]) -> web.Response:
        offset, limit = int(request.query["offset"]), min(int(request.query["limit"]), 100)
        return web.json_response({name: found[offset : offset + limit], "total_entries": len(found)})

    async def _create_event(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body.keys() == {"asset_id", "extra"}
        assert body["asset_id"] in self.assets
        return web.json_response(self.add_event(body["asset_id"], {**body["extra"], "from_rest_api": True}))

    async def _read_state(self, request: web.Request) -> web.Response:
        key = (int(request.match_info["id"]), request.match_info["key"])
        if not self.has_store or key not in self.states:
            return web.json_response({"detail": "Not found"}, status=404)
        return web.json_response({"key": key[1], "value": self.states[key]})

    async def _write_state(self, request: web.Request) -> web.Response:
        if not self.has_store:
            return web.json_response({"detail": "Not found"}, status=404)
        self.states[int(request.match_info["id"]), request.match_info["key"]] = (await request.json())["value"]
        return web.Response(status=204)


@asynccontextmanager
async def served(app: FastAPI, prefix: str) -> AsyncIterator[str]:
    """Serve an app as Airflow's API server does, below a prefix and over a socket. Yields the server's address."""
    import uvicorn
    from fastapi import FastAPI

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with app.router.lifespan_context(app):
            yield

    root = FastAPI(lifespan=lifespan)
    root.mount(prefix, app)
    server = uvicorn.Server(uvicorn.Config(root, log_level="error", access_log=False))
    server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]  # Ctrl-C is the tests'
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
