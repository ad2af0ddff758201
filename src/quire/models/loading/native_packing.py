"""From a checkpoint's tensors straight into the layout of the compiled CPU kernels, without floats between."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quire.kernels.linear import PackedWeight
from quire.kernels.linear.native import GGUF_FORMATS, WeightPacker
from quire.kernels.native import NativeCpu
from quire.models.loading.dequantize import Dequantizer
from quire.models.loading.matching import Transfer

logger = logging.getLogger("quire.models")

STORED = "stored"
"""The wish that a tensor keeps the format that its file has."""

_PLAIN_FORMATS = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_CONVERTED = "Q8_0"
_INT4 = "Q4_1"

_PIECE_VALUES = 2**20
_GROUP_ROWS = 16


def weight_format(stored: str, wanted: str, *, is_vocabulary: bool = False) -> str:
    """The format in which a tensor is multiplied.

    Args:
        stored: What its file has: "F32", "BF16", "Q4_1", ...
        wanted: `STORED`, a float format, "int8" or "int4". GGUF's formats that no kernel reads become 8 bits.
        is_vocabulary: Whether it is the embedding or the output projection; 4 bits would cost too much there.
    """
    if wanted == "int4":
        return _CONVERTED if is_vocabulary else _INT4
    if wanted != STORED:
        return wanted
    if stored in GGUF_FORMATS:
        return stored
    return _PLAIN_FORMATS.get(stored, _CONVERTED)


@dataclass(slots=True)
class NativePacking:
    """Packs weights for the compiled kernels.

    Attributes:
        native: The kernels.
        wanted: See `weight_format`.
        num_bytes: Of what was packed, by format.
        converted: How many tensors of a format that no kernel reads became 8 bits, by format.
    """

    native: NativeCpu
    wanted: str = STORED
    num_bytes: Counter[str] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)
    _floats: Tensor = field(default_factory=lambda: torch.empty(0))

    def pack(
        self,
        shape: Sequence[int],
        transfers: list[Transfer],
        read: Callable[[Transfer], Tensor],
        dequantizer: Dequantizer,
        *,
        is_vocabulary: bool,
    ) -> PackedWeight:
        """One weight from the tensors that fill its rows.

        Args:
            shape: [out, in].
            transfers: In any order.
            read: The rows of a transfer as they are stored, uint8 [rows, bytes per row].
            dequantizer: Turns them into floats where they change their format.
            is_vocabulary: See `weight_format`.
        """
        packer = WeightPacker(self.native, *shape)
        for transfer in sorted(transfers, key=lambda transfer: transfer.placement.row_start):
            stored = transfer.entry.dtype
            chosen = weight_format(stored, self.wanted, is_vocabulary=is_vocabulary)
            packer.begin_part(chosen, transfer.placement.num_rows)
            if chosen == stored:
                packer.write_stored(read(transfer))
            else:
                self._write_floats(packer, read(transfer), stored, shape[1], dequantizer)
            if self.wanted == STORED and chosen == _CONVERTED and stored != _CONVERTED:
                self.converted[stored] += 1
        return self._counted(packer.finish())

    def pack_floats(self, weight: Tensor, *, is_vocabulary: bool) -> PackedWeight:
        """One weight from floats [out, in], whose format counts as the stored one."""
        stored = {torch.bfloat16: "BF16", torch.float16: "F16"}.get(weight.dtype, "F32")
        packer = WeightPacker(self.native, *weight.shape)
        packer.begin_part(weight_format(stored, self.wanted, is_vocabulary=is_vocabulary), len(weight))
        packer.write_floats(0, weight.detach().float())
        return self._counted(packer.finish())

    def report(self) -> None:
        """Logs what was converted: it is neither as small as its file nor as exact."""
        for stored, count in self.converted.items():
            logger.info("%d tensors in %s were converted to 8 bits: no CPU kernel reads that format", count, stored)

    def _counted(self, weight: PackedWeight) -> PackedWeight:
        rows = weight.data.formats
        for name, num_rows in rows:
            self.num_bytes[name] += weight.num_bytes * num_rows // weight.out_features
        return weight

    def _write_floats(
        self, packer: WeightPacker, rows: Tensor, stored: str, in_features: int, dequantizer: Dequantizer
    ) -> None:
        """Converts piece by piece in one buffer: pieces between the weights would leave holes in the heap."""
        step = max(_GROUP_ROWS, _PIECE_VALUES // in_features // _GROUP_ROWS * _GROUP_ROWS)
        if len(self._floats) < step * in_features:
            self._floats = torch.empty(step * in_features)
        for first in range(0, len(rows), step):
            piece = rows[first : first + step]
            floats = self._floats[: len(piece) * in_features].view(len(piece), in_features)
            dequantizer.write(piece, stored, floats)
            packer.write_floats(first, floats)
