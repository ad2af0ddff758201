"""Packed products against their reference, with every implementation."""

import pytest
import torch

from quire.kernels.linear import PackedWeight, linear, onednn, pack, reference, torch_cpu


def _packed_by(implementation, weight) -> PackedWeight:
    return PackedWeight(implementation.pack(weight), implementation.linear, *weight.shape, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("num_rows", "num_in", "num_out"), [(1, 64, 96), (0, 8, 8), (17, 33, 5), (65, 48, 129)])
@pytest.mark.parametrize("implementation", [onednn, torch_cpu])
def test_matches_reference(implementation, num_rows, num_in, num_out, with_bias, dtype, assert_close, error_ratios):
    torch.manual_seed(0)
    weight = torch.randn(num_out, num_in).to(dtype)
    if implementation is onednn and not onednn.is_usable(weight):
        pytest.skip(f"no oneDNN for {dtype} here")
    x = torch.randn(num_rows, num_in).to(dtype)
    bias = torch.randn(num_out).to(dtype) if with_bias else None
    actual = linear(x, _packed_by(implementation, weight), bias)
    assert actual.is_contiguous()
    if num_rows:
        assert_close("linear", actual, reference.linear(x, weight, bias), error_ratios[dtype])
    else:
        assert actual.shape == (0, num_out)


def test_pack_survives_its_source(assert_close):
    torch.manual_seed(0)
    weight, x = torch.randn(40, 24), torch.randn(3, 24)
    expected = reference.linear(x, weight)
    packed = pack(weight)
    if packed.data is not weight:
        weight.fill_(float("nan"))
    assert_close("linear", linear(x, packed), expected, 1e-6)
    assert packed.num_bytes == 40 * 24 * 4


def test_format_that_onednn_lacks_takes_plain_torch():
    weight = torch.eye(4, dtype=torch.float64)
    packed = pack(weight)
    assert packed.multiply is torch_cpu.linear
    assert torch.equal(linear(weight * 2, packed), weight * 2)


def test_wrong_width_is_named():
    with pytest.raises(AssertionError, match=r"x \(2, 7\) does not fit a weight \[3, 8\]"):
        linear(torch.zeros(2, 7), pack(torch.zeros(3, 8)))
