"""Outputs wait for a slow reader without blocking the loop and without growing."""

import threading

from quire.engine import wire
from quire.engine.outbox import MAX_PENDING, Outbox, merge
from quire.types.deltas import FinishReason, SequenceDelta, StepOutputs
from quire.types.ids import RequestId
from quire.types.plan import PositionLogprobs
from quire.types.stats import CacheStats, EngineStats


def delta(name: str, *token_ids: int, sample_index: int = 0, **fields: object) -> SequenceDelta:
    return SequenceDelta(RequestId(name), sample_index, list(token_ids), **fields)  # type: ignore[arg-type]


def stats(step: int) -> EngineStats:
    return EngineStats(step, 1, 0, 0, 0, 0, 0, 0.0, CacheStats())


def test_merge_keeps_every_token_and_the_end() -> None:
    logprobs = [PositionLogprobs([1], [-0.5], [1])]
    steps = [
        StepOutputs(
            [delta("a", 1, num_cached_tokens=16, queue_seconds=0.5, logprobs=logprobs), delta("b", 7)], stats(1)
        ),
        StepOutputs([delta("a", 2, logprobs=logprobs), delta("a", 5, sample_index=1)], stats(2)),
        StepOutputs([delta("a", 3, finish_reason=FinishReason.STOP, stop_token_id=3)]),
    ]
    merged = merge(steps)
    assert merged.stats == stats(2)
    first, other_request, other_sample = merged.deltas
    assert first.token_ids == [1, 2, 3]
    assert first.logprobs == logprobs * 2
    assert (first.finish_reason, first.stop_token_id) == (FinishReason.STOP, 3)
    assert (first.num_cached_tokens, first.queue_seconds) == (16, 0.5)
    assert (other_request.request_id, other_request.token_ids) == ("b", [7])
    assert (other_sample.sample_index, other_sample.token_ids) == (1, [5])


def test_a_reader_that_sleeps_finds_one_merged_output() -> None:
    outbox = Outbox()
    for token_id in range(10 * MAX_PENDING):
        outbox.put(StepOutputs([delta("a", token_id)]))
    (message,) = outbox.take()
    assert isinstance(message, wire.Outputs)
    assert len(message.outputs) <= MAX_PENDING
    assert [t for step in message.outputs for d in step.deltas for t in d.token_ids] == list(range(10 * MAX_PENDING))


def test_take_waits_for_put_and_ends_after_close() -> None:
    outbox = Outbox()
    received: list[wire.Outputs | wire.Profiled] = []

    def read() -> None:
        while taken := outbox.take():
            received.extend(taken)

    reader = threading.Thread(target=read)
    reader.start()
    outbox.put(StepOutputs([delta("a", 1)]))
    outbox.close()
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert received == [wire.Outputs([StepOutputs([delta("a", 1)])])]


def test_an_answer_is_taken_with_the_outputs_and_without_any() -> None:
    outbox = Outbox()
    started, ended = wire.Profiled(), wire.Profiled(path="trace")
    outbox.put_answer(started)
    assert outbox.take() == [started]
    outbox.put(StepOutputs([delta("a", 1)]))
    outbox.put_answer(ended)
    outbox.close()
    assert outbox.take() == [ended, wire.Outputs([StepOutputs([delta("a", 1)])])]
    assert outbox.take() == []
