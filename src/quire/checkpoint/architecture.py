"""What config.json says about the network, read by our own code: never code from the model's folder."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire.checkpoint.fields import FieldReader
from quire.checkpoint.rope import MAX_POSITIONS, RopeConfig, parse_rope
from quire.errors import UnsupportedModelError

__all__ = ["KNOWN_ARCHITECTURES", "ModelArchitecture", "RopeConfig", "parse_architecture"]

logger = logging.getLogger("quire.checkpoint")

MAX_VOCAB_SIZE = 2**24
MAX_WIDTH = 2**20
MAX_LAYERS = 1_000
MAX_HEADS = 4_096
MAX_HEAD_DIM = 4_096

DTYPE_NAMES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class ModelArchitecture:
    """A decoder-only transformer.

    Attributes:
        name: Class name in Transformers ("LlamaForCausalLM").
        attention_bias: Whether the query, key and value projections have a bias.
        attention_output_bias: Whether the output projection has one.
        mlp_bias: Whether the three projections of the MLP have one.
        qk_norm: Whether each head of query and key is RMS-normed before rope.
        sliding_windows: Per layer: how many positions a token sees, itself included; None for all.
        dtype: Of the checkpoint ("bfloat16"); None where it does not say.
        eos_token_ids: Tokens that end an answer; those of generation_config.json included.
    """

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    rope: RopeConfig
    dtype: str | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def context_length(self) -> int:
        """Longest context the model is made for, in tokens: its positions, stretched where rope stretches them."""
        if self.rope.kind == "yarn":
            return int(self.rope.original_max_position_embeddings * self.rope.factor)
        if self.rope.kind in ("linear", "dynamic"):
            return int(self.max_position_embeddings * self.rope.factor)
        return self.max_position_embeddings


@dataclass(frozen=True, slots=True)
class _Family:
    """What the architectures differ in: Transformers' defaults for absent keys, and what they hard-wire."""

    model_type: str
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    attention_bias: bool | None = None
    has_output_bias: bool = False
    mlp_bias: bool | None = None
    qk_norm: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None


_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", 2_048, has_output_bias=True, bos_token_id=1, eos_token_id=2),
    "MistralForCausalLM": _Family(
        "mistral",
        131_072,
        num_key_value_heads=8,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "Qwen2ForCausalLM": _Family("qwen2", 32_768, num_key_value_heads=32, attention_bias=True, mlp_bias=False),
    "Qwen3ForCausalLM": _Family(
        "qwen3", 32_768, num_key_value_heads=32, head_dim=128, has_output_bias=True, mlp_bias=False, qk_norm=True
    ),
}

KNOWN_ARCHITECTURES = tuple(_FAMILIES)


def parse_architecture(
    config: Mapping[str, Any], *, source: str, shown_keys: Mapping[str, str] | None = None
) -> ModelArchitecture:
    """Reads a config.json, written by Transformers 4 or 5.

    Args:
        config: The parsed file.
        source: The file, as errors name it.
        shown_keys: Names under which errors show keys, where the file has others (GGUF).

    Raises:
        UnsupportedModelError: An unknown architecture, or a setting that would change results and is not implemented.
        CorruptCheckpointError: A key is missing, of the wrong type or out of range.
    """
    fields = FieldReader(config, source=source, shown_keys=shown_keys)
    name = _architecture_name(fields)
    family = _FAMILIES[name]
    _refuse_unsupported(fields)
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    vocab_size = fields.integer("vocab_size", high=MAX_VOCAB_SIZE)
    max_positions = fields.integer("max_position_embeddings", family.max_position_embeddings, high=MAX_POSITIONS)
    attention_bias = family.attention_bias
    if attention_bias is None:
        attention_bias = fields.boolean("attention_bias", False)
    return ModelArchitecture(
        name=name,
        vocab_size=vocab_size,
        intermediate_size=fields.integer("intermediate_size", high=4 * MAX_WIDTH),
        num_hidden_layers=num_layers,
        **_head_geometry(fields, family),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6, low=0.0, high=1.0),
        hidden_act="silu",
        max_position_embeddings=max_positions,
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        attention_bias=attention_bias,
        attention_output_bias=attention_bias and family.has_output_bias,
        mlp_bias=fields.boolean("mlp_bias", False) if family.mlp_bias is None else family.mlp_bias,
        qk_norm=family.qk_norm,
        sliding_windows=_sliding_windows(fields, name, num_layers),
        rope=parse_rope(fields, max_position_embeddings=max_positions),
        dtype=_dtype(fields),
        bos_token_id=next(iter(token_ids(fields, "bos_token_id", vocab_size, family.bos_token_id)), None),
        eos_token_ids=token_ids(fields, "eos_token_id", vocab_size, family.eos_token_id),
    )


