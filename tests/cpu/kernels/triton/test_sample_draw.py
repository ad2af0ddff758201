import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from quire.kernels.sample import SamplingBatch, draw_tokens, philox, reference
from quire.kernels.sample import device as sampler
from quire.kernels.sample.triton import uniform


@dataclass
class Drawn:
    """What a draw left behind.

    Attributes:
        token_ids: [N].
        last_tokens: [N + 1] by slot.
        workspace: The scratch, which tells what was kept.
    """

    token_ids: list[int]
    last_tokens: list[int]
    workspace: sampler.DrawWorkspace


def draw(logits, rows, device, slots=None):
    """Draws one token per row of logits [N, V], with parameters from dicts."""
    num_rows, vocab_size = logits.shape
    slots = list(range(num_rows)) if slots is None else slots
    num_slots = max([*slots, num_rows - 1]) + 1
    params = sampler.DeviceSamplingParams.make(num_slots, torch.device(device))
    for row, slot in zip(rows, slots, strict=True):
        params.temperature[slot] = row.get("temperature", 1.0)
        params.top_k[slot] = row.get("top_k", 0)
        params.top_p[slot] = row.get("top_p", 1.0)
        params.min_p[slot] = row.get("min_p", 0.0)
        params.seed[slot] = row.get("seed", 0)
        params.sample_index[slot] = row.get("sample_index", 0)
    workspace = sampler.DrawWorkspace.make(num_rows, vocab_size, torch.device(device))
    for name in ("peaks", "sums", "cuts"):
        getattr(workspace, name).fill_(math.nan)
    for name in ("peak_ids", "kept_ties", "chunk_lists"):
        getattr(workspace, name).fill_(2**30)
    token_ids = torch.full((num_rows,), -77, dtype=torch.int32, device=device)
    last_tokens = torch.full((num_slots + 1,), -77, dtype=torch.int32, device=device)
    positions = torch.tensor([row.get("position", 0) for row in rows], dtype=torch.int32, device=device)
    slots_on_device = torch.tensor(slots, dtype=torch.int32, device=device)
    sampler.draw(logits.to(device), params, slots_on_device, positions, workspace, token_ids, last_tokens)
    return Drawn(token_ids.tolist(), last_tokens.tolist(), workspace)


def kept_tokens(drawn, row, logits):
    """The set that was drawn from, of logits [V]."""
    vocab_size, chunk = len(logits), sampler.chunk_size(len(logits))
    cut = drawn.workspace.cuts[row].item()
    kept = set()
    for number, start in enumerate(range(0, vocab_size, chunk)):
        values = logits[start : start + chunk].tolist()
        ties = drawn.workspace.kept_ties[row, number].item()
        for offset, value in enumerate(values):
            ties -= value == cut
            if value > cut or (value == cut and ties >= 0):
                kept.add(start + offset)
    return kept


def reference_probabilities(logits, row):
    limits = {name: row.get(name, default) for name, default in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0))}
    # What the device holds, float32.
    limits["top_p"], limits["min_p"] = float(np.float32(limits["top_p"])), float(np.float32(limits["min_p"]))
    temperature = float(np.float32(row.get("temperature", 1.0)))
    return reference.kept_probabilities(logits.tolist(), temperature=temperature, **limits)


def assert_drawn(token_id, probabilities, row, *, slack):
    """The reference's token, or its neighbour where the random number is within `slack` of the boundary."""
    number = reference.uniform(row.get("seed", 0), row.get("sample_index", 0), row.get("position", 0))
    expected = reference.draw(probabilities, number)
    if token_id != expected:
        low, high = sorted((token_id, expected))
        assert probabilities[token_id] > 0.0
        assert sum(probabilities[low + 1 : high]) < slack
        assert abs(sum(probabilities[: low + 1]) - number) < slack


