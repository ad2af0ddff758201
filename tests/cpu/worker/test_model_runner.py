import math
import random

import numpy as np
import pytest
import torch

from quire.kernels.sample import reference

PROMPT = [5, 17, 3, 30, 8, 8, 41, 2, 19, 26, 7]


def greedy_twin(model, prompt, num_tokens):
    """Greedy tokens without paging, batching or a runner."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(int(model.dense_logits(token_ids)[-1].argmax()))
    return token_ids[len(prompt) :]


def run(runner, plans):
    """Tokens by sequence id over several plans; all plans exist before the first runs."""
    tokens = {}
    for plan in plans:
        result = runner.execute(plan)
        assert not result.failures
        assert len(result.token_ids) == sum(plan.samples)
        assert result.execute_seconds > 0
        drawing = [sequence_id for sequence_id, samples in zip(plan.sequence_ids, plan.samples, strict=True) if samples]
        for sequence_id, token_id in zip(drawing, result.token_ids, strict=True):
            tokens.setdefault(sequence_id, []).append(token_id)
        runner.state.check_invariants()
    return tokens


def plan_alone(maker, slot, prompt, num_tokens, **options):
    """Plans that prefill at once and then decode."""
    sequence_id = maker.enter(slot, prompt, **options)
    plans = [maker.seal()]
    for _ in range(num_tokens - 1):
        maker.go(slot)
        plans.append(maker.seal())
    return sequence_id, plans


@pytest.mark.parametrize("length", [1, 3, 4, 5, 11])
def test_greedy_equals_the_dense_twin(model, make_runner, maker, length):
    sequence_id, plans = plan_alone(maker, 3, PROMPT[:length], 12)
    assert run(make_runner(model), plans)[sequence_id] == greedy_twin(model, PROMPT[:length], 12)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 7, 10])
def test_chunked_prefill_equals_whole(model, make_runner, maker, chunk):
    sequence_id = maker.enter(0, PROMPT, compute=chunk)
    plans = [maker.seal()]
    for start in range(chunk, len(PROMPT), chunk):
        maker.go(0, min(chunk, len(PROMPT) - start))
        plans.append(maker.seal())
    maker.go(0)
    plans.append(maker.seal())
    assert run(make_runner(model), plans)[sequence_id] == greedy_twin(model, PROMPT, 2)


def random_history(maker, rng, num_steps):
    """Sequences that come, prefill in chunks, decode and go; returns the plans and each one's prompt."""
    prompts, plans, left = {}, [], {}
    for _ in range(num_steps):
        for slot in [slot for slot, num_left in left.items() if num_left == 0]:
            maker.release(slot)
            del left[slot]
        for slot in list(left):
            sequence = maker.sequences[slot]
            missing = sequence["known"] - sequence["computed"]
            maker.go(slot, rng.randint(1, missing))
            left[slot] -= 1
        free = [slot for slot in range(6) if slot not in maker.sequences]
        for slot in rng.sample(free, min(len(free), rng.choice([0, 1, 1, 2]))):
            prompt = [rng.randrange(48) for _ in range(rng.randint(1, 12))]
            sequence_id = maker.enter(slot, prompt, compute=rng.randint(1, len(prompt)))
            prompts[sequence_id] = prompt
            left[slot] = rng.randint(3, 12)
        plans.append(maker.seal())
    return plans, prompts


@pytest.mark.parametrize("seed", range(6))
def test_mixed_batches_equal_the_dense_twin(model, make_runner, maker, seed):
    plans, prompts = random_history(maker, random.Random(seed), 25)
    tokens = run(make_runner(model), plans)
    assert len(tokens) > 5
    for sequence_id, drawn in tokens.items():
        assert drawn == greedy_twin(model, prompts[sequence_id], len(drawn))


@pytest.mark.parametrize("length", [2, 5, 8, 9, 11])
def test_a_fork_continues_like_its_parent_and_leaves_it_alone(model, make_runner, maker, length):
    prompt = PROMPT[:length]
    parent = maker.enter(0, prompt)
    plans = [maker.seal()]
    maker.go(0)
    table = maker.fork(0, length - 1)
    child = maker.enter(1, prompt, table=table, computed=length - 1)
    plans.append(maker.seal())
    for _ in range(4):
        maker.go(1)
        maker.go(0)
        plans.append(maker.seal())
    tokens = run(make_runner(model), plans)
    assert tokens[parent] == greedy_twin(model, prompt, 6)
    assert tokens[child] == greedy_twin(model, prompt, 5)


def test_samples_of_one_request_differ(model, make_runner, maker):
    first = maker.enter(0, PROMPT, temperature=1.5, sample_index=0)
    second = maker.enter(1, PROMPT, temperature=1.5, sample_index=1)
    same = maker.enter(2, PROMPT, temperature=1.5, sample_index=0)
    plans = [maker.seal()]
    for _ in range(8):
        for slot in (2, 0, 1):
            maker.go(slot)
        plans.append(maker.seal())
    tokens = run(make_runner(model), plans)
    assert tokens[first] == tokens[same] != tokens[second]


