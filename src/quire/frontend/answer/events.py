"""What an answer consists of, in the order in which it is written."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentText:
    """More of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegin:
    """The model calls a function; its arguments follow.

    Attributes:
        index: Counts the calls of an answer from 0.
        call_id: What the tool's result will refer to.
        name: The function, as the model wrote it; it may be none of the given tools.
    """

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of a call's arguments, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """Nothing more comes for a call."""

    index: int


AnswerEvent = ReasoningText | ContentText | ToolCallBegin | ToolCallArguments | ToolCallEnd


@dataclass(slots=True)
class ToolCall:
    """A call as a whole; `arguments` is JSON text, an object unless the model broke off or wrote something else."""

    call_id: str
    name: str
    arguments: str


@dataclass(slots=True)
class ParsedAnswer:
    """An answer as a whole.

    Attributes:
        reasoning: None without any.
        content: None without any, as in an answer that only calls tools.
        tool_calls: In the order written.
        num_reasoning_tokens: Filled in by whoever counted them.
    """

    reasoning: str | None = None
    content: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    num_reasoning_tokens: int = 0


def collect(events: Iterable[AnswerEvent]) -> ParsedAnswer:
    """The answer that the events add up to: what is shown without streaming."""
    reasoning: list[str] = []
    content: list[str] = []
    calls: list[ToolCallBegin] = []
    arguments: list[list[str]] = []
    for event in events:
        match event:
            case ContentText(text):
                content.append(text)
            case ReasoningText(text):
                reasoning.append(text)
            case ToolCallArguments(index, text):
                arguments[index].append(text)
            case ToolCallBegin():
                calls.append(event)
                arguments.append([])
            case ToolCallEnd():
                pass
    return ParsedAnswer(
        reasoning="".join(reasoning) or None,
        content="".join(content) or None,
        tool_calls=[
            ToolCall(call.call_id, call.name, "".join(texts)) for call, texts in zip(calls, arguments, strict=True)
        ],
    )
