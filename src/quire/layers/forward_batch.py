"""All that a forward pass needs besides the weights."""

from dataclasses import dataclass

import torch

from quire.kernels.paged_attention import AttentionMetadata


@dataclass(slots=True)
class ForwardBatch:
    """One step on the flat token axis, sequence after sequence. T tokens, S sequences, N rows whose logits are wanted.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int64; of each token in its sequence.
        slot_mapping: [T] int64; block * block_size + offset, where each token's key and value are written.
        query_lengths: (S) tokens of each sequence in this step.
        context_lengths: (S) tokens of each sequence after this step.
        block_tables: [S, max_blocks] int32.
        logit_rows: [N] int64; rows of the flat axis. Any order.
        kv_caches: Per layer keys and values, each [num_blocks, block_size, num_kv_heads, head_dim].
        attention: What the attention kernel prepares once for all layers; filled in by the model.
        rotation: Cosines and sines of the positions; filled in by the model.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    query_lengths: list[int]
    context_lengths: list[int]
    block_tables: torch.Tensor
    logit_rows: torch.Tensor
    kv_caches: list[tuple[torch.Tensor, torch.Tensor]]
    attention: AttentionMetadata | None = None
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None
