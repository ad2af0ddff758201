"""The gated activation in Triton against its reference."""

from collections.abc import Iterator

import pytest
import torch

from quire.kernels.silu_mul import reference
from quire.kernels.silu_mul.triton import silu_mul

# Of bfloat16 twice the error of rounding: the interpreter truncates.
RATIOS = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", RATIOS)
@pytest.mark.parametrize("shape", [(1, 2), (3, 66), (2, 3072), (5, 2 * 1050)])
def test_matches_reference(shape, dtype, device, assert_close):
    torch.manual_seed(0)
    gate_up = torch.randn(shape).to(device, dtype)
    assert_close("silu_mul", silu_mul(gate_up), reference.silu_mul(gate_up), RATIOS[dtype])


def test_many_programs(device, monkeypatch, assert_close):
    monkeypatch.setattr("quire.kernels.silu_mul.triton._MANY_PROGRAMS", 4)
    gate_up = torch.randn(3, 2 * 1100, device=device)
    assert_close("silu_mul", silu_mul(gate_up), reference.silu_mul(gate_up), 1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_large_gates_saturate(device):
    actual = silu_mul(torch.tensor([[200.0, -200.0, 2.0, 2.0]], device=device))
    assert actual.tolist() == [[400.0, 0.0]]


def test_no_rows(device):
    assert silu_mul(torch.empty(0, 8, device=device)).shape == (0, 4)
