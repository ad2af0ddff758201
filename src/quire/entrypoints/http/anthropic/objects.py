"""What `/v1/messages` answers with: a message, its blocks and its usage."""

from typing import Any

import msgspec


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    """Text for the user."""

    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model thought. The signature only identifies the text: this server accepts any that is sent back."""

    thinking: str
    signature: str


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call of a tool."""

    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUseBlock


class ThinkingDetails(msgspec.Struct):
    """What the tokens of the output were for."""

    thinking_tokens: int


class AnthropicUsage(msgspec.Struct):
    """Tokens that a request took; `input_tokens` are those that did not come from the prefix cache."""

    input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingDetails | None = None
    cache_creation_input_tokens: int = 0


class AnthropicMessage(msgspec.Struct):
    """The model's turn."""

    id: str
    model: str
    content: list[Block]
    usage: AnthropicUsage
    stop_reason: str | None = None
    stop_sequence: str | None = None
    role: str = "assistant"
    type: str = "message"


class InputTokens(msgspec.Struct):
    """How many tokens an input has."""

    input_tokens: int


class MessageEvent(msgspec.Struct):
    """What all events of a stream have; each type has fields of its own beside it."""

    type: str
