import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.kernels import native
from quire.kernels.sample import LogitEdits, NativeSampler, Penalties, SamplingBatch, TokenMask, draw_tokens, reference
from quire.kernels.sample.torch_cpu import apply_edits, apply_mask, apply_penalties

EXTENSION = native.extension()
INSTRUCTION_SETS = EXTENSION.instruction_sets() if EXTENSION else []


def native_sampler(instruction_set, num_threads=2):
    return NativeSampler(EXTENSION.ThreadPool(num_threads), instruction_set)


each_instruction_set = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)


@pytest.fixture(scope="module", params=["torch", *INSTRUCTION_SETS])
def draw(request):
    """`draw_tokens` of each implementation."""
    return draw_tokens if request.param == "torch" else native_sampler(request.param).draw_tokens


def make_batch(rows):
    """A batch from dicts of row parameters."""

    def column(name, default, dtype):
        return np.array([row.get(name, default) for row in rows], dtype)

    return SamplingBatch(
        temperature=column("temperature", 1.0, np.float64),
        top_k=column("top_k", 0, np.int64),
        top_p=column("top_p", 1.0, np.float64),
        min_p=column("min_p", 0.0, np.float64),
        seed=column("seed", 0, np.int64),
        sample_index=column("sample_index", 0, np.int64),
        position=column("position", 0, np.int64),
    )


def assert_drawn_as_reference(logits, row, token_id):
    """The reference's token, or one that only a boundary within 1e-5 of the random number separates from it."""
    if row["temperature"] == 0.0:
        assert token_id == logits.index(max(logits))
        return
    limits = {name: row[name] for name in ("temperature", "top_k", "top_p", "min_p")}
    number = reference.uniform(row["seed"], row["sample_index"], row["position"])
    probabilities = reference.kept_probabilities(logits, **limits)
    expected = reference.draw(probabilities, number)
    if token_id == expected:
        return
    low, high = sorted((token_id, expected))
    assert probabilities[token_id] > 0.0
    assert sum(probabilities[low + 1 : high]) < 1e-5
    assert abs(sum(probabilities[: low + 1]) - number) < 1e-5


parameters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.01, 0.5, 1.0, 1.7]),
        "top_k": st.sampled_from([0, 1, 2, 7, 130, 10_000]),
        "top_p": st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.05]),
        "min_p": st.sampled_from([0.0, 0.0, 0.03, 0.5, 1.0]),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "sample_index": st.integers(0, 127),
        "position": st.integers(0, 2**20),
    }
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=st.lists(parameters, min_size=1, max_size=9),
    vocab_size=st.sampled_from([1, 2, 5, 127, 128, 129, 130, 256, 300, 1000, 5000]),
    scale=st.sampled_from([0.0, 0.3, 3.0, 20.0]),
    step=st.sampled_from([0.0, 0.5]),
    noise_seed=st.integers(0, 1000),
)
def test_every_mix_of_parameters_draws_as_the_reference(draw, rows, vocab_size, scale, step, noise_seed):
    generator = torch.Generator().manual_seed(noise_seed)
    logits = torch.randn(len(rows), vocab_size, generator=generator) * scale
    if step:  # rounded logits tie often
        logits = (logits / step).round() * step
    token_ids, failed = draw(logits.clone(), make_batch(rows))
    assert not failed.any()
    for row, row_logits, token_id in zip(rows, logits.tolist(), token_ids.tolist(), strict=True):
        assert_drawn_as_reference(row_logits, row, token_id)


@pytest.mark.parametrize("vocab_size", [3, 128, 1000])
def test_greedy_takes_the_lowest_of_equal_ids(draw, vocab_size):
    logits = torch.zeros(2, vocab_size)
    logits[1, [vocab_size - 1, vocab_size - 2]] = 4.0
    token_ids, _ = draw(logits, make_batch([{"temperature": 0.0}] * 2))
    assert token_ids.tolist() == [0, vocab_size - 2]


def tokens_seen(draw, logits, **limits):
    """Every token drawn at 400 positions."""
    rows = [{**limits, "position": position} for position in range(400)]
    return set(draw(logits.repeat(400, 1), make_batch(rows))[0].tolist())


