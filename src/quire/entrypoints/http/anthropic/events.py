"""The events of a streamed message. The whole message is what the events add up to, so both have one source."""

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from quire.entrypoints.http.anthropic.objects import (
    AnthropicMessage,
    AnthropicUsage,
    Block,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from quire.frontend.answer.events import (
    AnswerEvent,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)

_encode = msgspec.json.Encoder().encode

STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class AnthropicEncoder:
    """Turns the parts of one answer into the frames of a stream, and keeps the message that they describe.

    Args:
        message: Without content; changed on the way to what the frames add up to.
    """

    def __init__(self, message: AnthropicMessage) -> None:
        self.message = message
        self._block: Block | None = None
        self._texts: list[str] = []
        self._delta_head = b""

    def begin(self) -> bytes:
        """The frames before any content."""
        return _frame("message_start", message=self.message) + PING

    def encode(self, events: Iterable[AnswerEvent]) -> bytes:
        """The frames for what is new."""
        frames = []
        for event in events:
            match event:
                case ContentText(text):
                    if text:
                        frames.append(self._enter(TextBlock("")) + self._delta(text))
                case ReasoningText(text):
                    if text:
                        frames.append(self._enter(ThinkingBlock("", "")) + self._delta(text))
                case ToolCallArguments(_, text):
                    if text:
                        frames.append(self._delta(text))
                case ToolCallBegin(_, call_id, name):
                    frames.append(self._close() + self._open(ToolUseBlock(call_id, name, {})))
                case ToolCallEnd():
                    frames.append(self._close())
        return b"".join(frames)

    def finish(self, usage: AnthropicUsage, stop_reason: str, stop_sequence: str | None = None) -> bytes:
        """The last frames. The natural end of a message that calls tools is `tool_use`."""
        frames = self._close()
        message = self.message
        if stop_reason == "end_turn" and any(isinstance(block, ToolUseBlock) for block in message.content):
            stop_reason = "tool_use"
        message.usage, message.stop_reason, message.stop_sequence = usage, stop_reason, stop_sequence
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        return frames + _frame("message_delta", delta=delta, usage=usage) + STOP

    def _enter(self, block: TextBlock | ThinkingBlock) -> bytes:
        """The frames between the last block and this one; none within one of its kind."""
        if type(self._block) is type(block):
            return b""
        return self._close() + self._open(block)

    def _open(self, block: Block) -> bytes:
        index = len(self.message.content)
        self._block = block
        kind, field = _DELTAS[type(block)]
        head = _encode({"type": "content_block_delta", "index": index, "delta": {"type": kind}})[:-2]
        self._delta_head = b"event: content_block_delta\ndata: " + head + b',"' + field + b'":'
        return _frame("content_block_start", index=index, content_block=block)

    def _delta(self, text: str) -> bytes:
        self._texts.append(text)
        return self._delta_head + _encode(text) + b"}}\n\n"

    def _close(self) -> bytes:
        """Ends the block being written, if there is one."""
        block, index = self._block, len(self.message.content)
        if block is None:
            return b""
        text = "".join(self._texts)
        frames = b""
        match block:
            case TextBlock():
                block.text = text
            case ThinkingBlock():
                block.thinking = text
                block.signature = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
                delta = {"type": "signature_delta", "signature": block.signature}
                frames = _frame("content_block_delta", index=index, delta=delta)
            case ToolUseBlock():
                block.input = _tool_input(text)
        self.message.content.append(block)
        self._block = None
        self._texts = []
        return frames + _frame("content_block_stop", index=index)


_DELTAS: dict[type[Block], tuple[str, bytes]] = {
    TextBlock: ("text_delta", b"text"),
    ThinkingBlock: ("thinking_delta", b"thinking"),
    ToolUseBlock: ("input_json_delta", b"partial_json"),
}


def _tool_input(arguments: str) -> dict[str, Any]:
    """The arguments as an object; empty if the answer was cut within them."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}


def _frame(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **fields}) + b"\n\n"
