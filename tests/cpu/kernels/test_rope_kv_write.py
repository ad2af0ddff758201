"""Norm, rope and cache write on a CPU against their reference."""

import pytest
import torch

from quire.kernels.rope import reference as rope_reference
from quire.kernels.rope import rope_tables
from quire.kernels.rope_kv_write import reference, rope_kv_write


def nan_caches(num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of three blocks of four tokens, unwritten."""
    return tuple(torch.full((3, 4, num_kv_heads, head_dim), torch.nan, dtype=dtype) for _ in range(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "size"), [(3, 1, 16, 16), (4, 2, 24, 8)])
def test_matches_reference(num_heads, num_kv_heads, head_dim, size, has_norm, dtype, assert_close, error_ratios):
    torch.manual_seed(0)
    positions, slots = torch.tensor([0, 9, 4095, 1]), torch.tensor([5, 0, 11, 6])
    frequencies = 10_000.0 ** -(torch.arange(0, size, 2) / size)
    qkv = torch.randn(4, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    norms = [torch.randn(head_dim).to(dtype) if has_norm else None for _ in range(2)]
    options = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "epsilon": 1e-6}
    options |= {"query_norm": norms[0], "key_norm": norms[1]}
    caches, expected_caches = (nan_caches(num_kv_heads, head_dim, dtype) for _ in range(2))
    query = rope_kv_write(qkv, rope_tables(positions, frequencies, 1.2, dtype), *caches, slots, **options)
    rotation = rope_reference.rope_tables(positions, frequencies, 1.2)
    expected = reference.rope_kv_write(qkv, rotation, *expected_caches, slots, **options)
    assert query.is_contiguous()
    assert_close("query", query, expected, error_ratios[dtype])
    for name, cache, expected_cache in zip(("keys", "values"), caches, expected_caches, strict=True):
        assert torch.equal(cache.isnan(), expected_cache.isnan())
        assert_close(name, cache.nan_to_num(), expected_cache.nan_to_num(), error_ratios[dtype])


def test_cache_of_another_format():
    qkv = torch.randn(2, 3 * 8)
    caches = nan_caches(1, 8, torch.bfloat16)
    tables = rope_tables(torch.arange(2), torch.ones(4), 1.0, torch.float32)
    rope_kv_write(qkv, tables, *caches, torch.tensor([2, 1]), num_heads=1, num_kv_heads=1)
    assert torch.equal(caches[1][0, 1:3, 0], qkv[:, 16:].flip(0).bfloat16())


def test_wrong_width_is_named():
    tables = rope_tables(torch.arange(2), torch.ones(4), 1.0, torch.float32)
    slots = torch.tensor([2, 1])
    with pytest.raises(AssertionError, match=r"qkv \(2, 24\), expected \(2, 32\), cache \(3, 4, 1, 8\)"):
        rope_kv_write(torch.zeros(2, 24), tables, *nan_caches(1, 8, torch.float32), slots, num_heads=2, num_kv_heads=1)
