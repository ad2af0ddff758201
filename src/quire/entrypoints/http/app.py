"""The application: routes, keys, errors. Building it does no I/O, so that it can be tested without a socket."""

import time
from collections.abc import Sequence

from fastapi import APIRouter, Depends, FastAPI

from quire import __version__
from quire.config.server import ServerConfig
from quire.entrypoints.http import chat, completions, health, models, profile, tokenize
from quire.entrypoints.http.answer_formats import choose_formats
from quire.entrypoints.http.anthropic import api as anthropic_api
from quire.entrypoints.http.auth import hide_routes, key_check, make_key_ring
from quire.entrypoints.http.docs_page import docs_router
from quire.entrypoints.http.error_shapes import ErrorShapes
from quire.entrypoints.http.errors import install_error_handlers
from quire.entrypoints.http.metrics import ServerMetrics
from quire.entrypoints.http.request_log import RequestLog
from quire.entrypoints.http.request_scope import RequestScope
from quire.entrypoints.http.response_store import ResponseStore
from quire.entrypoints.http.responses import api as responses_api
from quire.entrypoints.http.served_request import RequestObserver
from quire.entrypoints.http.state import ServerState
from quire.frontend.async_engine import AsyncEngine


def create_app(
    engine: AsyncEngine,
    server: ServerConfig,
    *,
    model_names: Sequence[str],
    metrics: ServerMetrics | None = None,
    with_profiles: bool = False,
    request_observers: Sequence[RequestObserver] = (),
) -> FastAPI:
    """The application for one engine.

    Args:
        engine: Answers the requests; the application observes it, and does not close it.
        server: Keys and limits.
        model_names: Names under which the model is served; the first is shown in answers.
        metrics: Where to count; by default a registry of its own.
        with_profiles: Whether clients may have the engine write traces.
        request_observers: Told about every request at its end, beside the metrics and the log.

    Raises:
        ConfigError: The server's settings do not fit the model.
    """
    template = engine.input.template
    formats = choose_formats(server, template.text if template else None)
    metrics = metrics or ServerMetrics(model_names[0], engine.info)
    engine.observers.append(metrics)
    keys = make_key_ring(server, engine.info.scheduling_policy)
    engine.observers.append(keys)
    check_key = key_check(keys, health.OPEN_ENDPOINTS, health.OPERATOR_ENDPOINTS | profile.ENDPOINTS)
    app = FastAPI(
        title="quire",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        dependencies=[Depends(check_key)],
    )
    app.state.server = ServerState(
        engine,
        server,
        list(model_names),
        metrics,
        created=int(time.time()),
        formats=formats,
        stored_responses=ResponseStore(server.max_stored_responses, server.stored_responses_bytes),
    )
    for router in make_routers(with_profiles=with_profiles, with_docs=not server.disable_fastapi_docs):
        app.include_router(router)
    install_error_handlers(app)
    hide_routes(app, keys)
    observers = [metrics, *request_observers]
    if server.enable_log_requests:
        observers.append(RequestLog(log_prompts=server.log_prompts, max_log_len=server.max_log_len))
    app.add_middleware(RequestScope, observers=observers)
    app.add_middleware(ErrorShapes)
    return app


def make_routers(*, with_profiles: bool = True, with_docs: bool = True) -> list[APIRouter]:
    """The routes of a server."""
    routers = [
        *(chat.router, completions.router, responses_api.router, anthropic_api.router),
        *(models.router, tokenize.router, health.router),
    ]
    if with_profiles:
        routers.append(profile.router)
    return [*routers, docs_router(routers)] if with_docs else routers
