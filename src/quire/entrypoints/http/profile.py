"""Traces of torch.profiler on demand; only of a server with --torch-profiler-dir."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from quire.entrypoints.http.state import state_of

router = APIRouter()


@router.post("/start_profile")
async def start_profile(request: Request) -> Response:
    """Begins to record what the engine runs."""
    await state_of(request).engine.start_profile()
    return Response()


@router.post("/stop_profile")
async def stop_profile(request: Request) -> Response:
    """Ends the recording; the answer is the trace's path on the server. No token is produced while it is written."""
    return JSONResponse({"path": await state_of(request).engine.stop_profile()})


ENDPOINTS = frozenset({start_profile, stop_profile})
