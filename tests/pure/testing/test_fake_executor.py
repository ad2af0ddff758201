import pytest

from quire.errors import StepFailedError
from quire.testing.clock import VirtualClock
from quire.testing.fake_executor import CostModel, FakeExecutor, PlanViolation
from quire.types.plan import NewSequence, StepPlan, StepResult
from quire.types.sampling import SamplingParams


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor(clock=VirtualClock(), num_blocks=8, block_size=4, max_num_batched_tokens=12)


def new_sequence(sequence_id=1, slot=0, token_ids=(10, 20, 30), computed=0, block_ids=(0,), **fields) -> NewSequence:
    return NewSequence(
        sequence_id=sequence_id,
        slot=slot,
        token_ids=list(token_ids),
        num_prompt_tokens=fields.pop("num_prompt_tokens", len(token_ids)),
        num_computed_tokens=computed,
        block_ids=list(block_ids),
        sampling=SamplingParams(seed=5, **fields),
        seed=5,
        sample_index=0,
    )


def plan_of(step, *rows, **fields) -> StepPlan:
    """Rows are (sequence id, slot, tokens, samples)."""
    ids, slots, num_tokens, samples = (list(column) for column in zip(*rows, strict=True))
    return StepPlan(step=step, sequence_ids=ids, slots=slots, num_tokens=num_tokens, samples=samples, **fields)


def enter(executor, step=1, **fields) -> StepResult:
    new = new_sequence(**fields)
    row = (new.sequence_id, new.slot, len(new.token_ids) - new.num_computed_tokens, True)
    executor.submit(plan_of(step, row, new_sequences=[new]))
    return executor.wait()


def test_tokens_are_those_a_reader_can_predict(executor):
    assert enter(executor).token_ids == [(5 + 3 + 60) % 1000]
    executor.submit(plan_of(2, (1, 0, 1, True)))
    assert executor.wait().token_ids == [(5 + 4 + 128) % 1000]


def test_steps_take_their_time_one_after_the_other():
    clock = VirtualClock(100.0)
    cost = CostModel(base_seconds=1.0, per_token_seconds=0.1)
    executor = FakeExecutor(clock=clock, num_blocks=8, block_size=4, cost=cost)
    executor.submit(plan_of(1, (1, 0, 3, True), new_sequences=[new_sequence()]))
    executor.submit(plan_of(2, (1, 0, 1, True)))
    assert clock() == 100.0
    assert executor.wait().execute_seconds == pytest.approx(1.3)
    assert clock() == pytest.approx(101.3)
    clock.advance(0.5)
    executor.wait()
    assert clock() == pytest.approx(102.4), "the second step began when the first ended, not when it was awaited"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_of(3, (1, 0, 1, True)), "step 3 follows step 1"),
        (StepPlan(step=2), "without sequences"),
        (plan_of(2, (1, 0, 1, True), (1, 0, 1, True)), "a slot runs twice"),
        (plan_of(2, (1, 0, 0, True)), "without tokens"),
        (plan_of(2, (2, 0, 1, True)), "slot 0 holds sequence 1, the plan says 2"),
        (plan_of(2, (1, 1, 1, True)), "slot 1 runs but is empty"),
        (plan_of(2, (1, 0, 2, True)), "computes up to 5 and has 4 tokens"),
        (plan_of(2, (1, 0, 13, True)), "13 tokens exceed 12"),
        (plan_of(2, (1, 0, 1, False)), "at 4 of 4: samples is False"),
        (plan_of(2, (1, 0, 1, True), released_slots=[3]), "slot 3 is released but empty"),
        (plan_of(2, (1, 0, 1, True), new_block_ids={0: [0]}), "a block stands twice"),
        (plan_of(2, (1, 0, 1, True), new_block_ids={0: [8]}), "is not below 8"),
        (plan_of(2, (1, 0, 1, True), new_block_ids={5: [3]}), "blocks for slot 5, which is empty"),
        (plan_of(2, (1, 0, 1, True), block_copies=[(1, 2), (3, 2)]), "copied onto twice"),
        (plan_of(2, (1, 0, 1, True), block_copies=[(1, 2), (2, 3)]), "a copy reads what another writes"),
        (plan_of(2, (1, 0, 1, True), block_copies=[(1, 0)]), "overwrites block 0, which is in use"),
        (plan_of(2, (1, 0, 1, True), new_sequences=[new_sequence(2, 0)]), "slot 0 is filled twice"),
        (plan_of(2, (1, 0, 1, True), new_sequences=[new_sequence(2, 1)]), "and does not run"),
        (plan_of(2, (2, 1, 3, True), new_sequences=[new_sequence(2, 1, computed=3)]), "3 of 3 tokens are computed"),
        (
            plan_of(2, (2, 1, 3, True), new_sequences=[new_sequence(2, 1, num_prompt_tokens=4)]),
            "4 prompt tokens among 3",
        ),
        (
            plan_of(2, (2, 1, 3, True), new_sequences=[new_sequence(2, 1)], new_block_ids={1: [3]}),
            "has just brought its own",
        ),
        (
            plan_of(2, (1, 0, 1, True), (2, 1, 3, True), new_sequences=[new_sequence(2, 1)]),
            "sequences 1 and 2 both write block 0",
        ),
        (
            plan_of(2, (2, 1, 5, True), new_sequences=[new_sequence(2, 1, range(5), block_ids=[1])]),
            "computes up to 5 in blocks for 4",
        ),
        (
            plan_of(2, (2, 1, 1, True), new_sequences=[new_sequence(2, 1, range(5), computed=4, block_ids=[0, 1])]),
            "sequence 2 reads position 0: block 0 holds another sequence's token",
        ),
        (
            plan_of(2, (2, 1, 1, True), new_sequences=[new_sequence(2, 1, range(5), computed=4, block_ids=[3, 1])]),
            "sequence 2 reads position 0: block 3 holds nothing",
        ),
    ],
)
def test_a_plan_that_a_worker_would_compute_wrongly_is_a_violation(executor, plan, message):
    enter(executor)
    with pytest.raises(PlanViolation, match=message):
        executor.submit(plan)


