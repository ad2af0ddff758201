"""Token ids to vectors."""

from typing import cast

import torch

from quire.kernels.linear import PackedWeight
from quire.kernels.native.recording import StepInput

__all__ = ["embed"]


def embed(token_ids: torch.Tensor, weight: torch.Tensor | PackedWeight) -> torch.Tensor:
    """Rows of an embedding by token id.

    Args:
        token_ids: [T] int64 or int32.
        weight: [vocabulary, hidden]; a packed one in steps that are recorded.

    Returns:
        [T, hidden], a new tensor of the weight's dtype; float32 from a packed one.
    """
    if isinstance(weight, PackedWeight):
        recording = cast(StepInput, token_ids).recording
        assert recording is not None, "a packed embedding is read by compiled kernels only"
        return recording.embedding(weight)
    return weight.index_select(0, token_ids)