@triton.jit
def _philox_kernel(seeds, counters, words, numbers):
    name = tl.program_id(0)
    seed = tl.load(seeds + name)
    sample_index, position = tl.load(counters + 2 * name), tl.load(counters + 2 * name + 1)
    zero = position.to(tl.uint32) * 0
    first, second, third, fourth = tl.philox(seed, position.to(tl.uint32), zero, sample_index.to(tl.uint32), zero)
    tl.store(words + 4 * name, first.to(tl.int64))
    tl.store(words + 4 * name + 1, second.to(tl.int64))
    tl.store(words + 4 * name + 2, third.to(tl.int64))
    tl.store(words + 4 * name + 3, fourth.to(tl.int64))
    tl.store(numbers + name, uniform(seed, sample_index, position))


def test_random_numbers_are_bit_equal_to_the_cpus(device):
    names = np.array(
        [
            (seed, sample, position)
            for seed in (0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF)
            for sample, position in ((0, 0), (1, 7), (127, 2**31 - 1))
        ],
        np.int64,
    )
    seeds = torch.from_numpy(names[:, 0].copy()).to(device)
    counters = torch.from_numpy(names[:, 1:].astype(np.int32)).to(device)
    words = torch.empty((len(names), 4), dtype=torch.int64, device=device)
    numbers = torch.empty(len(names), dtype=torch.float64, device=device)
    _philox_kernel[(len(names),)](seeds, counters, words, numbers)
    expected = [
        reference.philox4x32((position, 0, sample, 0), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
        for seed, sample, position in names.tolist()
    ]
    assert words.tolist() == [list(row) for row in expected]
    np.testing.assert_array_equal(numbers.cpu().numpy(), philox.uniform(*names.T.copy()))


def random_logits(num_rows, vocab_size, *, scale=3.0, seed=0, step=0.0):
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale
    return (logits / step).round() * step if step else logits


@pytest.mark.parametrize("vocab_size", [1, 5, 127, 129, 1000, 4099])
def test_greedy_takes_the_lowest_of_equal_ids(device, vocab_size):
    logits = torch.zeros(2, vocab_size)
    logits[1, [vocab_size - 1, max(0, vocab_size - 2)]] = 4.0
    drawn = draw(logits, [{"temperature": 0.0}] * 2, device)
    assert drawn.token_ids == [0, max(0, vocab_size - 2)]


LIMITS = [
    {},
    {"temperature": 0.01},
    {"top_k": 1},
    {"top_k": 7, "temperature": 1.7},
    {"top_k": 130},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.05, "temperature": 0.5},
    {"top_p": 0.999, "temperature": 1.7},
    {"min_p": 0.03},
    {"min_p": 1.0, "temperature": 0.5},
    {"top_p": 0.95, "top_k": 40, "min_p": 0.01},
    {"top_p": 0.5, "top_k": 600},
    {"top_p": 0.9, "min_p": 0.2, "temperature": 1.7},
    {"top_k": 50, "top_p": 0.95},
]


@pytest.mark.parametrize(("scale", "step"), [(3.0, 0.0), (0.3, 0.0), (20.0, 0.0), (3.0, 0.5), (1.0, 0.5)])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_keeps_and_draws_as_the_reference(device, limits, scale, step):
    """The set that is kept, exactly; the token, except at boundaries."""
    (logits,) = random_logits(1, 1000, scale=scale, seed=len(str(limits)), step=step)
    row = {**limits, "seed": -5, "position": 17, "sample_index": 2}
    drawn = draw(logits[None], [row], device)
    probabilities = reference_probabilities(logits, row)
    weightless = float(logits.max()) - 80 * row.get("temperature", 1.0)  # cannot be drawn, kept or not
    heavy = set((logits > weightless).nonzero().flatten().tolist())
    expected = {token for token, share in enumerate(probabilities) if share > 0.0}
    assert kept_tokens(drawn, 0, logits) & heavy == expected & heavy
    assert_drawn(drawn.token_ids[0], probabilities, row, slack=1e-5)


