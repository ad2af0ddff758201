"""config.json is read by our own parser: both styles of Transformers, defaults, and refusals that name file and key."""

from typing import Any

import pytest

from quire.checkpoint.architecture import ModelArchitecture, parse_architecture
from quire.errors import CheckpointError, CorruptCheckpointError, UnsupportedModelError

SOURCE = "folder/config.json"


def parse(config: dict[str, Any], **changes: Any) -> ModelArchitecture:
    return parse_architecture(config | changes, source=SOURCE)


def of_family(config: dict[str, Any], name: str, model_type: str, **changes: Any) -> ModelArchitecture:
    return parse(config, architectures=[name], model_type=model_type, **changes)


def test_reads_a_llama_config(llama_config: dict[str, Any]) -> None:
    architecture = parse(llama_config)
    assert architecture.name == "LlamaForCausalLM"
    assert (architecture.vocab_size, architecture.hidden_size, architecture.intermediate_size) == (64, 32, 64)
    assert (architecture.num_attention_heads, architecture.num_key_value_heads, architecture.head_dim) == (4, 2, 8)
    assert architecture.sliding_windows == (None, None)
    assert architecture.dtype == "bfloat16"
    assert (architecture.bos_token_id, architecture.eos_token_ids) == (1, (2,))
    assert not architecture.tie_word_embeddings
    assert not architecture.qk_norm


def test_both_styles_of_transformers_mean_the_same(llama_config: dict[str, Any]) -> None:
    old = parse(llama_config, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4})
    del llama_config["rope_theta"], llama_config["torch_dtype"]
    parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000}
    assert parse(llama_config, dtype="bfloat16", rope_parameters=parameters) == old


def test_architecture_is_taken_from_model_type_where_none_is_named(llama_config: dict[str, Any]) -> None:
    del llama_config["architectures"]
    assert parse(llama_config, model_type="qwen3").name == "Qwen3ForCausalLM"


@pytest.mark.parametrize(
    ("name", "model_type", "changes", "expected"),
    [
        ("LlamaForCausalLM", "llama", {"attention_bias": True}, (True, True, False, False)),
        ("LlamaForCausalLM", "llama", {"mlp_bias": True}, (False, False, True, False)),
        ("MistralForCausalLM", "mistral", {"attention_bias": True}, (False, False, False, False)),
        ("Qwen2ForCausalLM", "qwen2", {}, (True, False, False, False)),
        ("Qwen3ForCausalLM", "qwen3", {}, (False, False, False, True)),
        ("Qwen3ForCausalLM", "qwen3", {"attention_bias": True}, (True, True, False, True)),
    ],
)
def test_biases_and_norms(
    llama_config: dict[str, Any],
    name: str,
    model_type: str,
    changes: dict[str, Any],
    expected: tuple[bool, bool, bool, bool],
) -> None:
    found = of_family(llama_config, name, model_type, **changes)
    assert (found.attention_bias, found.attention_output_bias, found.mlp_bias, found.qk_norm) == expected


def test_head_size_is_explicit_derived_or_the_familys(llama_config: dict[str, Any]) -> None:
    assert parse(llama_config, head_dim=16).head_dim == 16
    assert parse(llama_config, head_dim=None).head_dim == 8
    assert of_family(llama_config, "Qwen3ForCausalLM", "qwen3").head_dim == 128


def test_key_value_heads_default_to_all_heads(llama_config: dict[str, Any]) -> None:
    del llama_config["num_key_value_heads"]
    assert parse(llama_config).num_key_value_heads == 4
    mistral = {"num_attention_heads": 32, "hidden_size": 256}
    assert of_family(llama_config, "MistralForCausalLM", "mistral", **mistral).num_key_value_heads == 8


def test_every_mistral_layer_has_the_window(llama_config: dict[str, Any]) -> None:
    def windows(**changes: Any) -> tuple[int | None, ...]:
        return of_family(llama_config, "MistralForCausalLM", "mistral", **changes).sliding_windows

    assert windows(sliding_window=16) == (16, 16)
    assert windows(sliding_window=None) == (None, None)
    assert windows() == (4096, 4096)