@pytest.mark.parametrize("vocab_size", [8, 500])
def test_top_k_keeps_all_that_tie_with_the_last(draw, vocab_size):
    logits = torch.full((1, vocab_size), -1.0)
    logits[0, :4] = torch.tensor([2.0, 1.0, 1.0, 1.0])
    assert tokens_seen(draw, logits, top_k=1) == {0}
    assert tokens_seen(draw, logits, top_k=2) == {0, 1, 2, 3}


def test_top_k_ties_beyond_the_candidates_are_kept(draw):
    logits = torch.zeros(1, 300)
    assert len(tokens_seen(draw, logits, top_k=2)) > 200


@pytest.mark.parametrize("vocab_size", [4, 400])
def test_top_p_keeps_the_smallest_set_that_reaches_it_and_one_token_at_least(draw, vocab_size):
    logits = torch.full((1, vocab_size), -math.inf)
    logits[0, :4] = torch.tensor([0.125, 0.25, 0.5, 0.125]).log()
    assert tokens_seen(draw, logits, top_p=1e-9) == {2}
    assert tokens_seen(draw, logits, top_p=0.5) == {2}
    assert tokens_seen(draw, logits, top_p=0.51) == {1, 2}
    assert tokens_seen(draw, logits, top_p=0.75) == {1, 2}
    assert tokens_seen(draw, logits, top_p=0.76) == {0, 1, 2}  # of the two that tie, the lower id
    assert tokens_seen(draw, logits, top_p=0.99) == {0, 1, 2, 3}


def test_top_p_in_a_flat_distribution_takes_the_lowest_ids(draw):
    assert 240 < max(tokens_seen(draw, torch.zeros(1, 1024), top_p=0.25)) < 256


def test_min_p_is_relative_to_the_most_likely_token(draw):
    logits = torch.tensor([[1.0, 0.5, 0.26, 0.24]]).log()
    assert tokens_seen(draw, logits, min_p=0.25) == {0, 1, 2}
    assert tokens_seen(draw, logits, min_p=1.0) == {0}


MIXES = [
    {},
    {"temperature": 0.7, "min_p": 0.02},
    {"top_k": 20, "temperature": 1.3},
    {"top_p": 0.9},
    {"top_p": 0.95, "top_k": 40, "min_p": 0.01},
    {"top_p": 0.9, "temperature": 2.0},
    {"top_k": 200, "temperature": 2.0},
]


@pytest.mark.parametrize("limits", MIXES, ids=str)
def test_draws_follow_the_exact_distribution(draw, limits):
    """Chi-square over 52,000 draws at different positions; a fixed seed, so the verdict is fixed too."""
    num_draws, chunk = 52_000, 2_000
    logits = torch.randn(1, 600, generator=torch.Generator().manual_seed(5)) * 3.0
    limits = {"temperature": 1.0, **limits}
    exact = np.array(reference.kept_probabilities(logits[0].tolist(), **limits))
    counts = np.zeros(600)
    for start in range(0, num_draws, chunk):
        rows = [{**limits, "seed": 11, "position": position} for position in range(start, start + chunk)]
        token_ids, _ = draw(logits.expand(chunk, -1).contiguous(), make_batch(rows))
        counts += np.bincount(token_ids, minlength=600)
    assert counts[exact == 0.0].sum() == 0
    common = exact * num_draws >= 10
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(exact[common], exact[~common].sum()) * num_draws
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    # The statistic has mean `freedom` and standard deviation sqrt(2 * freedom).
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_a_token_does_not_depend_on_who_shares_the_batch(draw):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(64, 5000, generator=generator) * 2
    rows = [
        {**MIXES[index % len(MIXES)], "seed": index * 7, "position": index, "sample_index": 3} for index in range(64)
    ]
    rows[9]["temperature"] = 0.0
    together, _ = draw(logits.clone(), make_batch(rows))
    alone = [int(draw(logits[[index]], make_batch([row]))[0][0]) for index, row in enumerate(rows)]
    assert together.tolist() == alone
    order = torch.randperm(64, generator=generator)
    shuffled, _ = draw(logits[order], make_batch([rows[index] for index in order.tolist()]))
    assert shuffled.tolist() == together[order.numpy()].tolist()


