"""Packed products against their reference, with every implementation of a CPU."""

import pytest
import torch

from quire.kernels.linear import NormWeight, PackedWeight, cpu, linear, onednn, pack, reference, torch_cpu
from quire.kernels.rms_norm import rms_norm
from quire.kernels.silu_mul import silu_mul


def _packed_by(implementation, weight) -> PackedWeight:
    return PackedWeight(implementation.pack(weight), cpu.composed(implementation.multiply), *weight.shape, 0)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("then", ["nothing", "gated", "add_to", "out_dtype"])
def test_options_match_reference(then, with_norm, with_bias, dtype, assert_close):
    torch.manual_seed(0)
    x, weight = torch.randn(7, 48).to(dtype), torch.randn(30, 48).to(dtype)
    bias = torch.randn(30).to(dtype) if with_bias else None
    add_to = torch.randn(7, 30).to(dtype) if then == "add_to" else None
    norm = NormWeight(torch.randn(48).to(dtype), 1e-5) if with_norm else None
    options = {
        "norm": norm,
        "gated": then == "gated",
        "add_to": add_to,
        "out_dtype": torch.float64 if then == "out_dtype" else None,
    }
    unchanged = x.clone()
    expected = reference.linear(x, weight, bias, **options)
    actual = linear(x, pack(weight), bias, **options)
    assert (actual is add_to) == (add_to is not None)
    assert torch.equal(x, unchanged)
    # In bfloat16 a CPU rounds after every operation.
    assert_close(then, actual, expected, 1e-6 if dtype == torch.float32 else 1e-2)


def test_options_are_the_operations_one_after_the_other():
    torch.manual_seed(0)
    x, weight, factors = torch.randn(5, 24), torch.randn(20, 24), torch.randn(24)
    packed, norm = pack(weight), NormWeight(factors, 1e-6)
    normed = linear(rms_norm(x, factors, 1e-6), packed)
    assert torch.equal(linear(x, packed, norm=norm), normed)
    stream = torch.randn(5, 20)
    assert torch.equal(linear(x, packed, norm=norm, add_to=stream.clone()), stream + normed)
    assert torch.equal(linear(x, packed, norm=norm, gated=True), silu_mul(normed))


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
    assert packed.data is weight
    assert torch.equal(linear(weight * 2, packed), weight * 2)


def test_wrong_width_is_named():
    with pytest.raises(AssertionError, match=r"x \(2, 7\) does not fit a weight \[3, 8\]"):
        linear(torch.zeros(2, 7), pack(torch.zeros(3, 8)))


def test_sum_that_does_not_fit_is_named():
    packed = pack(torch.zeros(4, 8))
    with pytest.raises(AssertionError, match=r"add_to \(2, 3\) does not take"):
        linear(torch.zeros(2, 8), packed, add_to=torch.zeros(2, 3))
    with pytest.raises(AssertionError, match="gated=True"):
        linear(torch.zeros(2, 8), packed, add_to=torch.zeros(2, 4), gated=True)
