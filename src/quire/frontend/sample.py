"""One answer of a request, as it grows."""

from collections.abc import Set

from quire.frontend.detokenizer import IncrementalDetokenizer
from quire.frontend.stop_strings import StopAutomaton, StopStrings
from quire.frontend.tokenizer import Tokenizer
from quire.types.deltas import FinishReason, SequenceDelta
from quire.types.outputs import CompletionOutput, Logprob
from quire.types.plan import PositionLogprobs
from quire.types.request import GenerationRequest
from quire.types.sampling import SamplingParams


class Sample:
    """Tokens, text and log-probabilities of one answer.

    Args:
        params: As the user gave them, with what was left open filled in.
        automaton: The stop strings, None without any.
        shown_special_tokens: Control tokens whose texts are shown even if `params` hide them.

    Attributes:
        token_ids: All so far; none behind a stop string.
        finish_reason: None while it runs.
        left_engine: Whether the engine has ended it, so that nothing more comes.
        last_token_time: When its last token arrived, None before the first.
    """

    def __init__(
        self,
        index: int,
        request: GenerationRequest,
        params: SamplingParams,
        tokenizer: Tokenizer,
        automaton: StopAutomaton | None,
        shown_special_tokens: Set[str] = frozenset(),
    ) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.cumulative_logprob = 0.0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.left_engine = False
        self.last_token_time: float | None = None
        self._params = params
        self._tokenizer = tokenizer
        self._logprobs: list[dict[int, Logprob]] = []
        self._texts: list[str] = []
        self._num_taken_texts = 0
        self._num_taken_tokens = 0
        self._taken_finish = False
        self._detokenizer = (
            IncrementalDetokenizer(
                tokenizer,
                request.prompt_token_ids,
                skip_special_tokens=params.skip_special_tokens,
                shown_special_tokens=shown_special_tokens,
            )
            if params.detokenize
            else None
        )
        self._stop = StopStrings(automaton, include=params.include_stop_str_in_output) if automaton else None

    @property
    def has_news(self) -> bool:
        """Whether `take` would show anything that it has not shown yet."""
        return len(self.token_ids) > self._num_taken_tokens or (
            self.finish_reason is not None and not self._taken_finish
        )

    def extend(self, delta: SequenceDelta) -> None:
        """Adds what the engine produced. Ignored once the answer has ended."""
        if delta.finish_reason is not None:
            self.left_engine = True
        if self.finish_reason is not None:
            return
        ended_by_token = delta.finish_reason is FinishReason.STOP and not delta.shows_last_token
        self._append(delta.token_ids, delta.logprobs, hides_last=ended_by_token)
        if self.finish_reason is None and delta.finish_reason is not None:
            self.stop_reason = delta.stop_token_id
            self.finish(delta.finish_reason)

    def finish(self, reason: FinishReason) -> None:
        """Ends the answer and lets go of the text that was held back. No effect on one that has ended."""
        if self.finish_reason is not None:
            return
        self.finish_reason = reason
        if self._detokenizer is not None:
            self._show(self._detokenizer.flush(), final=True)

    def take(self, *, delta: bool) -> CompletionOutput:
        """The answer so far, or with `delta` what is new since the last time."""
        first_text, first_token = (self._num_taken_texts, self._num_taken_tokens) if delta else (0, 0)
        output = self._output(first_text, first_token)
        self._num_taken_texts, self._num_taken_tokens = len(self._texts), len(self.token_ids)
        self._taken_finish = self.finish_reason is not None
        return output

    def whole(self) -> CompletionOutput:
        """The answer so far. Does not change what `take` shows."""
        return self._output(0, 0)

    def _output(self, first_text: int, first_token: int) -> CompletionOutput:
        wants_logprobs = self._params.logprobs is not None
        return CompletionOutput(
            index=self.index,
            text="".join(self._texts[first_text:]),
            token_ids=self.token_ids[first_token:],
            cumulative_logprob=self.cumulative_logprob if wants_logprobs else None,
            logprobs=self._logprobs[first_token:] if wants_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def _append(self, token_ids: list[int], logprobs: list[PositionLogprobs], *, hides_last: bool) -> None:
        shown = count = len(token_ids)
        if hides_last and not self._params.include_stop_str_in_output:
            shown -= 1
        if self._stop is not None:
            count = self._append_until_stop(token_ids, shown)
        elif self._detokenizer is not None and shown:
            self._show(self._detokenizer.append(token_ids[:shown]))
        self.token_ids += token_ids[:count]
        for position in logprobs[:count]:
            self.cumulative_logprob += position.logprobs[0]
            if self._params.logprobs is not None:
                self._logprobs.append(logprobs_dict(position, self._tokenizer if self._detokenizer else None))

    def _append_until_stop(self, token_ids: list[int], shown: int) -> int:
        """Shows the first `shown` tokens, one by one; returns how many count, up to the one that completes a stop."""
        assert self._detokenizer is not None, "stop strings without detokenisation"
        for index in range(shown):
            num_tokens = len(self.token_ids) + index + 1
            text = self._detokenizer.append(token_ids[index : index + 1])
            self._show(text, check=num_tokens >= self._params.min_tokens)
            if self.finish_reason is not None:
                return index + 1
        return len(token_ids)

    def _show(self, text: str, *, final: bool = False, check: bool = True) -> None:
        if self._stop is not None:
            text, stop = self._stop.feed(text, final=final, check=check)
            if stop is not None:
                self.finish_reason, self.stop_reason = FinishReason.STOP, stop
        if text:
            self._texts.append(text)


def logprobs_dict(position: PositionLogprobs, tokenizer: Tokenizer | None) -> dict[int, Logprob]:
    """Log-probabilities by token id: the token that stands there first, then the most likely ones.

    Args:
        position: As the engine reports it; a token that appears twice is kept once.
        tokenizer: Gives the tokens' texts; None leaves them out.
    """
    entries: dict[int, Logprob] = {}
    for token_id, logprob, rank in zip(position.token_ids, position.logprobs, position.ranks, strict=True):
        if token_id not in entries:
            text = tokenizer.token_text(token_id) if tokenizer else None
            entries[token_id] = Logprob(logprob=logprob, rank=rank, decoded_token=text)
    return entries
