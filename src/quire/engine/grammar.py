"""Grammars compiled for the vocabulary of a model, and what one sample may still produce under one."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from quire.errors import InvalidRequestError

MAX_ERROR_CHARACTERS = 300

_NO_FORCING = '%llguidance {"no_forcing": true}'
_OPTION_LINE = re.compile(r"\d+ \| " + re.escape(_NO_FORCING))
_TRIAL_TOKENS = 8
_TRIAL_STRIDE = 7919

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_items_in_row=2_000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)
"""What one compilation and one mask may cost: tens of milliseconds, and tens of megabytes for the states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarVocabulary:
    """What a grammar must know of a model's tokens.

    Attributes:
        tokenizer_json: The tokenizer, as the `tokenizers` library writes it.
        vocab_size: Width of the logits; ids beyond those of the tokenizer are never allowed.
        eos_token_ids: Tokens that end an answer; allowed where the grammar is satisfied.
    """

    tokenizer_json: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]


def make_tokenizer(vocabulary: GrammarVocabulary) -> LLTokenizer:
    """The vocabulary in the form in which masks are computed. Takes up to a second, in which no other thread runs.

    Raises:
        InvalidRequestError: A tokenizer whose tokens are not sequences of bytes, or one without end-of-sequence.
    """
    if not vocabulary.eos_token_ids:
        raise InvalidRequestError("structured outputs need a model with an end-of-sequence token")
    try:
        return LLTokenizer(
            vocabulary.tokenizer_json, n_vocab=vocabulary.vocab_size, eos_token=list(vocabulary.eos_token_ids)
        )
    except ValueError as error:
        raise InvalidRequestError(f"structured outputs do not work with this tokenizer: {error}") from error


