"""Random weights for `--load-format dummy`: as fast as memory is written, the same for the same seed."""

import math
import zlib

import torch
from torch import Tensor

_PERIOD = 1_048_573
"""A prime: rows of a matrix are shifted against each other, so none is like another."""

_STANDARD_DEVIATION = 0.02


class RandomWeights:
    """Fills norms with ones, all else with uniform numbers of standard deviation 0.02.

    Numbers repeat after `_PERIOD`, each parameter starting at its own place: drawing each anew takes minutes for a
    large model.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        width = _STANDARD_DEVIATION * math.sqrt(12.0)
        self._drawn = (torch.rand(_PERIOD, generator=generator) - 0.5) * width
        self._converted: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def fill(self, name: str, parameter: Tensor) -> None:
        """Fills one parameter; its numbers depend on its name, its size and the seed."""
        if parameter.dim() == 1 and "norm" in name:
            parameter.fill_(1.0)
            return
        key = (parameter.dtype, parameter.device)
        if key not in self._converted:
            self._converted[key] = self._drawn.to(device=parameter.device, dtype=parameter.dtype)
        _tile(self._converted[key], parameter.view(-1), zlib.crc32(name.encode()) % _PERIOD)


def _tile(numbers: Tensor, out: Tensor, first: int) -> None:
    """Repeats `numbers` over `out`, beginning with number `first`."""
    _copy(numbers[first:], out)
    _copy(numbers[:first], out[len(numbers) - first :])
    _repeat(out, len(numbers), doubling=out.is_cuda)


def _copy(piece: Tensor, out: Tensor) -> None:
    """Writes the piece, or as much of it as there is room for, at the start of `out`."""
    count = min(len(piece), len(out))
    out[:count].copy_(piece[:count])


def _repeat(out: Tensor, period: int, *, doubling: bool) -> None:
    """Continues the first `period` numbers of `out` to its end.

    Doubling copies all that is there already: a GPU then needs few launches. A CPU is faster with a source that stays
    in its cache.
    """
    position = period
    while position < len(out):
        _copy(out[: position if doubling else period], out[position:])
        position += position if doubling else period
