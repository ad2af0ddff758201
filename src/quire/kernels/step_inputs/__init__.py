"""From what the host knows of a step to what a forward pass reads, on the device.

The host is a step ahead: it knows where every token stands, but not the token that the device has just drawn.
Tokens it does not know it leaves at -1; they are taken from `last_tokens`, where the sampler puts them.
"""

from dataclasses import dataclass

import torch

__all__ = ["StepInputs", "step_inputs"]


@dataclass(slots=True)
class StepInputs:
    """Where the results go: tensors of the step, T tokens.

    Attributes:
        token_ids: [T] int32.
        slot_mapping: [T] int64; cache slot of each token, -1 for padding.
        decodes: [T, 3] int32 (slot, row, context length) for attention; only where each token is a sequence.
        draw_positions: [T] int32; index of the token drawn next, likewise.
    """

    token_ids: torch.Tensor
    slot_mapping: torch.Tensor
    decodes: torch.Tensor | None = None
    draw_positions: torch.Tensor | None = None


def step_inputs(
    packed: torch.Tensor,
    block_tables: torch.Tensor,
    last_tokens: torch.Tensor,
    outputs: StepInputs,
    *,
    block_size: int,
) -> None:
    """Fills in `outputs`, and appends new blocks to `block_tables`.

    Args:
        packed: [4, T] int32 contiguous: token id (-1: the one drawn last in its slot), position (-1: padding), slot,
            block that this position begins (-1: none).
        block_tables: [max_num_seqs + 1, max_blocks] int32.
        last_tokens: [max_num_seqs + 1] int32.
        outputs: With `decodes` and `draw_positions` where each token is a sequence of its own.
        block_size: Tokens per block.
    """
    from quire.kernels.step_inputs import triton as implementation

    assert packed.shape == (4, len(outputs.token_ids)), f"packed {tuple(packed.shape)}, {len(outputs.token_ids)} tokens"
    implementation.step_inputs(packed, block_tables, last_tokens, outputs, block_size=block_size)
