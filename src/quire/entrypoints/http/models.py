"""GET /v1/models."""

import hashlib

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.entrypoints.http.openapi import describe
from quire.entrypoints.http.state import ServerState, state_of

router = APIRouter()


class ModelPermission(msgspec.Struct):
    """What may be done with a model: an answer of old clients' days, always the same."""

    id: str
    created: int
    object: str = "model_permission"
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(msgspec.Struct):
    """A name under which the model is served. `root` is the model's first name."""

    id: str
    created: int
    root: str
    max_model_len: int
    permission: list[ModelPermission]
    parent: str | None = None
    object: str = "model"
    owned_by: str = "quire"


class ModelList(msgspec.Struct):
    """All names."""

    data: list[ModelCard]
    object: str = "list"


@router.get("/v1/models", openapi_extra=describe(answer=ModelList))
async def list_models(request: Request) -> Response:
    """The names under which the model is served, to the holder of the key."""
    state = state_of(request)
    cards = [_card(state, name) for name in state.names_for(request)]
    return Response(msgspec.json.encode(ModelList(cards)), media_type="application/json")


@router.get("/v1/models/{name:path}", openapi_extra=describe(answer=ModelCard))
async def retrieve_model(request: Request, name: str) -> Response:
    """One of them."""
    state = state_of(request)
    return Response(msgspec.json.encode(_card(state, state.check_model(name, request))), media_type="application/json")


def _card(state: ServerState, name: str) -> ModelCard:
    permission_id = "modelperm-" + hashlib.sha256(name.encode()).hexdigest()[:32]
    return ModelCard(
        id=name,
        created=state.created,
        root=state.model_names[0],
        max_model_len=state.engine.info.max_model_len,
        permission=[ModelPermission(permission_id, state.created)],
    )
