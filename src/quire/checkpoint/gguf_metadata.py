"""What the keys of a GGUF file mean: architecture, vocabulary, chat template, sampling defaults."""

import dataclasses
import functools
import math
import struct
from collections.abc import Mapping
from typing import Any

from quire.checkpoint.architecture import MAX_VOCAB_SIZE, ModelArchitecture, parse_architecture
from quire.checkpoint.fields import FieldReader
from quire.checkpoint.gguf_file import GGUFFile
from quire.checkpoint.rope import RopeConfig
from quire.checkpoint.tensor_entry import TensorEntry
from quire.checkpoint.tokenizer_source import GGUFVocabulary, TokenizerSource
from quire.errors import CorruptCheckpointError, UnsupportedModelError

ARCHITECTURE_NAMES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Key in config.json: key in GGUF, below the architecture's name.
_CONFIG_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
}

_ROPE_KEYS = {
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}

# Keys that change results and are not implemented, with the value that means "off".
_NEUTRAL_VALUES = {
    "expert_count": 0,
    "use_parallel_residual": False,
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "attention.causal": True,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.temperature_scale": 0.0,
    "rope.scaling.alpha": 0.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
}

_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def gguf_architecture(gguf: GGUFFile, tensors: Mapping[str, TensorEntry]) -> ModelArchitecture:
    """The architecture that the keys describe.

    Args:
        gguf: The file with the keys; the first of a split model.
        tensors: Those of all parts: biases, the size of the vocabulary and a tied output show in them only.

    Raises:
        UnsupportedModelError: Another architecture, or a setting that is not implemented.
        CorruptCheckpointError: A key is missing, of the wrong type or out of range.
    """
    prefix = _checked_prefix(gguf)
    config, shown_keys = _as_config(gguf, prefix, tensors)
    architecture = parse_architecture(config, source=str(gguf.path), shown_keys=shown_keys)
    for key in ("attention.value_length", "rope.dimension_count"):
        if gguf.value(f"{prefix}.{key}", architecture.head_dim) != architecture.head_dim:
            raise UnsupportedModelError(
                f"{gguf.path}: {prefix}.{key} {gguf.value(f'{prefix}.{key}')} other than the head size "
                f"{architecture.head_dim} is not supported"
            )
    return dataclasses.replace(
        architecture,
        attention_output_bias="blk.0.attn_output.bias" in tensors,
        rope=_with_rope_factors(gguf, architecture, tensors.get("rope_freqs.weight")),
        dtype=_dtype(tensors),
    )


def gguf_generation_defaults(gguf: GGUFFile) -> dict[str, Any]:
    """Sampling parameters that the file recommends, by their names in `SamplingParams`."""
    values = {name: gguf.value(key) for name, key in _SAMPLING_KEYS.items() if key in gguf.fields}
    for name, value in values.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CorruptCheckpointError(f"{gguf.path}: {_SAMPLING_KEYS[name]} must be a number, got {value!r}")
    return values


