"""RMS norm in Triton against its reference."""

from collections.abc import Iterator

import pytest
import torch

from quire.kernels.rms_norm import reference
from quire.kernels.rms_norm.triton import rms_norm

# Of bfloat16 twice the error of rounding: the interpreter truncates.
RATIOS = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", RATIOS)
@pytest.mark.parametrize("shape", [(1, 576), (7, 33), (3, 5, 64), (9, 1), (2, 5120), (3, 16384), (17, 128)])
def test_matches_reference(shape, dtype, device, assert_close):
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(device, dtype), torch.randn(shape[-1]).to(device, dtype)
    actual = rms_norm(x, weight, 1e-5)
    assert actual.is_contiguous()
    assert_close("rms_norm", actual, reference.rms_norm(x, weight, 1e-5), RATIOS[dtype])


@pytest.mark.parametrize("width", [40, 48, 1000])
def test_rows_of_a_wider_tensor(width, device, assert_close):
    torch.manual_seed(0)
    wide = torch.full((6, width + 24), torch.nan, device=device)
    x, weight = wide[:, 8 : 8 + width], torch.randn(width, device=device)
    x.normal_()
    assert_close("rms_norm", rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6), 1e-6)


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(("width", "rows"), [(48, [4]), (48, [8, 0, 3, 3]), (1030, list(range(9)))])
def test_only_the_rows_that_are_named(width, rows, index_dtype, device, assert_close):
    torch.manual_seed(0)
    x, weight = torch.randn(10, width, device=device), torch.randn(width, device=device)
    x[9] = torch.nan
    rows = torch.tensor(rows, dtype=index_dtype, device=device)
    assert_close("rms_norm", rms_norm(x, weight, 1e-6, rows), reference.rms_norm(x, weight, 1e-6, rows), 1e-6)


@pytest.mark.parametrize("width", [24, 64, 576])
def test_a_row_depends_on_nothing_but_itself(width, device):
    torch.manual_seed(0)
    x, weight = torch.randn(19, width, device=device), torch.randn(width, device=device)
    together = rms_norm(x, weight, 1e-5)
    for row in (0, 7, 18):
        assert torch.equal(rms_norm(x[row : row + 1], weight, 1e-5)[0], together[row])


@pytest.mark.parametrize("scale", [1e-12, 1e15])
def test_extreme_magnitudes(scale, device, assert_close):
    torch.manual_seed(0)
    x, weight = torch.randn(5, 64, device=device) * scale, torch.randn(64, device=device)
    assert_close("rms_norm", rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), 1e-5)


def test_no_rows(device):
    assert rms_norm(torch.empty(0, 8, device=device), torch.ones(8, device=device), 1e-5).shape == (0, 8)
