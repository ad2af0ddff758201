"""The answers to a conversation, read into parts: reasoning, content, tool calls."""

import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from quire.entrypoints.http.generation import Answers
from quire.frontend.answer.events import AnswerEvent, ContentText, ParsedAnswer, ReasoningText, collect
from quire.frontend.answer.parser import AnswerParser
from quire.frontend.answer.syntax import AnswerSyntax
from quire.frontend.detokenizer import IncrementalDetokenizer
from quire.frontend.tokenizer import Tokenizer
from quire.types.outputs import CompletionOutput, RequestOutput

ChoicePiece = tuple[list[AnswerEvent], int]
"""Parts of an answer, and the number of tokens that they were read from."""


@dataclass(slots=True)
class ChoiceNews:
    """What is new in one answer.

    Attributes:
        completion: Its new text as the model wrote it, and its new tokens.
        events: The same text in parts.
        num_hidden_tokens: How many of the tokens, counted from the first, belong to hidden reasoning.
    """

    completion: CompletionOutput
    events: list[AnswerEvent]
    num_hidden_tokens: int = 0


class ConversationAnswers:
    """The answers to one conversation, whole or as they grow. `close` it; each other method is used at most once.

    Args:
        answers: From the engine.
        syntax: How answers are read; None if they are plain text, which then costs nothing to read.
        tokenizer: The model's.
        include_reasoning: Whether reasoning is shown. Hidden reasoning hides its tokens, too.
        skip_special_tokens: Whether the answers' texts leave them out.
        call_id_prefix: What the ids of tool calls begin with.

    Attributes:
        parses: Whether answers are anything but plain text.
    """

    def __init__(
        self,
        answers: Answers,
        syntax: AnswerSyntax | None,
        tokenizer: Tokenizer,
        *,
        include_reasoning: bool,
        skip_special_tokens: bool,
        call_id_prefix: str,
    ) -> None:
        self.parses = syntax is not None
        self._tokenizer = tokenizer
        self._include_reasoning = include_reasoning
        self._skip_special_tokens = skip_special_tokens
        self._call_id_prefix = call_id_prefix
        self._answers = answers
        self._syntax = syntax
        self._parsers: dict[int, AnswerParser] = {}

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Reasoning in all answers so far, hidden or not; None if it is not told apart."""
        if self._syntax is None or self._syntax.reasoning_format is None:
            return None
        return sum(parser.num_reasoning_tokens for parser in self._parsers.values())

    def num_hidden(self, answer: ParsedAnswer) -> int:
        """How many of a whole answer's tokens, counted from the first, belong to hidden reasoning."""
        return 0 if self._include_reasoning else answer.num_reasoning_tokens

    def close(self) -> None:
        """Ends in the engine what has not ended. May be called again."""
        self._answers.close()

    async def news(self) -> AsyncGenerator[tuple[RequestOutput, list[ChoiceNews]], None]:
        """Outputs as they come, with what is new in each answer that has news."""
        async for _, output in self._answers.news():
            yield output, [self._read_piece(completion) for completion in output.outputs]

    async def final(self) -> tuple[RequestOutput, list[tuple[CompletionOutput, ParsedAnswer]]]:
        """The whole answers: what the pieces of a stream would add up to."""
        (output,) = await self._answers.finals()
        return output, [(completion, self._read_whole(completion)) for completion in output.outputs]

    def _read_piece(self, completion: CompletionOutput) -> ChoiceNews:
        text = completion.text
        if self._syntax is None:
            return ChoiceNews(completion, [ContentText(text)] if text else [])
        parser = self._parser(completion.index)
        before = parser.num_reasoning_tokens
        events = parser.feed(text, len(completion.token_ids))
        if completion.finish_reason is not None:
            events += parser.finish()
        if self._include_reasoning:
            return ChoiceNews(completion, events)
        return ChoiceNews(completion, _without_reasoning(events), parser.num_reasoning_tokens - before)

    async def final_pieces(self) -> tuple[RequestOutput, list[tuple[CompletionOutput, list[ChoicePiece]]]]:
        """The whole answers in the pieces in which they were read."""
        (output,) = await self._answers.finals()
        return output, [(completion, self._read_pieces(completion)) for completion in output.outputs]

    def _read_whole(self, completion: CompletionOutput) -> ParsedAnswer:
        pieces = self._read_pieces(completion)
        parsed = collect(event for events, _ in pieces for event in events)
        if self._syntax is not None:
            parsed.num_reasoning_tokens = self._parser(completion.index).num_reasoning_tokens
        return parsed

    def _read_pieces(self, completion: CompletionOutput) -> list[ChoicePiece]:
        if self._syntax is None:
            return [([ContentText(completion.text)] if completion.text else [], len(completion.token_ids))]
        parser = self._parser(completion.index)
        pieces = [(parser.feed(text, num_tokens), num_tokens) for text, num_tokens in self._token_texts(completion)]
        pieces.append((parser.finish(), 0))
        if self._include_reasoning:
            return pieces
        return [(_without_reasoning(events), size) for events, size in pieces]

    def _token_texts(self, completion: CompletionOutput) -> list[tuple[str, int]]:
        """An answer in pieces with their numbers of tokens: one by one where it matters which part a token is in."""
        if self._syntax is None or (self._syntax.reasoning_format is None and completion.logprobs is None):
            return [(completion.text, len(completion.token_ids))]
        detokenizer = IncrementalDetokenizer(
            self._tokenizer,
            [],
            skip_special_tokens=self._skip_special_tokens,
            shown_special_tokens=self._syntax.shown_special_tokens,
        )
        pieces, start = [], 0
        for token_id in completion.token_ids:
            end = start + len(detokenizer.append([token_id]))
            pieces.append((completion.text[start:end], 1))
            start = end
        pieces.append((completion.text[start:], 0))
        return pieces

    def _parser(self, index: int) -> AnswerParser:
        parser = self._parsers.get(index)
        if parser is None:
            assert self._syntax is not None, "plain text needs no parser"
            parser = self._parsers[index] = AnswerParser(
                self._syntax, id_prefix=f"{self._call_id_prefix}{secrets.token_hex(8)}-"
            )
        return parser


def _without_reasoning(events: list[AnswerEvent]) -> list[AnswerEvent]:
    return [event for event in events if not isinstance(event, ReasoningText)]
