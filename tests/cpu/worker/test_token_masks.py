"""Rows that may draw some tokens only, on both runners; the masks are known when the step before has been read."""

import random
from concurrent.futures import Future

import numpy as np
import pytest

from quire.types.plan import StepPlan
from quire.worker.token_masks import wait_for_mask

VOCAB_SIZE = 48


class Masks:
    """Promised masks; `give` keeps the promise."""

    def __init__(self, rows):
        self.rows = rows
        self.words = Future()

    def start(self):
        pass

    def result(self):
        return self.words.result(timeout=0)

    def cancel(self):
        self.words.cancel()

    def give(self, *allowed):
        words = np.zeros((len(self.rows), -(-VOCAB_SIZE // 32)), np.uint32)
        for row, tokens in enumerate(allowed):
            for token in tokens:
                words[row, token // 32] |= np.uint32(1 << (token % 32))
        self.words.set_result(bytearray(words.tobytes()))


def masked(plan, rows, *allowed):
    plan.masks = Masks(rows)
    if allowed:
        plan.masks.give(*allowed)
    return plan


def best_of(model, token_ids, allowed):
    logits = model.dense_logits(token_ids)[-1]
    return max(sorted(allowed), key=lambda token: float(logits[token]))


def test_masked_rows_draw_the_best_allowed_token(model, make_runner, maker):
    runner, rng = make_runner(model), random.Random(3)
    known = {slot: [rng.randrange(VOCAB_SIZE) for _ in range(slot + 2)] for slot in range(4)}
    for slot, prompt in known.items():
        maker.enter(slot, prompt)
    for _ in range(4):
        rows = sorted(rng.sample(range(4), 2))
        allowed = [rng.sample(range(VOCAB_SIZE), rng.choice([1, 5, 40])) for _ in rows]
        result = runner.execute(masked(maker.seal(), rows, *allowed))
        assert not result.failures
        for slot, token in enumerate(result.token_ids):
            choices = allowed[rows.index(slot)] if slot in rows else range(VOCAB_SIZE)
            assert token == best_of(model, known[slot], choices)
            known[slot].append(token)
            maker.go(slot)


def test_masks_go_along_with_all_other_parameters(model, make_runner, maker):
    """Penalties and draws see what the mask has left; log-probabilities are those of the model."""
    runner = make_runner(model)
    prompt = [1, 2, 3]
    maker.enter(0, prompt, logprobs=2, repetition_penalty=5.0)
    bad = maker.enter(1, prompt, allowed_token_ids=[4, 5])
    maker.enter(2, prompt, logit_bias={7: 100.0})
    plan = masked(maker.seal(), [0, 1, 2], [1, 2, 3, 40], [6], [7, 8])
    result = runner.execute(plan)
    assert list(result.failures) == [bad] and result.exhausted == {bad}
    logits = model.dense_logits(prompt)[-1]
    penalised = {token: float(logits[token]) for token in (1, 2, 3, 40)}
    penalised |= {token: penalised[token] / 5 if penalised[token] > 0 else penalised[token] * 5 for token in (1, 2, 3)}
    assert result.token_ids[0] == max(penalised, key=penalised.__getitem__)
    assert result.token_ids[2] == 7
    (entry,) = result.logprobs.values()
    raw = logits.log_softmax(-1)
    assert entry.logprobs[0] == pytest.approx(float(raw[result.token_ids[0]]), abs=1e-4)
    assert entry.token_ids[1] == int(raw.argmax())


def test_a_failed_sequence_does_not_shift_the_masks(model, make_runner, maker):
    model.poisoned_token = 40
    runner = make_runner(model)
    maker.enter(0, [1, 40])
    maker.enter(1, [5, 6])
    maker.enter(2, [7, 8])
    first = runner.execute(maker.seal())
    assert len(first.failures) == 1
    for slot in range(3):
        maker.go(slot)
    result = runner.execute(masked(maker.seal(), [0, 2], [1], [9]))
    assert result.token_ids[2] == 9
    assert result.token_ids[1] == best_of(model, [5, 6, first.token_ids[1]], range(VOCAB_SIZE))


@pytest.mark.parametrize("make_runner", ["cuda"], indirect=True)
def test_a_step_is_launched_before_its_masks_are_known(model, make_runner, maker):
    runner = make_runner(model)
    maker.enter(0, [1, 2])
    first = runner.launch(masked(maker.seal(), [0]))
    first.plan.masks.give([11])
    maker.go(0)
    second = runner.launch(masked(maker.seal(), [0]))
    assert runner.finish(first).token_ids == [11]
    second.plan.masks.give([12])
    maker.go(0)
    third = runner.launch(maker.seal())
    assert runner.finish(second).token_ids == [12]
    assert runner.finish(third).token_ids == [best_of(model, [1, 2, 11, 12], range(VOCAB_SIZE))]


@pytest.mark.parametrize("make_runner", ["cuda"], indirect=True)
def test_a_step_whose_masks_fail_fails_alone(model, make_runner, maker):
    runner = make_runner(model)
    maker.enter(0, [1, 2])
    broken = runner.launch(masked(maker.seal(), [0]))
    broken.plan.masks.words.set_exception(ValueError("no masks"))
    maker.enter(1, [3, 4])
    good = runner.launch(maker.seal())
    with pytest.raises(ValueError, match="no masks"):
        runner.finish(broken)
    assert runner.finish(good).token_ids == [best_of(model, [3, 4], range(VOCAB_SIZE))]


def test_rows_of_the_batch_are_found_in_the_plan():
    plan = StepPlan(step=1, slots=[0, 1, 2, 3], samples=[True, False, True, True])
    assert wait_for_mask(plan, np.array([0, 2, 3])) is None
    plan = masked(plan, [0, 3], [1, 33], [2])
    mask = wait_for_mask(plan, np.array([2, 3]))
    assert mask.rows.tolist() == [1]
    assert mask.words.tolist() == [[4, 0]]
    assert wait_for_mask(plan, np.array([2])) is None
