"""What operators ask: is it alive, which version is it, what does it do."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from quire import __version__
from quire.entrypoints.http.errors import ServerStoppingError
from quire.entrypoints.http.state import state_of

router = APIRouter()


@router.get("/health")
@router.get("/ready")
@router.get("/ping")
@router.post("/ping")
async def health(request: Request) -> Response:
    """200 while requests are taken; 503 while the server drains or after its engine has died."""
    state = state_of(request)
    if state.activity.draining:
        raise ServerStoppingError("the server is shutting down")
    state.engine.check_health()
    return Response()


@router.get("/version")
async def version() -> Response:
    """The version of quire."""
    return JSONResponse({"version": __version__})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """All metrics in the text format of Prometheus."""
    return Response(state_of(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


OPEN_ENDPOINTS = frozenset({health})
"""They need no key."""
