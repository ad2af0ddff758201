"""From the engine's deltas to what users see. Pure: no clock and no I/O of its own."""

import logging
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field, replace

from quire.errors import ParameterError
from quire.frontend.sample import Sample, logprobs_dict
from quire.frontend.stop_strings import StopAutomaton
from quire.frontend.tokenizer import Tokenizer
from quire.types.deltas import FinishReason, SequenceDelta, StepOutputs
from quire.types.ids import RequestId
from quire.types.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from quire.types.request import GenerationRequest
from quire.types.sampling import RequestOutputKind, SamplingParams

logger = logging.getLogger("quire.frontend")

TokensCallback = Callable[[int, float, bool], None]
"""Called with the number of new tokens of a sample, the seconds since its last ones (or since the request's
arrival), and whether they are its first."""


class RequestState:
    """One request: everything that it has produced, and what of it was shown.

    Args:
        prompt: Its text, None where ids were given.
        params: As the user gave them, with what was left open filled in.
        shown_special_tokens: Control tokens whose texts are shown even if `params` hide them.

    Attributes:
        shows_progress: Whether `take` has anything before the end.
        finished: Whether every sample has ended.
        left_queue: Whether the engine is known to have begun with it; kept for whoever follows it.
        error: Why it failed; None otherwise.
        blames_request: Whether its own parameters are why.
        metrics: When things happened; the same object in every output.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: str | None,
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        shown_special_tokens: Set[str] = frozenset(),
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.params = params
        self.shows_progress = params.shows_progress
        self.finished = False
        self.left_queue = False
        self.error: str | None = None
        self.blames_request = False
        self.num_cached_tokens: int | None = None
        self.metrics = RequestMetrics(arrival_time=request.arrival_time)
        automaton = StopAutomaton(params.stop) if params.stop and params.detokenize else None
        self.samples = [
            Sample(index, request, params, tokenizer, automaton, shown_special_tokens)
            for index in range(params.num_samples)
        ]
        self._tokenizer = tokenizer
        self._prompt_logprobs: list[dict[int, Logprob] | None] = [None]
        self._prompt_logprobs_taken = False
        self._final_taken = False

    @property
    def left_engine(self) -> bool:
        """Whether the engine holds none of its samples any more."""
        return all(sample.left_engine for sample in self.samples)

    def apply(self, delta: SequenceDelta, now: float, on_tokens: TokensCallback | None = None) -> None:
        """Adds what the engine produced for one sample. What comes after that sample's end is ignored."""
        sample = self.samples[delta.sample_index]
        if delta.num_cached_tokens is not None or delta.queue_seconds is not None or delta.prompt_logprobs:
            self._note_prompt(delta)
        if delta.token_ids and sample.finish_reason is None:
            self._note_tokens(sample, len(delta.token_ids), now, on_tokens)
        sample.extend(delta)
        self.metrics.num_preemptions += delta.num_preemptions
        if delta.finish_reason is FinishReason.ERROR:
            self.blames_request = delta.blames_request
            self.fail(delta.error or "the request failed in the engine", now)
        if sample.finish_reason is not None:
            self._note_finish(now)

    def fail(self, error: str, now: float) -> None:
        """Ends all samples with an error."""
        self.error = error
        self.end(FinishReason.ERROR, now)

    def end(self, reason: FinishReason, now: float) -> None:
        """Ends the samples that still run."""
        for sample in self.samples:
            sample.finish(reason)
        self._note_finish(now)

    def take(self) -> RequestOutput | None:
        """What to show now, by the request's output kind; None if there is nothing new.

        However much has come since the last time, it is one output. Modifies what counts as new.
        """
        if self._final_taken:
            return None
        finished = self.finished
        kind = self.params.output_kind
        if not self.shows_progress:
            if not finished:
                return None
            completions = self._best_samples()
        else:
            changed = [sample for sample in self.samples if sample.has_news]
            if not changed:
                return None
            is_delta = kind is RequestOutputKind.DELTA
            completions = [sample.take(delta=is_delta) for sample in (changed if is_delta else self.samples)]
        self._final_taken = finished
        once = kind is RequestOutputKind.DELTA and self._prompt_logprobs_taken
        self._prompt_logprobs_taken = True
        return self._output(completions, with_prompt_logprobs=not once)

    def whole(self) -> RequestOutput:
        """Everything so far. Does not change what `take` shows."""
        return self._output([sample.whole() for sample in self.samples], with_prompt_logprobs=True)

    def replay_request(self) -> GenerationRequest:
        """The request as another engine can go on with it."""
        return replace(self.request, produced_token_ids=tuple(tuple(sample.token_ids) for sample in self.samples))

    def _best_samples(self) -> list[CompletionOutput]:
        """All samples, or with `best_of` the `n` most likely ones, best first and numbered anew."""
        samples = self.samples
        if len(samples) > self.params.n:
            samples = sorted(samples, key=lambda sample: -sample.cumulative_logprob)[: self.params.n]
        completions = [sample.take(delta=False) for sample in samples]
        for index, completion in enumerate(completions):
            completion.index = index
        return completions

    def _output(self, completions: list[CompletionOutput], *, with_prompt_logprobs: bool) -> RequestOutput:
        wanted = self.params.prompt_logprobs is not None and with_prompt_logprobs
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=completions,
            finished=self.finished,
            prompt_logprobs=list(self._prompt_logprobs) if wanted else None,
            num_cached_tokens=self.num_cached_tokens,
            metrics=self.metrics,
            error=self.error,
            blames_request=self.blames_request,
        )

    def _note_prompt(self, delta: SequenceDelta) -> None:
        if delta.sample_index != 0:
            return
        if self.num_cached_tokens is None:
            self.num_cached_tokens = delta.num_cached_tokens
        if self.metrics.queue_seconds is None:
            self.metrics.queue_seconds = delta.queue_seconds
        tokenizer = self._tokenizer if self.params.detokenize else None
        self._prompt_logprobs += [logprobs_dict(position, tokenizer) for position in delta.prompt_logprobs]

    def _note_tokens(self, sample: Sample, count: int, now: float, on_tokens: TokensCallback | None) -> None:
        first = sample.last_token_time is None
        since = self.metrics.arrival_time if sample.last_token_time is None else sample.last_token_time
        sample.last_token_time = self.metrics.last_token_time = now
        if self.metrics.first_token_time is None:
            self.metrics.first_token_time = now
        if on_tokens is not None:
            on_tokens(count, now - since, first)

    def _note_finish(self, now: float) -> None:
        if not self.finished and all(sample.finish_reason is not None for sample in self.samples):
            self.finished = True
            self.metrics.finished_time = now


