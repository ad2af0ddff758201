"""Outputs on their way to a reader that may be slow."""

import threading

from quire.engine import wire
from quire.types.deltas import SequenceDelta, StepOutputs
from quire.types.ids import RequestId

MAX_PENDING = 64
"""Steps that may wait before they are merged into one."""


class Outbox:
    """Hands outputs and answers from the loop to the thread that sends them. `put` and `put_answer` never block.

    A reader that does not keep up finds its steps merged into one, so that what waits is bounded by the tokens
    of the requests in the engine, and not by the number of steps.
    """

    def __init__(self) -> None:
        self._pending: list[StepOutputs] = []
        self._answers: list[wire.Profiled] = []
        self._changed = threading.Condition()
        self._closed = False

    def put(self, outputs: StepOutputs) -> None:
        """Adds what a step produced."""
        with self._changed:
            self._pending.append(outputs)
            if len(self._pending) > MAX_PENDING:
                self._pending = [merge(self._pending)]
            self._changed.notify()

    def put_answer(self, answer: wire.Profiled) -> None:
        """Adds the answer to a question of the front end."""
        with self._changed:
            self._answers.append(answer)
            self._changed.notify()

    def take(self) -> list[wire.Outputs | wire.Profiled]:
        """Waits for something to send and takes all; empty once the box is closed and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._answers or self._closed)
            taken: list[wire.Outputs | wire.Profiled] = [*self._answers]
            if self._pending:
                taken.append(wire.Outputs(outputs=self._pending))
            self._pending, self._answers = [], []
            return taken

    def close(self) -> None:
        """Lets `take` return empty once everything has been taken."""
        with self._changed:
            self._closed = True
            self._changed.notify()


def merge(steps: list[StepOutputs]) -> StepOutputs:
    """One output that says the same as `steps`, with one delta per sample."""
    merged: dict[tuple[RequestId, int], SequenceDelta] = {}
    for step in steps:
        for delta in step.deltas:
            key = (delta.request_id, delta.sample_index)
            if key in merged:
                _extend(merged[key], delta)
            else:
                merged[key] = delta
    stats = next((step.stats for step in reversed(steps) if step.stats is not None), None)
    return StepOutputs(deltas=list(merged.values()), stats=stats)


def _extend(first: SequenceDelta, later: SequenceDelta) -> None:
    """Appends `later` to `first`, which is modified."""
    first.token_ids = first.token_ids + later.token_ids
    first.logprobs = first.logprobs + later.logprobs
    first.prompt_logprobs = first.prompt_logprobs + later.prompt_logprobs
    first.finish_reason = later.finish_reason
    first.stop_token_id = later.stop_token_id
    first.shows_last_token = later.shows_last_token
    first.error = later.error
    first.blames_request = later.blames_request
    first.num_preemptions = later.num_preemptions
    if first.num_cached_tokens is None:
        first.num_cached_tokens = later.num_cached_tokens
        first.queue_seconds = later.queue_seconds
