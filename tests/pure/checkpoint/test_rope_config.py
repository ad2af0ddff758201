"""Every kind of rope is read, and settings that are not implemented are refused."""

from typing import Any

import pytest

from quire.checkpoint.architecture import parse_architecture
from quire.checkpoint.rope import RopeConfig
from quire.errors import CorruptCheckpointError, UnsupportedModelError


def rope_of(config: dict[str, Any], **changes: Any) -> RopeConfig:
    return parse_architecture(config | changes, source="config.json").rope


def test_plain(llama_config: dict[str, Any]) -> None:
    assert rope_of(llama_config) == RopeConfig("default", 10_000.0, original_max_position_embeddings=128)
    assert rope_of(llama_config, rope_scaling={"type": "default"}) == rope_of(llama_config)
    del llama_config["rope_theta"]
    assert rope_of(llama_config).theta == 10_000.0


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_stretched_by_a_factor(llama_config: dict[str, Any], kind: str) -> None:
    architecture = parse_architecture(
        llama_config | {"rope_scaling": {"rope_type": kind, "factor": 4.0}}, source="config.json"
    )
    assert (architecture.rope.kind, architecture.rope.factor) == (kind, 4.0)
    assert architecture.context_length == 512


def test_llama3(llama_config: dict[str, Any]) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    architecture = parse_architecture(
        llama_config | {"rope_scaling": scaling, "max_position_embeddings": 131_072}, source="config.json"
    )
    assert architecture.rope == RopeConfig("llama3", 10_000.0, 8.0, 1.0, 4.0, 8192)
    assert architecture.context_length == 131_072


def test_yarn(llama_config: dict[str, Any]) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16, "mscale": 1}
    rope = rope_of(llama_config, rope_scaling=scaling)
    assert (rope.kind, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 64)
    assert (rope.beta_fast, rope.beta_slow, rope.attention_factor, rope.mscale) == (16.0, 1.0, None, 1.0)
    architecture = parse_architecture(llama_config | {"rope_scaling": scaling}, source="config.json")
    assert architecture.context_length == 256


def test_yarns_own_attention_factor(llama_config: dict[str, Any]) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.8, "mscale_all_dim": 0.5, "beta_slow": 2}
    rope = rope_of(llama_config, rope_scaling=scaling)
    assert (rope.attention_factor, rope.mscale_all_dim, rope.beta_slow) == (0.8, 0.5, 2.0)


def test_yarn_derives_its_factor_from_the_positions(llama_config: dict[str, Any]) -> None:
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 32}
    assert rope_of(llama_config, rope_scaling=scaling).factor == 4.0


def test_the_original_positions_may_stand_outside(llama_config: dict[str, Any]) -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0}
    assert rope_of(llama_config, rope_scaling=scaling).original_max_position_embeddings == 128
    rope = rope_of(llama_config, rope_scaling=scaling, original_max_position_embeddings=64)
    assert rope.original_max_position_embeddings == 64


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"rope_type": "longrope", "factor": 4.0}, "longrope"),
        ({"rope_type": ["linear"]}, "linear"),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, "mrope"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": False}, "truncate"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
    ],
)
def test_what_is_not_implemented_is_refused(llama_config: dict[str, Any], scaling: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        rope_of(llama_config, rope_scaling=scaling)


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"rope_type": "linear"}, "rope_scaling.factor|factor is missing"),
        ({"rope_type": "linear", "factor": 0}, "rope_scaling.factor"),
        ({"rope_type": "linear", "factor": "4"}, "rope_scaling.factor"),
        ({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}, "low_freq_factor"),
        ({"rope_type": "llama3", "factor": 8, "high_freq_factor": 4}, "low_freq_factor"),
        ({"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 0}, "original_max_position_embeddings"),
        ({"rope_type": "yarn", "factor": 8, "truncate": "no"}, "truncate"),
    ],
)
def test_values_out_of_range_are_refused(llama_config: dict[str, Any], scaling: dict[str, Any], named: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=named):
        rope_of(llama_config, rope_scaling=scaling)
