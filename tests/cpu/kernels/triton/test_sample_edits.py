import math
import random

import numpy as np
import pytest
import torch

from quire.kernels.sample import device as sampler
from quire.kernels.sample import reference

VOCAB_SIZE = 20


def int32(values, device):
    return torch.tensor(list(values), dtype=torch.int32, device=device)


def float32(values, device):
    return torch.tensor(list(values), dtype=torch.float32, device=device)


def make_edits(rows, device):
    restricted = [(index, sorted(row["allowed"])) for index, row in enumerate(rows) if row.get("allowed") is not None]
    excluded = [(index, token) for index, row in enumerate(rows) for token in row.get("excluded", ())]
    biases = [(index, token, bias) for index, row in enumerate(rows) for token, bias in row.get("bias", {}).items()]
    return sampler.DeviceEdits(
        restricted_rows=int32([index for index, _ in restricted], device),
        allowed_rows=int32([index for index, ids in restricted for _ in ids], device),
        allowed_ids=int32([token for _, ids in restricted for token in ids], device),
        excluded_rows=int32([entry[0] for entry in excluded], device),
        excluded_ids=int32([entry[1] for entry in excluded], device),
        bias_rows=int32([entry[0] for entry in biases], device),
        bias_ids=int32([entry[1] for entry in biases], device),
        biases=float32([entry[2] for entry in biases], device),
    )


def make_penalties(rows, counts, device):
    """Of every row, with tables of counts."""
    return sampler.DevicePenalties(
        rows=int32(range(len(rows)), device),
        count_addresses=torch.tensor([table.data_ptr() for table in counts], dtype=torch.int64, device=device),
        repetition=float32([row.get("repetition", 1.0) for row in rows], device),
        frequency=float32([row.get("frequency", 0.0) for row in rows], device),
        presence=float32([row.get("presence", 0.0) for row in rows], device),
    )


def random_row(rng):
    some = [token for token in range(VOCAB_SIZE) if rng.random() < 0.3]
    return {
        "allowed": None if rng.random() < 0.5 else {*some, 3},
        "excluded": rng.sample(range(VOCAB_SIZE), rng.randrange(5)) * 2,
        "bias": {token: rng.uniform(-100, 100) for token in rng.sample(range(VOCAB_SIZE), rng.randrange(5))},
        "prompt_ids": [rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(6))],
        "output_ids": [rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(6))],
        "repetition": rng.choice([1.0, 1.5, 0.5]),
        "frequency": rng.choice([0.0, 2.0, -0.5]),
        "presence": rng.choice([0.0, 1.0, -2.0]),
    }