@pytest.mark.parametrize(
    ("bad", "is_failure"),
    [
        ([math.nan, 0.0, 0.0], True),
        ([0.0, math.inf, 0.0], True),
        ([-math.inf, -math.inf, -math.inf], True),
        ([-math.inf, math.nan, math.inf], True),
        ([-math.inf, 1.0, -math.inf], False),
    ],
)
@pytest.mark.parametrize("limits", [{"temperature": 0.0}, *MIXES], ids=str)
def test_a_row_that_cannot_be_drawn_fails_alone(draw, bad, is_failure, limits):
    good = [0.5, 2.0, -1.0]
    rows = [{**limits, "seed": index} for index in range(3)]
    expected, _ = draw(torch.tensor([good, good, good]), make_batch(rows))
    token_ids, failed = draw(torch.tensor([good, bad, good]), make_batch(rows))
    assert failed.tolist() == [False, is_failure, False]
    assert reference.is_failed(bad) == is_failure
    assert token_ids[[0, 2]].tolist() == expected[[0, 2]].tolist()
    if not is_failure:
        assert token_ids[1] == 1


edits = st.fixed_dictionaries(
    {
        "allowed": st.none() | st.sets(st.integers(0, 19), min_size=1),
        "excluded": st.sets(st.integers(0, 19), max_size=5),
        "bias": st.dictionaries(st.integers(0, 19), st.floats(-100, 100, width=32), max_size=4),
        "prompt_ids": st.lists(st.integers(0, 19), max_size=6),
        "output_ids": st.lists(st.integers(0, 19), max_size=6),
        "repetition": st.sampled_from([1.0, 1.5, 0.5]),
        "frequency": st.sampled_from([0.0, 2.0, -0.5]),
        "presence": st.sampled_from([0.0, 1.0, -2.0]),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(edits, min_size=1, max_size=5), noise_seed=st.integers(0, 1000))
def test_edits_and_penalties_equal_the_reference(rows, noise_seed):
    logits = torch.randn(len(rows), 20, generator=torch.Generator().manual_seed(noise_seed))
    expected = torch.tensor(
        [reference.edit_logits(values, **row) for values, row in zip(logits.tolist(), rows, strict=True)]
    )
    excluded = [(index, token_id) for index, row in enumerate(rows) for token_id in row["excluded"]]
    biases = [(index, token_id, bias) for index, row in enumerate(rows) for token_id, bias in row["bias"].items()]
    apply_edits(
        logits,
        LogitEdits(
            allowed=[
                (index, np.array(sorted(row["allowed"]), np.int64))
                for index, row in enumerate(rows)
                if row["allowed"] is not None
            ],
            excluded_rows=np.array([entry[0] for entry in excluded], np.int64),
            excluded_ids=np.array([entry[1] for entry in excluded], np.int64),
            bias_rows=np.array([entry[0] for entry in biases], np.int64),
            bias_ids=np.array([entry[1] for entry in biases], np.int64),
            biases=np.array([entry[2] for entry in biases], np.float32),
        ),
    )
    occurring = [
        (index, token_id, row["output_ids"].count(token_id), row["repetition"], row["frequency"], row["presence"])
        for index, row in enumerate(rows)
        for token_id in sorted(set(row["prompt_ids"]) | set(row["output_ids"]))
    ]
    integers = np.array([entry[:3] for entry in occurring], np.int64).reshape(-1, 3)
    floats = np.array([entry[3:] for entry in occurring], np.float32).reshape(-1, 3)
    apply_penalties(logits, Penalties(*integers.T, *floats.T))
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-5)


