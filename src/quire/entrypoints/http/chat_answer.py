"""What a chat completion shows: the whole answer, or the frames of a stream."""

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

import msgspec

from quire.entrypoints.http.answer_bodies import (
    SYSTEM_FINGERPRINT,
    ChatAnswer,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    Delta,
    Function,
    FunctionDelta,
    Message,
    MessageToolCall,
    ToolCallDelta,
    Usage,
    UsageCount,
)
from quire.entrypoints.http.conversation import Conversation
from quire.entrypoints.http.conversation_answers import ChoiceNews, ConversationAnswers
from quire.entrypoints.http.generation import Call
from quire.entrypoints.http.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from quire.entrypoints.http.protocol import ChatBody
from quire.entrypoints.http.streaming import FrameEncoder
from quire.frontend.answer.events import (
    AnswerEvent,
    ContentText,
    ParsedAnswer,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
)
from quire.types.deltas import FinishReason
from quire.types.outputs import CompletionOutput, RequestOutput

TOOL_CALLS = "tool_calls"
"""The reason to finish of an answer that ends with calls."""


@dataclass(frozen=True, slots=True)
class ChatView:
    """How a request wants its answers shown.

    Attributes:
        echo: Text in front of every answer.
        names_call: Whether the request forced one function, which is no reason of its own to finish.
    """

    body: ChatBody
    names: TokenNames
    echo: str
    names_call: bool

    @classmethod
    def of(cls, body: ChatBody, conversation: Conversation) -> "ChatView":
        last = body.messages[-1]
        echoed = last.content if body.echo and last.role == "assistant" and isinstance(last.content, str) else ""
        names = TokenNames(bool(body.return_tokens_as_token_ids))
        return cls(body, names, echoed, conversation.tool_choice.kind == "named")

    def logprobs(self, completion: CompletionOutput, num_hidden: int) -> ChatLogprobs | None:
        if completion.logprobs is None or not self.body.logprobs:
            return None
        token_ids, positions = completion.token_ids[num_hidden:], completion.logprobs[num_hidden:]
        return chat_logprobs(token_ids, positions, self.body.top_logprobs or 0, self.names)

    def token_ids(self, completion: CompletionOutput, num_hidden: int) -> list[int] | None:
        return completion.token_ids[num_hidden:] if self.body.return_token_ids else None

    def finish_reason(self, completion: CompletionOutput, calls: bool) -> str | None:
        """The model's own end is the calls', if there are any; a cut never is."""
        if calls and completion.finish_reason is FinishReason.STOP and not self.names_call:
            return TOOL_CALLS
        return completion.finish_reason


async def encode_whole(call: Call[ChatBody], view: ChatView, answers: ConversationAnswers) -> bytes:
    """The whole answer: the final state of what would have been streamed."""
    output, parsed = await answers.final()
    usage = UsageCount()
    usage.add(0, output)
    answer = ChatAnswer(
        id=call.answer_id,
        object="chat.completion",
        created=call.created,
        model=call.model_name,
        choices=[_choice(view, completion, whole, answers.num_hidden(whole)) for completion, whole in parsed],
        usage=usage.usage(num_reasoning_tokens=answers.num_reasoning_tokens),
        system_fingerprint=SYSTEM_FINGERPRINT,
        prompt_logprobs=prompt_logprobs(output.prompt_logprobs),
        prompt_token_ids=output.prompt_token_ids if call.body.return_token_ids else None,
        prompt_text=output.prompt if call.body.return_prompt_text else None,
    )
    return msgspec.json.encode(answer)


def _choice(view: ChatView, completion: CompletionOutput, answer: ParsedAnswer, num_hidden: int) -> ChatChoice:
    return ChatChoice(
        index=completion.index,
        message=_message(answer, view.echo),
        logprobs=view.logprobs(completion, num_hidden),
        finish_reason=view.finish_reason(completion, bool(answer.tool_calls)),
        stop_reason=completion.stop_reason,
        token_ids=view.token_ids(completion, num_hidden),
    )


def _message(answer: ParsedAnswer, echo: str) -> Message:
    calls = [
        MessageToolCall(call.call_id, "function", Function(call.name, call.arguments)) for call in answer.tool_calls
    ]
    text = echo + (answer.content or "")
    return Message("assistant", text or (None if calls else ""), answer.reasoning, calls or None)


