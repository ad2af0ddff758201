import numpy as np
import pytest

from quire.kernels.sample import SamplingBatch
from quire.types.ids import BlockId, SequenceId, SlotIndex
from quire.types.plan import NewSequence, StepPlan
from quire.types.sampling import SamplingParams
from quire.worker.batch_state import BatchState
from quire.worker.occurrences import TokenOccurrences
from quire.worker.sampling_state import SamplingState

VOCAB_SIZE = 50


def make_state(*, max_num_seqs, max_model_len, block_size):
    sampling = SamplingState(max_num_seqs=max_num_seqs, vocab_size=VOCAB_SIZE)
    return BatchState(
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        block_size=block_size,
        vocab_size=VOCAB_SIZE,
        sampling=sampling,
    )


@pytest.fixture
def state():
    return make_state(max_num_seqs=4, max_model_len=32, block_size=4)


def append_tokens(state, slots, token_ids):
    state.append_tokens(np.array(slots), np.array(token_ids))
    state.sampling.append(np.array(slots), np.array(token_ids))


def new_sequence(slot, token_ids, *, num_prompt_tokens=None, blocks=(0, 1, 2, 3), num_computed=0, **sampling):
    stop_token_ids = frozenset(sampling.pop("stops", ()))
    bad_words = tuple(sampling.pop("bad_words_ids", ()))
    return NewSequence(
        sequence_id=SequenceId(100 + slot),
        slot=SlotIndex(slot),
        token_ids=list(token_ids),
        num_prompt_tokens=len(token_ids) if num_prompt_tokens is None else num_prompt_tokens,
        num_computed_tokens=num_computed,
        block_ids=[BlockId(block) for block in blocks],
        sampling=SamplingParams(max_tokens=None, **sampling),
        seed=5,
        sample_index=1,
        stop_token_ids=stop_token_ids,
        bad_words_token_ids=bad_words,
    )


def enter(state, *sequences):
    return state.apply(StepPlan(step=1, new_sequences=list(sequences)))


def batch_of(state, *slots) -> SamplingBatch:
    return state.sampling.batch(np.array(slots), state.token_ids, state.num_prompt_tokens, state.num_tokens)


def plan_for(slots, num_tokens, samples):
    return StepPlan(
        step=2,
        slots=[SlotIndex(slot) for slot in slots],
        sequence_ids=[SequenceId(100 + slot) for slot in slots],
        num_tokens=num_tokens,
        samples=samples,
    )


def test_a_sequence_enters_runs_and_leaves(state):
    assert enter(state, new_sequence(2, [7, 8, 9], blocks=[6])) == {}
    failures = {}
    rows = state.select(plan_for([2], [3], [True]), failures)
    assert (rows.slots.tolist(), rows.starts.tolist(), failures) == ([2], [0], {})
    state.advance(rows)
    append_tokens(state, [2], [40])
    assert state.token_ids[2, :4].tolist() == [7, 8, 9, 40]
    assert state.block_tables[2, 0] == 6
    state.check_invariants()
    state.apply(StepPlan(step=3, released_slots=[SlotIndex(2)]))
    rows = state.select(plan_for([2], [1], [True]), failures)
    assert len(rows.slots) == 0
    assert list(failures) == [102]


def test_a_later_plan_may_compute_a_token_that_only_the_worker_knows(state):
    enter(state, new_sequence(0, [7, 8, 9]))
    rows = state.select(plan_for([0], [3], [True]), {})
    state.advance(rows)
    with pytest.raises(AssertionError, match="do not exist"):
        state.select(plan_for([0], [1], [True]), {})
    append_tokens(state, [0], [40])
    assert state.select(plan_for([0], [1], [True]), {}).starts.tolist() == [3]


def test_plans_that_contradict_the_state_are_refused(state):
    enter(state, new_sequence(0, [7] * 9, blocks=[1, 2]))
    with pytest.raises(AssertionError, match="before the last known one"):
        state.select(plan_for([0], [3], [True]), {})
    with pytest.raises(AssertionError, match="before the last known one"):
        state.select(plan_for([0], [9], [False]), {})
    with pytest.raises(AssertionError, match="no block"):
        state.select(plan_for([0], [9], [True]), {})
    state.apply(StepPlan(step=2, new_block_ids={SlotIndex(0): [BlockId(9)]}))
    assert state.select(plan_for([0], [9], [True]), {}).num_tokens.tolist() == [9]
    assert state.block_tables[0, :3].tolist() == [1, 2, 9]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (new_sequence(1, [3, VOCAB_SIZE]), "token 50 is not in the vocabulary"),
        (new_sequence(1, [-1]), "token -1 is not"),
        (new_sequence(1, [3] * 33), "33 tokens, max_model_len is 32"),
        (new_sequence(1, [3], allowed_token_ids=[3, 99]), "allowed_token_ids holds token 99"),
        (new_sequence(1, [3], logit_bias={77: 1.0}), "logit_bias holds token 77"),
        (new_sequence(1, [3], bad_words_ids=[(1, 60)]), "bad_words holds token 60"),
        (new_sequence(1, [3], blocks=range(99)), "could not enter"),
    ],
)
def test_a_sequence_that_cannot_enter_fails_alone(state, bad, reason):
    failures = enter(state, new_sequence(0, [1, 2]), bad, new_sequence(2, [4]))
    assert list(failures) == [101]
    assert reason in failures[SequenceId(101)]
    rows = state.select(plan_for([0, 1, 2], [2, 1, 1], [True] * 3), failures)
    assert rows.plan_indices.tolist() == [0, 2]
    state.check_invariants()


