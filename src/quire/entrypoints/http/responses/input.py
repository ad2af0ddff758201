"""The input of `/v1/responses`: a text or a list of items, checked and turned into messages for the chat template."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quire.errors import InvalidRequestError, ParameterError

MAX_ITEMS = 4096
MAX_PARTS = 1024
MAX_ID_CHARACTERS = 256

_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_TEXT_ONLY = "the model reads text only"

Item = dict[str, Any]


def read_input(value: Any) -> list[Item]:
    """The items of an input, a text being the message of a user.

    Raises:
        InvalidRequestError: With the path of the part at fault.
    """
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    if not isinstance(value, list) or not value:
        raise ParameterError("input", "a string or a list of items that is not empty", value)
    if len(value) > MAX_ITEMS:
        raise ParameterError("input", f"a list of at most {MAX_ITEMS} items", len(value))
    return [_read_item(item, f"input[{index}]") for index, item in enumerate(value)]


def resolve_references(items: Sequence[Item], kept: Mapping[str, Item]) -> list[Item]:
    """The items, with those of earlier responses in place of references to them.

    Raises:
        InvalidRequestError: A reference to an item that is not kept.
    """
    resolved = []
    for index, item in enumerate(items):
        if item["type"] == "item_reference":
            if item["id"] not in kept:
                raise InvalidRequestError(
                    f"no item {item['id']!r} is kept here", hint="send the item itself", param=f"input[{index}].id"
                )
            item = kept[item["id"]]
        resolved.append(item)
    return resolved


def with_ids(items: Sequence[Item], id_tail: str) -> list[Item]:
    """The items as they are kept: each has an id, and contents are lists of parts."""
    kept = []
    for index, item in enumerate(items):
        kept.append({"id": f"{_ID_HEADS.get(item['type'], 'item')}_{id_tail}-in{index}", "status": "completed", **item})
    return kept


_ID_HEADS = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


def _read_item(item: Any, path: str) -> Item:
    if not isinstance(item, dict):
        raise ParameterError(path, "an object", item)
    kind = item.get("type", "message" if "role" in item else None)
    if not isinstance(kind, str) or kind not in _READERS:
        raise InvalidRequestError(
            f"{path}.type must be one of {', '.join(_READERS)}, got {str(kind)[:64]!r}",
            hint="tools that run on the server, and their items, are not supported",
            param=f"{path}.type",
        )
    given = item.get("id")
    if given is not None and not (isinstance(given, str) and 0 < len(given) <= MAX_ID_CHARACTERS):
        raise ParameterError(f"{path}.id", f"a string of 1 to {MAX_ID_CHARACTERS} characters", given)
    head = {"type": kind} if given is None else {"id": given, "type": kind}
    status = {"status": "incomplete"} if item.get("status") == "incomplete" else {}
    return head | _READERS[kind](item, path) | status


def _read_message(item: Item, path: str) -> Item:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ParameterError(f"{path}.role", f"one of {', '.join(_ROLES)}", role)
    kind = "output_text" if role == "assistant" else "input_text"
    return {"role": role, "content": _read_parts(item.get("content"), f"{path}.content", kind)}


def _read_parts(content: Any, path: str, kind: str) -> list[Item]:
    """Parts of a content; a string becomes one part of that `kind`."""
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    if not isinstance(content, list):
        raise ParameterError(path, "a string or a list of parts", content)
    if len(content) > MAX_PARTS:
        raise ParameterError(path, f"a list of at most {MAX_PARTS} parts", len(content))
    return [_read_part(part, f"{path}[{index}]") for index, part in enumerate(content)]


def _read_part(part: Any, path: str) -> Item:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise InvalidRequestError(
            f"{path}.type must be one of {', '.join(_TEXT_PARTS)}, got {str(kind)[:64]!r}",
            hint=_TEXT_ONLY,
            param=f"{path}.type",
        )
    field = _TEXT_PARTS[kind]
    extra: Item = {"annotations": []} if kind == "output_text" else {}
    return {"type": kind, field: _text(part, field, path), **extra}


def _read_call(item: Item, path: str) -> Item:
    call = {name: _text(item, name, path) for name in ("call_id", "name", "arguments")}
    if item.get("status") != "incomplete":
        try:
            json.loads(call["arguments"] or "{}")
        except (ValueError, RecursionError) as error:
            where = f"{path}.arguments"
            raise InvalidRequestError(f"{where} must be JSON: {error}", param=where) from error
    return call


def _read_output(item: Item, path: str) -> Item:
    output = item.get("output")
    if not isinstance(output, str):
        output = _read_parts(output, f"{path}.output", "input_text")
    return {"call_id": _text(item, "call_id", path), "output": output}


def _read_reasoning(item: Item, path: str) -> Item:
    parts: Item = {}
    for field, kind in (("summary", "summary_text"), ("content", "reasoning_text")):
        given = item.get(field) or []
        if not isinstance(given, list) or len(given) > MAX_PARTS:
            raise ParameterError(f"{path}.{field}", f"a list of at most {MAX_PARTS} parts", given)
        parts[field] = [
            {"type": kind, "text": _text(part, "text", f"{path}.{field}[{index}]")} for index, part in enumerate(given)
        ]
    return parts


def _read_reference(item: Item, path: str) -> Item:
    return {"id": _text(item, "id", path)}


def _text(holder: Any, field: str, path: str) -> str:
    value = holder.get(field) if isinstance(holder, dict) else None
    if not isinstance(value, str):
        raise ParameterError(f"{path}.{field}", "a string", value)
    return value


_READERS = {
    "message": _read_message,
    "function_call": _read_call,
    "function_call_output": _read_output,
    "reasoning": _read_reasoning,
    "item_reference": _read_reference,
}


def template_messages(items: Sequence[Item], instructions: str | None) -> list[dict[str, Any]]:
    """The messages of a conversation.

    Instructions, and system messages right behind them, become one system message. A reasoning belongs to the turn
    of the assistant behind it, and so do the calls of functions; a call that was cut short is left out.

    Raises:
        InvalidRequestError: The output of a call that is nowhere before it.
    """
    turns = _Turns()
    if instructions:
        turns.add_message("system", instructions)
    for item in items:
        match item["type"]:
            case "message":
                turns.add_message(_ROLES[item["role"]], _joined(item["content"]))
            case "reasoning":
                turns.reasoning = _joined(item.get("content") or item.get("summary") or [])
            case "function_call" if item.get("status") != "incomplete":
                turns.add_call(item)
            case "function_call_output":
                turns.add_output(item)
    if not turns.messages:
        raise InvalidRequestError("the input has no message", hint="send a message of the user", param="input")
    return turns.messages


def _joined(parts: Sequence[Item]) -> str:
    return "\n".join(part.get("text") or part.get("refusal") or "" for part in parts)


class _Turns:
    """The messages so far, and the reasoning that waits for the turn it belongs to."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.reasoning = ""
        self._names: dict[str, str] = {}

    def add_message(self, role: str, text: str) -> None:
        if role == "system" and len(self.messages) == 1 and self.messages[0]["role"] == "system":
            self.messages[0]["content"] += "\n\n" + text
            return
        message = {"role": role, "content": text}
        if role == "assistant":
            message |= self._take_reasoning()
        self.reasoning = ""
        self.messages.append(message)

    def add_call(self, item: Item) -> None:
        continues = bool(self.messages) and self.messages[-1]["role"] == "assistant" and not self.reasoning
        if not continues:
            self.messages.append({"role": "assistant", "content": None, **self._take_reasoning()})
        function = {"name": item["name"], "arguments": item["arguments"]}
        calls = self.messages[-1].setdefault("tool_calls", [])
        calls.append({"id": item["call_id"], "type": "function", "function": function})
        self._names[item["call_id"]] = item["name"]

    def add_output(self, item: Item) -> None:
        call_id, output = item["call_id"], item["output"]
        if call_id not in self._names:
            raise InvalidRequestError(
                f"no function_call with the call_id {call_id[:100]!r} comes before its function_call_output",
                hint="send the call, too, or the previous_response_id of the response that made it",
                param="input",
            )
        text = output if isinstance(output, str) else _joined(output)
        self.messages.append({"role": "tool", "tool_call_id": call_id, "name": self._names[call_id], "content": text})

    def _take_reasoning(self) -> dict[str, str]:
        text, self.reasoning = self.reasoning, ""
        return {"reasoning": text, "reasoning_content": text} if text else {}
