"""From the rows of a step to the tensors of a forward pass."""

import numpy as np
import torch

from quire.layers.forward_batch import ForwardBatch
from quire.worker.batch_state import BatchState, StepRows


def make_forward_batch(
    state: BatchState, rows: StepRows, logit_rows: np.ndarray, kv_caches: list[tuple[torch.Tensor, torch.Tensor]]
) -> ForwardBatch:
    """The tensors of one step on the CPU. Logits are wanted for `logit_rows` [N] int64 of the flat token axis."""
    block_size = state.block_size
    num_tokens = rows.num_tokens
    ends = rows.starts + num_tokens
    positions = token_positions(rows)
    slots = np.repeat(rows.slots, num_tokens)
    blocks = state.block_tables[slots, positions // block_size].astype(np.int64)
    max_blocks = -(-int(ends.max()) // block_size)
    return ForwardBatch(
        token_ids=torch.from_numpy(state.token_ids[slots, positions].astype(np.int64)),
        positions=torch.from_numpy(positions),
        slot_mapping=torch.from_numpy(blocks * block_size + positions % block_size),
        query_lengths=num_tokens.tolist(),
        context_lengths=ends.tolist(),
        block_tables=torch.from_numpy(state.block_tables[rows.slots, :max_blocks]),
        logit_rows=torch.from_numpy(logit_rows),
        kv_caches=kv_caches,
    )


def token_positions(rows: StepRows) -> np.ndarray:
    """Position in its sequence of every token of the step, [T] int64."""
    flat_starts = rows.num_tokens.cumsum() - rows.num_tokens
    offsets = np.repeat(flat_starts - rows.starts, rows.num_tokens)
    positions: np.ndarray = np.arange(len(offsets)) - offsets
    return positions
