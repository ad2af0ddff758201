"""The gated activation against its reference."""

import pytest
import torch

from quire.kernels.silu_mul import reference, silu_mul


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (3, 66), (33, 3072)])
def test_matches_reference(shape, dtype, assert_close, error_ratios):
    torch.manual_seed(0)
    gate_up = (3 * torch.randn(shape)).to(dtype)
    expected = reference.silu_mul(gate_up)
    actual = silu_mul(gate_up)
    assert actual.is_contiguous()
    assert_close("silu_mul", actual, expected, error_ratios[dtype])


def test_large_gates_saturate():
    actual = silu_mul(torch.tensor([[200.0, -200.0, 2.0, 2.0]]))
    assert actual.tolist() == [[400.0, 0.0]]


def test_odd_width_is_named():
    with pytest.raises(AssertionError, match=r"\[T, 2 \* I\], got \(2, 7\)"):
        silu_mul(torch.zeros(2, 7))
