"""Token ids to vectors."""

import torch
from torch import nn

from quire.layers.parameter import empty_parameter


class Embedding(nn.Module):
    """One row per token of the vocabulary."""

    def __init__(self, vocab_size: int, hidden_size: int, *, dtype: torch.dtype, device: str = "meta") -> None:
        super().__init__()
        self.weight = empty_parameter(vocab_size, hidden_size, dtype=dtype, device=device)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[T] int64 -> [T, hidden], a new tensor."""
        return self.weight.index_select(0, token_ids)
