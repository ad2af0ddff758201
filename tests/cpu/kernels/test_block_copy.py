"""Block copies against their reference."""

import pytest
import torch

from quire.kernels.block_copy import copy_blocks, reference


@pytest.mark.parametrize(
    "pairs",
    [[(0, 3)], [(2, 0), (2, 1)], [(1, 0), (0, 3)], [(0, 1), (1, 0)]],
    ids=["one", "fan_out", "chain", "exchange"],
)
def test_matches_reference(pairs):
    torch.manual_seed(0)
    caches = [(torch.randn(5, 4, 2, 8), torch.randn(5, 4, 2, 8)) for _ in range(3)]
    expected = [(keys.clone(), values.clone()) for keys, values in caches]
    copy_blocks(caches, pairs)
    reference.copy_blocks(expected, pairs)
    assert all(torch.equal(a, b) for pair in zip(caches, expected, strict=True) for a, b in zip(*pair, strict=True))
