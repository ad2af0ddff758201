"""The messages of a chat, checked and brought into the form that a template expects."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire.errors import InvalidRequestError
from quire.frontend.control_tokens import BREAK

CUT = "\ufdd1"
"""Marks the end of the last message's content, where a rendering is cut to continue that message."""

MAX_DEPTH = 64
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""Content parts that are text, and the field that holds it."""


def normalise_messages(messages: Any, *, as_parts: bool) -> list[dict[str, Any]]:
    """Copies of the messages, made of plain values only.

    Contents become strings, or lists of `{"type": "text", "text": ...}` where the template wants `as_parts`;
    the arguments of tool calls become objects.

    Raises:
        InvalidRequestError: With the path of the field at fault.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequestError("messages must be a list of messages", param="messages")
    if not messages:
        raise InvalidRequestError("messages must not be empty", param="messages")
    return [_normalise(message, f"messages[{index}]", as_parts) for index, message in enumerate(messages)]


def _normalise(message: Any, path: str, as_parts: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(f"{path} must be an object with a role and a content", param=path)
    plain: dict[str, Any] = plain_value(message, path)
    if not isinstance(plain.get("role"), str) or not plain["role"]:
        raise InvalidRequestError(f"{path}.role must be a string that is not empty", param=f"{path}.role")
    plain["content"] = _content(plain.get("content"), f"{path}.content", as_parts)
    if plain.get("tool_calls"):
        _parse_arguments(plain["tool_calls"], f"{path}.tool_calls")
    return plain


def _content(content: Any, path: str, as_parts: bool) -> str | list[dict[str, str]]:
    if content is None:
        return ""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if as_parts else content
    if not isinstance(content, list):
        raise InvalidRequestError(f"{path} must be a string or a list of parts", param=path)
    texts = [_part_text(part, f"{path}[{index}]") for index, part in enumerate(content)]
    return [{"type": "text", "text": text} for text in texts] if as_parts else "\n".join(texts)


def _part_text(part: Any, path: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise InvalidRequestError(
            f"{path}.type must be one of {', '.join(_TEXT_PARTS)}, got {kind!r}",
            hint="this model reads text only",
            param=f"{path}.type",
        )
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise InvalidRequestError(f"{path}.{_TEXT_PARTS[kind]} must be a string", param=path)
    return text


def _parse_arguments(calls: Any, path: str) -> None:
    """Turns the arguments of tool calls from JSON text, as clients send them, into objects. Modifies `calls`."""
    if not isinstance(calls, list):
        raise InvalidRequestError(f"{path} must be a list", param=path)
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise InvalidRequestError(f"{path}[{index}].function must be an object", param=f"{path}[{index}]")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            function["arguments"] = _parse_json(arguments, f"{path}[{index}].function.arguments") if arguments else {}


def _parse_json(text: str, path: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} must be JSON: {error}", param=path) from error
    return plain_value(value, path)


def plain_value(value: Any, path: str, depth: int = 0) -> Any:
    """A copy made of dicts, lists, strings, numbers, booleans and None.

    Raises:
        InvalidRequestError: Another type, deep nesting, or one of the characters that quire marks text with.
    """
    if isinstance(value, str):
        if BREAK in value or CUT in value:
            raise InvalidRequestError(
                f"{path} holds the noncharacter U+FDD0 or U+FDD1, which quire reserves", param=path
            )
        return str.__str__(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth >= MAX_DEPTH:
        raise InvalidRequestError(f"{path} is nested more than {MAX_DEPTH} levels deep", param=path)
    if isinstance(value, Mapping):
        return {
            plain_value(key, path, depth + 1): plain_value(item, f"{path}.{key}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain_value(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise InvalidRequestError(f"{path} must be made of JSON values, got {type(value).__name__}", param=path)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a plain value with `change` applied to every string, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {map_strings(key, change): map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_strings(item, change) for item in value]
    return value


def mark_end(message: dict[str, Any]) -> dict[str, Any]:
    """A copy of a message with `CUT` and a space at the end of its content."""
    content = message["content"]
    if isinstance(content, list):
        last = {**content[-1], "text": content[-1]["text"] + CUT + " "} if content else {"type": "text", "text": CUT}
        return {**message, "content": [*content[:-1], last]}
    return {**message, "content": content + CUT + " "}