@dataclass(slots=True)
class ProcessorUpdate:
    """What a batch of deltas changed.

    Attributes:
        changed: Requests with something new, each once; the finished ones are no longer in the processor.
        aborts: Requests that have finished here while the engine still works on them: to be aborted there.
    """

    changed: list[RequestState] = field(default_factory=list)
    aborts: list[RequestId] = field(default_factory=list)


class OutputProcessor:
    """The requests that run, by id. Shared by offline and online use.

    Args:
        on_tokens: Told about every batch of tokens, for metrics.
    """

    def __init__(self, tokenizer: Tokenizer, *, on_tokens: TokensCallback | None = None) -> None:
        self._tokenizer = tokenizer
        self._on_tokens = on_tokens
        self._states: dict[RequestId, RequestState] = {}

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._states

    def add(
        self,
        request: GenerationRequest,
        prompt: str | None = None,
        params: SamplingParams | None = None,
        *,
        shown_special_tokens: Set[str] = frozenset(),
    ) -> RequestState:
        """Begins to follow a request.

        Args:
            request: As the engine gets it.
            prompt: Its text, shown in the outputs.
            params: As the user gave them; default is `request.sampling`.
            shown_special_tokens: Control tokens whose texts are shown even if `params` hide them.

        Raises:
            ParameterError: A request of that id runs already.
        """
        if request.request_id in self._states:
            raise ParameterError("request_id", "unique among the running requests", request.request_id)
        state = RequestState(
            request, prompt, params or request.sampling, self._tokenizer, shown_special_tokens=shown_special_tokens
        )
        self._states[request.request_id] = state
        return state

    def apply(
        self, outputs: StepOutputs | Iterable[SequenceDelta], now: float
    ) -> tuple[list[RequestOutput], list[RequestId]]:
        """Adds deltas. Returns what there is to show now, and the requests to abort in the engine."""
        update = self.update(outputs, now)
        shown = [output for state in update.changed if (output := state.take()) is not None]
        return shown, update.aborts

    def update(self, outputs: StepOutputs | Iterable[SequenceDelta], now: float) -> ProcessorUpdate:
        """As `apply`, for callers that take the outputs later: `RequestState.take` merges what has come."""
        changed: dict[RequestId, RequestState] = {}
        for delta in outputs.deltas if isinstance(outputs, StepOutputs) else outputs:
            state = self._states.get(delta.request_id)
            if state is not None:
                self._apply_delta(state, delta, now)
                changed[delta.request_id] = state
        update = ProcessorUpdate(changed=list(changed.values()))
        for request_id, state in changed.items():
            if state.finished:
                del self._states[request_id]
                if not state.left_engine:
                    update.aborts.append(request_id)
        return update

    def abort(self, request_ids: Iterable[RequestId], now: float) -> list[RequestState]:
        """Ends requests on the user's wish and stops following them. Unknown ids have no effect.

        Their last output has what they produced and `FinishReason.ABORT`. The caller tells the engine.
        """
        states = self._pop(request_ids)
        for state in states:
            state.end(FinishReason.ABORT, now)
        return states

    def fail(self, request_ids: Iterable[RequestId], error: str, now: float) -> list[RequestState]:
        """As `abort`, for requests that an error ends."""
        states = self._pop(request_ids)
        for state in states:
            state.fail(error, now)
        return states

    def replay_request(self, request_id: RequestId) -> GenerationRequest:
        """A running request as another engine can go on with it, with the tokens that it has produced."""
        return self._states[request_id].replay_request()

    def _pop(self, request_ids: Iterable[RequestId]) -> list[RequestState]:
        return [state for request_id in request_ids if (state := self._states.pop(request_id, None)) is not None]

    def _apply_delta(self, state: RequestState, delta: SequenceDelta, now: float) -> None:
        try:
            state.apply(delta, now, self._on_tokens)
        except Exception:
            logger.exception("request %s fails: its output cannot be processed", state.request.request_id)
            state.fail("the output of this request cannot be processed", now)