MIXES = [
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 0.8, "top_p": 0.7, "repetition_penalty": 1.3},
    {"temperature": 1.0, "min_p": 0.05, "frequency_penalty": 0.7, "presence_penalty": -0.5},
    {"temperature": 0.0, "presence_penalty": 2.0, "logit_bias": {4: 3.0, 5: -100.0}},
    {"temperature": 1.0, "allowed_token_ids": [1, 2, 3, 4, 30], "min_tokens": 3, "stop_token_ids": [30, 2]},
    {"temperature": 0.0, "repetition_penalty": 2.0, "min_tokens": 5, "stop_token_ids": [11]},
    {"temperature": 2.0},
]


def reference_tokens(model, prompt, num_tokens, mix, seed):
    """Tokens drawn one at a time by the reference sampler from dense logits."""
    limits = {name: mix[name] for name in ("temperature", "top_k", "top_p", "min_p") if name in mix}
    token_ids = list(prompt)
    for num_produced in range(num_tokens):
        logits = reference.edit_logits(
            model.dense_logits(token_ids)[-1].tolist(),
            allowed=mix.get("allowed_token_ids"),
            excluded=mix["stop_token_ids"] if num_produced < mix.get("min_tokens", 0) else (),
            bias=mix.get("logit_bias"),
            prompt_ids=prompt,
            output_ids=token_ids[len(prompt) :],
            repetition=mix.get("repetition_penalty", 1.0),
            frequency=mix.get("frequency_penalty", 0.0),
            presence=mix.get("presence_penalty", 0.0),
        )
        if limits["temperature"] == 0.0:
            token_ids.append(logits.index(max(logits)))
        else:
            number = reference.uniform(seed, 0, len(token_ids))
            token_ids.append(reference.draw(reference.kept_probabilities(logits, **limits), number))
    return token_ids[len(prompt) :]


def test_every_parameter_acts_as_in_the_reference_in_one_batch(model, make_runner, maker):
    ids = [maker.enter(slot, PROMPT[slot:], seed=slot, **mix) for slot, mix in enumerate(MIXES)]
    plans = [maker.seal()]
    for _ in range(9):
        for slot in reversed(range(len(MIXES))):
            maker.go(slot)
        plans.append(maker.seal())
    tokens = run(make_runner(model), plans)
    for slot, mix in enumerate(MIXES):
        assert tokens[ids[slot]] == reference_tokens(model, PROMPT[slot:], 10, mix, slot)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_preempted_and_resumed_draws_the_same_tokens(model, make_runner, maker, mix):
    sequence_id, plans = plan_alone(maker, 0, PROMPT, 10, seed=9, **mix)
    runner = make_runner(model)
    whole = run(runner, plans)[sequence_id]
    maker.release(0)
    other = [1, 2, 3]
    maker.enter(0, other)
    plans = [maker.seal()]
    known = PROMPT + whole[:4]
    resumed = maker.enter(2, known, num_prompt_tokens=len(PROMPT), compute=6, seed=9, **mix)
    plans.append(maker.seal())
    maker.go(2, len(known) - 6)
    plans.append(maker.seal())
    for _ in range(5):
        maker.go(2)
        plans.append(maker.seal())
    assert run(runner, plans)[resumed] == whole[4:]


def test_a_request_draws_the_same_tokens_alone_and_among_63_others(model, make_runner, maker):
    mix = {"temperature": 1.0, "top_p": 0.9, "seed": 1234}
    sequence_id, plans = plan_alone(maker, 0, PROMPT[:4], 6, **mix)
    alone = run(make_runner(model), plans)[sequence_id]
    crowd = type(maker)(num_blocks=400)
    rng = random.Random(1)
    for slot in range(63):
        crowd.enter(slot, [rng.randrange(48) for _ in range(rng.randint(1, 5))], **MIXES[slot % len(MIXES)])
    member = crowd.enter(63, PROMPT[:4], **mix)
    plans = [crowd.seal()]
    for _ in range(5):
        for slot in rng.sample(range(64), 64):
            crowd.go(slot)
        plans.append(crowd.seal())
    assert run(make_runner(model, num_blocks=400), plans)[member] == alone


def test_a_poisoned_sequence_fails_alone_and_stays_out(model, make_runner, maker):
    model.poisoned_token = 40
    runner = make_runner(model)
    good = maker.enter(0, [1, 2, 3], logprobs=1)
    bad = maker.enter(1, [1, 40, 3], logprobs=1, prompt_logprobs=1)
    other = maker.enter(2, [7], temperature=1.0)
    first, results = maker.seal(), []
    for slot in (0, 1, 2):
        maker.go(slot)
    second = maker.seal()
    maker.release(1)
    late = maker.enter(1, [9, 9])
    for slot in (0, 2):
        maker.go(slot)
    third = maker.seal()
    results = [runner.execute(plan) for plan in (first, second, third)]
    assert [list(result.failures) for result in results] == [[bad], [bad], []]
    assert "NaN" in results[0].failures[bad]
    assert all(bad not in result.logprobs and bad not in result.prompt_logprobs for result in results)
    drawn = {good: [], other: [], late: [], bad: []}
    for plan, result in zip((first, second, third), results, strict=True):
        for sequence_id, token_id in zip(plan.sequence_ids, result.token_ids, strict=True):
            drawn[sequence_id].append(token_id)
    model.poisoned_token = None
    assert drawn[good] == greedy_twin(model, [1, 2, 3], 3)
    assert drawn[late] == greedy_twin(model, [9, 9], 1)
    assert drawn[other] == reference_tokens(model, [7], 3, {"temperature": 1.0}, 0)


