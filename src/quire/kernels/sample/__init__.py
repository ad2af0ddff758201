"""Draws the next token of every row of a batch.

The steps, in this order: mask, allowed ids, excluded ids (bad words, stop tokens before `min_tokens`), logit bias,
repetition, frequency and presence penalties, temperature, min_p, top_k, top_p, draw. A row's token depends on
its own logits and parameters and on (seed, sample index, position), never on who shares the batch.

`draw_tokens` does this with torch and numpy, `NativeSampler` compiled and on all threads of a pool. On a GPU the same
is done by the functions of `device.py`, on tensors that stay there.

May import: errors; torch, triton and numpy. Read first: this file, `reference.py`, `torch_cpu.py`, `native_cpu.py`,
`device.py`.
"""

from collections.abc import Callable

import numpy as np
import torch

from quire.kernels.sample import torch_cpu
from quire.kernels.sample.batch import LogitEdits, Penalties, SamplingBatch, TokenMask
from quire.kernels.sample.logprobs import (
    DeviceLogprobs,
    TokenLogprobs,
    complete_logprobs,
    pick_logprobs,
    pick_logprobs_on_device,
)
from quire.kernels.sample.native_cpu import NativeSampler

DrawTokens = Callable[[torch.Tensor, SamplingBatch], tuple[np.ndarray, np.ndarray]]
"""What `draw_tokens` and `NativeSampler.draw_tokens` are."""

__all__ = [
    "DeviceLogprobs",
    "DrawTokens",
    "LogitEdits",
    "NativeSampler",
    "Penalties",
    "SamplingBatch",
    "TokenLogprobs",
    "TokenMask",
    "complete_logprobs",
    "draw_tokens",
    "pick_logprobs",
    "pick_logprobs_on_device",
]


def draw_tokens(logits: torch.Tensor, batch: SamplingBatch) -> tuple[np.ndarray, np.ndarray]:
    """Draws one token per row.

    Args:
        logits: [N, V] float32, contiguous, on the CPU. Modified where `batch` has a mask, edits or penalties.
        batch: How each of the N rows is drawn.

    Returns:
        token_ids: [N] int64.
        failed: [N] bool; rows whose logits hold NaN or +inf, or in which no token is left. Their token is
            meaningless; the other rows are not affected. A logit of -inf is a token of probability 0.
    """
    num_rows, _ = logits.shape
    assert logits.dtype == torch.float32 and logits.device.type == "cpu" and logits.is_contiguous(), (
        f"logits must be contiguous float32 on the CPU, got {logits.dtype} on {logits.device}"
    )
    assert batch.num_rows == num_rows, f"{num_rows} rows of logits, parameters for {batch.num_rows}"
    return torch_cpu.draw_tokens(logits, batch)
