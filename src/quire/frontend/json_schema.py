"""JSON schemas, as far as they are looked at before they are compiled."""

from collections.abc import Iterator
from typing import Any

from quire.errors import InvalidRequestError

MAX_LEAST = 1_000_000
"""An answer with more characters, items or properties would not fit any context."""

_LEAST = ("minLength", "minItems", "minProperties", "minContains")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "prefixItems")
_SINGLES = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")


def check_schema(schema: Any, path: str) -> None:
    """Refuses a schema that asks for more than an answer can hold.

    Raises:
        InvalidRequestError: With the path of the value.
    """
    for where, node in _subschemas(schema, path):
        for name in _LEAST:
            value = node.get(name)
            if isinstance(value, int) and value > MAX_LEAST:
                raise InvalidRequestError(
                    f"{where}.{name} must be at most {MAX_LEAST}, got {value}", param=f"{where}.{name}"
                )


def close_objects(schema: Any) -> Any:
    """A copy in which objects have no other properties than those named, where the schema does not say it itself.

    Parts of an `allOf` are left as they are: each would forbid the properties of the others.
    """
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for name in _MAPS:
        if isinstance(schema.get(name), dict):
            closed[name] = {key: close_objects(value) for key, value in schema[name].items()}
    for name in _LISTS:
        if isinstance(schema.get(name), list):
            closed[name] = [close_objects(value) for value in schema[name]]
    for name in _SINGLES:
        if isinstance(schema.get(name), dict):
            closed[name] = close_objects(schema[name])
    says_itself = {"additionalProperties", "unevaluatedProperties", "patternProperties", "allOf"} & schema.keys()
    if "properties" in schema and not says_itself:
        closed["additionalProperties"] = False
    return closed


def _subschemas(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in `schema`, itself included, with its path."""
    pending = [(path, schema)]
    while pending:
        where, node = pending.pop()
        if not isinstance(node, dict):
            continue
        yield where, node
        for name in _MAPS:
            if isinstance(node.get(name), dict):
                pending += [(f"{where}.{name}.{key}", value) for key, value in node[name].items()]
        for name in (*_LISTS, "allOf"):
            if isinstance(node.get(name), list):
                pending += [(f"{where}.{name}[{index}]", value) for index, value in enumerate(node[name])]
        pending += [(f"{where}.{name}", node[name]) for name in _SINGLES if name in node]
