"""Turns packed rows of any number format into numbers, straight into the parameter's memory.

The common GGML formats are unpacked here by torch operations on pieces that stay in the cache, one thread per core
taking its share of the rows. The other formats go through the gguf package, which is the reference for all.

Torch does not start threads of its own for a piece: with another process on the same cores those wait for each other
in busy loops, and loading took twenty times as long.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from quire.checkpoint.gguf_file import GGML_TYPES
from quire.errors import UnsupportedModelError

_PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_THROUGH_GGUF = (
    "Q2_K", "Q3_K", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
)  # fmt: skip

_PIECE_VALUES = 2**18
_MIN_SHARE_VALUES = 2**17
_MAX_THREADS = 8

_BLOCKS = {name: (values, num_bytes) for name, values, num_bytes in GGML_TYPES.values()}

Unpack = Callable[[Tensor, Tensor], None]


class Dequantizer:
    """Fills tensors on the CPU from packed rows, on as many threads as torch uses. A context manager."""

    def __init__(self) -> None:
        torch_threads = torch.get_num_threads()
        self._num_threads = min(torch_threads, _MAX_THREADS)
        self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="dequantize")
        started = threading.Barrier(self._num_threads)
        for done in [self._pool.submit(_keep_torch_on_this_thread, started) for _ in range(self._num_threads)]:
            done.result()
        # Each thread has its own number, but one that is new takes the number that was set last.
        torch.set_num_threads(torch_threads)

    def __enter__(self) -> "Dequantizer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def write(self, packed: Tensor, dtype: str, out: Tensor) -> None:
        """Writes the numbers of packed rows into `out`, converted to its type.

        Args:
            packed: uint8 [rows, bytes per row], contiguous, on the CPU.
            dtype: Format of the rows, one of `LOADABLE_TYPES`.
            out: [rows, values per row], contiguous, on the CPU.

        Raises:
            UnsupportedModelError: A format that the installed gguf package does not know.
        """
        block_values, block_bytes = _block_size(dtype)
        blocks, flat = packed.view(-1, block_bytes), out.view(-1, block_values)
        unpack = _unpacker(dtype)
        num_shares = max(1, min(self._num_threads, out.numel() // _MIN_SHARE_VALUES))
        shares = zip(blocks.tensor_split(num_shares), flat.tensor_split(num_shares), strict=True)
        for done in [self._pool.submit(_unpack_share, unpack, *share) for share in shares]:
            done.result()


def _keep_torch_on_this_thread(started: threading.Barrier) -> None:
    torch.set_num_threads(1)
    started.wait()


def _block_size(dtype: str) -> tuple[int, int]:
    """Values and bytes of the smallest unit of a format."""
    return (1, _PLAIN[dtype].itemsize) if dtype in _PLAIN else _BLOCKS[dtype]


def _unpacker(dtype: str) -> Unpack:
    return _copy_plain(_PLAIN[dtype]) if dtype in _PLAIN else _UNPACKERS.get(dtype) or _through_gguf(dtype)


@torch.no_grad()
def _unpack_share(unpack: Unpack, blocks: Tensor, out: Tensor) -> None:
    """Unpacks blocks piece by piece: plain numbers and float32 in place, other types by way of float32."""
    step = _PIECE_VALUES // out.shape[1]
    for start in range(0, len(blocks), step):
        piece, place = blocks[start : start + step], out[start : start + step]
        if place.dtype == torch.float32 or out.shape[1] == 1:
            unpack(piece, place)
        else:
            numbers = torch.empty(place.shape)
            unpack(piece, numbers)
            place.copy_(numbers)


def _copy_plain(stored: torch.dtype) -> Unpack:
    def copy(numbers: Tensor, out: Tensor) -> None:
        # safetensors does not promise that numbers are aligned.
        aligned = numbers.clone() if numbers.data_ptr() % stored.itemsize else numbers
        out.copy_(aligned.view(stored))

    return copy


def _float_columns(blocks: Tensor, start: int, count: int) -> Tensor:
    """`count` half-precision numbers that stand at byte `start` of each block, as float32 [blocks, count]."""
    return blocks[:, start : start + 2 * count].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor, group_bytes: int) -> Tensor:
    """Per group of bytes first the low halves, then the high ones: uint8 [blocks, 2 * bytes]."""
    grouped = packed.reshape(len(packed), -1, 1, group_bytes)
    values = torch.empty(len(packed), grouped.shape[1], 2, group_bytes, dtype=torch.uint8)
    torch.bitwise_and(grouped, 15, out=values[:, :, :1])
    torch.bitwise_right_shift(grouped, 4, out=values[:, :, 1:])
    return values.flatten(1)


def _unpack_q4_0(blocks: Tensor, out: Tensor) -> None:
    torch.sub(_nibbles(blocks[:, 2:], 16), 8.0, out=out)
    out.mul_(_float_columns(blocks, 0, 1))


def _unpack_q4_1(blocks: Tensor, out: Tensor) -> None:
    scale_and_minimum = _float_columns(blocks, 0, 2)
    torch.mul(_nibbles(blocks[:, 4:], 16), scale_and_minimum[:, :1], out=out)
    out.add_(scale_and_minimum[:, 1:])


def _fifth_bits(packed: Tensor) -> Tensor:
    """The 32 bits of 4 bytes, each at the place of 16: uint8 [blocks, 32]."""
    bits = packed.unsqueeze(2).bitwise_right_shift(torch.arange(8, dtype=torch.uint8)).bitwise_and_(1)
    return bits.flatten(1).bitwise_left_shift_(4)


def _unpack_q5_0(blocks: Tensor, out: Tensor) -> None:
    values = _nibbles(blocks[:, 6:], 16).bitwise_or_(_fifth_bits(blocks[:, 2:6]))
    torch.sub(values, 16.0, out=out)
    out.mul_(_float_columns(blocks, 0, 1))


def _unpack_q5_1(blocks: Tensor, out: Tensor) -> None:
    scale_and_minimum = _float_columns(blocks, 0, 2)
    values = _nibbles(blocks[:, 8:], 16).bitwise_or_(_fifth_bits(blocks[:, 4:8]))
    torch.mul(values, scale_and_minimum[:, :1], out=out)
    out.add_(scale_and_minimum[:, 1:])


def _unpack_q8_0(blocks: Tensor, out: Tensor) -> None:
    torch.mul(blocks[:, 2:].view(torch.int8), _float_columns(blocks, 0, 1), out=out)


def _k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and eight 6-bit minimums that 12 bytes hold, each uint8 [blocks, 8]."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    minimums = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return scales, minimums


def _scale_k(values: Tensor, blocks: Tensor, out: Tensor) -> None:
    """Applies the two levels of scales of Q4_K and Q5_K: eight sub-blocks of 32 values."""
    scales, minimums = _k_scales(blocks[:, 4:16])
    both = _float_columns(blocks, 0, 2)
    sub_blocks = out.view(-1, 8, 32)
    torch.mul(values.view(-1, 8, 32), (both[:, :1] * scales).unsqueeze(2), out=sub_blocks)
    sub_blocks.sub_((both[:, 1:] * minimums).unsqueeze(2))


def _unpack_q4_k(blocks: Tensor, out: Tensor) -> None:
    _scale_k(_nibbles(blocks[:, 16:], 32), blocks, out)


def _unpack_q5_k(blocks: Tensor, out: Tensor) -> None:
    shifts = torch.arange(8, dtype=torch.uint8).unsqueeze(1)
    fifth = blocks[:, 16:48].unsqueeze(1).bitwise_right_shift(shifts).bitwise_and_(1).bitwise_left_shift_(4)
    _scale_k(_nibbles(blocks[:, 48:], 32).bitwise_or_(fifth.flatten(1)), blocks, out)


def _unpack_q6_k(blocks: Tensor, out: Tensor) -> None:
    low = _nibbles(blocks[:, :128], 64).view(-1, 2, 4, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).unsqueeze(1)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32).bitwise_right_shift(shifts).bitwise_and_(3)
    values = low.bitwise_or_(high.bitwise_left_shift_(4)).view(-1, 16, 16)
    scales = _float_columns(blocks, 208, 1) * blocks[:, 192:208].view(torch.int8)
    sub_blocks = out.view(-1, 16, 16)
    torch.sub(values, 32.0, out=sub_blocks)
    sub_blocks.mul_(scales.unsqueeze(2))


def _through_gguf(dtype: str) -> Unpack:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as gguf_dequantize

    def unpack(blocks: Tensor, out: Tensor) -> None:
        try:
            # As one long row: gguf works on sixteen rows at a time.
            values = gguf_dequantize(blocks.reshape(1, -1).numpy(), GGMLQuantizationType[dtype])
        except (NotImplementedError, KeyError) as error:
            raise UnsupportedModelError(
                f"the installed gguf package cannot dequantise {dtype}", hint="pip install --upgrade gguf"
            ) from error
        out.copy_(torch.from_numpy(values).view(out.shape))

    return unpack


_UNPACKERS: dict[str, Unpack] = {
    "Q4_0": _unpack_q4_0,
    "Q4_1": _unpack_q4_1,
    "Q5_0": _unpack_q5_0,
    "Q5_1": _unpack_q5_1,
    "Q8_0": _unpack_q8_0,
    "Q4_K": _unpack_q4_k,
    "Q5_K": _unpack_q5_k,
    "Q6_K": _unpack_q6_k,
}

PLAIN_TYPES = frozenset(_PLAIN)
LOADABLE_TYPES = frozenset([*_PLAIN, *_UNPACKERS, *_THROUGH_GGUF])
