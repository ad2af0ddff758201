"""The tables of rope in Triton against their reference."""

from collections.abc import Iterator

import pytest
import torch

from quire.kernels.rope import reference
from quire.kernels.rope.triton import rope_tables

POSITIONS = [-1, 0, 1, 7, 4095, 100_000, 131_071, 999_983, 1_048_575, 1_048_576]


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", [2, 16, 40, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_exact_at_any_position(size, dtype, device, assert_close):
    positions = torch.tensor(POSITIONS, dtype=dtype, device=device)
    frequencies = (500_000.0 ** -(torch.arange(0, size, 2) / size)).to(device)
    tables = rope_tables(positions, frequencies, 1.25)
    for name, actual, expected in zip(
        ("cosines", "sines"), tables, reference.rope_tables(positions, frequencies, 1.25), strict=True
    ):
        assert actual.is_contiguous()
        assert_close(name, actual, expected.float(), 2e-7)


def test_more_tokens_than_a_program_takes(device, assert_close):
    positions = torch.arange(77, dtype=torch.int32, device=device)
    frequencies = torch.linspace(1.0, 1e-4, 24, device=device)
    cosines, _ = rope_tables(positions, frequencies, 1.0)
    assert_close("cosines", cosines, reference.rope_tables(positions, frequencies, 1.0)[0].float(), 2e-7)


def test_no_tokens(device):
    cosines, sines = rope_tables(torch.empty(0, dtype=torch.int32, device=device), torch.ones(4, device=device), 1.0)
    assert cosines.shape == sines.shape == (0, 4)
