"""The application: routes, keys, errors. Building it does no I/O, so that it can be tested without a socket."""

import logging
import re
import secrets
import time
from collections.abc import Sequence

from fastapi import Depends, FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire import __version__
from quire.config.server import ServerConfig
from quire.entrypoints.http import chat, completions, health, models, profile
from quire.entrypoints.http.auth import KeyRing, key_check
from quire.entrypoints.http.errors import describe_unexpected, envelope, install_error_handlers
from quire.entrypoints.http.metrics import ServerMetrics
from quire.entrypoints.http.state import ServerState
from quire.frontend.async_engine import AsyncEngine

logger = logging.getLogger("quire.http")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def create_app(
    engine: AsyncEngine,
    server: ServerConfig,
    *,
    model_names: Sequence[str],
    metrics: ServerMetrics | None = None,
    with_profiles: bool = False,
) -> FastAPI:
    """The application for one engine.

    Args:
        engine: Answers the requests; the application observes it, and does not close it.
        server: Keys and limits.
        model_names: Names under which the model is served; the first is shown in answers.
        metrics: Where to count; by default a registry of its own.
        with_profiles: Whether clients may have the engine write traces.
    """
    metrics = metrics or ServerMetrics(model_names[0], engine.info)
    engine.observers.append(metrics)
    check_key = key_check(KeyRing(server.api_key), health.OPEN_ENDPOINTS)
    app = FastAPI(
        title="quire",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        dependencies=[Depends(check_key)],
    )
    app.state.server = ServerState(engine, server, list(model_names), metrics, created=int(time.time()))
    for router in (chat.router, completions.router, models.router, health.router):
        app.include_router(router)
    if with_profiles:
        app.include_router(profile.router)
    install_error_handlers(app)
    app.add_middleware(RequestScope)
    return app


class RequestScope:
    """Gives a request its id, sends the id back, and answers what nobody else caught."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id")
        request_id = given or secrets.token_hex(16)
        if given and not _REQUEST_ID.fullmatch(given):
            text = "X-Request-Id must be 1 to 128 visible ASCII characters"
            body = envelope(400, text, "X-Request-Id")
            await Response(body, 400, media_type="application/json")(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["has_own_request_id"] = given is not None
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.debug("request %s: the client left", request_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not started:
                body = describe_unexpected(request_id)
                await Response(body, 500, media_type="application/json")(scope, receive, send_with_id)
