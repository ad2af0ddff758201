"""Compiled products: every weight format and instruction set against the reference; rows are independent."""

import gguf
import numpy as np
import pytest
import torch

from quire.kernels.linear import NormWeight, linear, reference
from quire.kernels.linear.native import GGUF_FORMATS, WeightPacker, formats_of, pack, unpack
from quire.kernels.native import NativeCpu
from quire.kernels.rms_norm.reference import rms_norm

FLOAT_FORMATS = ("float32", "bfloat16", "float16")
ROUNDED_FORMATS = ("int8", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
SHAPES = [(1, 64, 96), (0, 32, 16), (2, 33, 5), (7, 100, 77), (17, 576, 50), (50, 96, 33)]


def seen_by(weight_format, x, norm=None):
    """x as a product with weights of that format sees it."""
    if norm is not None:
        x = rms_norm(x.double(), norm.weight.double(), norm.epsilon).float()
    return x.double() if weight_format in FLOAT_FORMATS else reference.rounded_to_int8(x)


def tolerance(weight_format, compiled):
    """bfloat16 weights meet x in bfloat16 where the machine multiplies that."""
    rounds = weight_format == "bfloat16" and compiled.instruction_set in ("avx512_bf16", "amx")
    return 3e-3 if rounds else 2e-6


@pytest.mark.parametrize(("num_rows", "num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("weight_format", [*FLOAT_FORMATS, *ROUNDED_FORMATS])
def test_matches_reference(compiled, weight_format, num_rows, num_in, num_out, assert_close):
    torch.manual_seed(num_rows + num_in)
    packed = pack(compiled, torch.randn(num_out, num_in), weight_format)
    x, bias = torch.randn(num_rows, num_in), torch.randn(num_out)
    actual = linear(x, packed, bias)
    assert actual.shape == (num_rows, num_out) and formats_of(packed) == [weight_format]
    if num_rows:
        expected = reference.linear(seen_by(weight_format, x), unpack(packed), bias.double(), out_dtype=torch.float32)
        assert_close(weight_format, actual, expected, tolerance(weight_format, compiled))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("then", ["nothing", "gated", "add_to"])
@pytest.mark.parametrize("weight_format", ["float32", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("num_out", [64, 30])  # the halves of 30 outputs are no whole groups of 16
def test_options_match_reference(best, weight_format, then, with_norm, with_bias, num_out, assert_close):
    torch.manual_seed(0)
    packed = pack(best, torch.randn(num_out, 72) / 8, weight_format)
    x = torch.randn(7, 72)
    bias = torch.randn(num_out) if with_bias else None
    add_to = torch.randn(7, num_out) if then == "add_to" else None
    norm = NormWeight(torch.randn(72), 1e-5) if with_norm else None
    expected = reference.linear(
        seen_by(weight_format, x, norm),
        unpack(packed),
        bias,
        gated=then == "gated",
        add_to=None if add_to is None else add_to.clone(),
        out_dtype=torch.float32,
    )
    actual = linear(x, packed, bias, norm=norm, gated=then == "gated", add_to=add_to)
    assert (actual is add_to) == (add_to is not None)
    # A norm that rounds differently in its last bit moves a number of int8 now and then.
    assert_close(then, actual, expected, 2e-3 if with_norm and weight_format != "float32" else 3e-6)


@pytest.mark.parametrize("weight_format", [*FLOAT_FORMATS, *ROUNDED_FORMATS])
def test_a_row_does_not_depend_on_the_rows_beside_it_nor_on_threads(compiled, weight_format):
    torch.manual_seed(0)
    weight, x = torch.randn(200, 160), torch.randn(70, 160)
    norm = NormWeight(torch.rand(160), 1e-6)
    alone = linear(x, pack(compiled, weight, weight_format), norm=norm)
    for num_threads in (1, 3):
        other = NativeCpu.create(num_threads, compiled.instruction_set)
        packed = pack(other, weight, weight_format)
        for num_rows in (*range(1, 36), 40, 70):
            assert torch.equal(linear(x[:num_rows], packed, norm=norm), alone[:num_rows]), (num_threads, num_rows)
            assert torch.equal(linear(x[-num_rows:], packed, norm=norm), alone[-num_rows:]), (num_threads, num_rows)


def stored_rows(weight_format, num_rows, num_in):
    """Random rows as a GGUF file has them: any bytes but for the scales, which are of ordinary size."""
    rng = np.random.default_rng(len(weight_format) + num_in)
    block, size = gguf.constants.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[weight_format]]
    rows = rng.integers(0, 256, (num_rows, num_in // block, size), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.03, (num_rows, num_in // block, 2)).astype(np.float16).view(np.uint8)
    if weight_format == "Q6_K":
        rows[..., -2:] = scales[..., :2]
    elif weight_format in ("Q4_0", "Q5_0", "Q8_0"):
        rows[..., :2] = scales[..., :2]
    else:
        rows[..., :4] = scales
    return rows.reshape(num_rows, -1)


def packed_rows(compiled, weight_format, rows, num_in):
    packer = WeightPacker(compiled, len(rows), num_in)
    packer.begin_part(weight_format, len(rows))
    packer.write_stored(torch.from_numpy(rows))
    return packer.finish()


@pytest.mark.parametrize("weight_format", sorted(GGUF_FORMATS))
def test_stored_rows_keep_their_numbers_and_their_size(best, weight_format):
    num_in = 512
    rows = stored_rows(weight_format, 32, num_in)
    packed = packed_rows(best, weight_format, rows, num_in)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[weight_format])
    assert np.allclose(unpack(packed).numpy(), expected, rtol=1e-6, atol=1e-7)
    # The K formats pack sixteen 6-bit scales into 12 bytes; here they are bytes.
    allowed = rows.nbytes * (1.04 if weight_format in ("Q4_K", "Q5_K") else 1.0)
    assert packed.num_bytes <= allowed


@pytest.mark.parametrize("weight_format", sorted(GGUF_FORMATS))
def test_stored_rows_match_the_reference(compiled, weight_format, assert_close):
    torch.manual_seed(0)
    num_in = 512
    packed = packed_rows(compiled, weight_format, stored_rows(weight_format, 37, num_in), num_in)
    for num_rows in (1, 9):
        x = torch.randn(num_rows, num_in)
        expected = reference.linear(seen_by(weight_format, x), unpack(packed), out_dtype=torch.float32)
        assert_close(weight_format, linear(x, packed), expected, 3e-6)


@pytest.mark.parametrize("weight_format", sorted(GGUF_FORMATS))
def test_rows_of_stored_weights_do_not_depend_on_each_other(compiled, weight_format):
    torch.manual_seed(0)
    packed = packed_rows(compiled, weight_format, stored_rows(weight_format, 40, 768), 768)
    x = torch.randn(50, 768)
    alone = torch.cat([linear(row[None], packed) for row in x])
    for num_rows in (2, 3, 4, 5, 12, 16, 17, 32, 33, 50):
        assert torch.equal(linear(x[:num_rows], packed), alone[:num_rows]), num_rows


def test_parts_of_different_formats(compiled, assert_close):
    torch.manual_seed(0)
    packer = WeightPacker(compiled, 21 + 48 + 7, 256)
    for weight_format, num_rows in (("Q4_K", 21), ("float32", 48), ("Q6_K", 7)):
        packer.begin_part(weight_format, num_rows)
        if weight_format == "float32":
            floats = torch.randn(num_rows, 256)
            packer.write_floats(0, floats[:32])
            packer.write_floats(32, floats[32:])
        else:
            packer.write_stored(torch.from_numpy(stored_rows(weight_format, num_rows, 256)))
    packed = packer.finish()
    for num_rows in (1, 5):
        x = torch.randn(num_rows, 256)
        rounded, whole = seen_by("Q4_K", x), seen_by("float32", x)
        weight = unpack(packed)
        expected = torch.cat([reference.linear(rounded, weight[:21]), reference.linear(whole, weight[21:69])], dim=1)
        expected = torch.cat([expected, reference.linear(rounded, weight[69:])], dim=1).float()
        assert_close("parts", linear(x, packed), expected, 3e-6)


@pytest.mark.parametrize("weight_format", ["float32", "bfloat16", "Q4_1", "Q8_0"])
def test_a_row_that_is_not_finite_spoils_itself_alone(compiled, weight_format):
    torch.manual_seed(0)
    packed, x = pack(compiled, torch.randn(48, 64), weight_format), torch.randn(5, 64)
    expected = linear(x, packed)
    for poison in (torch.nan, torch.inf):
        x[2, 7] = poison
        actual = linear(x, packed)
        assert not actual[2].isfinite().any()
        assert torch.equal(actual[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


@pytest.mark.parametrize("weight_format", ["int8", "Q4_1", "Q8_0"])
def test_rounding_weights_keeps_what_its_bits_allow(best, weight_format):
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    error = (unpack(pack(best, weight, weight_format)) - weight).norm() / weight.norm()
    assert error < {"int8": 0.012, "Q4_1": 0.08, "Q8_0": 0.006}[weight_format]


@pytest.mark.parametrize("weight_format", [*FLOAT_FORMATS, *ROUNDED_FORMATS])
def test_weights_of_zero_stay_zero(best, weight_format):
    packed = pack(best, torch.zeros(17, 40), weight_format)
    assert not unpack(packed).any() and not linear(torch.randn(3, 40), packed).any()


def test_what_does_not_fit_is_refused(best):
    with pytest.raises(ValueError, match="no weight format is called Q9"):
        WeightPacker(best, 8, 32).begin_part("Q9", 8)
    with pytest.raises(ValueError, match="more rows than the weight"):
        WeightPacker(best, 8, 32).begin_part("Q4_0", 9)
    packer = WeightPacker(best, 40, 64)
    packer.begin_part("Q4_0", 40)
    with pytest.raises(ValueError, match="another number of bytes a row"):
        packer.write_stored(torch.zeros(40, 18, dtype=torch.uint8))
    with pytest.raises(ValueError, match="another row length"):
        packer.write_floats(0, torch.zeros(40, 32))
    with pytest.raises(ValueError, match="whole groups of 16"):
        packer.write_floats(8, torch.zeros(16, 64))
    with pytest.raises(ValueError, match="whole groups of 16"):
        packer.write_floats(32, torch.zeros(16, 64))
    with pytest.raises(ValueError, match="do not cover its rows"):
        linear(torch.zeros(1, 64), WeightPacker(best, 48, 64).finish())
