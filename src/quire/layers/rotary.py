"""Rotary position embedding: the frequencies of each kind, and a step's cosines and sines.

Frequencies are radians per position, [R/2] float32. Formulas are those of Transformers, so that equal configs give
equal numbers.
"""

import math
from dataclasses import dataclass

import torch

from quire.kernels.rope import rope_tables


@dataclass(slots=True, frozen=True)
class RotaryEmbedding:
    """How positions turn queries and keys.

    Attributes:
        inverse_frequencies: [R/2] float32.
        factor: Multiplies cosines and sines, so that scores grow by its square.
    """

    inverse_frequencies: torch.Tensor
    factor: float = 1.0

    def to(self, device: torch.device) -> "RotaryEmbedding":
        """The same on another device."""
        return RotaryEmbedding(self.inverse_frequencies.to(device), self.factor)

    def tables(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions [T]; see `quire.kernels.rope.rope_tables`."""
        return rope_tables(positions, self.inverse_frequencies, self.factor, dtype)


def default_frequencies(size: int, theta: float) -> torch.Tensor:
    """theta^(-2i/size) for i below size/2."""
    return 1.0 / _wave_scales(size, theta)


def linear_frequencies(size: int, theta: float, *, factor: float) -> torch.Tensor:
    """All positions divided by `factor`."""
    return default_frequencies(size, theta) / factor


def dynamic_frequencies(size: int, theta: float, *, factor: float, original_length: int, length: int) -> torch.Tensor:
    """NTK-aware scaling: a larger base, chosen so that `length` tokens fit; no change up to `original_length`.

    Transformers recomputes it for the sequence at hand, and then reads keys that were turned by other frequencies
    from its cache. Blocks here are shared between sequences of all lengths, so `length` is fixed: the longest
    sequence that the engine admits. Results equal Transformers' for sequences of that length, and for every
    sequence where that length is no more than `original_length`.
    """
    length = max(length, original_length)
    stretch = factor * length / original_length - (factor - 1)
    return default_frequencies(size, theta * stretch ** (size / (size - 2)))


def llama3_frequencies(
    size: int, theta: float, *, factor: float, low_freq_factor: float, high_freq_factor: float, original_length: int
) -> torch.Tensor:
    """Llama 3.1: long waves are stretched by `factor`, short ones left alone, those between interpolated."""
    frequencies = default_frequencies(size, theta)
    waves = original_length * frequencies / (2 * math.pi)
    kept = ((waves - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0)
    return (1.0 - kept) * frequencies / factor + kept * frequencies


def yarn_frequencies(
    size: int, theta: float, *, factor: float, beta_fast: float, beta_slow: float, original_length: int
) -> torch.Tensor:
    """YaRN: dimensions that turn more than `beta_fast` times over the original length are left alone, those that
    turn less than `beta_slow` times are stretched by `factor`, those between interpolated linearly."""
    low = max(math.floor(_dimension_of(beta_fast, size, theta, original_length)), 0)
    high = min(math.ceil(_dimension_of(beta_slow, size, theta, original_length)), size - 1)
    span = high - low if high != low else 0.001
    stretched = ((torch.arange(size // 2, dtype=torch.float32) - low) / span).clamp_(0.0, 1.0)
    scales = _wave_scales(size, theta)
    return stretched / (factor * scales) + (1.0 - stretched) / scales


def yarn_factor(factor: float, *, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """What YaRN multiplies cosines and sines with, where the config does not say."""
    if mscale and mscale_all_dim:
        return _magnitude(factor, mscale) / _magnitude(factor, mscale_all_dim)
    return _magnitude(factor, 1.0)


def _wave_scales(size: int, theta: float) -> torch.Tensor:
    return theta ** (torch.arange(0, size, 2, dtype=torch.int64).to(torch.float32) / size)


def _dimension_of(num_turns: float, size: int, theta: float, original_length: int) -> float:
    """The (fractional) dimension that turns so often over the original length."""
    return size * math.log(original_length / (num_turns * 2 * math.pi)) / (2 * math.log(theta))


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0