@pytest.mark.parametrize("seed", range(8))
def test_edits_and_penalties_equal_the_reference(device, seed):
    rng = random.Random(seed)
    rows = [random_row(rng) for _ in range(rng.randint(1, 5))]
    logits = torch.randn(len(rows), VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
    expected = [reference.edit_logits(values, **row) for values, row in zip(logits.tolist(), rows, strict=True)]
    logits = logits.to(device)
    sampler.apply_edits(logits, make_edits(rows, device))
    counts = []
    for row in rows:
        token_ids = row["prompt_ids"] + row["output_ids"]
        counts.append(torch.full((VOCAB_SIZE,), -77, dtype=torch.int32, device=device))
        sampler.count_tokens(counts[-1], int32(token_ids, device), len(row["prompt_ids"]))
    sampler.apply_penalties(logits, make_penalties(rows, counts, device))
    torch.testing.assert_close(logits.cpu(), torch.tensor(expected), rtol=1e-6, atol=1e-5)


def test_nothing_to_change(device):
    logits = torch.randn(2, VOCAB_SIZE, device=device)
    before = logits.clone()
    sampler.apply_edits(logits, make_edits([{}, {}], device))
    assert torch.equal(logits, before)


def test_counts_tell_the_prompt_from_the_answer(device):
    counts = torch.full((1000,), -77, dtype=torch.int32, device=device)
    prompt = [5, 5, 999, 7] * 100
    outputs = [7, 7, 0] * 150
    sampler.count_tokens(counts, int32(prompt + outputs, device), len(prompt))
    flag = sampler.PROMPT_FLAG
    expected = {5: flag, 999: flag, 7: flag + 300, 0: 150}
    assert {token: count for token, count in enumerate(counts.tolist()) if count} == expected


def test_drawn_tokens_are_counted_where_a_row_penalises(device):
    counts = [torch.zeros(VOCAB_SIZE, dtype=torch.int32, device=device) for _ in range(3)]
    penalties = make_penalties([{}, {}, {}], counts, device)
    penalties.rows = int32([4, 0, 2], device)
    token_ids = int32([3, 9, -1, 9, 19], device)  # row 2 has failed
    sampler.count_drawn_tokens(penalties, token_ids)
    sampler.count_drawn_tokens(penalties, token_ids)
    found = [{token: count for token, count in enumerate(table.tolist()) if count} for table in counts]
    assert found == [{19: 2}, {3: 2}, {}]


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 70])
def test_bad_words_are_excluded_where_the_answer_ends_on_their_beginning(device, length):
    """Also where the ring is larger than the word, and where the answer is still too short."""
    ring_size = 70
    rng = random.Random(length)
    answer = [rng.randrange(5) for _ in range(75)]
    storage = int32([-1] * ring_size + [0] * length, device)
    address = storage.data_ptr()
    words = sampler.DeviceBadWords(torch.empty((7, 1), dtype=torch.int64, device=device))
    rings = torch.empty((4, 1), dtype=torch.int64, device=device)
    for num_produced, token in enumerate(answer):
        if num_produced not in (length - 2, length - 1, 69, 70, 71, 74):
            storage[num_produced % ring_size] = token
            continue
        rings[:, 0] = torch.tensor([1, address, ring_size, num_produced])
        sampler.remember_drawn_tokens(rings, int32([77, token], device))
        tail = answer[: num_produced + 1][-length:]
        for before in (tail, [*tail[:-1], 9], [9, *tail[1:]]):
            before = before + [0] * (length - len(before))  # an answer that is still too short
            storage[ring_size:] = int32(before, device)
            words.entries[:, 0] = torch.tensor(
                [1, 13, address + 4 * ring_size, length, address, ring_size, num_produced + 1]
            )
            logits = torch.zeros(2, VOCAB_SIZE, device=device)
            sampler.exclude_bad_words(logits, words)
            is_match = before == answer[: num_produced + 1][-length:] and num_produced + 1 >= length
            assert logits[1, 13].item() == (-math.inf if is_match else 0.0)
            assert logits.isinf().sum().item() == is_match


def test_parameters_are_written_to_their_slots(device):
    slots = [3, 0, 200]
    params = sampler.DeviceSamplingParams.make(256, torch.device(device))
    packed = np.zeros((8, 3), np.int32)
    packed[0] = slots
    packed[1] = np.array([0.5, 1.5, 0.0], np.float32).view(np.int32)
    packed[2] = [7, 0, 100_000]
    packed[3] = np.array([0.25, 1.0, 0.75], np.float32).view(np.int32)
    packed[4] = np.array([0.0, 0.125, 0.0], np.float32).view(np.int32)
    packed[5] = [0, 127, 3]
    seeds = [-1, 2**63 - 1, -(2**63)]
    packed[6:] = np.array(seeds, np.int64).view(np.int32).reshape(-1, 2).T
    sampler.write_params(params, torch.from_numpy(packed).to(device))
    assert params.temperature[slots].tolist() == [0.5, 1.5, 0.0]
    assert params.top_k[slots].tolist() == [7, 0, 100_000]
    assert params.top_p[slots].tolist() == [0.25, 1.0, 0.75]
    assert params.min_p[slots].tolist() == [0.0, 0.125, 0.0]
    assert params.sample_index[slots].tolist() == [0, 127, 3]
    assert params.seed[slots].tolist() == seeds
    assert params.temperature.count_nonzero() == 2 and params.seed.count_nonzero() == 3


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 2100])
def test_a_mask_equals_the_reference(device, vocab_size):
    rng = np.random.default_rng(vocab_size)
    logits = torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    words = rng.integers(0, 2**32, (2, -(-vocab_size // 32)), dtype=np.uint32)
    masks = dict(zip([3, 1], words.tolist(), strict=True))
    expected = [reference.edit_logits(values, mask=masks.get(row)) for row, values in enumerate(logits.tolist())]
    logits = logits.to(device)
    mask = sampler.DeviceMask(int32([3, 1], device), torch.from_numpy(words.view(np.int32)).to(device))
    sampler.apply_mask(logits, mask)
    torch.testing.assert_close(logits.cpu(), torch.tensor(expected))
