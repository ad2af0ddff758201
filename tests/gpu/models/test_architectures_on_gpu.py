"""Logits of every architecture against Transformers on the GPU, in float32."""

from typing import Any

import pytest

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases, tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama, one key head": ("llama", {"num_key_value_heads": 1}),
    "llama, heads of 96": ("llama", {"head_dim": 96}),
    "llama, heads of 256": ("llama", {"head_dim": 256, "num_attention_heads": 4}),
    "llama, groups of 8": ("llama", {"num_attention_heads": 16, "num_key_value_heads": 2}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window 40": ("mistral", {"sliding_window": 40}),
    "mistral, window 11": ("mistral", {"sliding_window": 11, "head_dim": 128}),
    "qwen2": ("qwen2", {"num_key_value_heads": 6}),
    "qwen2, upper layers windowed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, heads of 128": ("qwen3", {"head_dim": 128, "num_attention_heads": 4}),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architecture(architecture: str, tiny_model: Any, run_engine: Any, assert_logits: Any) -> None:
    model_type, config = ARCHITECTURES[architecture]
    folder, reference = tiny_model(model_type, **config)
    assert_logits(architecture, run_engine(folder), reference)