def test_a_reused_slot_remembers_nothing(state):
    unusual = {
        "logprobs": 2,
        "prompt_logprobs": 1,
        "repetition_penalty": 1.5,
        "logit_bias": {1: 2.0},
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
    }
    enter(state, new_sequence(0, [1, 2], **unusual))
    assert batch_of(state, 0).edits is not None
    assert batch_of(state, 0).penalties is not None
    state.apply(StepPlan(step=2, released_slots=[SlotIndex(0)], new_sequences=[new_sequence(0, [3], temperature=0.0)]))
    batch = batch_of(state, 0)
    assert (batch.edits, batch.penalties) == (None, None)
    assert (batch.temperature[0], batch.top_k[0], batch.top_p[0], batch.min_p[0]) == (0.0, 0, 1.0, 0.0)
    assert not state.sampling.num_logprobs
    assert not state.sampling.num_prompt_logprobs


def test_a_batch_names_its_random_numbers(state):
    enter(state, new_sequence(0, [1, 2]), new_sequence(3, [1] * 7))
    batch = batch_of(state, 3, 0)
    assert batch.position.tolist() == [7, 2]
    assert batch.seed.tolist() == [5, 5]
    assert batch.sample_index.tolist() == [1, 1]


def test_stop_tokens_are_excluded_until_min_tokens(state):
    enter(state, new_sequence(0, [1, 2], min_tokens=2, stops=[30, 31, 1000]), new_sequence(1, [1]))
    for _ in range(2):
        edits = batch_of(state, 1, 0).edits
        assert edits.excluded_rows.tolist() == [1, 1]
        assert sorted(edits.excluded_ids.tolist()) == [30, 31]
        append_tokens(state, [0], [9])
    assert batch_of(state, 1, 0).edits is None


def test_min_tokens_counts_the_answer_of_a_resumed_sequence(state):
    enter(state, new_sequence(0, [1, 2, 9, 9], num_prompt_tokens=2, min_tokens=2, stops=[30]))
    assert batch_of(state, 0).edits is None


def test_bad_words_look_at_the_answer_only(state):
    words = [(8,), (1, 5), (9, 6), (9, 9, 7)]
    enter(state, new_sequence(0, [1, 9], bad_words_ids=words))
    assert batch_of(state, 0).edits.excluded_ids.tolist() == [8]
    append_tokens(state, [0], [9])
    assert batch_of(state, 0).edits.excluded_ids.tolist() == [8, 6]
    append_tokens(state, [0], [9])
    assert batch_of(state, 0).edits.excluded_ids.tolist() == [8, 6, 7]


def test_edits_of_several_rows_are_told_apart(state):
    enter(
        state,
        new_sequence(0, [1], allowed_token_ids=[4, 2]),
        new_sequence(1, [1]),
        new_sequence(2, [1], logit_bias={7: 1.5, 3: -100.0}),
        new_sequence(3, [1], logit_bias={7: 200.0}),
    )
    edits = batch_of(state, 3, 2, 1, 0).edits
    assert [(row, ids.tolist()) for row, ids in edits.allowed] == [(3, [4, 2])]
    assert edits.bias_rows.tolist() == [0, 1, 1]
    assert edits.bias_ids.tolist() == [7, 7, 3]
    assert edits.biases.tolist() == [100.0, 1.5, -100.0]


def test_penalties_follow_the_tokens(state):
    enter(
        state,
        new_sequence(0, [1, 2, 2], frequency_penalty=0.5),
        new_sequence(1, [1]),
        new_sequence(2, [4, 4, 6], num_prompt_tokens=1, presence_penalty=1.0, repetition_penalty=2.0),
    )
    append_tokens(state, [2, 1, 0], [6, 3, 2])
    penalties = batch_of(state, 0, 1, 2).penalties
    assert penalties.rows.tolist() == [0, 0, 2, 2]
    assert penalties.token_ids.tolist() == [1, 2, 4, 6]
    assert penalties.output_counts.tolist() == [0, 1, 1, 2]
    assert penalties.frequency.tolist() == [0.5, 0.5, 0, 0]
    assert penalties.presence.tolist() == [0, 0, 1, 1]
    assert penalties.repetition.tolist() == [1, 1, 2, 2]


def test_occurrences_grow_like_a_recount():
    rng = np.random.default_rng(0)
    prompt, answer = rng.integers(0, 300, 40), rng.integers(0, 300, 500)
    occurrences = TokenOccurrences(np.concatenate((prompt, answer[:7])), len(prompt))
    for token_id in answer[7:].tolist():
        occurrences.append(token_id)
    expected = {int(token): int((answer == token).sum()) for token in np.concatenate((prompt, answer))}
    found = dict(zip(occurrences.token_ids.tolist(), occurrences.output_counts.tolist(), strict=True))
    assert found == expected


def test_long_contexts_cost_nothing_until_they_are_used():
    from quire.worker.memory import resident_bytes

    before = resident_bytes()
    state = make_state(max_num_seqs=1024, max_model_len=2**20, block_size=16)
    enter(state, new_sequence(1000, [1, 2], blocks=[0]))
    assert resident_bytes() - before < 2**25
