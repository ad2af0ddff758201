"""Scaled ropes, sizes of blocks, and steps without graphs, against Transformers on the GPU in float32."""

from typing import Any

import pytest

ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 8.0, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_rope(rope: str, model_type: str, tiny_model: Any, run_engine: Any, assert_logits: Any) -> None:
    folder, reference = tiny_model(model_type, rope_parameters=ROPES[rope])
    assert_logits(rope, run_engine(folder), reference)


@pytest.mark.parametrize("block_size", [32, 64])
def test_block_sizes(block_size: int, tiny_model: Any, run_engine: Any, assert_logits: Any) -> None:
    folder, reference = tiny_model("mistral", sliding_window=40)
    assert_logits(f"blocks of {block_size}", run_engine(folder, block_size=block_size), reference)


def test_without_graphs(tiny_model: Any, run_engine: Any, assert_logits: Any) -> None:
    folder, reference = tiny_model("qwen3")
    assert_logits("eager", run_engine(folder, enforce_eager=True), reference)
