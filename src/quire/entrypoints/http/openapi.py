"""`/openapi.json`: what the server accepts, from the same models that check requests, and what it answers."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from quire import __version__
from quire.entrypoints.http.errors import ErrorEnvelope

_KEY = "x-quire-operation"
_REFERENCE = "#/components/schemas/"

Described = type[BaseModel] | type[msgspec.Struct]

_ERRORS = {
    400: ("BadRequest", "The request breaks a rule; `param` names the field."),
    401: ("Unauthorized", "The server has keys, and the request came with none of them."),
    403: ("Forbidden", "The key may not do this."),
    404: ("NotFound", "No such path, model or object."),
    405: ("MethodNotAllowed", "The path has other methods."),
    408: ("Timeout", "The answer was not complete within `timeout` or `X-Request-Timeout`."),
    413: ("TooLarge", "The body is larger than --max-body-bytes."),
    429: ("TooManyRequests", "A queue or a quota is full; `Retry-After` says when to come back."),
    500: ("InternalError", "The server failed; its log has the details."),
    503: ("Unavailable", "The server starts, drains, or has lost its engine."),
}
_READ_ERRORS = (401, 403, 404, 405, 429, 500, 503)


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route takes and gives.

    Attributes:
        body: Model of the request's body.
        answer: Model of the answer; None for one without a body of JSON.
        event: Model of the events of a stream, for routes that can answer with one.
        media_type: Of an answer that is not JSON.
        query: Names of parameters in the address, with their schemas.
        error: Model of the answers that are not a success.
    """

    body: type[BaseModel] | None = None
    answer: Described | None = None
    event: Described | None = None
    media_type: str | None = None
    query: Mapping[str, Mapping[str, Any]] | None = None
    error: Described = ErrorEnvelope


def describe(
    body: type[BaseModel] | None = None,
    answer: Described | None = None,
    *,
    event: Described | None = None,
    media_type: str | None = None,
    query: Mapping[str, Mapping[str, Any]] | None = None,
    error: Described = ErrorEnvelope,
) -> dict[str, Any]:
    """The description of a route, for its `openapi_extra`; see `Operation`."""
    return {_KEY: Operation(body, answer, event, media_type, query, error)}


def build_document(routers: Iterable[APIRouter]) -> dict[str, Any]:
    """The OpenAPI document of all routes."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    operations = [operation_of(route) for route in routes]
    paths: dict[str, Any] = {}
    for route, operation in zip(routes, operations, strict=True):
        for method in sorted(route.methods or ()):
            paths.setdefault(route.path_format, {})[method.lower()] = _operation(route, operation, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "quire",
            "version": __version__,
            "description": "OpenAI's API. Fields that are not listed pass unread, unless they would shape the answer.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(operations),
            "responses": {
                _error_name(error, name): _error_response(error, text)
                for error in dict.fromkeys(operation.error for operation in operations)
                for name, text in _ERRORS.values()
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "keyHeader": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"key": []}, {"keyHeader": []}],
    }


def operation_of(route: APIRoute) -> Operation:
    """What a route says of itself; nothing, if it was not described."""
    operation = (route.openapi_extra or {}).get(_KEY)
    return operation if isinstance(operation, Operation) else Operation()


def _operation(route: APIRoute, operation: Operation, method: str) -> dict[str, Any]:
    statuses = _ERRORS if operation.body is not None else _READ_ERRORS
    names = {str(status): _error_name(operation.error, _ERRORS[status][0]) for status in statuses}
    errors = {status: {"$ref": f"#/components/responses/{name}"} for status, name in names.items()}
    described: dict[str, Any] = {
        "operationId": "_".join(re.findall(r"\w+", f"{method.lower()} {route.path_format}")),
        "summary": (route.endpoint.__doc__ or "").strip().partition("\n")[0],
        "responses": {"200": _success(operation), **errors},
    }
    if operation.body is not None:
        content = {"application/json": {"schema": _reference(operation.body)}}
        described["requestBody"] = {"required": True, "content": content}
    parameters = [_parameter(name, "path", {"type": "string"}) for name in route.param_convertors]
    parameters += [_parameter(name, "query", schema) for name, schema in (operation.query or {}).items()]
    return {**described, "parameters": parameters} if parameters else described


def _success(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content["application/json"] = {"schema": _reference(operation.answer)}
    if operation.event is not None:
        content["text/event-stream"] = {"schema": _event_schema(operation.event, operation.error)}
    if operation.media_type is not None:
        kind = "object" if operation.media_type == "application/json" else "string"
        content[operation.media_type] = {"schema": {"type": kind}}
    return {"description": "It worked.", **({"content": content} if content else {})}


def _event_schema(event: Described, error: Described) -> dict[str, Any]:
    """One event of a stream, as clients take it apart."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_reference(event), _reference(error)]},
    }
    properties = {"event": {"type": "string"}, "data": {"anyOf": [data, {"const": "[DONE]"}]}}
    return {"type": "object", "required": ["data"], "properties": properties}


def _parameter(name: str, place: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": dict(schema)}


def _error_name(error: Described, name: str) -> str:
    return name if error is ErrorEnvelope else f"{error.__name__}{name}"


def _error_response(error: Described, text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _reference(error)}}}


def _reference(model: Described) -> dict[str, Any]:
    return {"$ref": _REFERENCE + model.__name__}


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    models: list[Described] = [ErrorEnvelope]
    for operation in operations:
        described = (operation.body, operation.answer, operation.event, operation.error)
        models += [model for model in described if model is not None]
    unique = list(dict.fromkeys(models))
    checked = [(model, "validation") for model in unique if issubclass(model, BaseModel)]
    sent = [model for model in unique if issubclass(model, msgspec.Struct)]
    _, definitions = models_json_schema(checked, ref_template=_REFERENCE + "{model}")  # type: ignore[arg-type]
    _, components = msgspec.json.schema_components(sent, ref_template=_REFERENCE + "{name}")
    return {**definitions.get("$defs", {}), **components}
