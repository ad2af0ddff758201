"""The GPU's runner launches steps before it has read the results of the last one."""

import random
from collections import deque

import pytest

from quire.worker.decode_graphs import MAX_BUCKET, default_buckets


def finish_late(runner, plans, num_ahead):
    """Tokens by sequence id; each plan is launched while the results of `num_ahead` others are still unread."""
    tokens, launched = {}, deque()

    def finish():
        step = launched.popleft()
        result = runner.finish(step)
        assert not result.failures
        drawing = [
            sequence for sequence, samples in zip(step.plan.sequence_ids, step.plan.samples, strict=True) if samples
        ]
        for sequence_id, token_id in zip(drawing, result.token_ids, strict=True):
            tokens.setdefault(sequence_id, []).append(token_id)

    for plan in plans:
        launched.append(runner.launch(plan))
        if len(launched) > num_ahead:
            finish()
    while launched:
        finish()
    return tokens


@pytest.mark.parametrize("make_runner", ["cuda"], indirect=True)
@pytest.mark.parametrize("num_ahead", [1, 2])
def test_tokens_do_not_depend_on_when_they_are_read(model, make_runner, maker, num_ahead):
    rng = random.Random(5)
    prompts = {slot: [rng.randrange(48) for _ in range(rng.randint(1, 9))] for slot in range(4)}
    ids = {slot: maker.enter(slot, prompt) for slot, prompt in prompts.items()}
    plans = [maker.seal()]
    for _ in range(7):
        for slot in rng.sample(range(4), 4):
            maker.go(slot)
        plans.append(maker.seal())
    tokens = finish_late(make_runner(model), plans, num_ahead)
    for slot, prompt in prompts.items():
        known = list(prompt)
        for token_id in tokens[ids[slot]]:
            assert token_id == int(model.dense_logits(known)[-1].argmax())
            known.append(token_id)


@pytest.mark.parametrize("make_runner", ["cuda"], indirect=True)
def test_a_failure_that_is_seen_late_stays_with_its_sequence(model, make_runner, maker):
    model.poisoned_token = 40
    runner = make_runner(model)
    good, bad = maker.enter(0, [1, 2, 3]), maker.enter(1, [1, 40, 3])
    first = runner.launch(maker.seal())
    for slot in (0, 1):
        maker.go(slot)
    second = runner.launch(maker.seal())
    assert list(runner.finish(first).failures) == [bad]
    maker.release(1)
    late = maker.enter(1, [9, 9])
    maker.go(0)
    third = runner.launch(maker.seal())
    assert list(runner.finish(second).failures) == [bad]
    result = runner.finish(third)
    assert not result.failures
    assert {good, late} == set(third.plan.sequence_ids)


def test_buckets_rise_to_the_largest_batch():
    assert default_buckets(1) == (1,)
    assert default_buckets(20) == (1, 2, 4, 8, 16, 20)
    for max_num_seqs in (3, 64, 100, 256, 1024):
        buckets = default_buckets(max_num_seqs)
        assert list(buckets) == sorted(set(buckets))
        assert buckets[-1] == min(max_num_seqs, MAX_BUCKET)