@pytest.mark.parametrize("vocab_size", [1, 2, 127, 129, 4099])
@pytest.mark.parametrize("limits", [{}, {"top_k": 50, "top_p": 0.95}, {"top_p": 0.8, "temperature": 2.0}], ids=str)
def test_odd_vocabularies(device, limits, vocab_size):
    (logits,) = random_logits(1, vocab_size, seed=vocab_size)
    row = {**limits, "seed": vocab_size, "position": 3}
    drawn = draw(logits[None], [row], device)
    assert_drawn(drawn.token_ids[0], reference_probabilities(logits, row), row, slack=1e-5)


def mixed_rows(num_rows):
    rows = [{**LIMITS[4 * index % len(LIMITS)], "seed": index * 7, "position": index} for index in range(num_rows)]
    rows[4]["temperature"] = 0.0
    return rows


def test_agrees_with_the_cpu(device):
    num_rows, vocab_size = (300, 32_003) if device == "cuda" else (15, 1000)
    logits = random_logits(num_rows, vocab_size, seed=3)
    rows = mixed_rows(num_rows)

    def column(name, default, dtype):
        # The device holds float32.
        return np.array([row.get(name, default) for row in rows], np.float32 if dtype == np.float64 else dtype).astype(
            dtype
        )

    batch = SamplingBatch(
        temperature=column("temperature", 1.0, np.float64),
        top_k=column("top_k", 0, np.int64),
        top_p=column("top_p", 1.0, np.float64),
        min_p=column("min_p", 0.0, np.float64),
        seed=column("seed", 0, np.int64),
        sample_index=column("sample_index", 0, np.int64),
        position=column("position", 0, np.int64),
    )
    expected, failed = draw_tokens(logits.clone(), batch)
    assert not failed.any()
    drawn = draw(logits, rows, device)
    for index in np.flatnonzero(expected != drawn.token_ids).tolist():
        assert rows[index].get("temperature", 1.0) > 0.0
        assert_drawn(
            drawn.token_ids[index], reference_probabilities(logits[index], rows[index]), rows[index], slack=1e-6
        )


def test_a_token_does_not_depend_on_who_shares_the_batch(device):
    num_rows, vocab_size = (64, 5000) if device == "cuda" else (6, 520)
    logits = random_logits(num_rows, vocab_size, scale=2.0, seed=4)
    rows = mixed_rows(num_rows)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(0)).tolist()
    together = draw(logits[order], [rows[index] for index in order], device)
    for place, index in enumerate(order):
        alone = draw(logits[[index]], [rows[index]], device)
        assert alone.token_ids[0] == together.token_ids[place]
        for name in ("peaks", "cuts", "sums"):
            expected = getattr(alone.workspace, name)[0].cpu()
            assert torch.equal(getattr(together.workspace, name)[place].cpu().nan_to_num(), expected.nan_to_num()), name


def test_top_k_keeps_all_that_tie_with_the_last(device):
    logits = torch.full((2, 500), -1.0)
    logits[:, [3, 200, 201, 499]] = torch.tensor([2.0, 1.0, 1.0, 1.0])
    drawn = draw(logits, [{"top_k": 1}, {"top_k": 2}], device)
    assert kept_tokens(drawn, 0, logits[0]) == {3}
    assert kept_tokens(drawn, 1, logits[1]) == {3, 200, 201, 499}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-9, {2}),
        (0.5, {2}),
        (0.51, {2, 301}),
        (0.75, {2, 301}),
        (0.76, {0, 2, 301}),  # of the two that tie, the lower id
        (0.99, {0, 2, 301, 303}),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it_and_one_token_at_least(device, top_p, kept):
    logits = torch.full((400,), -math.inf)
    logits[[0, 301, 2, 303]] = torch.tensor([0.125, 0.25, 0.5, 0.125]).log()
    assert kept_tokens(draw(logits[None], [{"top_p": top_p}], device), 0, logits) == kept


