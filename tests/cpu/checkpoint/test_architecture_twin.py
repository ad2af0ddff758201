"""Our parser against Transformers' own configs: the same file means the same model."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from quire.checkpoint.architecture import ModelArchitecture, parse_architecture

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 1e6}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
    "rope_theta": 5e5,
}

CASES: list[tuple[str, dict[str, Any]]] = [
    *((model_type, {}) for model_type in CLASSES),
    *((model_type, {"num_key_value_heads": 2, "tie_word_embeddings": True}) for model_type in CLASSES),
    *((model_type, {"num_key_value_heads": 2, "rope_parameters": YARN}) for model_type in CLASSES),
    ("llama", {"rope_parameters": LLAMA3, "head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": None, "num_key_value_heads": 4}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2, "num_key_value_heads": 2}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_key_value_heads": 2}),
]


def windows_of(config: Any) -> tuple[int | None, ...]:
    """As Transformers' attention layers read them."""
    if config.model_type == "llama":
        return (None,) * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds)


def check(found: ModelArchitecture, config: Any) -> None:
    for field in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
        "bos_token_id",
    ):
        assert getattr(found, field) == getattr(config, field), field
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert found.head_dim == head_dim
    assert found.sliding_windows == windows_of(config)
    rope = config.rope_parameters
    assert (found.rope.kind, found.rope.theta) == (rope["rope_type"], rope["rope_theta"])
    assert found.rope.factor == rope.get("factor", 1.0)


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_saved_configs(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    """What save_pretrained writes; in the cases without changes also what it would leave to defaults."""
    sizes = SIZES if "num_key_value_heads" in changes or model_type == "llama" else SIZES | {"num_attention_heads": 32}
    config = AutoConfig.for_model(model_type, **sizes, **changes)
    config.architectures = [CLASSES[model_type]]
    config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    check(parse_architecture(values, source="config.json"), config)
    named = {"architectures": [CLASSES[model_type]], "model_type": model_type}
    check(parse_architecture(named | sizes | changes, source="config.json"), config)
