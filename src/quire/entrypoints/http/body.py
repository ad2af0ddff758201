"""Reads the body of a request, within bounds."""

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from quire.entrypoints.http.errors import BodyTooLargeError, invalid_body
from quire.errors import InvalidRequestError

BodyT = TypeVar("BodyT", bound=BaseModel)


async def read_body(request: Request, model: type[BodyT], max_bytes: int) -> BodyT:
    """The body as a `model`.

    Raises:
        InvalidRequestError: It is not JSON, or breaks a rule of the model; `param` is the path of the field.
        BodyTooLargeError: It has more than `max_bytes` bytes. It is not read further than that.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequestError(
            f"the content type must be application/json, got {kind[:100]!r}",
            hint="send the header `Content-Type: application/json`",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequestError("compressed bodies are not supported", hint="send the body as it is")
    raw = await _read_bytes(request, max_bytes)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise invalid_body(error) from None


async def _read_bytes(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        pieces.append(piece)
    return b"".join(pieces)


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the request body exceeds {max_bytes} bytes", hint="the server's --max-body-bytes sets the limit"
    )
