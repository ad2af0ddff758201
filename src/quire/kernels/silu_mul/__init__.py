"""The gated activation of the MLP."""

import torch

from quire.kernels.silu_mul import torch_cpu

__all__ = ["silu_mul"]


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, where gate and up are the two halves of the last dimension.

    Args:
        gate_up: [T, 2 * I]. Its contents are undefined afterwards.

    Returns:
        [T, I], a new contiguous tensor.
    """
    assert gate_up.dim() == 2 and gate_up.shape[1] % 2 == 0, f"gate_up must be [T, 2 * I], got {tuple(gate_up.shape)}"
    if gate_up.is_cuda:
        from quire.kernels.silu_mul import triton

        return triton.silu_mul(gate_up)
    return torch_cpu.silu_mul(gate_up)
