"""From the rows of a step to the tensors of a forward pass."""

from collections.abc import Sequence

import numpy as np
import torch

from quire.kernels.paged_attention import prepare
from quire.layers.forward_batch import ForwardBatch
from quire.worker.batch_state import BatchState, StepRows


def make_forward_batch(
    state: BatchState,
    rows: StepRows,
    logit_rows: np.ndarray,
    kv_caches: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    dtype: torch.dtype,
    sliding_windows: Sequence[int | None],
) -> ForwardBatch:
    """The tensors of one step on the CPU.

    Args:
        state: The sequences in the slots.
        rows: Those that run in this step.
        logit_rows: [N] int64; rows of the flat token axis whose logits are wanted.
        kv_caches: Keys and values per layer.
        dtype: Of the activations.
        sliding_windows: The windows that the model's layers have.
    """
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
        logit_rows=torch.from_numpy(logit_rows),
        kv_caches=kv_caches,
        attention=prepare(
            num_tokens.tolist(),
            ends.tolist(),
            torch.from_numpy(state.block_tables[rows.slots, :max_blocks]),
            kv_caches[0][0],
            dtype=dtype,
            sliding_windows=sliding_windows,
        ),
    )


def token_positions(rows: StepRows) -> np.ndarray:
    """Position in its sequence of every token of the step, [T] int64."""
    flat_starts = rows.num_tokens.cumsum() - rows.num_tokens
    offsets = np.repeat(flat_starts - rows.starts, rows.num_tokens)
    positions: np.ndarray = np.arange(len(offsets)) - offsets
    return positions