def test_a_step_that_raises_empties_its_slots_only(model, make_runner, maker):
    runner = make_runner(model)
    bystander = maker.enter(5, PROMPT)
    runner.execute(maker.seal())
    broken = maker.enter(0, [1, 2, 3])
    plan = maker.seal()
    model.fail_next = True
    with pytest.raises(RuntimeError, match="the model broke"):
        runner.execute(plan)
    maker.go(0)
    maker.go(5)
    fresh = maker.enter(1, [4, 4])
    plan = maker.seal()
    result = runner.execute(plan)
    assert list(result.failures) == [broken]
    assert plan.sequence_ids[1:] == [bystander, fresh]
    assert result.token_ids[1:] == [greedy_twin(model, PROMPT, 2)[1], greedy_twin(model, [4, 4], 1)[0]]


def test_a_plan_of_absent_sequences_only_runs_nothing(model, make_runner, maker):
    runner = make_runner(model)
    bad = maker.enter(0, [99])
    maker.plan.num_tokens[0] = 1
    result = runner.execute(maker.seal())
    assert list(result.failures) == [bad]
    assert result.token_ids == [0]


@pytest.mark.parametrize("num_top", [0, 3, -1])
def test_logprobs_are_of_the_raw_distribution(model, make_runner, maker, num_top):
    mix = {"temperature": 0.5, "top_k": 2, "logit_bias": {3: 50.0}, "logprobs": num_top}
    wanted = maker.enter(0, PROMPT, **mix)
    maker.enter(1, PROMPT)
    wider = maker.enter(2, PROMPT, logprobs=5)
    result = make_runner(model).execute(maker.seal())
    assert set(result.logprobs) == {wanted, wider}
    exact = np.array(reference.log_softmax(model.dense_logits(PROMPT)[-1].tolist()))
    entry = result.logprobs[wanted]
    falling = np.argsort(-exact)[: 48 if num_top == -1 else num_top]
    assert entry.token_ids == [result.token_ids[0], *falling.tolist()]
    np.testing.assert_allclose(entry.logprobs, exact[entry.token_ids], atol=1e-5)
    assert entry.ranks[1:] == list(range(1, len(falling) + 1))
    assert entry.ranks[0] == (exact > exact[entry.token_ids[0]]).sum() + 1
    assert len(result.logprobs[wider].token_ids) == 6


@pytest.mark.parametrize("chunks", [[11], [4, 7], [1, 1, 8, 1], [10, 1]])
def test_prompt_logprobs_come_with_the_chunk_that_computes_them(model, make_runner, maker, chunks):
    runner, entries = make_runner(model), []
    sequence_id = maker.enter(1, PROMPT, compute=chunks[0], prompt_logprobs=2)
    maker.enter(0, [3, 4])
    plans = [maker.seal()]
    for chunk in chunks[1:]:
        maker.go(0)
        maker.go(1, chunk)
        plans.append(maker.seal())
    computed = 0
    for plan, chunk in zip(plans, chunks, strict=True):
        result = runner.execute(plan)
        computed += chunk
        found = result.prompt_logprobs.get(sequence_id, [])
        entries += found
        assert len(entries) == min(computed, len(PROMPT) - 1)
        assert set(result.prompt_logprobs) <= {sequence_id}
    dense = torch.log_softmax(model.dense_logits(PROMPT), -1)
    for position, entry in enumerate(entries, start=1):
        assert entry.token_ids[0] == PROMPT[position]
        assert entry.token_ids[1] == int(dense[position - 1].argmax())
        assert entry.ranks[1:] == [1, 2]
        assert math.isclose(entry.logprobs[0], dense[position - 1, PROMPT[position]], abs_tol=1e-5)
    maker.go(1)
    assert not runner.execute(maker.seal()).prompt_logprobs


def test_long_prompts_are_scored_in_slices(model, make_runner, maker, monkeypatch):
    monkeypatch.setattr("quire.worker.prompt_logprobs._SLICE_NUM_BYTES", 4 * 48 * 3)
    heights = []
    compute_logits = model.compute_logits
    model.compute_logits = lambda hidden: heights.append(len(hidden)) or compute_logits(hidden)
    sequence_id = maker.enter(0, PROMPT, prompt_logprobs=0)
    result = make_runner(model).execute(maker.seal())
    assert len(result.prompt_logprobs[sequence_id]) == len(PROMPT) - 1
    assert heights == [1, 3, 3, 3, 1]
