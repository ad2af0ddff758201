"""The rotary embedding that a checkpoint's config asks for."""

from quire.checkpoint.architecture import ModelArchitecture
from quire.layers import rotary


def make_rotary_embedding(architecture: ModelArchitecture, *, max_model_len: int | None) -> rotary.RotaryEmbedding:
    """See `create_model` for `max_model_len`; only the dynamic kind depends on it."""
    rope = architecture.rope
    size = int(architecture.head_dim * rope.partial_rotary_factor)
    theta, factor, original_length = rope.theta, rope.factor, rope.original_max_position_embeddings
    match rope.kind:
        case "default":
            return rotary.RotaryEmbedding(rotary.default_frequencies(size, theta))
        case "linear":
            return rotary.RotaryEmbedding(rotary.linear_frequencies(size, theta, factor=factor))
        case "dynamic":
            length = max_model_len or architecture.context_length
            return rotary.RotaryEmbedding(
                rotary.dynamic_frequencies(size, theta, factor=factor, original_length=original_length, length=length)
            )
        case "llama3":
            return rotary.RotaryEmbedding(
                rotary.llama3_frequencies(
                    size,
                    theta,
                    factor=factor,
                    low_freq_factor=rope.low_freq_factor,
                    high_freq_factor=rope.high_freq_factor,
                    original_length=original_length,
                )
            )
        case "yarn":
            frequencies = rotary.yarn_frequencies(
                size,
                theta,
                factor=factor,
                beta_fast=rope.beta_fast,
                beta_slow=rope.beta_slow,
                original_length=original_length,
            )
            scale = rope.attention_factor
            if scale is None:
                scale = rotary.yarn_factor(factor, mscale=rope.mscale, mscale_all_dim=rope.mscale_all_dim)
            return rotary.RotaryEmbedding(frequencies, scale)