@pytest.mark.parametrize("limits", [{}, {"top_k": 2}, {"min_p": 1.0}, {"top_k": 2, "min_p": 0.5}], ids=str)
@pytest.mark.parametrize(("value", "vocab_size"), [(0.0, 1024), (-3.25, 1024), (1.5, 4096)])
def test_a_flat_distribution_keeps_the_lowest_ids(device, limits, value, vocab_size):
    """Also with more ties than the workspace has room for."""
    logits = torch.full((vocab_size,), value)
    drawn = draw(logits[None], [{**limits, "top_p": 0.25}], device)
    assert kept_tokens(drawn, 0, logits) == set(range(vocab_size // 4))


@pytest.mark.parametrize(
    ("limits", "kept"), [({}, set(range(4096))), ({"top_p": 0.5}, {4000, *range(2043)})], ids=["top_k", "top_p"]
)
def test_ties_that_do_not_fit_into_the_workspace(device, limits, kept):
    """The peaks of the chunks promise few values above the cut; there are too many."""
    logits = torch.full((4096,), 1.5)
    logits[[7, 4000]] = 1.5 + math.log(5.0)
    drawn = draw(logits[None], [{"top_k": 20, **limits}], device)
    assert kept_tokens(drawn, 0, logits) == kept


@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_values_of_any_size_end_the_search(device, top_p):
    """From the smallest numbers there are to large ones, close together and far apart."""
    tiny = torch.tensor([0, 1, 2, 3], dtype=torch.int32).view(torch.float32)
    spread = torch.logspace(-40, 1, 200)
    logits = torch.cat((tiny, spread, -spread, torch.full((50,), -1e30)))
    row = {"top_p": top_p, "temperature": 1.0}
    drawn = draw(logits[None], [row], device)
    assert_drawn(drawn.token_ids[0], reference_probabilities(logits, row), row, slack=1e-5)


@pytest.mark.parametrize(
    ("bad", "token_id"),
    [
        ([math.nan, 0.0, 0.0], -1),
        ([0.0, math.inf, 0.0], -1),
        ([-math.inf, -math.inf, -math.inf], -2),
        ([-math.inf, math.nan, math.inf], -1),
        ([-math.inf, 1.0, -math.inf], 1),
    ],
)
@pytest.mark.parametrize("limits", [{"temperature": 0.0}, {}, {"top_k": 2, "top_p": 0.9}], ids=str)
def test_a_row_that_cannot_be_drawn_fails_alone(device, bad, token_id, limits):
    good = [0.5, 2.0, -1.0]
    rows = [{**limits, "seed": index} for index in range(3)]
    expected = draw(torch.tensor([good, good, good]), rows, device).token_ids
    drawn = draw(torch.tensor([good, bad, good]), rows, device)
    assert drawn.token_ids == [expected[0], token_id, expected[2]]
    assert drawn.last_tokens == [expected[0], max(0, token_id), expected[2], -77]


def test_tokens_are_fed_back_by_slot(device):
    logits = random_logits(3, 300)
    rows = [{"seed": 1}, {"top_k": 3}, {"temperature": 0.0}]
    drawn = draw(logits, rows, device, slots=[4, 0, 6])
    assert [drawn.last_tokens[slot] for slot in (4, 0, 6)] == drawn.token_ids
    assert [drawn.last_tokens[slot] for slot in (1, 2, 3, 5, 7)] == [-77] * 5


@pytest.mark.parametrize("limits", [{}, {"top_p": 0.8}], ids=str)
def test_draws_follow_the_exact_distribution(device, limits):
    """Chi-square over draws at different positions; a fixed seed, so the verdict is fixed too."""
    num_draws, vocab_size = (50_000, 300) if device == "cuda" else (20 if limits else 100, 4)
    (logits,) = random_logits(1, vocab_size, scale=1.0, seed=5)
    rows = [{**limits, "seed": 11, "position": position} for position in range(num_draws)]
    token_ids = draw(logits.expand(num_draws, -1).contiguous(), rows, device).token_ids
    counts = np.bincount(token_ids, minlength=vocab_size)
    exact = np.array(reference_probabilities(logits, limits))
    assert counts[exact == 0.0].sum() == 0
    observed, expected = counts[exact > 0.0], exact[exact > 0.0] * num_draws
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_nothing_to_draw(device):
    assert draw(torch.empty(0, 300), [], device, slots=[]).token_ids == []