def compile_grammar(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """The initial state of a grammar, with its first mask computed.

    Args:
        tokenizer: Of the model.
        grammar: Lark, or the JSON of a list of grammars.

    Raises:
        InvalidRequestError: It does not parse, has no meaning or exceeds `LIMITS`.
    """
    matcher = LLMatcher(tokenizer, _without_forcing(grammar), log_level=0, limits=LIMITS)
    if not matcher.is_error():
        # What it finds out about the tokens is kept for all copies.
        matcher.compute_bitmask()
    if (problem := find_problem(matcher)) is not None:
        raise InvalidRequestError(problem)
    return matcher


def _without_forcing(grammar: str) -> str:
    """The grammar with an option: no token is chosen for the model where only one text can follow.

    The library would tokenise that text, and take a part of it that reads like a control token for one, which the
    grammar then refuses.
    """
    if not grammar.lstrip().startswith("{"):
        return f"{grammar}\n{_NO_FORCING}"
    try:
        top = json.loads(grammar)
        first = top["grammars"][0]
        schema = first.pop("json_schema", None)
        lark = first.get("lark_grammar") or f"start: %json {json.dumps(schema)}"
        first["lark_grammar"] = f"{lark}\n{_NO_FORCING}"
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InvalidRequestError(f"it is no list of grammars: {error}") from error
    return json.dumps(top)


def try_out(tokenizer: LLTokenizer, matcher: LLMatcher) -> None:
    """Lets a copy of a compiled grammar go a few tokens, to see whether it can be followed.

    Raises:
        InvalidRequestError: It exceeds `LIMITS`.
    """
    sample = matcher.deep_copy()
    for step in range(_TRIAL_TOKENS):
        if sample.is_stopped():
            return
        allowed = int.from_bytes(sample.compute_bitmask(), "little")
        for token_id in tokenizer.eos_tokens:
            allowed &= ~(1 << token_id)
        if not allowed:
            return
        token_id = _set_bit_near(allowed, step * _TRIAL_STRIDE % tokenizer.vocab_size)
        sample.consume_token(token_id)
        if (problem := find_problem(sample)) is not None:
            raise InvalidRequestError(problem)


def _set_bit_near(bits: int, place: int) -> int:
    """A bit that is set: the first one from `place` on, else the last one."""
    above = bits >> place
    return place + (above & -above).bit_length() - 1 if above else bits.bit_length() - 1


def find_problem(matcher: LLMatcher) -> str | None:
    """Why a grammar cannot be followed further, None if it can or is satisfied."""
    reason = matcher.stop_reason()
    if matcher.is_error():
        return _PROBLEMS.get(reason) or shorten(matcher.get_error())
    return _PROBLEMS.get(reason) if matcher.is_stopped() and not matcher.is_accepting() else None


def shorten(text: str) -> str:
    """An error of the grammar library without the state that it appends, on one line."""
    shown = _OPTION_LINE.sub("", text.replace("<non-verbose/>", "").split("\n<state>")[0])
    line = " ".join(shown.split())
    line = _PROBLEMS.get(line, line)
    return line if len(line) <= MAX_ERROR_CHARACTERS else line[: MAX_ERROR_CHARACTERS - 3] + "..."


_PROBLEMS = {
    "NoExtension": "no text satisfies it",
    "NoExtensionBias": "no text satisfies it",
    "ParserTooComplex": "it is too complex: too many alternatives at one place",
    "LexerTooComplex": "it is too complex: a regular expression has too many states",
}


class SampleConstraint:
    """A sample's place in its grammar. Implements the scheduler's `Constraint`.

    The grammar says when the answer may end, and goes before `min_tokens` and `ignore_eos`: these keep the sample
    from ending only where it could also go on.

    Args:
        matcher: A copy of its own.
        eos_token_ids: Those of the vocabulary.
        stop_token_ids: Tokens that end the sample as well.
        num_unending_tokens: So many tokens of the answer are not to be one of them; None for all.

    Attributes:
        is_complete: Whether nothing can follow.
        ended_by_eos: Whether the last token was end-of-sequence.
        error: Why the sample cannot go on.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        *,
        eos_token_ids: Iterable[int] = (),
        stop_token_ids: Iterable[int] = (),
        num_unending_tokens: int | None = 0,
    ) -> None:
        self.matcher = matcher
        self.is_complete = False
        self.error: str | None = None
        self.ended_by_eos = False
        self._eos_token_ids = frozenset(eos_token_ids)
        self._ending_token_ids = tuple(self._eos_token_ids.union(stop_token_ids))
        self._num_unending_tokens = num_unending_tokens
        self._num_tokens = 0

    @property
    def is_over(self) -> bool:
        """Whether no mask is wanted any more."""
        return self.is_complete or self.error is not None

    def advance(self, token_id: int) -> str | None:
        """Takes in the next token. Returns why the sample cannot go on, None if it can."""
        if self.is_over:
            return self.error
        self._num_tokens += 1
        self.matcher.consume_token(token_id)
        problem = find_problem(self.matcher)
        if problem is not None:
            self.fail(problem)
        else:
            self.is_complete = self.matcher.is_stopped()
            self.ended_by_eos = token_id in self._eos_token_ids
        return self.error

    def fail(self, problem: str | None) -> None:
        """Ends the sample with the next token, which is meaningless."""
        self.error = f"the grammar cannot be followed further: {problem or 'it allows no token'}"

    def narrow(self, mask: memoryview) -> None:
        """Takes what may not yet end the sample out of its mask, if something else is left. Modifies `mask`.

        Args:
            mask: [words] uint32, one bit per token.
        """
        if self._num_unending_tokens is not None and self._num_tokens >= self._num_unending_tokens:
            return
        ending = [token_id for token_id in self._ending_token_ids if mask[token_id >> 5] >> (token_id & 31) & 1]
        if not ending:
            return
        before = [(token_id >> 5, mask[token_id >> 5]) for token_id in ending]
        for token_id in ending:
            mask[token_id >> 5] &= ~(1 << (token_id & 31)) & 0xFFFF_FFFF
        if is_empty(mask):
            for word, value in before:
                mask[word] = value


def is_empty(mask: memoryview) -> bool:
    """Whether no bit is set. Compares memory: one to two microseconds for a vocabulary of 150,000."""
    return mask.tobytes() == bytes(mask.nbytes)
