"""Paged attention in Triton against its reference: shuffled blocks and slots, NaN wherever nobody may read."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from quire.kernels.paged_attention import attend, reference, triton_decode, triton_prefill
from quire.kernels.paged_attention.cuda_config import (
    DecodeConfig,
    PrefillConfig,
    batch_config,
    count_parts,
    decode_config,
)
from quire.kernels.paged_attention.cuda_plan import (
    CudaAttentionMetadata,
    make_decode_workspace,
    make_decodes,
    make_tiles,
    tile_size,
)

RATIOS = {torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}
# The interpreter of Triton 3.6 multiplies bfloat16 matrices as if they were integers.
HALF_FORMATS = [torch.bfloat16, torch.float16] if torch.cuda.is_available() else [torch.float16]
SMALL_SPLITS = DecodeConfig(16, 4, 2, 16, 8, 64, False)
SMALL_FIXED_SPLITS = DecodeConfig(16, 4, 2, 16, 8, 64, True)
SMALL_TILES = PrefillConfig(16, 16, 4, 2)


@dataclass
class Case:
    """Sequences as (tokens before the step, tokens in it) and the shape of the attention."""

    sequences: list[tuple[int, int]]
    num_kv_heads: int = 2
    group_size: int = 3
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    soft_cap: float | None = None
    num_padding: int = 0
    max_context_length: int | None = None
    decode_config: DecodeConfig | None = None
    prefill_config: PrefillConfig | None = None

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group_size


@dataclass
class Step:
    """What the op and its reference take."""

    case: Case
    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    metadata: CudaAttentionMetadata
    sequence_tables: torch.Tensor
    scale: float = 0.11
    query_lengths: list[int] = field(default_factory=list)
    context_lengths: list[int] = field(default_factory=list)

    def attend(self) -> torch.Tensor:
        """The kernels' output, with the case's configurations."""
        case, metadata = self.case, self.metadata
        output = torch.full_like(self.query, torch.nan)
        arguments = (self.query, self.key_cache, self.value_cache, metadata, self.scale, case.window, case.soft_cap)
        if len(metadata.tiles):
            triton_prefill.prefill(*arguments, output, case.prefill_config)
        if len(metadata.decodes):
            triton_decode.decode(*arguments, output, case.decode_config)
        assert not metadata.workspace.counters.any()
        return output

    def expected(self) -> torch.Tensor:
        """The reference's output for all rows but padding, computed on the CPU."""
        case = self.case
        expected = reference.attend(
            self.query[: sum(self.query_lengths)].cpu(),
            self.key_cache.cpu(),
            self.value_cache.cpu(),
            self.query_lengths,
            self.context_lengths,
            self.sequence_tables,
            self.scale,
            case.window,
            case.soft_cap,
        )
        return expected.to(self.query.device)


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make_step(case: Case, device: str, dtype=torch.float32, cache_dtype=None, seed: int = 1) -> Step:
    """A step with keys and values where sequences have them, in blocks and slots in any order."""
    generator = torch.Generator().manual_seed(seed)
    shuffle = random.Random(seed)
    query_lengths = [now for _, now in case.sequences]
    context_lengths = [before + now for before, now in case.sequences]
    num_blocks = [-(-length // case.block_size) for length in context_lengths]
    free = shuffle.sample(range(1, sum(num_blocks) + 3), sum(num_blocks) + 2)
    shape = (len(free) + 1, case.block_size, case.num_kv_heads, case.head_dim)
    caches = [torch.full(shape, torch.nan) for _ in range(2)]
    num_slots = len(case.sequences) + 2
    slots = shuffle.sample(range(num_slots), len(case.sequences))
    tables = torch.full((num_slots + 1, max(num_blocks)), free.pop(), dtype=torch.int32)
    tables[-1] = 0
    for slot, length, count in zip(slots, context_lengths, num_blocks, strict=True):
        blocks = [free.pop() for _ in range(count)]
        tables[slot, :count] = torch.tensor(blocks, dtype=torch.int32)
        for cache in caches:
            entries = torch.randn(length, *shape[2:], generator=generator)
            for start in range(0, length, case.block_size):
                part = entries[start : start + case.block_size]
                cache[blocks[start // case.block_size], : len(part)] = part
    num_tokens = sum(query_lengths) + case.num_padding
    query = torch.randn(num_tokens, case.num_heads, case.head_dim, generator=generator)
    first_rows = np.cumsum(query_lengths) - query_lengths
    decodes = [
        (slot, row, context)
        for slot, row, now, context in zip(slots, first_rows, query_lengths, context_lengths, strict=True)
        if now == 1
    ]
    decodes += [(num_slots, row, 0) for row in range(num_tokens - case.num_padding, num_tokens)]
    size = tile_size(case.num_heads, case.num_kv_heads, case.head_dim, dtype, case.prefill_config)
    tiles = make_tiles(query_lengths, context_lengths, slots, first_rows, size)
    metadata = CudaAttentionMetadata(
        num_tokens=num_tokens,
        decodes=torch.tensor(decodes, dtype=torch.int32).view(-1, 3).to(device),
        tiles=torch.from_numpy(tiles).to(device),
        block_tables=tables.to(device),
        max_context_length=case.max_context_length or max(context_lengths),
        workspace=make_decode_workspace(
            max(1, len(decodes)),
            case.num_heads,
            case.num_kv_heads,
            case.head_dim,
            dtype=dtype,
            device=device,
            config=case.decode_config,
        ),
    )
    key_cache, value_cache = (cache.to(device, cache_dtype or dtype) for cache in caches)
    return Step(
        case,
        query.to(device, dtype),
        key_cache,
        value_cache,
        metadata,
        tables[slots],
        query_lengths=query_lengths,
        context_lengths=context_lengths,
    )


def check(case: Case, device, assert_close, dtype=torch.float32, cache_dtype=None) -> None:
    step = make_step(case, device, dtype, cache_dtype)
    actual = step.attend()
    num_real = len(actual) - case.num_padding
    assert_close("attend", actual[:num_real], step.expected(), RATIOS[dtype])
    assert not actual[num_real:].any()


CASES = {
    "one token": Case([(0, 1)]),
    "decode, odd lengths": Case([(3, 1), (16, 1), (15, 1), (31, 1), (32, 1), (0, 1)], num_kv_heads=1),
    "decode and padding": Case([(19, 1), (40, 1)], num_padding=2),
    "padding alone": Case([(0, 2)], num_padding=3),
    "prompts": Case([(0, 37), (0, 2), (0, 11)], num_kv_heads=1),
    "prompt of whole tiles": Case([(0, 32)], num_kv_heads=1, group_size=4),
    "chunk behind a prefix": Case([(33, 19)]),
    "a few queries behind a prefix": Case([(61, 2), (30, 5), (17, 8)], num_kv_heads=1),
    "mixed": Case([(0, 5), (50, 1), (17, 30), (0, 1), (0, 16)]),
    "multi-head": Case([(0, 9), (30, 1)], num_kv_heads=4, group_size=1),
    "group of 4, head 128": Case([(0, 21), (33, 1)], num_kv_heads=1, group_size=4, head_dim=128),
    "group of 7, head 80": Case([(0, 11), (33, 1)], num_kv_heads=1, group_size=7, head_dim=80),
    "group of 8, head 96": Case([(0, 11), (33, 1)], num_kv_heads=1, group_size=8, head_dim=96),
    "group of 16, head 256": Case([(9, 5), (20, 1)], num_kv_heads=1, group_size=16, head_dim=256),
    "group of 2, head 192": Case([(9, 5), (20, 1)], num_kv_heads=1, group_size=2, head_dim=192),
    "blocks of 32": Case([(0, 37), (50, 1), (70, 9)], num_kv_heads=1, block_size=32),
    "blocks of 64": Case([(0, 37), (50, 1), (70, 9)], num_kv_heads=1, block_size=64),
    "window": Case([(0, 41), (40, 1), (30, 9), (5, 1)], num_kv_heads=1, window=13),
    "window of a tile": Case([(0, 33), (47, 1), (46, 2)], num_kv_heads=1, window=16),
    "window of one": Case([(0, 9), (20, 1), (5, 3)], window=1),
    "window wider than all": Case([(0, 20), (25, 1)], window=64),
    "soft cap": Case([(0, 20), (25, 1), (7, 9)], num_kv_heads=1, soft_cap=0.7),
    "soft cap and window": Case([(0, 20), (25, 1), (7, 9)], num_kv_heads=1, soft_cap=2.0, window=9),
}


@pytest.mark.parametrize("name", CASES)
def test_matches_reference(name, device, assert_close):
    check(CASES[name], device, assert_close)


HALF_CASES = ["mixed", "group of 7, head 80", "group of 16, head 256", "window", "soft cap"]


@pytest.mark.parametrize("dtype", HALF_FORMATS, ids=str)
@pytest.mark.parametrize("name", CASES if torch.cuda.is_available() else HALF_CASES)
def test_matches_reference_in_16_bits(name, dtype, device, assert_close):
    check(CASES[name], device, assert_close, dtype)


SMALL_TILE_CASES = {
    "prompts": Case([(0, 37), (0, 2), (0, 16)]),
    "chunks": Case([(33, 19), (16, 16), (61, 2)]),
    "blocks wider than tiles": Case([(33, 9), (16, 16), (0, 34)], block_size=64),
    "window": Case([(0, 41), (40, 9), (64, 8)], window=21),
    "window of one": Case([(0, 21), (40, 5)], window=1),
    "group of 16": Case([(0, 5), (18, 3)], group_size=16),
    "group of 5": Case([(0, 9), (18, 4)], group_size=5),
}


@pytest.mark.parametrize("name", SMALL_TILE_CASES)
def test_many_tiles(name, device, assert_close):
    """Small tiles instead of long prompts."""
    case = SMALL_TILE_CASES[name]
    case.num_kv_heads, case.prefill_config = 1, SMALL_TILES
    check(case, device, assert_close)


SPLIT_CASES = {
    "different lengths": Case([(60, 1), (0, 1), (31, 1), (15, 1), (16, 1)]),
    "padding between": Case([(50, 1)], num_padding=2),
    "multi-head": Case([(40, 1), (17, 1)], num_kv_heads=3, group_size=1),
    "group of 8": Case([(50, 1)], group_size=8, head_dim=80),
    "group of 7, head 256": Case([(50, 1)], group_size=7, head_dim=256),
    "blocks of 64": Case([(90, 1), (30, 1)], block_size=64),
    "more parts than are merged at a time": Case([(130, 1)], group_size=4, head_dim=256),
    "window": Case([(90, 1), (7, 1), (33, 1)], window=40),
    "window within a tile": Case([(90, 1), (7, 1), (33, 1)], window=5),
    "soft cap": Case([(50, 1), (7, 1)], soft_cap=1.0),
    "mixed": Case([(40, 1), (20, 9), (7, 1)]),
    "graph for a long context": Case([(99, 1)], max_context_length=131072),
}


@pytest.mark.parametrize("is_fixed", [False, True], ids=["free", "fixed"])
@pytest.mark.parametrize("name", SPLIT_CASES)
def test_split_contexts(name, is_fixed, device, assert_close):
    """Splits of one tile instead of long contexts."""
    case = SPLIT_CASES[name]
    case.num_kv_heads = 3 if case.group_size == 1 else 1
    case.decode_config = SMALL_FIXED_SPLITS if is_fixed else SMALL_SPLITS
    check(case, device, assert_close)


@pytest.mark.parametrize("dtype", HALF_FORMATS, ids=str)
def test_split_contexts_in_16_bits(dtype, device, assert_close):
    case = Case([(200, 1), (129, 1), (40, 1)], num_kv_heads=1, group_size=4, head_dim=128)
    check(case, device, assert_close, dtype)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="too slow under the interpreter")


@needs_gpu
@pytest.mark.parametrize("window", [None, 1000])
@pytest.mark.parametrize("dtype", RATIOS, ids=str)
def test_long_contexts(dtype, window, device, assert_close):
    sequences = [(3000, 1), (900, 1), (20_000, 1), (700, 40), (0, 150), (5000, 3), (127, 1)]
    check(Case(sequences, group_size=4, head_dim=128, window=window), device, assert_close, dtype)


@needs_gpu
@pytest.mark.parametrize("num_queries", [1, 40])
def test_offsets_beyond_32_bits(num_queries, device, assert_close):
    """The sequence lies in the last blocks of caches of more than 2**31 elements."""
    step = make_step(Case([(90, num_queries)], num_kv_heads=1), device, torch.bfloat16)
    expected = step.expected()
    num_small = len(step.key_cache)
    num_blocks = 2**31 // step.key_cache[0].numel() + num_small
    for name in ("key_cache", "value_cache"):
        small = getattr(step, name)
        large = torch.full((num_blocks, *small.shape[1:]), torch.nan, dtype=small.dtype, device=device)
        large[-num_small:] = small
        setattr(step, name, large)
    step.metadata.block_tables += num_blocks - num_small
    assert_close("attend", step.attend(), expected, RATIOS[torch.bfloat16])


def test_a_second_step_finds_the_workspace_clean(device):
    step = make_step(Case([(40, 1)], num_kv_heads=1, decode_config=SMALL_SPLITS), device)
    first = step.attend()
    assert torch.equal(step.attend(), first)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"), [(torch.float32, torch.bfloat16), (HALF_FORMATS[0], torch.float32)], ids=str
)
def test_cache_of_another_format(dtype, cache_dtype, device, assert_close):
    check(Case([(0, 21), (30, 1), (9, 5)], num_kv_heads=1), device, assert_close, dtype, cache_dtype)


def test_attend_calls_both_kernels(device, assert_close):
    step = make_step(Case([(0, 5), (50, 1), (17, 9)], num_kv_heads=1, num_padding=1), device)
    actual = attend(step.query, step.key_cache, step.value_cache, step.metadata, step.scale)
    assert_close("attend", actual[:-1], step.expected(), 1e-5)
    assert not actual[-1].any()


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("config", [None, SMALL_FIXED_SPLITS], ids=["default", "small splits"])
def test_decoding_in_float32_does_not_depend_on_the_batch(config, window, device):
    """The same sequence alone, in a batch, and in a graph for long contexts."""
    before = 270 if config is None else 45
    alone = make_step(Case([(before, 1)], num_kv_heads=1, window=window, decode_config=config), device)
    others = [(20, 1), (before, 1), (before + 15, 1)]
    for longest in (before + 16, 4096):
        case = Case(others, num_kv_heads=1, window=window, decode_config=config, max_context_length=longest)
        batch = make_step(case, device)
        copy_sequence(alone, 0, batch, 1)
        assert torch.equal(batch.attend()[1], alone.attend()[0])


@pytest.mark.usefixtures("independent_rows")
@pytest.mark.parametrize("window", [None, 11])
def test_prefill_in_float32_does_not_depend_on_the_tile(window, device):
    """The last tokens of a prompt, computed with all others and as a chunk."""
    whole = make_step(Case([(0, 35)], num_kv_heads=1, window=window), device)
    chunk = make_step(Case([(3, 2), (26, 9)], num_kv_heads=1, window=window), device)
    copy_sequence(whole, 0, chunk, 1)
    assert torch.equal(chunk.attend()[2:], whole.attend()[26:])


def copy_sequence(source: Step, source_sequence: int, target: Step, target_sequence: int) -> None:
    """Gives a sequence of `target` the keys, values and last queries of one in `source`, of the same length."""
    for cache, target_cache in ((source.key_cache, target.key_cache), (source.value_cache, target.value_cache)):
        blocks, target_blocks = source.sequence_tables[source_sequence], target.sequence_tables[target_sequence]
        for block, target_block in zip(blocks.tolist(), target_blocks.tolist(), strict=False):
            target_cache[target_block] = cache[block]
    end = sum(source.query_lengths[: source_sequence + 1])
    target_end = sum(target.query_lengths[: target_sequence + 1])
    count = target.query_lengths[target_sequence]
    target.query[target_end - count : target_end] = source.query[end - count : end]


def test_decodes_come_with_the_longest_context_first():
    decodes = make_decodes(
        np.array([1, 3, 1, 1]), np.array([9, 50, 40, 9]), np.array([4, 5, 6, 7]), np.array([0, 1, 4, 5])
    )
    assert decodes.tolist() == [[6, 4, 40], [4, 0, 9], [7, 5, 9]]


@pytest.mark.parametrize("share", [1, 3, 7, 11])
@pytest.mark.parametrize("dtype", HALF_FORMATS)
def test_each_size_of_a_batch(share, dtype, device, assert_close):
    """The configuration goes by units for each multiprocessor: cut, cut finely, not cut, a crowd."""
    num_multiprocessors = make_decode_workspace(1, 1, 1, 64, dtype=dtype, device=device).num_multiprocessors
    num_decodes = int(share * num_multiprocessors)
    config = decode_config(64, dtype)
    assert (batch_config(config, num_decodes, num_multiprocessors) == config) == (share == 7)
    lengths = [(70 * (number % 4), 1) for number in range(num_decodes)]
    check(Case(lengths, num_kv_heads=1, max_context_length=1000), device, assert_close, dtype)


def test_tiles_cover_the_queries_of_long_sequences():
    random_state = np.random.default_rng(3)
    query_lengths = random_state.integers(1, 40, size=50)
    query_lengths[::3] = 1
    context_lengths = query_lengths + random_state.integers(0, 100, size=50)
    first_rows = np.cumsum(query_lengths) - query_lengths
    slots = random_state.permutation(80)[:50]
    tiles = make_tiles(query_lengths, context_lengths, slots, first_rows, 7)
    expected = {
        (slots[i], first_rows[i] + first, min(7, length - first), context_lengths[i] - length + first)
        for i, length in enumerate(query_lengths)
        if length > 1
        for first in range(0, length, 7)
    }
    assert tiles.dtype == np.int32
    assert {tuple(tile) for tile in tiles.tolist()} == expected and len(tiles) == len(expected)
    ends = tiles[:, 2] + tiles[:, 3]
    assert (np.diff(ends) <= 0).all()


def test_a_step_without_prompts_has_no_tiles():
    assert make_tiles([1, 1], [5, 9], [0, 1], [0, 1], 32).shape == (0, 4)
    assert make_tiles([], [], [], [], 32).shape == (0, 4)


@pytest.mark.parametrize(("num_heads", "num_kv_heads", "expected"), [(32, 8, 32), (9, 3, 42), (28, 4, 18), (8, 8, 128)])
def test_tile_size(num_heads, num_kv_heads, expected):
    assert tile_size(num_heads, num_kv_heads, 128, torch.bfloat16) == expected


@pytest.mark.parametrize("dtype", HALF_FORMATS)
def test_a_long_context_among_short_ones_is_cut(dtype, device, assert_close):
    """Nobody waits for it."""
    workspace = make_decode_workspace(1, 1, 1, 64, dtype=dtype, device=device)
    num_short = 2 * workspace.num_multiprocessors
    step = make_step(Case([(700, 1), *[(3, 1)] * num_short], num_kv_heads=1), device, dtype)
    assert_close("attention", step.attend(), step.expected(), RATIOS[dtype])
    entries = step.metadata.parts[None].tolist()
    num_parts, starts, ends = ([entry[field] for entry in entries] for field in (4, 5, 6))
    count = num_parts[0]
    assert count > 5 and num_parts[:count] == [count] * count
    assert [0, *ends[:count]] == [*starts[:count], 701]
    assert num_parts[count : count + num_short] == [1] * num_short and not any(num_parts[count + num_short :])


def test_small_batches_are_cut_and_large_ones_are_not():
    config = decode_config(128, torch.bfloat16)
    assert count_parts(256, 8, 131072, 132, config)[1] == 256
    assert count_parts(1, 8, 400, 132, config)[1] == 7
    assert 40 <= count_parts(1, 8, 131072, 132, config)[1] <= 132
    assert count_parts(40, 8, 131072, 132, config) == (396 // 8, 40 + 396 // 8)
    assert count_parts(66, 8, 131072, 132, config) == (66, 132)
    assert count_parts(66, 8, 60, 132, config) == (66, 66)
    assert count_parts(0, 8, 0, 132, config)[1] == 0


def test_parts_in_float32_do_not_depend_on_the_batch():
    config = decode_config(128, torch.float32)
    assert all(batch_config(config, num_units, 132) == config for num_units in (8, 24, 256, 2048))
    assert all(count_parts(count, 8, 1000, 132, config)[1] == 4 * count for count in (1, 3, 256))


def test_the_workspace_is_small():
    """Whatever is cut in 16 bits, it is into a few programs for each multiprocessor."""
    workspace = make_decode_workspace(1024, 32, 8, 128, dtype=torch.bfloat16, device="cpu")
    assert not workspace.counters.any()
    assert workspace.partials.numel() <= 20 * workspace.num_multiprocessors * 4 * 128