class _Frames:
    """The frames of a stream: per choice one with the role, then its pieces; at the end, if wanted, the usage."""

    def __init__(self, call: Call[ChatBody], view: ChatView, answers: ConversationAnswers) -> None:
        self._body = call.body
        self._view = view
        self._answers = answers
        self._usage = UsageCount()
        self._begun: set[int] = set()
        self._calling: set[int] = set()
        self._only_text = not (answers.parses or call.body.logprobs or call.body.return_token_ids)
        shared = {
            "id": call.answer_id,
            "object": "chat.completion.chunk",
            "created": call.created,
            "model": call.model_name,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }
        self._encoder = FrameEncoder(shared, include_usage=call.body.include_usage)

    def add(self, output: RequestOutput, news: list[ChoiceNews]) -> bytes:
        """The frames for an output; empty where there is nothing to show, as while text is held back."""
        self._usage.add(0, output)
        current = self._current_usage() if self._body.continuous_usage else None
        frames = []
        for choice in news:
            if choice.completion.index not in self._begun:
                frames += self._first(choice.completion.index, output)
            if piece := self._piece(choice):
                frames.append(self._encoder.frame(piece, current))
        return b"".join(frames)

    def end(self) -> bytes:
        """What follows the last choice."""
        return self._encoder.frame(None, self._current_usage()) if self._body.include_usage else b""

    def _current_usage(self) -> Usage:
        return self._usage.usage(num_reasoning_tokens=self._answers.num_reasoning_tokens)

    def _first(self, index: int, output: RequestOutput) -> list[bytes]:
        self._begun.add(index)
        at_start = self._usage.usage(without_completion=True) if self._body.continuous_usage else None
        role = ChatChunkChoice(
            index,
            Delta("assistant", ""),
            None,
            None,
            prompt_token_ids=output.prompt_token_ids if self._body.return_token_ids else None,
            prompt_text=output.prompt if self._body.return_prompt_text else None,
        )
        first = [role]
        if self._view.echo:
            first.append(ChatChunkChoice(index, Delta(content=self._view.echo), None, None))
        return [self._encoder.frame(choice, at_start) for choice in first]

    def _piece(self, news: ChoiceNews) -> ChatChunkChoice | None:
        completion = news.completion
        if self._only_text:
            return _text_piece(completion)
        delta = merge_events(news.events)
        if delta.tool_calls:
            self._calling.add(completion.index)
        token_ids = self._view.token_ids(completion, news.num_hidden_tokens)
        logprobs = self._view.logprobs(completion, news.num_hidden_tokens)
        shows = delta.content or delta.reasoning or delta.tool_calls or token_ids or (logprobs and logprobs.content)
        if not (shows or completion.finish_reason):
            return None
        return ChatChunkChoice(
            index=completion.index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=self._view.finish_reason(completion, completion.index in self._calling),
            stop_reason=completion.stop_reason,
            token_ids=token_ids,
        )


def _text_piece(completion: CompletionOutput) -> ChatChunkChoice | None:
    """What is new in a choice of plain text: the way that most tokens take."""
    text, finish_reason = completion.text, completion.finish_reason
    if not text and finish_reason is None:
        return None
    return ChatChunkChoice(completion.index, Delta(None, text or None), None, finish_reason, completion.stop_reason)


async def encode_frames(
    call: Call[ChatBody], view: ChatView, answers: ConversationAnswers
) -> AsyncGenerator[bytes, None]:
    """The frames of a stream, as they come."""
    frames = _Frames(call, view, answers)
    async for output, news in answers.news():
        if encoded := frames.add(output, news):
            yield encoded
    if end := frames.end():
        yield end


def merge_events(events: Iterable[AnswerEvent]) -> Delta:
    """What came at once, in one delta: text by kind, and one entry per call."""
    content: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, ToolCallDelta] = {}
    for event in events:
        match event:
            case ContentText(text):
                content.append(text)
            case ReasoningText(text):
                reasoning.append(text)
            case ToolCallBegin(index, call_id, name):
                calls[index] = ToolCallDelta(index, call_id, "function", FunctionDelta(name, ""))
            case ToolCallArguments(index, text):
                function = calls.setdefault(index, ToolCallDelta(index, function=FunctionDelta())).function
                assert function is not None, "made with one"
                function.arguments = (function.arguments or "") + text
    return Delta(
        content="".join(content) or None,
        reasoning="".join(reasoning) or None,
        tool_calls=list(calls.values()) or None,
    )
