"""The messages of `/v1/messages`, checked and turned into messages for the chat template."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from quire.entrypoints.http.anthropic.body import MAX_BLOCKS, MessageParam
from quire.errors import InvalidRequestError, ParameterError

_TEXT_ONLY = "the model reads text only"
_BILLING_HEADER = "x-anthropic-billing-header"


def template_messages(system: Any, messages: Sequence[MessageParam]) -> list[dict[str, Any]]:
    """What the chat template reads.

    Neighbouring turns of one role become one turn, as this API has it; results of tools become messages of their own.

    Raises:
        InvalidRequestError: With the path of the block at fault.
    """
    turns = _Turns()
    if system is not None:
        turns.add_texts("system", _system_texts(system))
    for index, message in enumerate(messages):
        path = f"messages[{index}].content"
        for number, block in enumerate(_blocks(message.content, path)):
            where = f"{path}[{number}]"
            kind = block.get("type") if isinstance(block, dict) else None
            read = _READERS.get((message.role, kind)) if isinstance(kind, str) else None
            if read is None:
                known = ", ".join(known for role, known in _READERS if role == message.role)
                raise InvalidRequestError(
                    f"{where}.type must be one of {known} in a message of the {message.role}, got {str(kind)[:64]!r}",
                    hint=_TEXT_ONLY,
                    param=f"{where}.type",
                )
            read(turns, block, where)
        turns.end_message(message.role)
    if all(message["role"] == "system" for message in turns.messages):
        raise InvalidRequestError("the messages are empty", hint="send a message of the user", param="messages")
    return turns.messages


def continues_answer(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether the last message is the begin of the answer, which the model is to continue.

    Raises:
        InvalidRequestError: The last message calls tools, and the results are missing.
    """
    last = messages[-1]
    if last.get("tool_calls"):
        raise InvalidRequestError(
            "the last message calls tools, and no message with the tool_result blocks follows",
            hint="send the results of the calls",
            param=f"messages[{len(messages) - 1}]",
        )
    return bool(last["role"] == "assistant")


def _system_texts(system: Any) -> list[str]:
    texts = []
    for index, block in enumerate(_blocks(system, "system")):
        path = f"system[{index}]"
        if not isinstance(block, dict) or block.get("type") != "text":
            raise ParameterError(f"{path}.type", '"text"', block.get("type") if isinstance(block, dict) else block)
        text = _text(block, "text", path)
        # It differs from request to request, so that behind it no prefix would be found in the cache.
        if not text.startswith(_BILLING_HEADER):
            texts.append(text)
    return texts


def _blocks(content: Any, path: str) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ParameterError(path, "a string or a list of blocks", content)
    if len(content) > MAX_BLOCKS:
        raise ParameterError(path, f"a list of at most {MAX_BLOCKS} blocks", len(content))
    return content


def _text(block: dict[str, Any], field: str, path: str) -> str:
    value = block.get(field)
    if not isinstance(value, str):
        raise ParameterError(f"{path}.{field}", "a string", value)
    return value


class _Turns:
    """The messages so far, and what the current one has said."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.names: dict[str, str] = {}

    def add_texts(self, role: str, texts: list[str]) -> None:
        """Adds a message of plain text, to the last one if that has the same role and nothing but text."""
        if not texts:
            return
        last = self.messages[-1] if self.messages else {}
        if last.get("role") == role and last.keys() == {"role", "content"}:
            last["content"] = last["content"] + _parts(texts)
        else:
            self.messages.append({"role": role, "content": _parts(texts)})

    def end_message(self, role: str) -> None:
        """Makes a message of what has come."""
        if self.calls or self.thoughts:
            message: dict[str, Any] = {"role": role, "content": _parts(self.texts)}
            if self.thoughts:
                text = "\n".join(self.thoughts)
                message |= {"reasoning": text, "reasoning_content": text}
            if self.calls:
                message["tool_calls"] = self.calls
            self.messages.append(message)
        else:
            self.add_texts(role, self.texts)
        self.texts, self.thoughts, self.calls = [], [], []


def _parts(texts: list[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _read_text(turns: _Turns, block: dict[str, Any], path: str) -> None:
    turns.texts.append(_text(block, "text", path))


def _read_document(turns: _Turns, block: dict[str, Any], path: str) -> None:
    turns.texts.append(_document_text(block, path))


def _document_text(block: dict[str, Any], path: str) -> str:
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") != "text":
        kind = source.get("type") if isinstance(source, dict) else source
        raise ParameterError(f"{path}.source.type", '"text"', kind, hint=_TEXT_ONLY)
    title = block.get("title")
    text = _text(source, "data", f"{path}.source")
    return f"{title}\n{text}" if isinstance(title, str) else text


def _read_thinking(turns: _Turns, block: dict[str, Any], path: str) -> None:
    turns.thoughts.append(_text(block, "thinking", path))


def _skip_redacted(turns: _Turns, block: dict[str, Any], path: str) -> None:
    """Opaque to us, so there is nothing that the model could read."""
    _text(block, "data", path)


def _read_tool_use(turns: _Turns, block: dict[str, Any], path: str) -> None:
    call_id, name, value = _text(block, "id", path), _text(block, "name", path), block.get("input")
    if not isinstance(value, dict):
        raise ParameterError(f"{path}.input", "an object", value)
    turns.names[call_id] = name
    function = {"name": name, "arguments": json.dumps(value, ensure_ascii=False)}
    turns.calls.append({"id": call_id, "type": "function", "function": function})


def _read_tool_result(turns: _Turns, block: dict[str, Any], path: str) -> None:
    call_id = _text(block, "tool_use_id", path)
    if call_id not in turns.names:
        raise InvalidRequestError(
            f"no tool_use block with the id {call_id[:100]!r} comes before its tool_result",
            hint="send the message with the call, too",
            param=f"{path}.tool_use_id",
        )
    turns.end_message("user")
    texts = []
    for index, part in enumerate(_blocks(block.get("content", ""), f"{path}.content")):
        where = f"{path}.content[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "document"):
            raise ParameterError(f"{where}.type", '"text" or "document"', kind, hint=_TEXT_ONLY)
        texts.append(_text(part, "text", where) if kind == "text" else _document_text(part, where))
    text = "\n".join(texts)
    if block.get("is_error") is True:
        text = f"Error: {text}"
    turns.messages.append({"role": "tool", "tool_call_id": call_id, "name": turns.names[call_id], "content": text})


_READERS: dict[tuple[str, str], Callable[[_Turns, dict[str, Any], str], None]] = {
    ("system", "text"): _read_text,
    ("user", "text"): _read_text,
    ("user", "document"): _read_document,
    ("user", "tool_result"): _read_tool_result,
    ("assistant", "text"): _read_text,
    ("assistant", "thinking"): _read_thinking,
    ("assistant", "redacted_thinking"): _skip_redacted,
    ("assistant", "tool_use"): _read_tool_use,
}
