"""What runs a step's forward pass on a CPU: a model's own code, or its recording."""

from typing import Protocol

import numpy as np
import torch

from quire.layers.forward_batch import ForwardBatch
from quire.worker.batch_state import BatchState, StepRows
from quire.worker.forward_inputs import make_forward_batch


class Model(Protocol):
    """A model in torch.

    Attributes:
        dtype: Of the activations.
        sliding_windows: The windows of its layers.
    """

    dtype: torch.dtype
    sliding_windows: tuple[int | None, ...]

    def __call__(self, batch: ForwardBatch) -> torch.Tensor:
        """Final hidden states [N, hidden] of `batch.logit_rows`. Writes keys and values into `batch.kv_caches`."""

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N, vocabulary] float32, a fresh tensor."""


class StepModel(Protocol):
    """What a runner needs of a model."""

    def run(self, state: BatchState, rows: StepRows, logit_rows: np.ndarray) -> torch.Tensor:
        """Computes the rows' tokens and writes their keys and values.

        Returns:
            [N, hidden]: final hidden states of `logit_rows` [N] int64, which count on the flat axis.
        """

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N, vocabulary] float32, a fresh tensor."""


class TorchStepModel:
    """Runs a model's own code, kernel by kernel.

    Args:
        kv_caches: Per layer keys and values, each [num_blocks, block_size, num_kv_heads, head_dim].
    """

    def __init__(self, model: Model, kv_caches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._model = model
        self._kv_caches = kv_caches

    def run(self, state: BatchState, rows: StepRows, logit_rows: np.ndarray) -> torch.Tensor:
        """See `StepModel.run`."""
        return self._model(
            make_forward_batch(
                state,
                rows,
                logit_rows,
                self._kv_caches,
                dtype=self._model.dtype,
                sliding_windows=self._model.sliding_windows,
            )
        )

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `StepModel.compute_logits`."""
        return self._model.compute_logits(hidden)
