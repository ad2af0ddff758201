"""Chat messages of a request, as far as the server judges them; the chat template judges the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

from quire.entrypoints.http.protocol import MAX_PARTS, ChatMessage
from quire.errors import InvalidRequestError, ParameterError

MAX_TOOL_CALLS = 1024

_FUNCTION_HINT = 'send tool_calls, and the result of a call as a message of the role "tool" with its tool_call_id'


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """What the chat template reads: role, content, and whatever else a message says.

    Raises:
        InvalidRequestError: Naming the path of the part at fault.
    """
    return [_template_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _template_message(message: ChatMessage, path: str) -> dict[str, Any]:
    extra = {name: value for name, value in (message.model_extra or {}).items() if value is not None}
    _refuse_old_functions(message.role, extra, path)
    if extra.get("audio"):
        raise InvalidRequestError("audio is not supported", hint="the model reads text only", param=f"{path}.audio")
    calls = extra.get("tool_calls")
    if calls is not None:
        _check_calls(calls, f"{path}.tool_calls")
    if message.content is None and not (extra.get("refusal") or calls or _reasoning(extra)):
        raise ParameterError(f"{path}.content", "a string or a list of text parts", None)
    if isinstance(message.content, list):
        _check_parts(message.content, f"{path}.content")
    _check_texts(extra, path)
    return {"role": message.role, "content": message.content, **extra, **_reasoning(extra)}


def _refuse_old_functions(role: str, extra: Mapping[str, Any], path: str) -> None:
    if role == "function":
        raise InvalidRequestError("the role 'function' is not supported", hint=_FUNCTION_HINT, param=f"{path}.role")
    if extra.get("function_call"):
        raise InvalidRequestError("function_call is not supported", hint=_FUNCTION_HINT, param=f"{path}.function_call")


def _reasoning(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Earlier reasoning under both names that templates know."""
    text = extra.get("reasoning") or extra.get("reasoning_content")
    return {"reasoning": text, "reasoning_content": text} if text else {}


def _check_texts(extra: Mapping[str, Any], path: str) -> None:
    for name in ("reasoning", "reasoning_content", "tool_call_id", "name"):
        if name in extra and not isinstance(extra[name], str):
            raise ParameterError(f"{path}.{name}", "a string", extra[name])


def _check_calls(calls: Any, path: str) -> None:
    if not isinstance(calls, list):
        raise ParameterError(path, "a list", calls)
    if len(calls) > MAX_TOOL_CALLS:
        raise ParameterError(path, f"a list of at most {MAX_TOOL_CALLS} calls", len(calls))
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ParameterError(f"{path}[{index}].function.name", "a string", function)
        if not isinstance(function.get("arguments"), str | dict | None):
            where = f"{path}[{index}].function.arguments"
            raise ParameterError(where, "JSON as a string", function["arguments"])


def _check_parts(parts: list[Any], path: str) -> None:
    if len(parts) > MAX_PARTS:
        raise ParameterError(path, f"a list of at most {MAX_PARTS} parts", len(parts))
    for index, part in enumerate(parts):
        if isinstance(part, dict) and not isinstance(part.get("type"), str):
            raise ParameterError(f"{path}[{index}].type", "a string", part.get("type"))
