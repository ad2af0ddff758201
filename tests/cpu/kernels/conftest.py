"""How kernels are compared with their references."""

from collections.abc import Callable, Iterator

import pytest
import torch

AssertClose = Callable[..., None]


def _assert_close(name: str, actual: torch.Tensor, expected: torch.Tensor, ratio: float) -> None:
    """Fails unless the root-mean-square error is at most `ratio` of the expected values' root mean square.

    Args:
        name: What is compared, for the message.
        actual: From the fast implementation.
        expected: From the reference.
        ratio: Of the errors; a single element may be off by ten times as much.
    """
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype}, expected {expected.dtype}"
    actual, expected = actual.double(), expected.double()
    assert expected.isfinite().all(), f"{name}: the reference is not finite"
    for kind, where in (("NaN", actual.isnan()), ("infinity", actual.isinf())):
        assert not where.any(), f"{name}: {int(where.sum())} x {kind}, first at {where.nonzero()[0].tolist()}"
    scale = expected.square().mean().sqrt().clamp_min(1e-30)
    error = float((actual - expected).square().mean().sqrt() / scale)
    off = ((actual - expected).abs() > 10 * ratio * scale).nonzero()
    first = tuple(off[0].tolist()) if len(off) else None
    where = f", first mismatch at {first}: {actual[first]:.6g}, expected {expected[first]:.6g}" if first else ""
    assert error <= ratio and first is None, f"{name}: error ratio {error:.2e}, allowed {ratio:.0e}{where}"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These tensors are too small to share work; threads would wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def assert_close() -> AssertClose:
    """assert_close(name, actual, expected, ratio)."""
    return _assert_close


@pytest.fixture
def error_ratios() -> dict[torch.dtype, float]:
    """What a kernel's error may be, relative to the values, per number format."""
    return {torch.float32: 1e-6, torch.bfloat16: 6e-3}
