"""RMS norm against its reference."""

import pytest
import torch

from quire.kernels.rms_norm import reference, rms_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 576), (7, 33), (3, 5, 64), (129, 1024)])
def test_matches_reference(shape, dtype, assert_close, error_ratios):
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    assert_close("rms_norm", rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), error_ratios[dtype])


@pytest.mark.parametrize("rows", [[4], [8, 0, 3, 3], list(range(9))])
def test_rows_are_those_of_the_whole(rows, assert_close):
    torch.manual_seed(0)
    x, weight, rows = torch.randn(9, 48), torch.randn(48), torch.tensor(rows)
    actual = rms_norm(x, weight, 1e-6, rows)
    assert_close("rms_norm", actual, reference.rms_norm(x, weight, 1e-6, rows), 1e-6)
    assert torch.equal(actual, rms_norm(x, weight, 1e-6)[rows])


@pytest.mark.parametrize("rows", [None, torch.tensor([1, 2])])
def test_x_is_left_alone(rows):
    x = torch.randn(4, 8)
    kept = x.clone()
    rms_norm(x, torch.ones(8), 1e-6, rows)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("scale", [1e-12, 1e15])
def test_extreme_magnitudes(scale, assert_close):
    x = torch.randn(5, 64) * scale
    weight = torch.randn(64)
    assert_close("rms_norm", rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), 1e-5)


def test_heads_of_a_wider_product(assert_close):
    x = torch.randn(6, 5, 32)[:, 1:3]
    weight = torch.randn(32)
    actual = rms_norm(x, weight, 1e-6)
    assert actual.is_contiguous()
    assert_close("rms_norm", actual, reference.rms_norm(x, weight, 1e-6), 1e-6)


def test_wrong_weight_is_named():
    with pytest.raises(AssertionError, match=r"weight \(7,\) does not fit x \(2, 8\)"):
        rms_norm(torch.zeros(2, 8), torch.zeros(7), 1e-6)
