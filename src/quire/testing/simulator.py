"""A discrete-event simulation: the real loop, scheduler and KV cache on a virtual clock.

Steps take what a `CostModel` says; the host takes no time. Nothing else is simplified: requests arrive between
steps, two steps are in flight, and `FakeExecutor` checks every plan.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from quire.engine.grammar import GrammarVocabulary
from quire.engine.grammar_compiler import GrammarCompiler, GrammarIntake
from quire.engine.grammar_masks import MaskMaker
from quire.engine.loop import EngineLoop
from quire.engine.stop import make_stop_check
from quire.kvcache.manager import KVCacheManager
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Sequence
from quire.testing.clock import VirtualClock
from quire.testing.fake_executor import CostModel, FakeExecutor
from quire.types.deltas import FinishReason, SequenceDelta, StepOutputs
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest
from quire.types.stats import EngineStats


@dataclass(slots=True)
class SampleTimeline:
    """What one sample produced, and when, in seconds on the virtual clock."""

    token_ids: list[int] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)
    finish_time: float | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    num_preemptions: int = 0

    @property
    def inter_token_seconds(self) -> list[float]:
        """Time between each token and the next."""
        return [after - before for before, after in pairwise(self.token_times)]


@dataclass(slots=True)
class RequestTimeline:
    """What became of one request. An aborted one keeps what it had produced and has no finish reason."""

    request: GenerationRequest
    samples: list[SampleTimeline]
    num_cached_tokens: int | None = None
    queue_seconds: float | None = None
    aborted_time: float | None = None

    @property
    def ttft_seconds(self) -> float:
        """From arrival to the first token of any sample; infinite if none came."""
        times = [sample.token_times[0] for sample in self.samples if sample.token_times]
        return min(times, default=float("inf")) - self.request.arrival_time

    @property
    def inter_token_seconds(self) -> list[float]:
        """Of all samples."""
        return [seconds for sample in self.samples for seconds in sample.inter_token_seconds]

    @property
    def finish_time(self) -> float:
        """When the last sample ended; infinite if one has not."""
        return max(float("inf") if sample.finish_time is None else sample.finish_time for sample in self.samples)

    @property
    def token_ids(self) -> list[int]:
        """Those of the first sample."""
        return self.samples[0].token_ids


@dataclass(slots=True)
class SimulationReport:
    """A run from the first arrival to the end of the last request.

    Attributes:
        num_computed_tokens: Tokens that steps have computed, those computed again after preemptions included.
        largest_step: Tokens of the largest step.
        max_waiting: Most sequences that waited after any step.
        stats: The engine's own counters at the end.
    """

    timelines: dict[RequestId, RequestTimeline]
    num_steps: int
    num_computed_tokens: int
    largest_step: int
    max_waiting: int
    seconds: float
    stats: EngineStats

    @property
    def num_preemptions(self) -> int:
        """Of all sequences."""
        return self.stats.num_preemptions

    @property
    def tokens(self) -> dict[tuple[RequestId, int], list[int]]:
        """Produced tokens by request and sample."""
        return {
            (request_id, index): sample.token_ids
            for request_id, timeline in self.timelines.items()
            for index, sample in enumerate(timeline.samples)
        }


class Simulation:
    """An engine of a given size. Each `run` starts with a fresh one, which stays in the attributes.

    Args:
        check_invariants: Check scheduler and cache after every step; slow.
        vocabulary: Of the grammars of requests, over the tokens of `FakeExecutor`; None where they have none.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 1024,
        block_size: int = 16,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        max_num_prompt_tokens: int | None = None,
        max_model_len: int = 1 << 20,
        policy: str = "fcfs",
        enable_prefix_caching: bool = True,
        steps_in_flight: int = 2,
        cost: CostModel | None = None,
        check_invariants: bool = False,
        vocabulary: GrammarVocabulary | None = None,
    ) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_num_prompt_tokens = max_num_prompt_tokens
        self._max_model_len = max_model_len
        self._policy = policy
        self._enable_prefix_caching = enable_prefix_caching
        self._steps_in_flight = steps_in_flight
        self._cost = cost
        self._check_invariants = check_invariants
        self._compiler = None if vocabulary is None else GrammarCompiler(lambda: vocabulary)
        self._masks = None if vocabulary is None else MaskMaker(vocabulary.vocab_size)
        self._build()

    def _build(self) -> None:
        self.clock = VirtualClock()
        self.cache = KVCacheManager(
            num_blocks=self._num_blocks,
            block_size=self._block_size,
            enable_prefix_caching=self._enable_prefix_caching,
        )
        self.scheduler = Scheduler(
            cache=self.cache,
            max_num_seqs=self._max_num_seqs,
            max_num_batched_tokens=self._max_num_batched_tokens,
            max_num_prompt_tokens=self._max_num_prompt_tokens,
            max_model_len=self._max_model_len,
            policy=self._policy,
            check_stop=make_stop_check(self._max_model_len),
            make_masks=None if self._masks is None else self._masks.promise,
        )
        self.executor = FakeExecutor(
            clock=self.clock,
            num_blocks=self._num_blocks,
            block_size=self._block_size,
            cost=self._cost,
            max_num_batched_tokens=self._max_num_batched_tokens,
        )
        intake = None if self._compiler is None else GrammarIntake(self._compiler)
        self.loop = EngineLoop(self.scheduler, self.executor, self.clock, self._steps_in_flight, intake)
        self._timelines: dict[RequestId, RequestTimeline] = {}
        self._sequences: dict[tuple[RequestId, int], Sequence] = {}
        self._max_waiting = 0

    def run(
        self, trace: Iterable[GenerationRequest], *, abort_times: Mapping[RequestId, float] | None = None
    ) -> SimulationReport:
        """Runs all requests to their end.

        Args:
            trace: Need not be sorted.
            abort_times: When to abort requests, by id.

        Raises:
            PlanViolation: The scheduler made a plan that a worker would compute wrongly.
            AssertionError: The engine stands still with work to do, or an invariant does not hold.
        """
        self._build()
        arrivals = deque(sorted(trace, key=lambda request: request.arrival_time))
        aborts = deque(sorted((time, request_id) for request_id, time in (abort_times or {}).items()))
        while arrivals or self.loop.has_unfinished:
            if not self.loop.has_unfinished:
                self.clock.advance_to(arrivals[0].arrival_time)
            while arrivals and arrivals[0].arrival_time <= self.clock():
                self._add(arrivals.popleft())
            while aborts and aborts[0][0] <= self.clock():
                self._abort(aborts.popleft()[1])
            self._step()
        return self._report()

    def _add(self, request: GenerationRequest) -> None:
        samples = [SampleTimeline() for _ in range(request.num_samples)]
        self._timelines[request.request_id] = RequestTimeline(request, samples)
        self.loop.add(request)
        for sequence in self.scheduler.sequences(request.request_id):
            self._sequences[request.request_id, sequence.sample_index] = sequence

    def _abort(self, request_id: RequestId) -> None:
        self.loop.abort(request_id)
        if (timeline := self._timelines.get(request_id)) is not None:
            timeline.aborted_time = self.clock()

    def _step(self) -> None:
        before, num_steps = self.clock(), self.executor.num_steps
        outputs = self.loop.step()
        self._record(outputs)
        self._max_waiting = max(self._max_waiting, self.scheduler.num_waiting)
        if self._check_invariants:
            self.scheduler.check_invariants()
        moved = self.clock() > before or self.executor.num_steps > num_steps or outputs.deltas
        assert moved or not self.loop.has_unfinished, "the engine stands still with work to do"

    def _record(self, outputs: StepOutputs) -> None:
        for delta in outputs.deltas:
            timeline = self._timelines[delta.request_id]
            assert timeline.aborted_time is None, f"{delta.request_id} was aborted and is heard of"
            self._record_delta(timeline, delta)

    def _record_delta(self, timeline: RequestTimeline, delta: SequenceDelta) -> None:
        sample, now = timeline.samples[delta.sample_index], self.clock()
        assert sample.finish_time is None, f"{delta.request_id} has ended and is heard of"
        sample.token_ids += delta.token_ids
        sample.token_times += [now] * len(delta.token_ids)
        if delta.sample_index == 0 and delta.num_cached_tokens is not None:
            timeline.num_cached_tokens = delta.num_cached_tokens
            timeline.queue_seconds = delta.queue_seconds
        if delta.finish_reason is not None:
            sample.finish_time, sample.finish_reason, sample.error = now, delta.finish_reason, delta.error

    def _report(self) -> SimulationReport:
        for (request_id, sample_index), sequence in self._sequences.items():
            self._timelines[request_id].samples[sample_index].num_preemptions = sequence.num_preemptions
        return SimulationReport(
            timelines=self._timelines,
            num_steps=self.executor.num_steps,
            num_computed_tokens=self.executor.num_computed_tokens,
            largest_step=self.executor.largest_step,
            max_waiting=self._max_waiting,
            seconds=self.clock(),
            stats=self.scheduler.statistics(),
        )
