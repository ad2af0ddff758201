"""Paged attention against its reference: mixed batches over shuffled blocks, with NaN in every unused slot."""

import random
from dataclasses import dataclass

import pytest
import torch

from quire.kernels.paged_attention import attend, plan, prepare, reference, write_kv


@dataclass
class Case:
    """Sequences as (tokens before the step, tokens in it) and the shape of the attention."""

    sequences: list[tuple[int, int]]
    num_kv_heads: int = 2
    group_size: int = 3
    head_dim: int = 32
    block_size: int = 16
    window: int | None = None
    soft_cap: float | None = None


@dataclass
class Step:
    """What the ops take, with keys and values of the past in the caches."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    slot_mapping: torch.Tensor
    query_lengths: list[int]
    context_lengths: list[int]
    block_tables: torch.Tensor


def _make_step(case: Case, dtype: torch.dtype, cache_dtype: torch.dtype) -> Step:
    torch.manual_seed(1)
    blocks_needed = [-(-(before + now) // case.block_size) for before, now in case.sequences]
    free = random.Random(2).sample(range(sum(blocks_needed) + 3), sum(blocks_needed) + 3)
    tables = torch.zeros(len(case.sequences), max(blocks_needed) + 1, dtype=torch.int32)
    shape = (len(free), case.block_size, case.num_kv_heads, case.head_dim)
    key_cache, value_cache = (torch.full(shape, float("nan"), dtype=cache_dtype) for _ in range(2))
    past_slots, slots = [], []
    for sequence, (before, now) in enumerate(case.sequences):
        table = [free.pop() for _ in range(blocks_needed[sequence])]
        tables[sequence, : len(table)] = torch.tensor(table)
        all_slots = [table[i // case.block_size] * case.block_size + i % case.block_size for i in range(before + now)]
        past_slots += all_slots[:before]
        slots += all_slots[before:]
    past = (len(past_slots), case.num_kv_heads, case.head_dim)
    for cache in (key_cache, value_cache):
        cache.view(-1, *shape[2:])[past_slots] = torch.randn(past).to(cache_dtype)
    heads = torch.randn(len(slots), case.num_kv_heads * (case.group_size + 2), case.head_dim).to(dtype)
    num_heads = case.num_kv_heads * case.group_size
    query, key, value = heads.split((num_heads, case.num_kv_heads, case.num_kv_heads), dim=1)
    return Step(
        query,
        key,
        value,
        key_cache,
        value_cache,
        torch.tensor(slots),
        [now for _, now in case.sequences],
        [before + now for before, now in case.sequences],
        tables,
    )


CASES = {
    "one fresh prompt": Case([(0, 37)]),
    "one token": Case([(0, 1)]),
    "decode alone": Case([(40, 1)]),
    "decode, equal lengths": Case([(20, 1), (20, 1), (20, 1)]),
    "decode, odd lengths": Case([(3, 1), (16, 1), (15, 1), (31, 1), (32, 1), (5, 1)], block_size=32),
    "decode, far apart": Case([(200, 1), (1, 1), (90, 1), (180, 1), (0, 1), (2, 1)]),
    "chunk behind a prefix": Case([(33, 19)]),
    "two tokens behind a prefix": Case([(64, 2)]),
    "mixed": Case([(0, 5), (50, 1), (17, 30), (0, 1), (99, 1), (0, 16), (48, 1)]),
    "multi-head": Case([(0, 9), (30, 1), (12, 7)], num_kv_heads=4, group_size=1, head_dim=48),
    "group of 4, head 128": Case([(0, 21), (70, 1), (65, 1), (10, 6)], group_size=4, head_dim=128),
    "group of 8, one key head": Case([(0, 21), (70, 1), (10, 6)], num_kv_heads=1, group_size=8, head_dim=80),
    "odd block": Case([(0, 23), (40, 1), (9, 11)], block_size=8),
    "window wider than all": Case([(0, 20), (25, 1), (7, 9)], window=64),
    "window equal to the context": Case([(0, 20), (19, 1), (11, 9)], window=20),
    "window in decode": Case([(100, 1), (5, 1), (17, 1), (70, 1)], window=17),
    "window in prefill": Case([(0, 61)], window=13),
    "window over prefix and chunk": Case([(45, 30), (9, 1), (3, 4), (80, 1)], window=21),
    "window of one": Case([(0, 9), (20, 1), (5, 3)], window=1),
    "long decode": Case([(1500, 1), (700, 1)], num_kv_heads=1, group_size=2),
    "soft cap": Case([(0, 21), (40, 1), (3, 1), (33, 9)], soft_cap=0.8),
    "soft cap and window": Case([(0, 21), (40, 1), (3, 1), (33, 9)], soft_cap=2.0, window=13),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_matches_reference(name, dtype, assert_close, error_ratios):
    _check(CASES[name], dtype, dtype, assert_close, error_ratios[dtype])


@pytest.mark.parametrize("name", ["mixed", "chunk behind a prefix", "window over prefix and chunk"])
def test_cache_of_another_format(name, assert_close, error_ratios):
    _check(CASES[name], torch.float32, torch.bfloat16, assert_close, error_ratios[torch.float32])


LONG_CASES = {
    "fresh prompt in tiles": Case([(0, 100), (0, 9), (0, 10)]),
    "far range in pieces": Case([(150, 40), (90, 1), (0, 30), (31, 2)]),
    "long decode in pieces": Case([(300, 1), (64, 1), (20, 1)]),
    "window with edge and far": Case([(0, 200), (110, 50), (120, 1)], window=70),
    "window of a piece": Case([(0, 100), (110, 50)], window=32),
    "multi-head": Case([(150, 40), (90, 1)], num_kv_heads=3, group_size=1, head_dim=64),
    "soft cap": Case([(150, 40), (90, 1), (0, 30)], soft_cap=0.8),
    "soft cap and window": Case([(0, 200), (110, 50), (120, 1)], soft_cap=0.8, window=70),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LONG_CASES)
def test_long_contexts_in_bounded_memory(name, dtype, monkeypatch, assert_close, error_ratios):
    """The limits are lowered instead of the contexts raised."""
    case = LONG_CASES[name]
    key_bytes = case.num_kv_heads * case.head_dim * dtype.itemsize
    monkeypatch.setattr(plan, "PIECE_BYTES", 48 * key_bytes)
    monkeypatch.setattr(plan, "GROUP_BYTES", 48 * key_bytes)
    monkeypatch.setattr(plan, "MIN_TILE_QUERIES", 9)
    monkeypatch.setattr(plan, "MAX_WINDOW_TILE_QUERIES", 24)
    step = _check(case, dtype, dtype, assert_close, error_ratios[dtype])
    metadata = _prepare(step, case.window, dtype)
    assert len(metadata.keys) <= max(48, *step.query_lengths)


def test_buffers_do_not_grow_with_the_context():
    table = torch.arange(6250, dtype=torch.int32).unsqueeze(0)
    key_cache = torch.empty((6250, 16, 8, 128), device="meta", dtype=torch.bfloat16)
    metadata = prepare([2048], [100_000], table, key_cache, dtype=torch.bfloat16)
    tiles = metadata.by_window[None].tiles
    assert metadata.keys.numel() * 2 <= plan.PIECE_BYTES
    assert all(tile.mask is None for tile in tiles)
    assert sum(map(len, tiles[-1].far_slots)) + tiles[-1].num_queries == 100_000


def test_windows_of_several_sizes_in_one_step(assert_close):
    step = _make_step(Case([(40, 1), (0, 30), (12, 5)]), torch.float32, torch.float32)
    reference.write_kv(step.key, step.value, step.key_cache, step.value_cache, step.slot_mapping)
    metadata = prepare(
        step.query_lengths,
        step.context_lengths,
        step.block_tables,
        step.key_cache,
        dtype=torch.float32,
        sliding_windows=(None, 7, 1000),
    )
    for window in (None, 7, 1000):
        actual = attend(step.query, step.key_cache, step.value_cache, metadata, 0.2, window)
        assert_close(f"window {window}", actual, _expected(step, 0.2, window), 1e-6)


def test_lengths_and_tables_must_agree():
    with pytest.raises(AssertionError, match="2 query lengths, 1 context lengths, 1 block tables"):
        prepare([1, 1], [4], torch.zeros(1, 1), torch.zeros(2, 16, 1, 32), dtype=torch.float32)


def _check(case: Case, dtype, cache_dtype, assert_close, ratio) -> Step:
    step = _make_step(case, dtype, cache_dtype)
    expected_caches = step.key_cache.clone(), step.value_cache.clone()
    reference.write_kv(step.key, step.value, *expected_caches, step.slot_mapping)
    write_kv(step.key, step.value, step.key_cache, step.value_cache, step.slot_mapping)
    for actual, expected in zip((step.key_cache, step.value_cache), expected_caches, strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.nan_to_num(), expected.nan_to_num())
    scale = case.head_dim**-0.5
    metadata = _prepare(step, case.window, dtype)
    actual = attend(step.query, step.key_cache, step.value_cache, metadata, scale, case.window, case.soft_cap)
    assert actual.is_contiguous()
    assert_close("attend", actual, _expected(step, scale, case.window, case.soft_cap), ratio)
    return step


def _prepare(step: Step, window: int | None, dtype: torch.dtype):
    return prepare(
        step.query_lengths,
        step.context_lengths,
        step.block_tables,
        step.key_cache,
        dtype=dtype,
        sliding_windows=(window,),
    )


def _expected(step: Step, scale: float, window: int | None, soft_cap: float | None = None) -> torch.Tensor:
    return reference.attend(
        step.query,
        step.key_cache,
        step.value_cache,
        step.query_lengths,
        step.context_lengths,
        step.block_tables,
        scale,
        window,
        soft_cap,
    )
