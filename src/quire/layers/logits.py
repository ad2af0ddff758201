"""Hidden states to scores over the vocabulary."""

import torch
from torch import nn

from quire.kernels.linear import PackedWeight, linear, pack
from quire.layers.embedding import Embedding
from quire.layers.parameter import empty_parameter


class LogitsHead(nn.Module):
    """The output projection.

    A head that is tied to the embedding has no parameter of its own; `finish_loading` packs the embedding, as a
    copy where the product wants another layout.

    Attributes:
        weight: [vocab, hidden]; None after `finish_loading`, and always None for a tied head.
    """

    def __init__(
        self, vocab_size: int, hidden_size: int, *, is_tied: bool, dtype: torch.dtype, device: str = "meta"
    ) -> None:
        super().__init__()
        self.is_tied = is_tied
        self.weight: nn.Parameter | None = None
        if not is_tied:
            self.weight = empty_parameter(vocab_size, hidden_size, dtype=dtype, device=device)
        self.packed: PackedWeight | None = None

    def finish_loading(self, embedding: Embedding) -> None:
        """Packs the weight, or for a tied head the embedding's. No effect the second time.

        Packed embeddings are shared with a tied head.
        """
        if self.packed is None and self.is_tied:
            self.packed = embedding.packed
        if self.packed is None:
            weight = embedding.weight if self.is_tied else self.weight
            assert weight is not None
            self.packed = pack(weight)
            self.weight = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N, vocab] float32, a new tensor."""
        assert self.packed is not None, "finish_loading has not been called"
        return linear(hidden, self.packed, out_dtype=torch.float32)
