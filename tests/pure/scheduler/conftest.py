from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from quire.engine.stop import make_stop_check
from quire.errors import StepFailedError
from quire.kvcache.manager import KVCacheManager
from quire.scheduler.scheduler import Scheduler
from quire.testing.clock import VirtualClock
from quire.testing.fake_executor import FakeExecutor
from quire.types.deltas import SequenceDelta
from quire.types.plan import StepPlan


class Bench:
    """A scheduler and a fake executor whose steps are taken one half at a time."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 64,
        max_num_prompt_tokens: int | None = None,
        max_model_len: int = 1000,
        policy: str = "fcfs",
        enable_prefix_caching: bool = True,
    ) -> None:
        self.clock = VirtualClock()
        self.cache = KVCacheManager(
            num_blocks=num_blocks, block_size=block_size, enable_prefix_caching=enable_prefix_caching
        )
        self.scheduler = Scheduler(
            cache=self.cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_prompt_tokens=max_num_prompt_tokens,
            max_model_len=max_model_len,
            policy=policy,
            check_stop=make_stop_check(max_model_len),
        )
        self.executor = FakeExecutor(
            clock=self.clock,
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_batched_tokens=max_num_batched_tokens,
        )
        self.in_flight: deque[StepPlan] = deque()
        self.deltas: list[SequenceDelta] = []

    def schedule(self) -> StepPlan | None:
        plan = self.scheduler.schedule(self.clock())
        self.deltas += self.scheduler.take_rejected()
        if plan is not None:
            self.executor.submit(plan)
            self.in_flight.append(plan)
        self.scheduler.check_invariants()
        return plan

    def update(self) -> list[SequenceDelta]:
        plan = self.in_flight.popleft()
        try:
            deltas = self.scheduler.update(plan, self.executor.wait())
        except StepFailedError as error:
            deltas = self.scheduler.fail(plan, error.message)
        self.deltas += deltas
        self.scheduler.check_invariants()
        return deltas

    def step(self) -> StepPlan | None:
        """One step, with none left in flight."""
        plan = self.schedule()
        if plan is not None:
            self.update()
        return plan

    def finish(self, max_steps: int = 5000) -> None:
        """Runs to the end with two steps in flight."""
        for _ in range(max_steps):
            while len(self.in_flight) < 2 and self.schedule() is not None:
                pass
            if not self.in_flight:
                break
            self.update()
        assert not self.scheduler.has_unfinished, "the scheduler stands still with work to do"
        assert self.cache.num_free_blocks == self.cache.num_blocks

    def tokens(self, request_id: str, sample_index: int = 0) -> list[int]:
        return [token for delta in self._deltas_of(request_id, sample_index) for token in delta.token_ids]

    def end(self, request_id: str, sample_index: int = 0) -> SequenceDelta:
        """The last delta of a sample that has ended."""
        ends = [delta for delta in self._deltas_of(request_id, sample_index) if delta.finish_reason is not None]
        assert len(ends) == 1, f"{request_id}[{sample_index}] has ended {len(ends)} times"
        return ends[0]

    def _deltas_of(self, request_id: str, sample_index: int) -> list[SequenceDelta]:
        return [d for d in self.deltas if (d.request_id, d.sample_index) == (request_id, sample_index)]


@pytest.fixture
def make_bench() -> Callable[..., Any]:
    return Bench
