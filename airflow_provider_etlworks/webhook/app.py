"""The FastAPI app in Airflow's API server that receives Etlworks's posts."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response

from airflow_provider_etlworks.webhook.delivery import Delivery
from airflow_provider_etlworks.webhook.post import read_post
from airflow_provider_etlworks.webhook.settings import PATH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from airflow_provider_etlworks.webhook.settings import WebhookSettings

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT = 10.0
_RETRY_AFTER = "30"


def create_app(
    settings: WebhookSettings,
    *,
    make_delivery: Callable[[WebhookSettings], Delivery] = Delivery,
    body_timeout: float = BODY_TIMEOUT,
) -> FastAPI:
    """
    Return the app. It answers 202 as soon as a post is taken over, and works on it in the background.

    :param settings: the connection of the webhook.
    :param make_delivery: makes what works on the posts; for tests.
    :param body_timeout: seconds that a body may take to arrive.
    :return: an app with one path: 401 without the secret, 400 for what is not JSON, 413 for more than 64 KiB, 408 for a
        body that does not arrive in time, 503 with ``Retry-After`` if there is too much to do.
    """
    # Made at the first post, in the event loop that serves it: Airflow 3.0 may not run the lifespan of a plugin's app.
    deliveries: list[Delivery] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for delivery in deliveries:
            await delivery.close()

    # Some clients send Basic only after they are asked to.
    challenge = (
        {"WWW-Authenticate": 'Basic realm="etlworks"'} if settings.login and not settings.signature_header else {}
    )

    async def receive(request: Request) -> Response:
        if not settings.is_credential(request.headers):
            return Response(status_code=401, headers=challenge)
        length = request.headers.get("Content-Length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > MAX_BODY_BYTES:
            return Response(status_code=413)
        try:
            body = await asyncio.wait_for(_read(request), body_timeout)
        except asyncio.TimeoutError:
            return Response(status_code=408, headers={"Connection": "close"})
        if body is None:
            return Response(status_code=413, headers={"Connection": "close"})
        if not settings.is_signed(request.headers, body):
            return Response(status_code=401)
        try:
            post = read_post(body)
        except ValueError:
            return Response(status_code=400)
        if post is None:
            log.info("Etlworks has posted an event that names no run; it is ignored.")
            return Response(status_code=202)
        if not deliveries:
            deliveries.append(make_delivery(settings))
        if not deliveries[0].accept(post):
            log.warning("Too many posts of Etlworks are being worked on; it may repeat this one in %s s.", _RETRY_AFTER)
            return Response(status_code=503, headers={"Retry-After": _RETRY_AFTER})
        return Response(status_code=202)

    # No pages that describe it: it is a door for one visitor.
    app = FastAPI(title="Etlworks webhook", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_route(PATH, receive, methods=["POST"])
    return app


async def _read(request: Request) -> bytes | None:
    """Return the body; ``None`` if it is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)
