"""A model whose steps are recorded once and replayed by the compiled CPU kernels."""

from typing import Any, cast

import numpy as np
import torch
from torch.profiler import record_function

from quire.kernels.native import NativeCpu
from quire.kernels.native.recording import LOGIT_ROWS, Recorded, RecordedCache, Recording, StepInput
from quire.layers.forward_batch import ForwardBatch
from quire.models.decoder import DecoderModel
from quire.worker.batch_state import BatchState, StepRows
from quire.worker.dtype import dtype_name
from quire.worker.kv_storage import KVCaches


class RecordedModel:
    """Implements `StepModel`: two programs, one up to the hidden states and one from there to the logits.

    A trace of torch.profiler names them "quire::forward" and "quire::logits".

    Args:
        model: Its weights are packed for the compiled kernels.
        kv_caches: Where keys and values go; kept.
    """

    def __init__(self, model: DecoderModel, native: NativeCpu, kv_caches: KVCaches) -> None:
        self._kv_caches = kv_caches
        self._hidden_size = model.architecture.hidden_size
        self._vocab_size = model.architecture.vocab_size
        self._forward = _record_forward(model, native)
        self._logits = _record_logits(model, native)
        program = self._forward.program
        program.set_cache_shape(dtype_name(kv_caches.dtype), kv_caches.num_blocks, kv_caches.block_size)
        for layer, (keys, values) in enumerate(kv_caches.layers):
            scales = kv_caches.scales[layer] if kv_caches.scales else (None, None)
            program.add_cache(keys.data_ptr(), values.data_ptr(), *(0 if s is None else s.data_ptr() for s in scales))

    def run(self, state: BatchState, rows: StepRows, logit_rows: np.ndarray) -> torch.Tensor:
        """See `StepModel.run`."""
        hidden = np.empty((len(logit_rows), self._hidden_size), np.float32)
        with record_function("quire::forward"):
            self._forward.program.run(
                state.token_ids, state.block_tables, rows.slots, rows.starts, rows.num_tokens, logit_rows, hidden
            )
        return torch.from_numpy(hidden)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `StepModel.compute_logits`."""
        logits = np.empty((len(hidden), self._vocab_size), np.float32)
        with record_function("quire::logits"):
            self._logits.program.run_rows(hidden.numpy(), logits)
        return torch.from_numpy(logits)


def _record_forward(model: DecoderModel, native: NativeCpu) -> Recording:
    """The step up to the final hidden states."""
    recording, architecture = Recording(native), model.architecture
    caches = [
        RecordedCache(layer, architecture.num_key_value_heads, architecture.head_dim)
        for layer in range(architecture.num_hidden_layers)
    ]
    inputs: dict[str, Any] = {
        name: StepInput(name, recording) for name in ("token_ids", "positions", "slot_mapping", "attention")
    }
    batch = ForwardBatch(
        **inputs, logit_rows=cast(torch.Tensor, LOGIT_ROWS), kv_caches=cast(Any, [(cache, cache) for cache in caches])
    )
    recording.finish(model.forward(batch))
    return recording


def _record_logits(model: DecoderModel, native: NativeCpu) -> Recording:
    recording = Recording(native)
    hidden = recording.input(model.architecture.hidden_size, is_of_tokens=False)
    logits = model.compute_logits(hidden)
    assert isinstance(logits, Recorded)
    recording.finish(cast(torch.Tensor, logits))
    return recording
