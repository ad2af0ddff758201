"""Logits in bfloat16 and float16: as near to float32's as Transformers' on the same GPU."""

from typing import Any

import pytest
import torch

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, heads of 256": ("llama", {"head_dim": 256, "num_attention_heads": 4}),
    "mistral, window 11": ("mistral", {"sliding_window": 11, "head_dim": 128}),
    "qwen2": ("qwen2", {"num_key_value_heads": 6}),
    "qwen3, heads of 128": ("qwen3", {"head_dim": 128, "num_attention_heads": 4}),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_half_precision_is_as_close_as_transformers(
    model: str, dtype: torch.dtype, tiny_model: Any, run_engine: Any, errors_beside: Any
) -> None:
    model_type, config = MODELS[model]
    folder, reference = tiny_model(model_type, **config)
    outputs = run_engine(folder, dtype=str(dtype).removeprefix("torch."))
    ours, theirs = errors_beside(outputs, reference, dtype)
    assert ours <= 1.25 * theirs