def test_equal_tokens_after_another_prefix_are_not_the_same_content(executor):
    enter(executor, token_ids=[1, 2, 3, 4, 5, 6, 7, 8], block_ids=[0, 1])
    other = new_sequence(2, 1, [9, 2, 3, 4, 5, 6, 7, 8, 1], computed=8, block_ids=[2, 1, 3])
    with pytest.raises(PlanViolation, match="reads position 0: block 2 holds nothing"):
        executor.submit(plan_of(2, (2, 1, 1, True), new_sequences=[other]))


def test_a_block_overwritten_while_in_use_is_found_by_its_reader(executor):
    enter(executor, token_ids=[1, 2, 3, 4, 5], block_ids=[0, 1])
    executor.submit(plan_of(2, (2, 1, 3, True), new_sequences=[new_sequence(2, 1, block_ids=[0])]))
    with pytest.raises(PlanViolation, match="sequence 1 reads position 0"):
        executor.submit(plan_of(3, (1, 0, 1, True)))


def test_a_sequence_may_read_what_another_writes_in_the_same_step(executor):
    first, second = (
        new_sequence(1, 0, [1, 2, 3, 4, 5], block_ids=[0, 1]),
        new_sequence(2, 1, [1, 2, 3, 4, 9], computed=4, block_ids=[0, 2]),
    )
    executor.submit(plan_of(1, (1, 0, 5, True), (2, 1, 1, True), new_sequences=[first, second]))
    assert executor.wait().token_ids == [5 + 5 + 15, 5 + 5 + 19]


def test_copies_come_before_anything_is_written(executor):
    enter(executor, token_ids=[1, 2, 3], block_ids=[0])
    fork = new_sequence(2, 1, [1, 2, 3], computed=2, block_ids=[1])
    plan = plan_of(2, (1, 0, 1, True), (2, 1, 1, True), new_sequences=[fork], block_copies=[(0, 1)])
    executor.submit(plan)
    assert len(executor.wait().token_ids) == 2


def test_logprobs_tell_their_position(executor):
    result = enter(executor, logprobs=0, prompt_logprobs=0)
    assert [entry.token_ids for entry in result.prompt_logprobs[1]] == [[20], [30]]
    assert [entry.logprobs for entry in result.prompt_logprobs[1]] == [[-1.0], [-2.0]]
    assert (result.logprobs[1].token_ids, result.logprobs[1].logprobs) == (result.token_ids, [-3.0])


def test_a_failed_step_has_written_nothing(executor):
    executor.failing_steps[1] = "lost"
    with pytest.raises(StepFailedError, match="lost"):
        enter(executor, token_ids=[1, 2, 3, 4, 5], block_ids=[0, 1])
    reader = new_sequence(2, 1, [1, 2, 3, 4, 9], computed=4, block_ids=[0, 2])
    with pytest.raises(PlanViolation, match="sequence 2 reads position 0: block 0 holds nothing"):
        executor.submit(plan_of(2, (2, 1, 1, True), new_sequences=[reader]))


def test_a_sequence_does_not_run_on_once_its_failed_step_is_known(executor):
    executor.failing_steps[1] = "lost"
    executor.submit(plan_of(1, (1, 0, 3, True), new_sequences=[new_sequence()]))
    executor.submit(plan_of(2, (1, 0, 1, True)))
    with pytest.raises(StepFailedError):
        executor.wait()
    assert executor.wait().token_ids == [0]
    with pytest.raises(PlanViolation, match="runs on although its step 1 failed"):
        executor.submit(plan_of(3, (1, 0, 1, True)))


def test_a_failing_sequence_comes_back_as_a_failure(executor):
    executor.failing_sequences[1] = "overflow"
    assert enter(executor).failures == {1: "overflow"}


def test_a_shutdown_drops_what_is_in_flight(executor):
    executor.submit(plan_of(1, (1, 0, 3, True), new_sequences=[new_sequence()]))
    executor.shutdown()
    with pytest.raises(AssertionError, match="without a step in flight"):
        executor.wait()
