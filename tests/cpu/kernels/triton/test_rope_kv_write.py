"""Norm, rope and cache write in one Triton kernel against their reference."""

import itertools
from collections.abc import Iterator

import pytest
import torch

from quire.kernels.rope import reference as rope_reference
from quire.kernels.rope_kv_write import reference
from quire.kernels.rope_kv_write.triton import _config, rope_kv_write

# Of bfloat16 twice the error of rounding: the interpreter truncates.
RATIOS = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
BLOCK_SIZE = 4
SLOTS = [5, -1, 0, 11, 6, -1]
POSITIONS = [0, -1, 9, 4095, 131_071, -1]


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make_caches(
    num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: str, num_blocks: int = 3
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, poisoned."""
    shape = (num_blocks, BLOCK_SIZE, num_kv_heads, head_dim)
    return tuple(torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(2))


def make_rotation(
    positions: list[int], size: int, device: str
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(the kernel's, the reference's) cosines and sines."""
    frequencies = 10_000.0 ** -(torch.arange(0, size, 2) / size)
    exact = rope_reference.rope_tables(torch.tensor(positions), frequencies, 1.2)
    return tuple(table.float().to(device) for table in exact), tuple(table.to(device) for table in exact)


def check(shape, *, has_norm, dtype, cache_dtype, device, assert_close):
    """Compares one call on six tokens, two of them padding, with the reference."""
    num_heads, num_kv_heads, head_dim, size = shape
    torch.manual_seed(0)
    qkv = torch.randn(len(SLOTS), (num_heads + 2 * num_kv_heads) * head_dim).to(device, dtype)
    norms = [torch.randn(head_dim).to(device, dtype) if has_norm else None for _ in range(2)]
    slots = torch.tensor(SLOTS, device=device)
    rotation, exact_rotation = make_rotation(POSITIONS, size, device)
    caches, expected_caches = (make_caches(num_kv_heads, head_dim, cache_dtype, device) for _ in range(2))
    query = rope_kv_write(qkv, rotation, *caches, slots, num_heads, *norms, 1e-5)
    expected = reference.rope_kv_write(
        qkv,
        exact_rotation,
        *expected_caches,
        slots,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        query_norm=norms[0],
        key_norm=norms[1],
        epsilon=1e-5,
    )
    assert query.is_contiguous()
    assert_close("query", query, expected, RATIOS[dtype])
    for name, cache, expected_cache in zip(("keys", "values"), caches, expected_caches, strict=True):
        assert torch.equal(cache.isnan(), expected_cache.isnan()), name
        ratio = max(RATIOS[dtype], RATIOS[cache_dtype])
        assert_close(name, cache.nan_to_num(), expected_cache.nan_to_num(), ratio)


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 1, 16, 16),
        (9, 3, 64, 64),
        (2, 2, 80, 80),
        (4, 2, 96, 96),
        (12, 4, 128, 128),
        (5, 1, 256, 256),
        (2, 1, 32, 8),
        (3, 1, 80, 32),
        (1, 1, 24, 10),
        (2, 2, 128, 96),
    ],
    ids=lambda shape: "H{}_Hkv{}_D{}_R{}".format(*shape),
)
def test_matches_reference(shape, has_norm, device, assert_close):
    check(
        shape,
        has_norm=has_norm,
        dtype=torch.float32,
        cache_dtype=torch.float32,
        device=device,
        assert_close=assert_close,
    )


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
def test_number_formats(dtype, cache_dtype, device, assert_close):
    check((4, 2, 32, 32), has_norm=True, dtype=dtype, cache_dtype=cache_dtype, device=device, assert_close=assert_close)


def test_a_token_depends_on_nothing_but_itself(device):
    torch.manual_seed(0)
    qkv, norm = torch.randn(7, 5 * 24, device=device), torch.randn(24, device=device)
    rotation, _ = make_rotation([5, 3, 900, 2, 1, 0, 77], 24, device)
    slots = torch.arange(7, device=device)
    caches = make_caches(1, 24, torch.float32, device)
    together = rope_kv_write(qkv, rotation, *caches, slots, 3, norm, norm, 1e-6)
    for row in (0, 4, 6):
        own_caches = make_caches(1, 24, torch.float32, device)
        own_rows = slice(row, row + 1)
        own_rotation = tuple(table[own_rows] for table in rotation)
        alone = rope_kv_write(qkv[own_rows], own_rotation, *own_caches, slots[own_rows], 3, norm, norm, 1e-6)
        assert torch.equal(alone[0], together[row])
        for cache, own_cache in zip(caches, own_caches, strict=True):
            assert torch.equal(cache.view(-1, 24)[row], own_cache.view(-1, 24)[row])


def test_slots_beyond_what_32_bits_address(device):
    if device != "cuda":
        pytest.skip("takes 9 GB")
    num_blocks = 2**31 // (BLOCK_SIZE * 1024) + 1
    caches = tuple(
        torch.empty(num_blocks, BLOCK_SIZE, 8, 128, dtype=torch.bfloat16, device=device).fill_(0) for _ in range(2)
    )
    qkv = torch.randn(1, 24 * 128, device=device).bfloat16()
    rotation, _ = make_rotation([0], 128, device)
    slot = torch.tensor([num_blocks * BLOCK_SIZE - 1], device=device)
    rope_kv_write(qkv, rotation, *caches, slot, 8, None, None, 0.0)
    assert torch.equal(caches[1][-1, -1].flatten(), qkv[0, 16 * 128 :])
    assert not caches[1][0].any()


@pytest.mark.parametrize("head_dim", [16, 24, 64, 72, 80, 96, 112, 128, 160, 192, 256])
def test_every_shape_has_a_legal_program(head_dim):
    for share, num_all_heads in itertools.product((0.25, 0.4, 0.5, 1.0), (3, 15, 48, 96)):
        half = int(head_dim * share) // 2
        half_block, rest_block, heads, num_warps = _config(num_all_heads, head_dim, half)
        assert all(number.bit_count() == 1 for number in (half_block, heads, num_warps))
        assert half_block >= half and (rest_block >= head_dim - 2 * half if rest_block else head_dim == 2 * half)
        assert heads * (2 * half_block + rest_block) // (32 * num_warps) <= 32 and num_warps <= 4


def test_no_tokens(device):
    rotation, _ = make_rotation([], 16, device)
    slots = torch.empty(0, dtype=torch.int64, device=device)
    caches = make_caches(1, 16, torch.float32, device)
    assert rope_kv_write(torch.empty(0, 64, device=device), rotation, *caches, slots, 2, None, None, 0.0).shape == (
        0,
        2,
        16,
    )
