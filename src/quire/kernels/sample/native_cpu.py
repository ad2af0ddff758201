"""The compiled sampler: a row of logits is drawn by one thread, in a few passes while it is in the cache.

The C++ is in `cpu/`. Edits and penalties touch few logits and stay in numpy.
"""

from typing import Any

import numpy as np
import torch

from quire.kernels import native
from quire.kernels.sample.batch import SamplingBatch
from quire.kernels.sample.torch_cpu import apply_edits, apply_penalties


class NativeSampler:
    """Draws on the threads of a pool, from one thread at a time.

    A token depends on the instruction set in the last digits of a probability only, on the number of threads never.

    Args:
        pool: A `ThreadPool` of the extension.
        instruction_set: One of the extension's `instruction_sets()`.
    """

    def __init__(self, pool: Any, instruction_set: str) -> None:
        extension = native.extension()
        assert extension is not None, "a pool of an extension that is not there"
        self._sampler = extension.Sampler(pool, instruction_set)

    def draw_tokens(self, logits: torch.Tensor, batch: SamplingBatch) -> tuple[np.ndarray, np.ndarray]:
        """See `quire.kernels.sample.draw_tokens`."""
        values = logits.numpy()
        if batch.mask is not None:
            self._sampler.apply_mask(values, batch.mask.rows, batch.mask.words)
        if batch.edits is not None:
            apply_edits(logits, batch.edits)
        if batch.penalties is not None:
            apply_penalties(logits, batch.penalties)
        token_ids = np.empty(len(values), np.int64)
        self._sampler.draw_tokens(
            values,
            batch.temperature,
            batch.top_k,
            batch.top_p,
            batch.min_p,
            batch.seed,
            batch.sample_index,
            batch.position,
            token_ids,
        )
        failed = token_ids < 0
        token_ids[failed] = 0
        return token_ids, failed
