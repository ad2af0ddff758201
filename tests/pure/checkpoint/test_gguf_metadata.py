"""What GGUF keys mean: architecture, vocabulary, sampling defaults."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire.checkpoint.gguf_file import GGUFFile
from quire.checkpoint.gguf_metadata import (
    gguf_architecture,
    gguf_chat_template,
    gguf_generation_defaults,
    gguf_tokenizer,
    llama3_frequency_factors,
)
from quire.checkpoint.rope import RopeConfig
from quire.errors import CheckpointError, CorruptCheckpointError, UnsupportedModelError

Builder = Any


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Builder], GGUFFile]:
    def open_builder(builder: Builder) -> GGUFFile:
        path = tmp_path / "model.gguf"
        path.write_bytes(builder.build())
        return GGUFFile(path)

    return open_builder


def as_family(builder: Builder, name: str) -> Builder:
    """The same model under another architecture's name."""
    builder.keys = {key.replace("llama.", f"{name}."): value for key, value in builder.keys.items()}
    return builder.set("general.architecture", builder.STRING, name)


def test_a_llama(opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder]) -> None:
    file = opened(small_gguf())
    architecture = gguf_architecture(file, file.tensors)
    assert architecture.name == "LlamaForCausalLM"
    assert (architecture.vocab_size, architecture.hidden_size, architecture.head_dim) == (8, 32, 8)
    assert (architecture.rms_norm_eps, architecture.rope.theta) == (1e-5, 10_000.0)
    assert architecture.tie_word_embeddings
    assert (architecture.bos_token_id, architecture.eos_token_ids) == (0, (1,))
    assert not architecture.attention_bias


def test_tensors_tell_what_keys_do_not(
    opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder]
) -> None:
    builder = small_gguf().tensor("output.weight", (8, 32), 0, bytes(1024))
    builder.tensor("blk.0.attn_q.bias", (32,), 0, bytes(128)).tensor("blk.0.ffn_gate.bias", (64,), 0, bytes(256))
    builder.set("tokenizer.ggml.eot_token_id", builder.U32, 2)
    file = opened(builder)
    architecture = gguf_architecture(file, file.tensors)
    assert not architecture.tie_word_embeddings
    assert (architecture.attention_bias, architecture.attention_output_bias, architecture.mlp_bias) == (
        True,
        False,
        True,
    )
    assert architecture.dtype == "float32"
    assert architecture.eos_token_ids == (1, 2)


def test_qwen(opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder]) -> None:
    file = opened(as_family(small_gguf(), "qwen2"))
    assert gguf_architecture(file, file.tensors).name == "Qwen2ForCausalLM"
    builder = as_family(small_gguf(), "qwen3")
    builder.set("qwen3.attention.key_length", builder.U32, 16).set("qwen3.attention.value_length", builder.U32, 16)
    del builder.keys["qwen3.rope.dimension_count"]
    file = opened(builder)
    architecture = gguf_architecture(file, file.tensors)
    assert (architecture.name, architecture.head_dim, architecture.qk_norm) == ("Qwen3ForCausalLM", 16, True)


def test_a_window_makes_it_a_mistral(opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder]) -> None:
    file = opened(small_gguf().set("llama.attention.sliding_window", 4, 16))
    architecture = gguf_architecture(file, file.tensors)
    assert (architecture.name, architecture.sliding_windows) == ("MistralForCausalLM", (16, 16))
    with pytest.raises(UnsupportedModelError, match="sliding_window"):
        file = opened(as_family(small_gguf().set("llama.attention.sliding_window", 4, 16), "qwen2"))
        gguf_architecture(file, file.tensors)


def test_key_value_heads_may_be_given_per_layer(
    opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder]
) -> None:
    builder = small_gguf()
    file = opened(builder.set("llama.attention.head_count_kv", (builder.ARRAY, builder.U32), [2, 2]))
    assert gguf_architecture(file, file.tensors).num_key_value_heads == 2
    with pytest.raises(UnsupportedModelError, match=r"llama\.attention\.head_count_kv"):
        file = opened(builder.set("llama.attention.head_count_kv", (builder.ARRAY, builder.U32), [2, 4]))
        gguf_architecture(file, file.tensors)


def test_rope_scaling(opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder]) -> None:
    builder = small_gguf()
    builder.set("llama.rope.scaling.type", builder.STRING, "yarn").set("llama.rope.scaling.factor", builder.F32, 4.0)
    builder.set("llama.rope.scaling.original_context_length", builder.U32, 32)
    file = opened(builder)
    rope = gguf_architecture(file, file.tensors).rope
    assert (rope.kind, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 32)
    file = opened(small_gguf().set("llama.rope.scale_linear", builder.F32, 2.0))
    rope = gguf_architecture(file, file.tensors).rope
    assert (rope.kind, rope.factor) == ("linear", 2.0)


