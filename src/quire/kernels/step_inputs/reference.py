"""One token at a time."""

import torch

from quire.kernels.step_inputs import StepInputs


def step_inputs(
    packed: torch.Tensor,
    block_tables: torch.Tensor,
    last_tokens: torch.Tensor,
    outputs: StepInputs,
    *,
    block_size: int,
) -> None:
    """See `quire.kernels.step_inputs.step_inputs`."""
    for row, (token_id, position, slot, new_block) in enumerate(packed.T.tolist()):
        is_padding = position < 0
        if not is_padding and new_block >= 0:
            block_tables[slot, position // block_size] = new_block
        outputs.token_ids[row] = 0 if is_padding else last_tokens[slot] if token_id < 0 else token_id
        block = int(block_tables[slot, max(position, 0) // block_size])
        outputs.slot_mapping[row] = -1 if is_padding else block * block_size + position % block_size
        if outputs.decodes is not None and outputs.draw_positions is not None:
            outputs.decodes[row] = torch.tensor([slot, row, position + 1])
            outputs.draw_positions[row] = position + 1
