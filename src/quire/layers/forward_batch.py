"""All that a forward pass needs besides the weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quire.kernels.paged_attention import AttentionMetadata

if TYPE_CHECKING:
    from quire.kernels.paged_attention.cuda_plan import CudaAttentionMetadata


@dataclass(slots=True)
class ForwardBatch:
    """One step on the flat token axis, sequence after sequence. T tokens, N rows whose logits are wanted.

    Attributes:
        token_ids: [T] int64 (int32 on CUDA).
        positions: [T] int64 (int32 on CUDA); of each token in its sequence, -1 for padding.
        slot_mapping: [T] int64; block * block_size + offset, where each token's key and value are written, -1 for
            padding.
        logit_rows: [N] int64; rows of the flat axis, in any order. None for all rows as they stand.
        kv_caches: Per layer keys and values, each [num_blocks, block_size, num_kv_heads, head_dim].
        attention: Who reads what in this step.
        rotation: Cosines and sines of the positions, shared by the layers; filled in by the model.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    logit_rows: torch.Tensor | None
    kv_caches: list[tuple[torch.Tensor, torch.Tensor]]
    attention: "AttentionMetadata | CudaAttentionMetadata"
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
