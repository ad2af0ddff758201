"""The error envelope: `{"error": {"message", "type", "param", "code"}}`, for every reply that is not a success."""

import logging
import math
import re
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from quire.entrypoints.http.served_request import served_request_of
from quire.errors import (
    AuthenticationError,
    DeadlineError,
    EngineError,
    InvalidRequestError,
    OverloadedError,
    QuireError,
)

logger = logging.getLogger("quire.http")

MAX_LISTED_PROBLEMS = 10
MAX_ECHOED_CHARACTERS = 200

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "TimeoutError",
    413: "RequestTooLargeError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
# A path of at least two parts, or an address: neither belongs into a reply.
_PRIVATE = re.compile(r"(?<![\w/:.])/[\w.+-]+(?:/[\w.+-]+)+|\b0x[0-9a-fA-F]{6,}\b")


class BodyTooLargeError(InvalidRequestError):
    """The request body exceeds `max_body_bytes`."""

    http_status = 413


class ServerStoppingError(EngineError):
    """The server is shutting down and takes no new work, or had to end a request.

    Args:
        retry_after_seconds: When another attempt may find a server.
    """

    http_status = 503

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ErrorBody(msgspec.Struct):
    """What went wrong, in OpenAI's fields; `code` is the HTTP status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorEnvelope(msgspec.Struct):
    """The body of a reply that is not a success."""

    error: ErrorBody


def envelope(status: int, message: str, param: str | None = None) -> bytes:
    """The encoded envelope."""
    kind = _TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    body = ErrorBody(message=_encodable(message), type=kind, param=param and _encodable(param), code=status)
    return msgspec.json.encode(ErrorEnvelope(error=body))


def describe(error: QuireError, request_id: str) -> bytes:
    """The envelope of an error that was raised on purpose. What is our fault is logged, and told without paths."""
    text = str(error)
    if error.http_status >= 500:
        level = logging.INFO if isinstance(error, ServerStoppingError) else logging.ERROR
        logger.log(level, "request %s failed: %s", request_id, text)
        text = _PRIVATE.sub("...", text)
    return envelope(error.http_status, text, error.param)


def describe_unexpected(request_id: str) -> bytes:
    """The envelope of an error that was not raised on purpose: a pointer to the log, which has its trace."""
    return envelope(500, f"internal error; the server's log has the details under request id {request_id}")


def error_response(error: QuireError, request_id: str) -> Response:
    """The reply to a request that ended in `error`."""
    headers: dict[str, str] = {}
    if isinstance(error, OverloadedError | ServerStoppingError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if isinstance(error, ServerStoppingError | BodyTooLargeError):
        headers["Connection"] = "close"
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, DeadlineError):
        # OpenAI's and Anthropic's clients would try again, with the same deadline.
        headers["X-Should-Retry"] = "false"
    return Response(describe(error, request_id), error.http_status, headers, media_type="application/json")


def invalid_body(error: ValidationError) -> InvalidRequestError:
    """One error that lists what pydantic found; `param` is the path of the first problem."""
    problems = error.errors(include_url=False, include_context=False)
    texts = [_problem_text(problem) for problem in problems[:MAX_LISTED_PROBLEMS]]
    if len(problems) > MAX_LISTED_PROBLEMS:
        texts.append(f"and {len(problems) - MAX_LISTED_PROBLEMS} more")
    return InvalidRequestError("; ".join(texts), param=_path(problems[0]["loc"]) or None)


def _problem_text(problem: Any) -> str:
    path, message = _path(problem["loc"]), problem["msg"]
    if problem["type"] in ("missing", "json_invalid", "model_type"):
        return f"{path}: {message}" if path else message
    value = problem["input"]
    shown = f"a {type(value).__name__} of {len(value)}" if isinstance(value, list | dict) else repr(value)
    if len(shown) > MAX_ECHOED_CHARACTERS:
        shown = shown[: MAX_ECHOED_CHARACTERS - 3] + "..."
    return f"{path}: {message}, got {shown}"


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        if part == "[key]":  # what pydantic says behind a key that is at fault itself
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def install_error_handlers(app: FastAPI) -> None:
    """Makes `app` answer every error with the envelope."""

    async def on_quire_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, QuireError)
        served_request_of(request).error = error
        return error_response(error, request.state.request_id)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{error.detail}: {request.method} {request.url.path[:MAX_ECHOED_CHARACTERS]}"
        body = envelope(error.status_code, message)
        return Response(body, error.status_code, error.headers, media_type="application/json")

    async def on_validation_error(request: Request, error: Exception) -> Response:
        return Response(envelope(400, "the request is malformed"), 400, media_type="application/json")

    app.add_exception_handler(QuireError, on_quire_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
