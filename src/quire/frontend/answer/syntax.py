"""How the answers to one request are to be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quire.frontend.answer.detect import starts_in_reasoning
from quire.frontend.answer.formats import PLAIN_JSON, ReasoningFormat, ToolFormat
from quire.frontend.answer.tools import FunctionTool


@dataclass(frozen=True, slots=True)
class AnswerSyntax:
    """How to read the answers to one request.

    Attributes:
        tool_format: None where calls are not looked for.
        reasoning_format: None where reasoning is not looked for.
        tools: Those offered; their schemas give arguments their types.
        starts_in_reasoning: The template has already written the marker that begins it.
        added_tokens: Ids of the tokenizer's added tokens that stand in markers, by their texts.
    """

    tool_format: ToolFormat | None = None
    reasoning_format: ReasoningFormat | None = None
    tools: tuple[FunctionTool, ...] = ()
    starts_in_reasoning: bool = False
    added_tokens: Mapping[str, int] = field(default_factory=dict)

    @property
    def shown_special_tokens(self) -> frozenset[str]:
        """Control tokens that must stay in the text for the parser to see them."""
        return frozenset(self.added_tokens)


def answer_syntax(
    *,
    tool_format: ToolFormat | None,
    reasoning_format: ReasoningFormat | None,
    tools: tuple[FunctionTool, ...],
    prompt: str,
    added_tokens: Mapping[str, int],
    calls_are_forced: bool = False,
) -> AnswerSyntax:
    """The syntax of the answers to a rendered prompt.

    Args:
        tool_format: The model's own; None for a model that has none.
        reasoning_format: The model's own; None to read reasoning as content.
        tools: Those offered; without any (or with tool_choice "none") no calls are looked for.
        prompt: The rendered text; only its end is read.
        added_tokens: Ids of all added tokens of the tokenizer, by their texts.
        calls_are_forced: tool_choice is "required" or "named": a model without a format of its own gets a plain
            JSON one, which the grammar makes it write.
    """
    if not tools:
        tool_format = None
    elif tool_format is None and calls_are_forced:
        tool_format = PLAIN_JSON
    texts = [
        *((*tool_format.markers, *tool_format.texts) if tool_format else ()),
        *(reasoning_format.markers if reasoning_format else ()),
    ]
    return AnswerSyntax(
        tool_format=tool_format,
        reasoning_format=reasoning_format,
        tools=tools,
        starts_in_reasoning=starts_in_reasoning(reasoning_format, prompt),
        added_tokens={
            token: token_id for token, token_id in added_tokens.items() if any(token in text for text in texts)
        },
    )
