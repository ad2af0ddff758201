"""JSON from arguments that a model wrote as plain text, by the types that the tool's schema gives them."""

import json
import re
from collections.abc import Mapping
from typing import Any

from quire.frontend.answer.json_text import parse_value
from quire.frontend.answer.tools import FunctionTool

ANY_TYPE: frozenset[str] = frozenset()
STRING = frozenset({"string"})

_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS = {"true": True, "false": False, "none": None, "null": None}
_MAX_REFERENCES = 16


def json_string(text: str) -> str:
    """`text` as a JSON string."""
    return f'"{string_inside(text)}"'


def string_inside(text: str) -> str:
    """The same without the quotes; half a surrogate pair is escaped."""
    inside = json.dumps(text, ensure_ascii=False)[1:-1]
    return _SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", inside)


def argument_types(tool: FunctionTool | None, name: str) -> frozenset[str]:
    """The JSON types that an argument may have; `ANY_TYPE` where the schema does not say."""
    if tool is None:
        return ANY_TYPE
    properties = tool.parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, Mapping) else None
    return frozenset(_types(schema, tool.parameters, _MAX_REFERENCES))


def argument_name(tool: FunctionTool | None, position: int) -> str:
    """The argument at a position, for calls that do not name it."""
    properties = tool.parameters.get("properties") if tool is not None else None
    names = list(properties) if isinstance(properties, Mapping) else []
    return str(names[position]) if position < len(names) else f"argument{position}"


def json_value(text: str, types: frozenset[str]) -> str:
    """`text` as JSON of one of these types; as a string where it is none of them."""
    stripped = text.strip()
    is_json, value = parse_value(stripped)
    if not is_json and stripped.lower() in _WORDS:
        is_json, value = True, _WORDS[stripped.lower()]
    if is_json and (not types or _type_name(value) in types or ("number" in types and _type_name(value) == "integer")):
        return stripped if stripped.lower() not in _WORDS else json.dumps(value)
    if is_json and "integer" in types and isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json_string(text)


def _types(schema: Any, root: Mapping[str, Any], references_left: int) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    declared = schema.get("type")
    if isinstance(declared, str):
        return {declared}
    if isinstance(declared, list):
        return {each for each in declared if isinstance(each, str)}
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values:
        return {_type_name(value) for value in values}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _types(_resolve(reference, root), root, references_left - 1) if references_left else set()
    return _union(schema, root, references_left)


def _union(schema: Mapping[str, Any], root: Mapping[str, Any], references_left: int) -> set[str]:
    for keyword in ("anyOf", "oneOf", "allOf"):
        parts = schema.get(keyword)
        if isinstance(parts, list) and parts and references_left:
            each = [_types(part, root, references_left - 1) for part in parts]
            if keyword == "allOf":
                return next((types for types in each if types), set())
            return set().union(*each) if all(each) else set()
    return set()


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    node: Any = root
    if not reference.startswith("#/"):
        return None
    for part in reference[2:].split("/"):
        node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
    return node


def _type_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
