"""GET /v1/models."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from quire.entrypoints.http.state import ServerState, state_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The names under which the model is served."""
    state = state_of(request)
    cards = [_card(state, name) for name in state.model_names]
    return JSONResponse({"object": "list", "data": cards})


@router.get("/v1/models/{name:path}")
async def retrieve_model(request: Request, name: str) -> Response:
    """One of them."""
    state = state_of(request)
    return JSONResponse(_card(state, state.check_model(name)))


def _card(state: ServerState, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "quire",
        "root": state.model_names[0],
        "parent": None,
        "max_model_len": state.engine.info.max_model_len,
    }