@pytest.mark.parametrize("family", [("Qwen2ForCausalLM", "qwen2"), ("Qwen3ForCausalLM", "qwen3")])
def test_qwen_windows_need_the_switch(llama_config: dict[str, Any], family: tuple[str, str]) -> None:
    def windows(**changes: Any) -> tuple[int | None, ...]:
        return of_family(llama_config, *family, num_hidden_layers=4, sliding_window=16, **changes).sliding_windows

    assert windows() == (None,) * 4
    assert windows(use_sliding_window=False, max_window_layers=0) == (None,) * 4
    assert windows(use_sliding_window=True, max_window_layers=3) == (None, None, None, 16)
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    assert windows(use_sliding_window=True, max_window_layers=4, layer_types=kinds) == (16, None, 16, None)


def test_eos_may_be_one_or_several(llama_config: dict[str, Any]) -> None:
    assert parse(llama_config, eos_token_id=[2, 3, 2]).eos_token_ids == (2, 3)
    assert parse(llama_config, eos_token_id=None).eos_token_ids == ()


def test_token_ids_outside_the_vocabulary_are_left_out(
    llama_config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    architecture = parse(llama_config, eos_token_id=[2, 64], bos_token_id=-1)
    assert architecture.eos_token_ids == (2,)
    assert architecture.bos_token_id is None
    assert "outside the vocabulary" in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -32),
        ("hidden_size", 2**21),
        ("hidden_size", "32"),
        ("hidden_size", True),
        ("hidden_size", 30.5),
        ("hidden_size", float("nan")),
        ("hidden_size", 10**400),
        ("hidden_size", 34),
        ("vocab_size", 2**40),
        ("intermediate_size", None),
        ("num_hidden_layers", 100_000),
        ("num_attention_heads", [4]),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("head_dim", 7),
        ("head_dim", 8192),
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", 0),
        ("rope_theta", 0),
        ("rope_theta", float("inf")),
        ("tie_word_embeddings", 1),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1.5]),
        ("architectures", "LlamaForCausalLM"),
        ("rope_scaling", "linear"),
    ],
)
def test_values_out_of_range_are_refused_by_file_and_key(llama_config: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(CorruptCheckpointError) as caught:
        parse(llama_config, **{key: value})
    assert SOURCE in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_missing_size_is_refused(llama_config: dict[str, Any], key: str) -> None:
    del llama_config[key]
    with pytest.raises(CorruptCheckpointError, match=f"{SOURCE}: {key} is missing"):
        parse(llama_config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"compression_config": {"format": "x"}}, "compression_config"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "MambaForCausalLM"),
        ({"architectures": [], "model_type": "mamba"}, "mamba"),
        ({"architectures": [["LlamaForCausalLM"]], "model_type": None}, "LlamaForCausalLM"),
        ({"model_type": "smollm3"}, "smollm3"),
    ],
)
def test_what_would_change_results_is_refused(
    llama_config: dict[str, Any], changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        parse(llama_config, **changes)


def test_an_unknown_architecture_is_told_the_known_ones(llama_config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        parse(llama_config, architectures=["GPT2LMHeadModel"], model_type="gpt2")
    for name in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        assert name in str(caught.value)


def test_layer_types_that_differ_are_refused_for_mistral(llama_config: dict[str, Any]) -> None:
    kinds = ["sliding_attention", "full_attention"]
    with pytest.raises(UnsupportedModelError, match="layer_types"):
        of_family(llama_config, "MistralForCausalLM", "mistral", layer_types=kinds)


@pytest.mark.parametrize("kinds", [["full_attention"], ["full_attention", 3], "full"])
def test_malformed_layer_types_are_refused(llama_config: dict[str, Any], kinds: Any) -> None:
    with pytest.raises(CheckpointError, match="layer_types"):
        of_family(llama_config, "Qwen3ForCausalLM", "qwen3", use_sliding_window=True, layer_types=kinds)


def test_an_unknown_layer_type_is_refused(llama_config: dict[str, Any]) -> None:
    kinds = ["full_attention", "linear_attention"]
    with pytest.raises(UnsupportedModelError, match="linear_attention"):
        of_family(llama_config, "Qwen3ForCausalLM", "qwen3", use_sliding_window=True, layer_types=kinds)
