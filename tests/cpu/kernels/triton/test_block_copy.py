"""Block copies in Triton against their reference."""

import pytest
import torch

from quire.kernels.block_copy import copy_blocks as copy_blocks_op
from quire.kernels.block_copy import reference
from quire.kernels.block_copy.triton import copy_blocks


def make_caches(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three layers."""
    torch.manual_seed(0)
    return [tuple(torch.randn(shape).to(device, dtype) for _ in range(2)) for _ in range(3)]


def assert_equal(actual: list[tuple[torch.Tensor, torch.Tensor]], expected: list[tuple[torch.Tensor, torch.Tensor]]):
    """Every block of every layer, also those that no pair names."""
    for layer, (actual_pair, expected_pair) in enumerate(zip(actual, expected, strict=True)):
        for name, one, other in zip(("keys", "values"), actual_pair, expected_pair, strict=True):
            assert torch.equal(one, other), f"{name} of layer {layer}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 4, 2, 8), (5, 3, 1, 6), (5, 16, 3, 96)])
def test_matches_reference(shape, dtype, device):
    caches, expected = (make_caches(shape, dtype, device) for _ in range(2))
    pairs = [(2, 0), (2, 4), (1, 3)]
    copy_blocks(caches, pairs)
    reference.copy_blocks(expected, pairs)
    assert_equal(caches, expected)


@pytest.mark.parametrize("pairs", [[(1, 0), (0, 3)], [(0, 1), (1, 0)], [(4, 2)]], ids=["chain", "exchange", "one"])
def test_sources_are_read_before_anything_is_written(pairs, device):
    caches, expected = (make_caches((5, 4, 2, 8), torch.bfloat16, device) for _ in range(2))
    copy_blocks_op(caches, pairs)
    reference.copy_blocks(expected, pairs)
    assert_equal(caches, expected)
