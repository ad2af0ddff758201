"""Triton's kernels: on the GPU where there is one, else under Triton's interpreter."""

from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """Where the tensors go."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def independent_rows(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the interpreter compute each row of a product alone, as a GPU does.

    It takes numpy's products, and on machines without AVX-512 those of a row depend on its place among the others.
    """
    if device == "cuda":
        return
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        product = np.einsum("ik,kj->ij", a.data, b.data, dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
