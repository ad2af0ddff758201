"""Parameters that are loaded, never trained."""

import torch
from torch import nn


def empty_parameter(*shape: int, dtype: torch.dtype, device: str) -> nn.Parameter:
    """An uninitialised parameter; on "meta" it takes no memory."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