def gguf_chat_template(gguf: GGUFFile) -> str | None:
    """The template, as it stands in the file."""
    template = gguf.value("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CorruptCheckpointError(f"{gguf.path}: tokenizer.chat_template must be a string")
    return template


def gguf_tokenizer(gguf: GGUFFile) -> TokenizerSource:
    """A source that reads the vocabulary when it is first asked for."""
    return TokenizerSource("gguf", gguf.path, read_vocabulary=functools.cache(lambda: gguf_vocabulary(gguf)))


def gguf_vocabulary(gguf: GGUFFile) -> GGUFVocabulary:
    """Decodes and checks the tokenizer fields.

    Raises:
        CorruptCheckpointError: A field is missing, of the wrong type or length, or an id is out of range.
    """
    prefix = "tokenizer.ggml."
    tokens = _list(gguf, "tokens", str)
    if not tokens or len(tokens) > MAX_VOCAB_SIZE:
        raise CorruptCheckpointError(f"{gguf.path}: {prefix}tokens holds {len(tokens)} tokens")
    scores, token_types = _list(gguf, "scores", float), _list(gguf, "token_type", int)
    for name, values in (("scores", scores), ("token_type", token_types)):
        if values and len(values) != len(tokens):
            raise CorruptCheckpointError(
                f"{gguf.path}: {prefix}{name} has {len(values)} entries for {len(tokens)} tokens"
            )
    ids = {f"{name}_token_id" for name in ("bos", "eos", "eot", "unknown", "padding")}
    flags = {"add_bos_token", "add_eos_token", "add_space_prefix"}
    raw = {name: gguf.value(prefix + name) for name in {"model", "pre", *ids, *flags}}
    fields = FieldReader(raw, source=str(gguf.path), shown_keys={name: prefix + name for name in raw})
    checked: dict[str, Any] = {name: fields.optional_integer(name, low=0, high=len(tokens) - 1) for name in ids}
    checked |= {name: None if raw[name] is None else fields.boolean(name, False) for name in flags}
    return GGUFVocabulary(
        model=fields.string("model"),
        pre=fields.string("pre", ""),
        tokens=tokens,
        scores=scores,
        token_types=token_types,
        merges=_list(gguf, "merges", str),
        **checked,
    )


def _checked_prefix(gguf: GGUFFile) -> str:
    """The architecture's name in the file, once nothing stands in the way of running it."""
    name, purpose = gguf.value("general.architecture"), gguf.value("general.type", "model")
    if name not in ARCHITECTURE_NAMES or purpose != "model":
        what = f"architecture {name!r}" if purpose == "model" else f"general.type {purpose!r}"
        raise UnsupportedModelError(
            f"{gguf.path}: {what} is not supported", hint=f"supported GGUF models: {', '.join(ARCHITECTURE_NAMES)}"
        )
    for key, neutral in _NEUTRAL_VALUES.items():
        value = gguf.value(f"{name}.{key}", neutral)
        if value != neutral:
            raise UnsupportedModelError(f"{gguf.path}: {name}.{key} {value!r} is not supported")
    return str(name)


def _as_config(
    gguf: GGUFFile, prefix: str, tensors: Mapping[str, TensorEntry]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys as a config.json would have them, and the names that errors show for them."""
    shown_keys = {key: f"{prefix}.{gguf_key}" for key, gguf_key in _CONFIG_KEYS.items()}
    shown_keys |= {f"rope_scaling.{key}": f"{prefix}.{gguf_key}" for key, gguf_key in _ROPE_KEYS.items()}
    config = {key: gguf.value(f"{prefix}.{gguf_key}") for key, gguf_key in _CONFIG_KEYS.items()}
    config = {key: _same_in_all_layers(gguf, shown_keys[key], value) for key, value in config.items()}
    windows = _sliding_windows(gguf, prefix)
    embedding = tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        config["vocab_size"] = embedding.shape[0]
    elif config["vocab_size"] is None:
        config["vocab_size"] = gguf.length("tokenizer.ggml.tokens")
    config |= {
        "architectures": ["MistralForCausalLM" if windows else ARCHITECTURE_NAMES[prefix]],
        "sliding_window": windows,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "rope_scaling": _rope_scaling(gguf, prefix),
        "bos_token_id": gguf.value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": [
            gguf.value(key)
            for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
            if key in gguf.fields
        ],
    }
    return config, shown_keys


def _same_in_all_layers(gguf: GGUFFile, key: str, value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if not value or any(item != value[0] for item in value):
        raise UnsupportedModelError(f"{gguf.path}: {key} that differs between layers is not supported")
    return value[0]


def _sliding_windows(gguf: GGUFFile, prefix: str) -> int | None:
    """Only Mistral has windows among the models that GGUF calls llama, and it has them in every layer."""
    window = gguf.value(f"{prefix}.attention.sliding_window") or None
    pattern = f"{prefix}.attention.sliding_window_pattern" in gguf.fields
    if window is not None and (prefix != "llama" or pattern):
        raise UnsupportedModelError(f"{gguf.path}: {prefix}.attention.sliding_window {window} is not supported")
    return window


def _rope_scaling(gguf: GGUFFile, prefix: str) -> dict[str, Any] | None:
    kind = gguf.value(f"{prefix}.rope.scaling.type", "none")
    linear = gguf.value(f"{prefix}.rope.scale_linear")
    if kind == "none" and linear not in (None, 1.0):
        return {"rope_type": "linear", "factor": linear}
    if kind == "none":
        return None
    values = {key: gguf.value(f"{prefix}.{gguf_key}") for key, gguf_key in _ROPE_KEYS.items()}
    return {"rope_type": kind} | {key: value for key, value in values.items() if value is not None}


def _with_rope_factors(gguf: GGUFFile, architecture: ModelArchitecture, entry: TensorEntry | None) -> RopeConfig:
    """Finds the llama3 rule behind the frequency factors that GGUF stores instead of the rule's settings."""
    if entry is None:
        return architecture.rope
    half = architecture.head_dim // 2
    if entry.dtype != "F32" or entry.shape != (half,) or architecture.rope.kind != "default":
        raise UnsupportedModelError(
            f"{gguf.path}: tensor 'rope_freqs.weight' {entry.dtype} {entry.shape} is not supported"
        )
    with entry.file.open("rb") as file:
        file.seek(entry.offset)
        factors = struct.unpack(f"<{half}f", file.read(entry.num_bytes))
    if all(factor == 1.0 for factor in factors):
        return architecture.rope
    for original in (8_192, 4_096, 16_384, 32_768, 65_536, 131_072):
        rope = dataclasses.replace(
            architecture.rope, kind="llama3", factor=max(factors), original_max_position_embeddings=original
        )
        expected = llama3_frequency_factors(rope, architecture.head_dim)
        if all(math.isclose(ours, theirs, rel_tol=1e-3) for ours, theirs in zip(expected, factors, strict=True)):
            return rope
    raise UnsupportedModelError(f"{gguf.path}: tensor 'rope_freqs.weight' follows no rule that we know")


def llama3_frequency_factors(rope: RopeConfig, head_dim: int) -> list[float]:
    """By what the llama3 rule divides each frequency of a head, `head_dim // 2` numbers."""
    factors = []
    for index in range(head_dim // 2):
        wavelength = 2 * math.pi * rope.theta ** (2 * index / head_dim)
        turns = rope.original_max_position_embeddings / wavelength
        share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        share = min(max(share, 0.0), 1.0)
        factors.append(1.0 / ((1.0 - share) / rope.factor + share))
    return factors


def _dtype(tensors: Mapping[str, TensorEntry]) -> str | None:
    """The number format that most of the bytes have; None where they are quantised."""
    sizes: dict[str, int] = {}
    for entry in tensors.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.num_bytes
    most = max(sizes, key=lambda dtype: sizes[dtype], default="")
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(most)


def _list(gguf: GGUFFile, name: str, kind: type) -> list[Any]:
    key = f"tokenizer.ggml.{name}"
    values = gguf.value(key, [])
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise CorruptCheckpointError(f"{gguf.path}: {key} must be a list of {kind.__name__}")
    return values
