"""How tokens are drawn, and when to stop. Field names and defaults are vLLM's."""

import enum
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from quire.errors import ParameterError
from quire.types.structured_outputs import StructuredOutputsParams

MAX_SAMPLES = 128
"""Samples one request may ask for. A request costs its samples, so this bounds what a client can demand."""

MAX_STOP_STRINGS = 64
MAX_STOP_STRING_LENGTH = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_BAD_WORDS = 128
MAX_LOGIT_BIAS = 1024
MAX_SEED = 2**63 - 1
MAX_REPETITION_PENALTY = 1e6
"""Beyond it, and below its inverse, logits overflow."""

SMALLEST_TEMPERATURE = 0.01


@enum.unique
class RequestOutputKind(enum.Enum):
    """What each output of a running request holds."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt.

    Attributes:
        n: Answers to return.
        best_of: Answers to produce, of which the `n` with the highest log-probability are returned.
        temperature: 0 takes the most likely token; 1 draws from the model's distribution.
        top_p: Draw from the smallest set of tokens whose probability reaches this.
        top_k: Draw from this many most likely tokens; 0 or -1 for all.
        min_p: Drop tokens less likely than this fraction of the most likely one.
        presence_penalty: Subtracted from the logit of a token that was produced already.
        frequency_penalty: Subtracted once for every time it was produced.
        repetition_penalty: Divides positive and multiplies negative logits of tokens in prompt or answer.
        seed: The same seed gives the same tokens; None draws a fresh one.
        stop: Strings that end the answer; one string or None will do, and is stored as a list.
        stop_token_ids: Tokens that end the answer, beside end-of-sequence.
        bad_words: Strings that must not be produced.
        include_stop_str_in_output: Leave the stop string in the text.
        ignore_eos: Go on after end-of-sequence.
        max_tokens: Tokens to produce at most; None for the rest of the context.
        min_tokens: Tokens to produce before any stop token or end-of-sequence.
        logprobs: How many alternatives to report per token; 0 reports the token itself; -1 all.
        prompt_logprobs: The same for the prompt.
        logit_bias: Added to the logits of these tokens, clamped to ±100.
        allowed_token_ids: Only these may be produced.
        detokenize: Whether text is wanted.
        skip_special_tokens: Leave special tokens out of the text.
        spaces_between_special_tokens: Accepted for compatibility; must be True.
        output_kind: What each output of a running request holds.
        structured_outputs: What the answer must look like; None for free text.

    Raises:
        ParameterError: On construction, naming the field, its rule and the value.
    """

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_distribution()
        self._normalise_stops()
        self._normalise_token_sets()
        if not self.spaces_between_special_tokens:
            raise ParameterError("spaces_between_special_tokens", "true", False)
        if not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise ParameterError("structured_outputs", "StructuredOutputsParams or None", self.structured_outputs)

    @property
    def num_samples(self) -> int:
        """Sequences to run: `best_of` where given, otherwise `n`."""
        return self.best_of if self.best_of is not None else self.n

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0

    @property
    def shows_progress(self) -> bool:
        """Whether there is anything to see before the end: with `best_of` the best answers are known only there."""
        return self.output_kind is not RequestOutputKind.FINAL_ONLY and self.num_samples <= self.n

    @property
    def needs_every_token(self) -> bool:
        """Whether somebody looks at each token when it comes; otherwise many may be reported at once."""
        return self.shows_progress or bool(self.stop) or self.logprobs is not None

    def with_changes(self, **changes: Any) -> "SamplingParams":
        """A copy with other values, checked again."""
        return replace(self, **changes)

    def completed(self, *, max_tokens: int, seed: int, output_kind: RequestOutputKind) -> "SamplingParams":
        """A copy with what the user left open. The caller vouches for the values: nothing is checked."""
        copy = object.__new__(SamplingParams)
        for name in _FIELD_NAMES:
            object.__setattr__(copy, name, getattr(self, name))
        object.__setattr__(copy, "max_tokens", max_tokens)
        object.__setattr__(copy, "seed", seed)
        object.__setattr__(copy, "output_kind", output_kind)
        return copy

    def _check_counts(self) -> None:
        _check_int("n", self.n, 1, MAX_SAMPLES)
        if self.best_of is not None:
            _check_int("best_of", self.best_of, self.n, MAX_SAMPLES)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, None)
        _check_int("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ParameterError("min_tokens", f"at most max_tokens={self.max_tokens}", self.min_tokens)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _check_int(name, value, -1, None)
        if self.seed is not None:
            _check_int("seed", self.seed, -MAX_SEED - 1, MAX_SEED)
            if self.seed == -1:
                object.__setattr__(self, "seed", None)

    def _check_distribution(self) -> None:
        _check_float("temperature", self.temperature, 0.0, 2.0)
        if 0.0 < self.temperature < SMALLEST_TEMPERATURE:
            warnings.warn(
                f"temperature {self.temperature} is raised to {SMALLEST_TEMPERATURE}: "
                "smaller ones overflow; use 0 for the most likely token",
                stacklevel=4,
            )
            object.__setattr__(self, "temperature", SMALLEST_TEMPERATURE)
        if self.is_greedy and self.num_samples > 1:
            name = "n" if self.n > 1 else "best_of"
            raise ParameterError(name, "1 with temperature 0", self.num_samples)
        _check_float("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_int("top_k", self.top_k, -1, None)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_float("repetition_penalty", self.repetition_penalty, 1 / MAX_REPETITION_PENALTY, MAX_REPETITION_PENALTY)

    def _normalise_stops(self) -> None:
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        for text in stop:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_STRING_LENGTH:
                rule = f"a list of strings of 1 to {MAX_STOP_STRING_LENGTH} characters"
                raise ParameterError("stop", rule, text)
        if len(stop) > MAX_STOP_STRINGS:
            raise ParameterError("stop", f"at most {MAX_STOP_STRINGS} strings", len(stop))
        if stop and not self.detokenize:
            raise ParameterError("stop", "empty with detokenize=False", stop)
        object.__setattr__(self, "stop", stop)
        bad_words = list(self.bad_words or ())
        for word in bad_words:
            if not isinstance(word, str) or not word:
                raise ParameterError("bad_words", "a list of strings that are not empty", word)
        if len(bad_words) > MAX_BAD_WORDS:
            raise ParameterError("bad_words", f"at most {MAX_BAD_WORDS} strings", len(bad_words))
        object.__setattr__(self, "bad_words", bad_words)

    def _normalise_token_sets(self) -> None:
        stops = list(dict.fromkeys(self.stop_token_ids or ()))
        for token_id in stops:
            _check_int("stop_token_ids", token_id, 0, None)
        if len(stops) > MAX_STOP_TOKEN_IDS:
            raise ParameterError("stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} ids", len(stops))
        object.__setattr__(self, "stop_token_ids", stops)
        if self.allowed_token_ids is not None:
            allowed = list(dict.fromkeys(self.allowed_token_ids))
            if not allowed:
                raise ParameterError("allowed_token_ids", "not empty", allowed)
            for token_id in allowed:
                _check_int("allowed_token_ids", token_id, 0, None)
            object.__setattr__(self, "allowed_token_ids", allowed)
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _clean_logit_bias(self.logit_bias))


_FIELD_NAMES = tuple(field.name for field in fields(SamplingParams))


def _clean_logit_bias(logit_bias: Mapping[int, float]) -> dict[int, float]:
    if len(logit_bias) > MAX_LOGIT_BIAS:
        raise ParameterError("logit_bias", f"at most {MAX_LOGIT_BIAS} entries", len(logit_bias))
    clean = {}
    for token_id, bias in logit_bias.items():
        _check_int("logit_bias", token_id, 0, None)
        _check_float("logit_bias", bias, -math.inf, math.inf)
        clean[token_id] = max(-100.0, min(100.0, float(bias)))
    return clean


def _check_int(name: str, value: Any, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(name, "an integer", value)
    if value < low or (high is not None and value > high):
        rule = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ParameterError(name, rule, value)


def _check_float(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterError(name, "a number", value)
    if not math.isfinite(value):
        raise ParameterError(name, "finite", value)
    if value < low or value > high or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise ParameterError(name, f"in {bracket}{low:g}, {high:g}]", value)
