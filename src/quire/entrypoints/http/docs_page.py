"""`/docs`: the OpenAPI document as one page of plain HTML, which loads nothing from anywhere."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from quire.entrypoints.http.openapi import build_document, describe
from quire.entrypoints.http.request_body import LARGEST_INT

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.25rem .5rem;"
    "text-align:left;vertical-align:top}code{font-size:.9em}summary{cursor:pointer;margin:.4rem 0}"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def docs_router(others: Sequence[APIRouter]) -> APIRouter:
    """The routes that describe themselves and all `others`."""
    router = APIRouter()
    document = functools.cache(lambda: build_document([*others, router]))
    encoded = functools.cache(lambda: json.dumps(document()))
    page = functools.cache(lambda: render_page(document()))

    @router.get("/openapi.json", openapi_extra=describe(media_type="application/json"))
    async def openapi() -> Response:
        """What the server accepts and answers, as an OpenAPI document."""
        return Response(encoded(), media_type="application/json")

    @router.get("/docs", openapi_extra=describe(media_type="text/html"))
    async def docs() -> Response:
        """The same for people."""
        return HTMLResponse(page(), headers={"Content-Security-Policy": _POLICY})

    return router


def render_page(document: Mapping[str, Any]) -> str:
    """The page for an OpenAPI document."""
    return "".join(_page(document))


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    schemas = document["components"]["schemas"]
    info = document["info"]
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>"
    yield f"<style>{_STYLE}</style><h1>{escape(info['title'])} {escape(info['version'])}</h1>"
    yield f"<p>{escape(info['description'])} For programs: <a href=openapi.json>openapi.json</a>.</p>"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
            if "requestBody" in operation:
                yield from _content("Request", operation["requestBody"]["content"], schemas)
            yield from _content("Answer", operation["responses"]["200"].get("content", {}), schemas)
            yield f"<p>Statuses: {', '.join(operation['responses'])}</p>"


def _content(title: str, content: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    for media_type, body in content.items():
        name = next(references(body["schema"]), "")
        if name:
            yield f"<details><summary>{title}: {escape(media_type)}</summary>"
            yield from _table(name, schemas, frozenset())
            yield "</details>"


def _table(name: str, schemas: Mapping[str, Any], above: frozenset[str]) -> Iterator[str]:
    schema = schemas[name]
    required = set(schema.get("required", ()))
    nested: dict[str, None] = {}
    yield f"<h3>{escape(name)}</h3><p>{escape(schema.get('description', ''))}</p>"
    yield "<table><tr><th>field<th>type<th>meaning</tr>"
    for field, rule in schema.get("properties", {}).items():
        star = " (required)" if field in required else ""
        nested.update(dict.fromkeys(references(rule)))
        yield f"<tr><td><code>{escape(field)}</code>{star}<td>{escape(type_text(rule))}"
        yield f"<td>{escape(rule.get('description', ''))}</tr>"
    yield "</table>"
    for other in nested:
        if other not in above and other != name:
            yield from _table(other, schemas, above | {name})


def references(rule: Any) -> Iterator[str]:
    """The names of the models that a schema refers to."""
    if isinstance(rule, Mapping):
        if "$ref" in rule:
            yield rule["$ref"].rpartition("/")[2]
        for value in rule.values():
            yield from references(value)
    elif isinstance(rule, list):
        for value in rule:
            yield from references(value)


_BOUNDS: Mapping[str, Callable[[Any], str]] = {
    "minimum": lambda value: f">= {value}",
    "exclusiveMinimum": lambda value: f"> {value}",
    "maximum": lambda value: f"<= {value}",
    "minLength": lambda value: f"{value} characters or more",
    "maxLength": lambda value: f"{value} characters or fewer",
    "minItems": lambda value: f"{value} or more",
    "maxItems": lambda value: f"{value} or fewer",
    "maxProperties": lambda value: f"{value} entries or fewer",
    "pattern": lambda value: f"matches {value}",
}


_NO_BOUNDS = (LARGEST_INT, -LARGEST_INT)
"""They keep numbers small and say nothing to a reader."""


def type_text(rule: Mapping[str, Any]) -> str:
    """A schema in words: its type and its bounds. That a field may be null goes without saying."""
    if "$ref" in rule:
        return str(rule["$ref"].rpartition("/")[2])
    for union in ("anyOf", "oneOf"):
        if union in rule:
            return " or ".join(type_text(item) for item in rule[union] if item.get("type") != "null")
    if "enum" in rule:
        return ", ".join(json.dumps(value) for value in rule["enum"])
    if "const" in rule:
        return json.dumps(rule["const"])
    if isinstance(rule.get("type"), list):
        return " or ".join(type_text({**rule, "type": kind}) for kind in rule["type"] if kind != "null")
    bounds = [text(rule[name]) for name, text in _BOUNDS.items() if name in rule and rule[name] not in _NO_BOUNDS]
    kind = rule.get("type", "anything")
    if kind == "array":
        kind = f"list of {type_text(rule.get('items', {}))}"
    return f"{kind} ({', '.join(bounds)})" if bounds else str(kind)
