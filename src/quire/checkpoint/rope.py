"""Rotary position embedding: what config.json says about it, in both styles of Transformers.

Version 4 writes `rope_theta` beside `rope_scaling`; version 5 writes both into `rope_parameters`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from quire.checkpoint.fields import FieldReader
from quire.errors import UnsupportedModelError

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]
ROPE_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)

MAX_POSITIONS = 2**30


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn queries and keys.

    Attributes:
        kind: Rule that scales the frequencies.
        theta: Base of the frequencies.
        factor: By how much the context is stretched (linear, dynamic, llama3, yarn).
        low_freq_factor: llama3: wavelengths above original_max_position_embeddings / this are stretched in full.
        high_freq_factor: llama3: wavelengths below original_max_position_embeddings / this are left alone.
        original_max_position_embeddings: Positions of the pretraining; for default and linear the model's positions.
        beta_fast: yarn: rotations above which a dimension is left alone.
        beta_slow: yarn: rotations below which a dimension is stretched in full.
        attention_factor: yarn: multiplies cosine and sine; None to derive it from factor, mscale and mscale_all_dim.
        partial_rotary_factor: Fraction of each head that turns.
    """

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    partial_rotary_factor: float = 1.0


def parse_rope(config: FieldReader, *, max_position_embeddings: int) -> RopeConfig:
    """Reads the rope settings of a config.json.

    Raises:
        UnsupportedModelError: A kind of rope, or a setting of one, that is not implemented.
        CorruptCheckpointError: A value out of range.
    """
    style = "rope_parameters" if config.get("rope_parameters", None) else "rope_scaling"
    rope = _rope_fields(config, style)
    kind = _kind(rope, style)
    original = rope.integer("original_max_position_embeddings", max_position_embeddings, high=MAX_POSITIONS)
    if kind in ("default", "linear", "dynamic"):
        original = max_position_embeddings
    return RopeConfig(
        kind=kind,
        theta=rope.number("rope_theta", low=1.0, high=1e12),
        factor=_factor(rope, kind, max_position_embeddings / original),
        original_max_position_embeddings=original,
        partial_rotary_factor=_partial_rotary_factor(rope),
        **_frequency_factors(rope, kind),
        **_yarn_settings(rope, kind),
    )


def _rope_fields(config: FieldReader, style: str) -> FieldReader:
    """The settings of either style in one object, with the names that the file has for them."""
    values = dict(config.mapping(style))
    shown = {key: config.shown(f"{style}.{key}") for key in values}
    outside = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
    for key, default in outside.items():
        if key not in values:
            values[key] = config.get(key, default)
            shown[key] = config.shown(key)
    if config.get("original_max_position_embeddings", None) is not None:
        key = "original_max_position_embeddings"
        values[key], shown[key] = config.get(key), config.shown(key)
    return FieldReader(values, source=config.source, shown_keys=shown)


def _kind(rope: FieldReader, style: str) -> RopeKind:
    name = rope.get("rope_type", rope.get("type", "default"))
    nested = [key for key, value in rope.values.items() if isinstance(value, Mapping)]
    if nested:
        raise UnsupportedModelError(
            f"{rope.source}: {style}.{nested[0]}: rope settings per layer type are not supported"
        )
    for kind in ROPE_KINDS:
        if name == kind:
            return kind
    raise UnsupportedModelError(
        f"{rope.source}: {style}.rope_type {name!r} is not supported", hint=f"supported: {', '.join(ROPE_KINDS)}"
    )


def _factor(rope: FieldReader, kind: RopeKind, stretch: float) -> float:
    if kind == "default":
        return 1.0
    if kind == "yarn" and rope.get("factor", None) is None:
        return stretch
    return rope.number("factor", low=0.0, high=1e6)


def _partial_rotary_factor(rope: FieldReader) -> float:
    factor = rope.number("partial_rotary_factor", low=0.0, high=1.0)
    if factor != 1.0:
        raise UnsupportedModelError(
            f"{rope.source}: partial_rotary_factor {factor} is not supported for this architecture; only 1.0 is"
        )
    return factor


def _frequency_factors(rope: FieldReader, kind: RopeKind) -> dict[str, float]:
    if kind != "llama3":
        return {}
    low = rope.number("low_freq_factor", low=0.0, high=1e6)
    high = rope.number("high_freq_factor", low=0.0, high=1e6)
    if low >= high:
        raise rope.refuse("low_freq_factor", f"below high_freq_factor ({high})", low)
    return {"low_freq_factor": low, "high_freq_factor": high}


def _yarn_settings(rope: FieldReader, kind: RopeKind) -> dict[str, Any]:
    if kind != "yarn":
        return {}
    if not rope.boolean("truncate", True):
        raise UnsupportedModelError(f"{rope.source}: {rope.shown('truncate')} false is not supported")
    return {
        "beta_fast": rope.number("beta_fast", 32.0, low=0.0, high=1e6),
        "beta_slow": rope.number("beta_slow", 1.0, low=0.0, high=1e6),
        "attention_factor": rope.optional_number("attention_factor", low=0.0, high=1e6),
        "mscale": rope.optional_number("mscale", low=-1e-9, high=1e6),
        "mscale_all_dim": rope.optional_number("mscale_all_dim", low=-1e-9, high=1e6),
    }
