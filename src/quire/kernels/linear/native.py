"""Weights in the layout of the compiled CPU kernels: floats, int8, and GGUF's formats as they are stored."""

from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from quire.kernels.native import NativeCpu
from quire.kernels.native.recording import NormWeight, Recorded, Recording

if TYPE_CHECKING:
    from quire.kernels.linear import PackedWeight

FLOAT_FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
GGUF_FORMATS = frozenset(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"))
"""Multiplied as they are stored."""


class WeightPacker:
    """Fills a weight [out, in] part by part, each a number of whole rows in a format of its own.

    Args:
        native: The kernels that will multiply it.
    """

    def __init__(self, native: NativeCpu, out_features: int, in_features: int) -> None:
        self._native = native
        self._weight = native.extension.Weight(out_features, in_features)
        self._num_parts = 0

    def begin_part(self, weight_format: str, num_rows: int) -> None:
        """The next `num_rows` rows are of that format: "float32", "bfloat16", "float16", "int8" or one of GGUF's."""
        self._weight.add_segment(weight_format, num_rows)
        self._num_parts += 1

    def write_floats(self, first: int, rows: torch.Tensor) -> None:
        """Rounds rows [n, in] float32 into the part, from its row `first` on; whole groups of 16, but for the last."""
        self._weight.write_floats(self._native.pool, self._num_parts - 1, first, rows.contiguous().numpy())

    def write_stored(self, rows: torch.Tensor) -> None:
        """Takes all rows of the part as GGUF stores them, uint8 [n, bytes per row]."""
        self._weight.write_rows(self._native.pool, self._num_parts - 1, 0, rows.contiguous().numpy())

    def finish(self) -> "PackedWeight":
        """The weight, whose rows must all have been written."""
        from quire.kernels.linear import PackedWeight

        weight = self._weight
        multiply = partial(_multiply, self._native)
        return PackedWeight(weight, multiply, weight.num_rows, weight.num_columns, weight.num_bytes)


def pack(native: NativeCpu, weight: torch.Tensor, weight_format: str | None = None) -> "PackedWeight":
    """A weight [out, in] in a format that floats can be rounded to; its own by default."""
    packer = WeightPacker(native, *weight.shape)
    packer.begin_part(weight_format or FLOAT_FORMATS[weight.dtype], len(weight))
    packer.write_floats(0, weight.detach().float())
    return packer.finish()


def unpack(weight: "PackedWeight") -> torch.Tensor:
    """The numbers that the kernels multiply with, [out, in] float32: for references."""
    rows = np.empty((weight.out_features, weight.in_features), np.float32)
    weight.data.read_rows(0, rows)
    return torch.from_numpy(rows)


def formats_of(weight: "PackedWeight") -> list[str]:
    """The formats of its parts."""
    return [name for name, _ in weight.data.formats]


def _multiply(
    native: NativeCpu,
    x: torch.Tensor,
    weight: object,
    bias: torch.Tensor | None,
    norm: NormWeight | None,
    gated: bool,
    add_to: torch.Tensor | None,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """One product by itself, as a program of one instruction. Models record their steps whole."""
    recording = Recording(native)
    rows = cast(Recorded, recording.input(x.shape[1], is_of_tokens=True))
    described = _Described(weight, weight.num_rows, weight.num_columns)  # type: ignore[attr-defined]
    product = cast(Recorded, recording.linear(rows, described, bias, norm, gated, None))
    recording.finish(cast(torch.Tensor, product))
    out = np.empty((len(x), product.width), np.float32)
    recording.program.run_rows(x.float().contiguous().numpy(), out)
    result = torch.from_numpy(out)
    return result.to(out_dtype or x.dtype) if add_to is None else add_to.add_(result)


class _Described:
    def __init__(self, data: object, out_features: int, in_features: int) -> None:
        self.data, self.out_features, self.in_features = data, out_features, in_features