def with_rope_factors(builder: Builder, factors: list[float]) -> Builder:
    for key, value in {"embedding_length": 256, "rope.dimension_count": 64}.items():
        builder.set(f"llama.{key}", builder.U32, value)
    builder.set("llama.rope.freq_base", builder.F32, 500_000.0)
    return builder.tensor("rope_freqs.weight", (len(factors),), 0, struct.pack(f"<{len(factors)}f", *factors))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_llama3_rule_is_recognised(
    opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder], factor: float
) -> None:
    rule = RopeConfig("llama3", 500_000.0, factor, 1.0, 4.0, 8192)
    factors = llama3_frequency_factors(rule, 64)
    assert factors[0] == 1.0
    assert factors[-1] == pytest.approx(factor)
    file = opened(with_rope_factors(small_gguf(), factors))
    assert gguf_architecture(file, file.tensors).rope == rule
    factors[20] *= 1.5
    file = opened(with_rope_factors(small_gguf(), factors))
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        gguf_architecture(file, file.tensors)
    file = opened(with_rope_factors(small_gguf(), [1.0] * 32))
    assert gguf_architecture(file, file.tensors).rope.kind == "default"
    file = opened(with_rope_factors(small_gguf(), [1.0] * 31))
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        gguf_architecture(file, file.tensors)


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("general.architecture", "STRING", "mamba"),
        ("general.type", "STRING", "adapter"),
        ("llama.expert_count", "U32", 8),
        ("llama.attention.causal", "BOOL", False),
        ("llama.attention.value_length", "U32", 16),
        ("llama.rope.dimension_count", "U32", 4),
        ("llama.rope.scaling.type", "STRING", "longrope"),
        ("llama.rope.scaling.attn_factor", "F32", 1.5),
        ("llama.final_logit_softcapping", "F32", 30.0),
    ],
)
def test_what_would_change_results_is_refused(
    opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder], key: str, kind: str, value: Any
) -> None:
    builder = small_gguf()
    file = opened(builder.set(key, getattr(builder, kind), value))
    with pytest.raises(UnsupportedModelError, match=str(value)):
        gguf_architecture(file, file.tensors)


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("llama.embedding_length", "U32", 0),
        ("llama.embedding_length", "STRING", "32"),
        ("llama.block_count", "U32", 2**31),
        ("llama.attention.head_count", "U32", 0),
        ("llama.attention.head_count_kv", "U32", 3),
        ("llama.attention.layer_norm_rms_epsilon", "F32", float("nan")),
        ("llama.rope.freq_base", "F32", -1.0),
        ("llama.context_length", "F32", 0.5),
    ],
)
def test_numbers_out_of_range_are_refused_by_their_key(
    opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder], key: str, kind: str, value: Any
) -> None:
    builder = small_gguf()
    file = opened(builder.set(key, getattr(builder, kind), value))
    with pytest.raises(CorruptCheckpointError, match=key):
        gguf_architecture(file, file.tensors)


def test_vocabulary(opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder]) -> None:
    file = opened(small_gguf())
    source = gguf_tokenizer(file)
    vocabulary = source.vocabulary()
    assert (vocabulary.model, vocabulary.pre, vocabulary.tokens[-1]) == ("gpt2", "smollm", "é")
    assert (vocabulary.merges, vocabulary.scores) == (["a b"], [])
    assert (vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.unknown_token_id) == (0, 1, None)
    assert (vocabulary.add_bos_token, vocabulary.add_space_prefix) == (True, None)
    assert source.vocabulary() is vocabulary
    assert gguf_chat_template(file) == "{{ messages }}"


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("tokenizer.ggml.tokens", "U32", 3),
        ("tokenizer.ggml.tokens", ("ARRAY", "I32"), [1] * 8),
        ("tokenizer.ggml.tokens", ("ARRAY", "STRING"), []),
        ("tokenizer.ggml.scores", ("ARRAY", "F32"), [0.0]),
        ("tokenizer.ggml.token_type", ("ARRAY", "I32"), [1] * 9),
        ("tokenizer.ggml.token_type", ("ARRAY", "STRING"), ["1"] * 8),
        ("tokenizer.ggml.bos_token_id", "U32", 8),
        ("tokenizer.ggml.eos_token_id", "I32", -1),
        ("tokenizer.ggml.add_bos_token", "U32", 1),
        ("tokenizer.ggml.model", "U32", 1),
    ],
)
def test_vocabulary_fields_are_checked(
    opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder], key: str, kind: Any, value: Any
) -> None:
    builder = small_gguf()
    number = getattr(builder, kind) if isinstance(kind, str) else tuple(getattr(builder, name) for name in kind)
    file = opened(builder.set(key, number, value))
    with pytest.raises(CheckpointError, match=key):
        gguf_tokenizer(file).vocabulary()


def test_sampling_defaults(opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder]) -> None:
    builder = small_gguf()
    assert gguf_generation_defaults(opened(builder)) == {}
    builder.set("general.sampling.temp", builder.F32, 0.6).set("general.sampling.top_k", builder.I32, 20)
    assert gguf_generation_defaults(opened(builder)) == {"temperature": 0.6, "top_k": 20}
    builder.set("general.sampling.top_p", builder.F32, float("nan"))
    with pytest.raises(CorruptCheckpointError, match=r"general\.sampling\.top_p"):
        gguf_generation_defaults(opened(builder))


def test_a_template_must_be_text(opened: Callable[[Builder], GGUFFile], small_gguf: Callable[[], Builder]) -> None:
    builder = small_gguf()
    with pytest.raises(CorruptCheckpointError, match=r"tokenizer\.chat_template"):
        gguf_chat_template(opened(builder.set("tokenizer.chat_template", builder.U32, 1)))
