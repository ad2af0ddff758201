"""Frequencies of each kind of rope at the sizes of real models, against Transformers' own functions."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from quire.checkpoint.architecture import parse_architecture
from quire.models.rope import make_rotary_embedding

ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    "Llama 3.1": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "Qwen3 with YaRN": {
        "rope_type": "yarn",
        "rope_theta": 1_000_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32_768,
    },
    "YaRN, DeepSeek's scales": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "beta_fast": 20.0,
        "beta_slow": 3.0,
    },
}


def _config(head_dim: int, rope: str) -> LlamaConfig:
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=16_384,
        rope_parameters=dict(ROPES[rope]),
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("rope", ROPES)
def test_equal_to_transformers(rope, head_dim):
    config = _config(head_dim, rope)
    expected, factor = ROPE_INIT_FUNCTIONS[ROPES[rope]["rope_type"]](config, torch.device("cpu"), seq_len=20_000)
    architecture = parse_architecture(config.to_dict(), source="config.json")
    rotary = make_rotary_embedding(architecture, max_model_len=20_000)
    torch.testing.assert_close(rotary.inverse_frequencies, expected, rtol=1e-6, atol=0.0)
    assert rotary.factor == pytest.approx(factor, rel=1e-12)


def test_dynamic_is_unscaled_up_to_the_original_length():
    architecture = parse_architecture(_config(64, "dynamic").to_dict(), source="config.json")
    short = make_rotary_embedding(architecture, max_model_len=16_384).inverse_frequencies
    expected = 10_000.0 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    torch.testing.assert_close(short, expected.float(), rtol=1e-6, atol=0.0)


def test_dynamic_is_stretched_to_the_whole_context_by_default():
    architecture = parse_architecture(_config(64, "dynamic").to_dict(), source="config.json")
    by_default = make_rotary_embedding(architecture, max_model_len=None).inverse_frequencies
    stretched = make_rotary_embedding(architecture, max_model_len=2 * 16_384).inverse_frequencies
    assert torch.equal(by_default, stretched)