def test_a_row_without_a_token_left_fails(draw):
    batch = make_batch([{}, {"temperature": 0.0}])
    batch.edits = LogitEdits(allowed=[(1, np.array([2]))], excluded_rows=np.array([1]), excluded_ids=np.array([2]))
    _, failed = draw(torch.zeros(2, 4), batch)
    assert failed.tolist() == [False, True]


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("name", ["torch", *INSTRUCTION_SETS])
def test_a_mask_equals_the_reference(name, vocab_size):
    rng = np.random.default_rng(vocab_size)
    logits = torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    words = rng.integers(0, 2**32, (3, -(-vocab_size // 32)), dtype=np.uint32)
    rows = [4, 0, 2]
    masks = dict(zip(rows, words.tolist(), strict=True))
    expected = [reference.edit_logits(values, mask=masks.get(row)) for row, values in enumerate(logits.tolist())]
    if name == "torch":
        apply_mask(logits, TokenMask(np.array(rows), words))
    else:
        EXTENSION.Sampler(EXTENSION.ThreadPool(2), name).apply_mask(logits.numpy(), np.array(rows), words)
    torch.testing.assert_close(logits, torch.tensor(expected))


def test_a_mask_comes_before_everything_else(draw):
    """A bias does not bring back what the mask excludes, and what was allowed besides does not count."""
    batch = make_batch([{"temperature": 0.0}] * 2)
    batch.mask = TokenMask(np.array([1]), np.array([[0b1010]], np.uint32))
    batch.edits = LogitEdits(
        allowed=[(1, np.array([0, 3]))],
        bias_rows=np.array([0, 1]),
        bias_ids=np.array([2, 2]),
        biases=np.array([50.0, 50.0], np.float32),
    )
    token_ids, failed = draw(torch.tensor([[0.0, 1.0, 2.0, 3.0]]).repeat(2, 1), batch)
    assert token_ids.tolist() == [2, 3]
    assert not failed.any()


@pytest.mark.parametrize(
    "limits", [{"top_k": 50}, {"top_k": 1000, "top_p": 0.5}, {"top_p": 0.95}, {"min_p": 0.01}], ids=str
)
def test_a_large_vocabulary_draws_as_the_reference(draw, limits):
    rows = [
        {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3, "sample_index": 0, "position": index}
        | limits
        for index in range(3)
    ]
    logits = torch.randn(3, 50_003, generator=torch.Generator().manual_seed(2)) * torch.tensor([[1.0], [4.0], [0.0]])
    token_ids, _ = draw(logits.clone(), make_batch(rows))
    for row, row_logits, token_id in zip(rows, logits.tolist(), token_ids.tolist(), strict=True):
        assert_drawn_as_reference(row_logits, row, token_id)


@pytest.mark.parametrize("limits", MIXES, ids=str)
def test_logits_of_any_size_are_drawn(draw, limits):
    sizes = torch.tensor([3e38, -3e38, 1e-45, -1e-45, 0.0, -0.0, 1.0, -math.inf, 2e38])
    logits = sizes.repeat(3, 40)
    logits[1, logits[1] > 1.0] = -math.inf
    logits[2, logits[2] > -1.0] = -math.inf
    token_ids, failed = draw(logits.clone(), make_batch([limits | {"temperature": 1e-3}] * 3))
    assert not failed.any()
    assert torch.equal(logits[torch.arange(3), torch.from_numpy(token_ids)], logits.max(1).values)


@each_instruction_set
def test_a_token_does_not_depend_on_the_number_of_threads(instruction_set):
    logits = torch.randn(32, 3000, generator=torch.Generator().manual_seed(3)) * 2
    batch = make_batch([{**MIXES[index % len(MIXES)], "seed": index} for index in range(32)])
    alone, _ = native_sampler(instruction_set, 1).draw_tokens(logits, batch)
    for num_threads in (2, 5):
        token_ids, _ = native_sampler(instruction_set, num_threads).draw_tokens(logits, batch)
        assert token_ids.tolist() == alone.tolist()


@each_instruction_set
def test_why_a_row_failed_stands_in_the_place_of_its_token(instruction_set):
    sampler = EXTENSION.Sampler(EXTENSION.ThreadPool(1), instruction_set)
    logits = np.array([[0.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]], np.float32)
    batch = make_batch([{"temperature": 0.0}] * 4)
    token_ids = np.empty(4, np.int64)
    limits = (batch.temperature, batch.top_k, batch.top_p, batch.min_p)
    sampler.draw_tokens(logits, *limits, batch.seed, batch.sample_index, batch.position, token_ids)
    assert token_ids.tolist() == [1, -1, -1, -2]


@each_instruction_set
def test_arrays_that_do_not_fit_are_refused(instruction_set):
    sampler = EXTENSION.Sampler(EXTENSION.ThreadPool(1), instruction_set)
    logits = np.zeros((2, 40), np.float32)
    batch = make_batch([{}])
    limits = (batch.temperature, batch.top_k, batch.top_p, batch.min_p)
    with pytest.raises(ValueError, match="another number of rows"):
        sampler.draw_tokens(logits, *limits, batch.seed, batch.sample_index, batch.position, np.empty(2, np.int64))
    with pytest.raises(ValueError, match="another shape"):
        sampler.apply_mask(logits, np.array([0]), np.zeros((1, 1), np.uint32))
    with pytest.raises(IndexError, match="outside the logits"):
        sampler.apply_mask(logits, np.array([2]), np.zeros((1, 2), np.uint32))
