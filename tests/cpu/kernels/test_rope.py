"""Rope against its reference."""

import math

import pytest
import torch

from quire.kernels.rope import reference, rope, rope_tables


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_heads", "head_dim", "size"), [(3, 16, 16), (1, 64, 64), (2, 32, 8)])
def test_matches_reference(num_heads, head_dim, size, dtype, assert_close, error_ratios):
    torch.manual_seed(0)
    positions = torch.tensor([0, 1, 7, 7, 4095, 100_000])
    frequencies = 10_000.0 ** -(torch.arange(0, size, 2) / size)
    x = torch.randn(len(positions), num_heads + 1, head_dim).to(dtype)[:, 1:]
    expected = reference.rope(x, *reference.rope_tables(positions, frequencies, 1.5))
    assert_close("rope", rope(x, *rope_tables(positions, frequencies, 1.5, dtype)), expected, error_ratios[dtype])


def test_tables_hold_cosines_and_sines():
    cosines, sines = rope_tables(torch.tensor([3, 2]), torch.tensor([1.0, 0.5]), 2.0, torch.float32)
    assert cosines.shape == sines.shape == (2, 1, 4)
    assert cosines[0, 0].tolist() == pytest.approx([2 * math.cos(a) for a in (3.0, 1.5, 3.0, 1.5)])
    expected = [2 * s for s in (-math.sin(3.0), -math.sin(1.5), math.sin(3.0), math.sin(1.5))]
    assert sines[0, 0].tolist() == pytest.approx(expected)


def test_scores_depend_on_the_distance_only():
    torch.manual_seed(0)
    frequencies = 100.0 ** -(torch.arange(0, 8, 2) / 8)
    x = torch.randn(1, 1, 8).expand(4, 1, 8)
    turned = rope(x, *rope_tables(torch.tensor([0, 5, 40, 45]), frequencies, 1.0, torch.float32))[:, 0]
    assert float(turned[0] @ turned[1]) == pytest.approx(float(turned[2] @ turned[3]), rel=1e-4)


def test_wrong_tables_are_named():
    tables = rope_tables(torch.arange(3), torch.ones(4), 1.0, torch.float32)
    with pytest.raises(AssertionError, match=r"tables \(3, 1, 8\) do not fit x \(2, 1, 8\)"):
        rope(torch.zeros(2, 1, 8), *tables)
