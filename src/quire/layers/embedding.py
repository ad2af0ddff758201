"""Token ids to vectors."""

import torch
from torch import nn

from quire.kernels.embedding import embed
from quire.kernels.linear import PackedWeight
from quire.layers.parameter import empty_parameter


class Embedding(nn.Module):
    """One row per token of the vocabulary.

    Attributes:
        weight: [vocab, hidden]; None where it is packed.
        packed: In the compiled kernels' layout, set by whoever loads it so.
    """

    def __init__(self, vocab_size: int, hidden_size: int, *, dtype: torch.dtype, device: str = "meta") -> None:
        super().__init__()
        self.weight: nn.Parameter | None = empty_parameter(vocab_size, hidden_size, dtype=dtype, device=device)
        self.packed: PackedWeight | None = None

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[T] int64 -> [T, hidden], a new tensor."""
        weight = self.packed if self.weight is None else self.weight
        assert weight is not None
        return embed(token_ids, weight)
