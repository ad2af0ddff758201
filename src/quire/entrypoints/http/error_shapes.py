"""Errors in the shape of the API that was asked: all are made in OpenAI's envelope, and changed on their way out."""

from collections.abc import Callable

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.entrypoints.http.errors import ErrorBody, ErrorEnvelope

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicErrorBody(msgspec.Struct):
    """What went wrong."""

    type: str
    message: str


class AnthropicError(msgspec.Struct, tag_field="type", tag="error"):
    """An error in the shape of `/v1/messages`."""

    error: AnthropicErrorBody
    request_id: str | None = None


def anthropic_error(envelope: bytes, request_id: str | None = None) -> bytes:
    """The error of an envelope in the shape of `/v1/messages`."""
    error = msgspec.json.decode(envelope, type=ErrorEnvelope).error
    other = "invalid_request_error" if error.code < 500 else "api_error"
    body = AnthropicErrorBody(_ANTHROPIC_TYPES.get(error.code, other), error.message)
    return msgspec.json.encode(AnthropicError(body, request_id))


def responses_error(envelope: bytes, request_id: str | None = None) -> bytes:
    """The error of an envelope with the types that `/v1/responses` knows."""
    error = msgspec.json.decode(envelope, type=ErrorEnvelope).error
    kind = "server_error" if error.code >= 500 else "rate_limit_error" if error.code == 429 else "invalid_request_error"
    return msgspec.json.encode(ErrorEnvelope(ErrorBody(error.message, kind, error.param, error.code)))


_SHAPES: dict[str, Callable[[bytes, str | None], bytes]] = {
    "/v1/messages": anthropic_error,
    "/v1/responses": responses_error,
}


class ErrorShapes:
    """Changes the bodies of errors under the paths of APIs that have their own shape. The outermost layer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        shape = None if scope["type"] != "http" else _shape(scope["path"])
        if shape is not None:
            send = _Reshaper(send, shape).send
        await self._app(scope, receive, send)


def _shape(path: str) -> Callable[[bytes, str | None], bytes] | None:
    for root, shape in _SHAPES.items():
        if path == root or path.startswith(root + "/"):
            return shape
    return None


class _Reshaper:
    """Holds an error back until its body is there. Anything else passes as it comes."""

    def __init__(self, send: Send, shape: Callable[[bytes, str | None], bytes]) -> None:
        self._send = send
        self._shape = shape
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """Takes what the application sends."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if "x-request-id" in headers:
                headers["request-id"] = headers["x-request-id"]
            is_json = headers.get("content-type", "").startswith("application/json")
            if message["status"] >= 400 and is_json:
                self._start = message
                return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._send_error(self._start)

    async def _send_error(self, start: Message) -> None:
        self._start = None
        body = self._shape(self._body, Headers(scope=start).get("x-request-id"))
        MutableHeaders(scope=start)["content-length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
