"""From deltas to outputs: text, log-probabilities, ends, and what the engine is told to abort."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.errors import ParameterError
from quire.frontend.processor import OutputProcessor
from quire.frontend.tokenizer import Tokenizer
from quire.types.deltas import FinishReason, SequenceDelta, StepOutputs
from quire.types.ids import RequestId
from quire.types.outputs import RequestOutput
from quire.types.plan import PositionLogprobs
from quire.types.request import GenerationRequest
from quire.types.sampling import RequestOutputKind, SamplingParams

few = settings(max_examples=20, deadline=None)

A = RequestId("a")
STOP, LENGTH, ABORT, ERROR = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT, FinishReason.ERROR


def request(tokenizer: Tokenizer, params: SamplingParams, **changes: Any) -> GenerationRequest:
    ids = tokenizer.encode("the fox")
    fields = {"request_id": A, "prompt_token_ids": ids, "sampling": params, "arrival_time": 1.0}
    return GenerationRequest(**{**fields, **changes})


def delta(ids: list[int], sample: int = 0, **fields: Any) -> SequenceDelta:
    return SequenceDelta(request_id=A, sample_index=sample, token_ids=ids, **fields)


def logprobs_of(ids: list[int], values: list[float]) -> PositionLogprobs:
    return PositionLogprobs(token_ids=ids, logprobs=values, ranks=list(range(1, len(ids) + 1)))


class Run:
    """One request in a processor; `feed` gives what is to be shown after a delta."""

    def __init__(self, tokenizer: Tokenizer, user: SamplingParams | None = None, **params: Any) -> None:
        self.processor = OutputProcessor(tokenizer)
        sampling = SamplingParams(**{"max_tokens": 100, "seed": 1, **params})
        self.processor.add(request(tokenizer, sampling), "the fox", user)
        self.aborts: list[RequestId] = []

    def feed(self, *deltas: SequenceDelta, now: float = 2.0) -> RequestOutput | None:
        outputs, aborts = self.processor.apply(StepOutputs(deltas=list(deltas)), now)
        self.aborts += aborts
        assert len(outputs) <= 1
        return outputs[0] if outputs else None

    def last(self, *deltas: SequenceDelta) -> RequestOutput:
        output = self.feed(*deltas)
        assert output is not None
        return output


def test_cumulative_outputs_grow_and_end(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer)
    ids = tokenizer.encode(" the lazy dog")
    first = run.last(delta(ids[:1], num_cached_tokens=3, queue_seconds=0.25))
    assert (first.prompt, first.prompt_token_ids) == ("the fox", tokenizer.encode("the fox"))
    assert (first.finished, first.num_cached_tokens) == (False, 3)
    assert first.outputs[0].token_ids == ids[:1]
    last = run.last(delta(ids[1:], finish_reason=LENGTH))
    answer = last.outputs[0]
    assert (answer.text, answer.token_ids, answer.finish_reason) == (" the lazy dog", ids, LENGTH)
    assert (answer.stop_reason, answer.logprobs, answer.cumulative_logprob) == (None, None, None)
    assert last.finished
    assert run.aborts == []
    assert first.outputs[0].token_ids == ids[:1]


def test_deltas_hold_what_is_new(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, output_kind=RequestOutputKind.DELTA)
    ids = tokenizer.encode("jumps over")
    shown = [run.last(delta([token_id])).outputs[0] for token_id in ids]
    end = run.last(delta([], finish_reason=LENGTH)).outputs[0]
    assert [item.token_ids for item in shown] == [[token_id] for token_id in ids]
    assert "".join(item.text for item in shown) == "jumps over"
    assert (end.text, end.token_ids, end.finish_reason) == ("", [], LENGTH)


def test_final_only_shows_the_end(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, output_kind=RequestOutputKind.FINAL_ONLY)
    ids = tokenizer.encode("jumps over")
    assert run.feed(delta(ids)) is None
    assert run.last(delta([], finish_reason=LENGTH)).outputs[0].text == "jumps over"


def test_a_delta_without_tokens_shows_nothing(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, prompt_logprobs=0)
    assert run.feed(delta([], prompt_logprobs=[logprobs_of([5], [-1.0])])) is None


@pytest.mark.parametrize(("include", "text"), [(False, "over"), (True, "over<|im_end|>")])
@pytest.mark.parametrize(("stop_token_id", "stop_reason"), [(None, None), (2, 2)])
def test_a_stop_token_counts_but_does_not_show(
    tokenizer: Tokenizer, include: bool, text: str, stop_token_id: int | None, stop_reason: int | None
) -> None:
    for stop in ([], ["never"]):
        run = Run(tokenizer, stop=stop, include_stop_str_in_output=include, skip_special_tokens=False)
        ids = [*tokenizer.encode("over"), 2]
        answer = run.last(delta(ids, finish_reason=STOP, stop_token_id=stop_token_id)).outputs[0]
        assert (answer.text, answer.token_ids, answer.stop_reason) == (text, ids, stop_reason)


def test_a_stop_string_ends_the_answer_and_the_request(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, stop=["la", "zz"])
    ids = tokenizer.encode("the lazy dog")
    output = run.last(delta(ids))
    answer = output.outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("the ", STOP, "la")
    assert tokenizer.decode(answer.token_ids).startswith("the la")
    assert not tokenizer.decode(answer.token_ids[:-1]).startswith("the la")
    assert output.finished
    assert run.aborts == [A]
    assert run.feed(delta(ids, finish_reason=LENGTH)) is None
    assert run.aborts == [A]


def test_the_stop_string_wins_over_the_end_of_the_engine(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, stop=["lazy"])
    answer = run.last(delta([*tokenizer.encode("the lazy dog"), 2], finish_reason=STOP)).outputs[0]
    assert (answer.text, answer.stop_reason) == ("the ", "lazy")
    assert run.aborts == []


def test_held_text_comes_at_the_end(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, stop=["dog!"])
    ids = tokenizer.encode("lazy dog")
    assert run.last(delta(ids)).outputs[0].text == "lazy "
    assert run.last(delta([], finish_reason=LENGTH)).outputs[0].text == "lazy dog"


def test_stop_strings_wait_for_min_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a1a1a1")
    for min_tokens, text in [(0, "a"), (2, "a"), (3, "a1a"), (5, "a1a1a")]:
        for batches in ([ids], [[token_id] for token_id in ids]):
            assert len(ids) == 6
            run = Run(tokenizer, stop=["1"], min_tokens=min_tokens)
            outputs = [output for batch in batches if (output := run.feed(delta(batch)))]
            assert outputs[-1].outputs[0].text == text


@few
@given(data=st.data())
def test_however_tokens_are_batched_the_result_is_the_same(
    tokenizer_of: Callable[[str], Tokenizer], data: st.DataObject
) -> None:
    tokenizer = tokenizer_of("byte_level")
    ids = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=15))
    params: dict[str, Any] = {
        "stop": data.draw(st.lists(st.sampled_from(["a", "b", "th", "!", " "]), max_size=2)),
        "min_tokens": data.draw(st.integers(0, 4)),
        "include_stop_str_in_output": data.draw(st.booleans()),
        "logprobs": 0,
    }
    entries = [logprobs_of([token_id], [-float(index)]) for index, token_id in enumerate(ids)]
    whole = Run(tokenizer, **params).last(delta(ids, logprobs=entries, finish_reason=LENGTH))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    run = Run(tokenizer, **params, output_kind=RequestOutputKind.DELTA)
    shown = []
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        reason = LENGTH if end == len(ids) else None
        shown.append(run.feed(delta(ids[start:end], logprobs=entries[start:end], finish_reason=reason)))
    answers = [output.outputs[0] for output in shown if output is not None]
    assert "".join(answer.text for answer in answers) == whole.outputs[0].text
    assert [token_id for answer in answers for token_id in answer.token_ids] == whole.outputs[0].token_ids
    assert answers[-1].cumulative_logprob == whole.outputs[0].cumulative_logprob
    assert (answers[-1].finish_reason, answers[-1].stop_reason) == (
        whole.outputs[0].finish_reason,
        whole.outputs[0].stop_reason,
    )


def test_without_detokenisation_there_is_no_text(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, detokenize=False, logprobs=1)
    entry = logprobs_of([7, 8], [-2.0, -0.5])
    answer = run.last(delta([7], logprobs=[entry], finish_reason=LENGTH)).outputs[0]
    assert answer.text == ""
    assert answer.logprobs is not None
    assert answer.logprobs[0][7].decoded_token is None


# Log-probabilities


def test_the_tokens_own_entry_comes_first_and_once(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, logprobs=2)
    the, fox = tokenizer.encode("a"), tokenizer.encode("b")
    entries = [
        PositionLogprobs([the[0], fox[0], 9], [-3.0, -0.5, -1.0], [7, 1, 2]),
        PositionLogprobs([fox[0], fox[0], 9], [-0.5, -0.5, -1.0], [1, 1, 2]),
    ]
    answer = run.last(delta([the[0], fox[0]], logprobs=entries, finish_reason=LENGTH)).outputs[0]
    assert answer.logprobs is not None
    assert [list(position) for position in answer.logprobs] == [[the[0], fox[0], 9], [fox[0], 9]]
    entry = answer.logprobs[0][the[0]]
    assert (entry.logprob, entry.rank, entry.decoded_token) == (-3.0, 7, "a")
    assert answer.cumulative_logprob == -3.5


def test_logprobs_end_where_the_tokens_do(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, logprobs=0, stop=["1"])
    ids = tokenizer.encode("a1a")
    answer = run.last(delta(ids, logprobs=[logprobs_of([i], [-1.0]) for i in ids])).outputs[0]
    assert answer.logprobs is not None
    assert (len(answer.logprobs), answer.cumulative_logprob) == (2, -2.0)


def test_prompt_logprobs_begin_with_none_and_are_shown_once_in_deltas(tokenizer: Tokenizer) -> None:
    for kind, again in [(RequestOutputKind.DELTA, None), (RequestOutputKind.CUMULATIVE, 3)]:
        run = Run(tokenizer, prompt_logprobs=0, output_kind=kind)
        assert run.feed(delta([], prompt_logprobs=[logprobs_of([4], [-1.0])])) is None
        first = run.last(delta([5], prompt_logprobs=[logprobs_of([6], [-2.0])]))
        assert first.prompt_logprobs is not None
        assert first.prompt_logprobs[0] is None
        assert [list(entry) for entry in first.prompt_logprobs[1:] if entry] == [[4], [6]]
        second = run.last(delta([6])).prompt_logprobs
        assert (second and len(second)) == again


# Several samples


def test_samples_end_one_by_one(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, n=2, stop=["1"])
    ids = tokenizer.encode("a1")
    first = run.last(delta(ids, 0), delta(ids[:1], 1))
    assert [answer.finish_reason for answer in first.outputs] == [STOP, None]
    assert (first.finished, run.aborts) == (False, [])
    again = run.last(delta(ids, 0), delta(ids[:1], 1))
    assert [answer.text for answer in again.outputs] == ["a", "aa"]
    last = run.last(delta(ids[1:], 1))
    assert (last.finished, run.aborts) == (True, [A])
    assert [answer.index for answer in last.outputs] == [0, 1]


def test_deltas_name_only_the_samples_with_news(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, n=3, output_kind=RequestOutputKind.DELTA)
    ids = tokenizer.encode("a")
    assert [answer.index for answer in run.last(delta(ids, 1)).outputs] == [1]
    assert [answer.index for answer in run.last(delta(ids, 0), delta([], 1, finish_reason=LENGTH)).outputs] == [0, 1]
    output = run.last(delta(ids, 2, finish_reason=LENGTH))
    assert ([answer.index for answer in output.outputs], output.finished) == ([2], False)
    assert run.last(delta([], 0, finish_reason=LENGTH)).finished


def test_best_of_returns_the_most_likely_renumbered(tokenizer: Tokenizer) -> None:
    user = SamplingParams(n=2, best_of=3, max_tokens=100, seed=1)
    run = Run(tokenizer, user, n=2, best_of=3, logprobs=0)
    ids = tokenizer.encode("a")
    for index, value in enumerate([-5.0, -1.0, -3.0]):
        entry = logprobs_of(ids, [value])
        output = run.feed(delta(ids * (index + 1), index, logprobs=[entry] * (index + 1), finish_reason=LENGTH))
        assert (output is None) == (index < 2)
    assert output is not None
    assert [(answer.index, answer.text) for answer in output.outputs] == [(0, "aa"), (1, "a")]
    assert [(answer.logprobs, answer.cumulative_logprob) for answer in output.outputs] == [(None, None)] * 2


# Ends


def test_an_error_ends_the_whole_request(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, n=2)
    run.feed(delta(tokenizer.encode("a"), 0))
    output = run.last(delta([], 1, finish_reason=ERROR, error="out of pages"))
    assert (output.error, output.finished, run.aborts) == ("out of pages", True, [A])
    assert [answer.finish_reason for answer in output.outputs] == [ERROR, ERROR]


def test_an_output_that_cannot_be_processed_fails_only_its_request(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tokenizer, logprobs=1)
    other = RequestId("b")
    run.processor.add(request(tokenizer, SamplingParams(seed=1), request_id=other))
    broken = delta([5], logprobs=[PositionLogprobs([5], [], [])])
    good = SequenceDelta(request_id=other, sample_index=0, token_ids=[5])
    outputs, aborts = run.processor.apply([broken, good], 2.0)
    assert [(output.request_id, output.error is None) for output in outputs] == [("a", False), ("b", True)]
    assert aborts == [A]
    assert "request a fails" in caplog.text


def test_abort_keeps_what_was_produced(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, stop=["fox!"], output_kind=RequestOutputKind.DELTA)
    run.feed(delta(tokenizer.encode("the fox")))
    (state,) = run.processor.abort([A, RequestId("unknown")], 3.0)
    output = state.take()
    assert output is not None
    assert [(answer.text, answer.finish_reason) for answer in output.outputs] == [("fox", ABORT)]
    assert (state.take(), len(run.processor)) == (None, 0)
    assert run.feed(delta([5])) is None


def test_ids_are_unique_among_running_requests(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer)
    with pytest.raises(ParameterError, match="request_id"):
        run.processor.add(request(tokenizer, SamplingParams(seed=1)))
    run.feed(delta([5], finish_reason=LENGTH))
    run.processor.add(request(tokenizer, SamplingParams(seed=1)))
    assert A in run.processor


def test_replay_carries_what_was_produced(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, n=2)
    run.feed(delta([5, 6], 0), delta([7], 1))
    run.feed(delta([8], 0))
    replayed = run.processor.replay_request(A)
    assert replayed.produced_token_ids == ((5, 6, 8), (7,))
    assert replayed.prompt_token_ids == tokenizer.encode("the fox")


def test_metrics_say_when_things_happened(tokenizer: Tokenizer) -> None:
    seen: list[tuple[int, float, bool]] = []
    processor = OutputProcessor(tokenizer, on_tokens=lambda *values: seen.append(values))
    processor.add(request(tokenizer, SamplingParams(max_tokens=9, seed=1)))
    processor.apply([delta([5], queue_seconds=0.5)], 2.0)
    processor.apply([delta([5, 6])], 2.5)
    (output,), _ = processor.apply([delta([], finish_reason=LENGTH)], 3.0)
    metrics = output.metrics
    assert metrics is not None
    assert (metrics.arrival_time, metrics.queue_seconds) == (1.0, 0.5)
    assert (metrics.first_token_time, metrics.last_token_time, metrics.finished_time) == (2.0, 2.5, 3.0)
    assert seen == [(1, 1.0, True), (2, 0.5, False)]


def test_outputs_that_were_not_taken_are_merged(tokenizer: Tokenizer) -> None:
    processor = OutputProcessor(tokenizer)
    params = SamplingParams(max_tokens=9, seed=1, output_kind=RequestOutputKind.DELTA)
    state = processor.add(request(tokenizer, params))
    ids = tokenizer.encode("jumps over")
    for token_id in ids:
        processor.update([delta([token_id])], 2.0)
    output = state.take()
    assert output is not None
    assert (output.outputs[0].text, output.outputs[0].token_ids) == ("jumps over", ids)
    assert state.take() is None
