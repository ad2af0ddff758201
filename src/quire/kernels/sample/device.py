"""The sampler on a GPU: what is done to a batch of logits. Its tensors: `device_tensors.py`.

    logits [N, V] -> log-probabilities -> mask -> edits -> penalties -> draw -> token ids, last tokens, counts
                     |  only in steps with a row that asks for it  |

Nothing here waits for the device. `draw` alone is enough for temperature, top_k, top_p and min_p; it reads nothing
from the host, so a CUDA graph can hold it. Triton's interpreter runs all of it on CPU tensors.
"""

import torch

from quire.kernels.sample.device_tensors import (
    EXHAUSTED,
    NOT_FINITE,
    PROMPT_FLAG,
    DeviceBadWords,
    DeviceEdits,
    DeviceMask,
    DevicePenalties,
    DeviceSamplingParams,
    DrawWorkspace,
    chunk_size,
)

__all__ = [
    "EXHAUSTED",
    "NOT_FINITE",
    "PROMPT_FLAG",
    "DeviceBadWords",
    "DeviceEdits",
    "DeviceMask",
    "DevicePenalties",
    "DeviceSamplingParams",
    "DrawWorkspace",
    "apply_edits",
    "apply_mask",
    "apply_penalties",
    "chunk_size",
    "count_drawn_tokens",
    "count_tokens",
    "draw",
    "exclude_bad_words",
    "remember_drawn_tokens",
    "write_params",
]


def write_params(params: DeviceSamplingParams, packed: torch.Tensor) -> None:
    """Sets the parameters of E slots. Modifies `params`.

    Args:
        params: By slot.
        packed: [8, E] int32 contiguous: slot, bits of temperature, top_k, bits of top_p, bits of min_p, sample index,
            low and high word of the seed. No slot twice.
    """
    from quire.kernels.sample import triton_params

    triton_params.write_params(params, packed)


def draw(
    logits: torch.Tensor,
    params: DeviceSamplingParams,
    slots: torch.Tensor,
    positions: torch.Tensor,
    workspace: DrawWorkspace,
    token_ids_out: torch.Tensor,
    last_tokens: torch.Tensor,
) -> None:
    """Draws one token per row. Modifies `workspace`, `token_ids_out` and the named slots of `last_tokens`.

    A row's token depends, bit for bit, on its logits, its parameters and its position alone.

    Args:
        logits: [N, V] float32 contiguous, its start aligned to 16 bytes. Not modified.
        params: By slot.
        slots: [N] int32.
        positions: [N] int32; index of the drawn token in its sequence.
        workspace: For at least N rows.
        token_ids_out: [N] int32; `NOT_FINITE` or `EXHAUSTED`, both negative, for rows that failed.
        last_tokens: [max_num_seqs + 1] int32; gets the token too, 0 for rows that failed.
    """
    from quire.kernels.sample import triton

    num_rows, _ = logits.shape
    assert logits.dtype == torch.float32 and logits.is_contiguous(), f"contiguous float32 logits, got {logits.dtype}"
    # Another alignment would be another kernel, which may sum in another order.
    assert logits.data_ptr() % 16 == 0, "logits must be aligned to 16 bytes"
    assert slots.shape == positions.shape == token_ids_out.shape == (num_rows,), (
        f"{num_rows} rows of logits, slots {tuple(slots.shape)}, positions {tuple(positions.shape)}, "
        f"token ids {tuple(token_ids_out.shape)}"
    )
    assert num_rows <= workspace.max_num_rows, f"{num_rows} rows, workspace for {workspace.max_num_rows}"
    triton.draw(logits, params, slots, positions, workspace, token_ids_out, last_tokens)


def apply_edits(logits: torch.Tensor, edits: DeviceEdits) -> None:
    """Excludes and biases tokens. Modifies `logits` [N, V] float32 contiguous."""
    from quire.kernels.sample import triton_edits

    triton_edits.apply_edits(logits, edits)


def apply_mask(logits: torch.Tensor, mask: DeviceMask) -> None:
    """Excludes the tokens that the rows of a mask may not draw. Modifies `logits` [N, V] float32 contiguous."""
    from quire.kernels.sample import triton_edits

    triton_edits.apply_mask(logits, mask)


def exclude_bad_words(logits: torch.Tensor, bad_words: DeviceBadWords) -> None:
    """Excludes the last tokens of bad words whose other tokens end the answer. Modifies `logits` [N, V] float32."""
    from quire.kernels.sample import triton_edits

    triton_edits.exclude_bad_words(logits, bad_words)


def apply_penalties(logits: torch.Tensor, penalties: DevicePenalties) -> None:
    """Makes tokens that have occurred less likely. Modifies `logits` [N, V] float32 contiguous."""
    from quire.kernels.sample import triton_edits

    triton_edits.apply_penalties(logits, penalties)


def count_tokens(counts: torch.Tensor, token_ids: torch.Tensor, num_prompt_tokens: int) -> None:
    """Counts the tokens of a sequence. Overwrites `counts`.

    Args:
        counts: [V] int32.
        token_ids: [T] int32; prompt and answer so far.
        num_prompt_tokens: How many of them are the prompt.
    """
    from quire.kernels.sample import triton_edits

    triton_edits.count_tokens(counts, token_ids, num_prompt_tokens)


def count_drawn_tokens(penalties: DevicePenalties, token_ids: torch.Tensor) -> None:
    """Adds the tokens just drawn, [N] int32, negative where none was, to the counts of the rows that penalise."""
    from quire.kernels.sample import triton_edits

    triton_edits.count_drawn_tokens(penalties, token_ids)


def remember_drawn_tokens(rings: torch.Tensor, token_ids: torch.Tensor) -> None:
    """Puts the tokens just drawn, [N] int32, into the rings of rows with bad words.

    Args:
        rings: [4, S] int64: row, address of its ring, the ring's size, tokens in the answer before this one.
        token_ids: Negative where none was drawn.
    """
    from quire.kernels.sample import triton_edits

    triton_edits.remember_drawn_tokens(rings, token_ids)
