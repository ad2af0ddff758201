"""Triton's kernels: on the GPU where there is one, else under Triton's interpreter."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """Where the tensors go."""
    return "cuda" if torch.cuda.is_available() else "cpu"
