"""Chat messages of a request, as far as the server judges them; the chat template judges the rest."""

from collections.abc import Sequence
from typing import Any

from quire.entrypoints.http.protocol import ChatMessage
from quire.errors import InvalidRequestError, ParameterError

MAX_PARTS = 1024

_TOOL_ROLES = ("tool", "function")
_TOOL_FIELDS = ("tool_calls", "function_call", "tool_call_id")
_TOOL_HINT = "this server does not call tools yet; put the result of a call into a user message"


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """What the chat template reads: role, content, and whatever else a message says.

    Raises:
        InvalidRequestError: Naming the path of the part at fault.
    """
    return [_template_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _template_message(message: ChatMessage, path: str) -> dict[str, Any]:
    extra = message.model_extra or {}
    if message.role in _TOOL_ROLES:
        raise InvalidRequestError(f"the role {message.role!r} is not supported", hint=_TOOL_HINT, param=f"{path}.role")
    for field in _TOOL_FIELDS:
        if extra.get(field):
            raise InvalidRequestError(f"{field} is not supported", hint=_TOOL_HINT, param=f"{path}.{field}")
    if extra.get("audio"):
        raise InvalidRequestError("audio is not supported", hint="the model reads text only", param=f"{path}.audio")
    if message.content is None and not extra.get("refusal"):
        raise ParameterError(f"{path}.content", "a string or a list of text parts", None)
    if isinstance(message.content, list):
        _check_parts(message.content, f"{path}.content")
    said = {name: value for name, value in extra.items() if value is not None}
    return {"role": message.role, "content": message.content, **said}


def _check_parts(parts: list[Any], path: str) -> None:
    if len(parts) > MAX_PARTS:
        raise ParameterError(path, f"a list of at most {MAX_PARTS} parts", len(parts))
    for index, part in enumerate(parts):
        if isinstance(part, dict) and not isinstance(part.get("type"), str):
            raise ParameterError(f"{path}[{index}].type", "a string", part.get("type"))
