"""What operators ask: is it alive, which version is it, what does it do."""

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from quire import __version__
from quire.entrypoints.http.errors import ServerStoppingError
from quire.entrypoints.http.openapi import describe
from quire.entrypoints.http.state import state_of

router = APIRouter()


class Version(msgspec.Struct):
    """The version of quire."""

    version: str


class Load(msgspec.Struct):
    """What the server does."""

    server_load: int


@router.get("/health")
@router.get("/ready")
async def health(request: Request) -> Response:
    """200 while requests are taken; 503 while the server drains or after its engine has died."""
    state = state_of(request)
    if state.activity.draining:
        raise ServerStoppingError("the server is shutting down")
    state.engine.check_health()
    return Response()


@router.get("/ping")
@router.post("/ping")
async def ping(request: Request) -> Response:
    """As `/health`, under the name that SageMaker asks for."""
    return await health(request)


@router.get("/version", openapi_extra=describe(answer=Version))
async def version() -> Response:
    """The version of quire."""
    return Response(msgspec.json.encode(Version(__version__)), media_type="application/json")


@router.get("/load", openapi_extra=describe(answer=Load))
async def load(request: Request) -> Response:
    """Requests for answers that are under way."""
    answer = Load(state_of(request).activity.num_running)
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.get("/metrics", openapi_extra=describe(media_type="text/plain"))
async def metrics(request: Request) -> Response:
    """All metrics in the text format of Prometheus."""
    state = state_of(request)
    text = state.metrics.exposition(with_vllm_names=state.config.enable_vllm_metric_names)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


OPEN_ENDPOINTS = frozenset({health})
"""They need no key."""

OPERATOR_ENDPOINTS = frozenset({load, metrics})
"""They tell of everybody's requests."""
