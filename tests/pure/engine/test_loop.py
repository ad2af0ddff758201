"""How many steps the loop has in flight, and what that means for a request that comes while they run."""

import pytest

from quire.engine.loop import EngineLoop
from quire.engine.stop import make_stop_check
from quire.kvcache.manager import KVCacheManager
from quire.scheduler.scheduler import Scheduler
from quire.testing.clock import VirtualClock
from quire.testing.fake_executor import FakeExecutor
from quire.testing.traces import make_request
from quire.types.plan import StepPlan, StepResult

MAX_MODEL_LEN = 1024


class Recorder(FakeExecutor):
    """Notes for each step its tokens and how many are in flight with it."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock=clock, num_blocks=256)
        self.steps: list[tuple[list[int], int]] = []
        self._depth = 0

    def submit(self, plan: StepPlan) -> None:
        self._depth += 1
        self.steps.append((list(plan.num_tokens), self._depth))
        super().submit(plan)

    def wait(self) -> StepResult:
        self._depth -= 1
        return super().wait()


@pytest.fixture
def run():
    """Runs a prompt of two steps, with another request that comes after the first turn; the steps that came of it."""

    def run(*, overlaps_prompts: bool, steps_in_flight: int = 2) -> list[tuple[list[int], int]]:
        clock = VirtualClock()
        executor = Recorder(clock)
        scheduler = Scheduler(
            cache=KVCacheManager(num_blocks=256),
            max_num_seqs=4,
            max_num_batched_tokens=40,
            max_model_len=MAX_MODEL_LEN,
            check_stop=make_stop_check(MAX_MODEL_LEN),
        )
        loop = EngineLoop(scheduler, executor, clock, steps_in_flight, overlaps_prompts=overlaps_prompts)
        loop.add(make_request("long", list(range(1, 71)), max_tokens=5))
        loop.step()
        loop.add(make_request("late", list(range(1, 6)), max_tokens=3))
        while loop.has_unfinished:
            loop.step()
        return executor.steps

    return run


def test_a_step_is_prepared_while_another_runs(run):
    steps = run(overlaps_prompts=True)
    assert steps[0] == ([40], 1)
    assert steps[1] == ([30], 2), "handed out before the late request came"
    assert steps[2] == ([1, 5], 2)
    assert all(depth == 2 for _, depth in steps[1:])


def test_nothing_is_handed_out_behind_prompts_where_they_take_long(run):
    steps = run(overlaps_prompts=False)
    assert steps[0] == ([40], 1)
    assert steps[1] == ([30, 5], 1), "the late request is in the next step"
    assert steps[2] == ([1, 1], 1), "behind a step with prompts"
    assert [depth for _, depth in steps[3:]] == [2] * len(steps[3:]), "steps of single tokens overlap"
    assert len(steps) > 3


def test_one_step_at_a_time(run):
    assert {depth for _, depth in run(overlaps_prompts=True, steps_in_flight=1)} == {1}