def token_ids(fields: FieldReader, key: str, vocab_size: int, absent: int | None = None) -> tuple[int, ...]:
    """A token id, a list of them, or nothing (null). Ids outside the vocabulary can never be produced: left out."""
    default = () if key in fields.values or absent is None else absent
    value = fields.get(key, default)
    ids = value if isinstance(value, (list, tuple)) else [value]
    if len(ids) > 1_000 or any(type(token_id) is not int for token_id in ids):
        raise fields.refuse(key, "a token id or a list of them", value)
    known = tuple(dict.fromkeys(token_id for token_id in ids if 0 <= token_id < vocab_size))
    if len(known) < len(set(ids)):
        logger.warning("%s: %s %s lies outside the vocabulary of %d", fields.source, fields.shown(key), ids, vocab_size)
    return known


def _architecture_name(fields: FieldReader) -> str:
    names = fields.get("architectures", [])
    model_type = fields.get("model_type", None)
    if not isinstance(names, list):
        raise fields.refuse("architectures", "a list", names)
    if not names and isinstance(model_type, str):
        names = [name for name, family in _FAMILIES.items() if family.model_type == model_type]
    known = next((name for name in names if isinstance(name, str) and name in _FAMILIES), None)
    if known is None:
        given = ", ".join(map(str, names)) or model_type or "(none named)"
        raise UnsupportedModelError(
            f"{fields.source}: architecture {given} is not supported",
            hint=f"supported: {', '.join(_FAMILIES)}",
        )
    if model_type is not None and model_type != _FAMILIES[known].model_type:
        raise UnsupportedModelError(
            f"{fields.source}: model_type {model_type!r} does not go with {known}",
            hint=f"{known} is supported with model_type {_FAMILIES[known].model_type!r}",
        )
    return known


def _refuse_unsupported(fields: FieldReader) -> None:
    for key in ("quantization_config", "compression_config"):
        quantization = fields.get(key, None)
        if quantization:
            method = quantization.get("quant_method", "?") if isinstance(quantization, Mapping) else "?"
            raise UnsupportedModelError(
                f"{fields.source}: {fields.shown(key)} with method {method!r} is not supported",
                hint="take the unquantised checkpoint, or a GGUF of it",
            )
    activation = fields.string("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(
            f"{fields.source}: {fields.shown('hidden_act')} {activation!r} is not supported", hint="supported: silu"
        )


def _head_geometry(fields: FieldReader, family: _Family) -> dict[str, int]:
    hidden_size = fields.integer("hidden_size", high=MAX_WIDTH)
    num_heads = fields.integer("num_attention_heads", high=MAX_HEADS)
    absent = num_heads if "num_key_value_heads" in fields.values else family.num_key_value_heads or num_heads
    num_kv_heads = fields.integer("num_key_value_heads", absent, high=MAX_HEADS)
    if num_heads % num_kv_heads:
        raise fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})", num_kv_heads)
    head_dim = fields.optional_integer("head_dim", family.head_dim, high=MAX_HEAD_DIM)
    if head_dim is None:
        if hidden_size % num_heads:
            raise fields.refuse("hidden_size", f"a multiple of num_attention_heads ({num_heads})", hidden_size)
        head_dim = hidden_size // num_heads
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise fields.refuse("head_dim", f"even and at most {MAX_HEAD_DIM}", head_dim)
    return {
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
    }


def _sliding_windows(fields: FieldReader, name: str, num_layers: int) -> tuple[int | None, ...]:
    if name == "MistralForCausalLM":
        return _mistral_windows(fields, num_layers)
    if name.startswith("Qwen") and fields.boolean("use_sliding_window", False):
        return _qwen_windows(fields, num_layers)
    return (None,) * num_layers


def _mistral_windows(fields: FieldReader, num_layers: int) -> tuple[int | None, ...]:
    """Every layer has the window. An absent key means 4096, as in Transformers; null means none."""
    default = None if "sliding_window" in fields.values else 4_096
    window = fields.optional_integer("sliding_window", default, high=MAX_POSITIONS)
    layer_types = fields.string_list("layer_types", length=num_layers) or ()
    if len(set(layer_types)) > 1:
        raise UnsupportedModelError(
            f"{fields.source}: {fields.shown('layer_types')} that differ are not supported for Mistral"
        )
    return (window,) * num_layers


def _qwen_windows(fields: FieldReader, num_layers: int) -> tuple[int | None, ...]:
    """`layer_types` decides; without it, layers from `max_window_layers` on have the window."""
    default = None if "sliding_window" in fields.values else 4_096
    window = fields.optional_integer("sliding_window", default, high=MAX_POSITIONS)
    layer_types = fields.string_list("layer_types", length=num_layers)
    if layer_types is None:
        num_full = fields.integer("max_window_layers", 28, low=0, high=MAX_LAYERS)
        return tuple(None if layer < num_full else window for layer in range(num_layers))
    unknown = set(layer_types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedModelError(
            f"{fields.source}: {fields.shown('layer_types')} {sorted(unknown)[0]!r} is not supported"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _dtype(fields: FieldReader) -> str | None:
    key = "dtype" if fields.get("dtype", None) is not None else "torch_dtype"
    if fields.get(key, None) is None:
        return None
    name = fields.string(key).removeprefix("torch.")
    if name not in DTYPE_NAMES:
        raise UnsupportedModelError(
            f"{fields.source}: {fields.shown(key)} {name!r} is not supported",
            hint=f"supported: {', '.join(DTYPE_NAMES)}",
        )
    return name
