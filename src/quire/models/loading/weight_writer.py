"""The way of weights to a GPU: dequantised into pinned memory by the CPU's threads, copied while these go on."""

import torch
from torch import Tensor

from quire.models.loading.dequantize import Dequantizer

STAGING_BYTES = 32 * 1024 * 1024
"""Of each of the two buffers; a copy of that size keeps the bus busy, and more gains nothing."""


class WeightWriter:
    """Fills parameters from packed rows, on a CPU or a GPU. A context manager: at its end everything has arrived.

        CPU threads | fill A | fill B | fill A | fill B | ...
        bus                  | copy A | copy B | copy A | ...

    On a CPU the rows are written in place. A GPU holds nothing but the parameters themselves.

    Args:
        device: Where the parameters are.
        staging_bytes: Of each buffer.
        is_staged: Whether the rows take the way of a GPU; by default where the device is one.
    """

    def __init__(
        self, device: torch.device, *, staging_bytes: int = STAGING_BYTES, is_staged: bool | None = None
    ) -> None:
        self._is_cuda = device.type == "cuda"
        self._is_staged = self._is_cuda if is_staged is None else is_staged
        self._staging_bytes = staging_bytes
        self._buffers: list[Tensor | None] = [None, None]
        self._arrived: list[torch.cuda.Event | None] = [None, None]
        self._next = 0
        self._dequantizer = Dequantizer()

    def __enter__(self) -> "WeightWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        for event in self._arrived:
            if event is not None:
                event.synchronize()
        self._dequantizer.close()

    def write(self, packed: Tensor, dtype: str, out: Tensor) -> None:
        """Writes the numbers of packed rows into `out`, converted to its type; on a GPU some may still be on their way.

        Args:
            packed: uint8 [rows, bytes per row], contiguous, on the CPU.
            dtype: Format of the rows, one of `LOADABLE_TYPES`.
            out: [rows, values per row], contiguous.

        Raises:
            UnsupportedModelError: A format that the installed gguf package does not know.
        """
        if not self._is_staged:
            self._dequantizer.write(packed, dtype, out)
            return
        row_bytes = out.shape[1] * out.itemsize
        num_rows = max(1, self._staging_bytes // row_bytes)
        for start in range(0, len(out), num_rows):
            self._send(packed[start : start + num_rows], dtype, out[start : start + num_rows])

    def _send(self, packed: Tensor, dtype: str, out: Tensor) -> None:
        index = self._next
        self._next = 1 - index
        event = self._arrived[index]
        if event is not None:
            event.synchronize()
        staged = self._buffer(index, out.numel() * out.itemsize).view(out.dtype).view(out.shape)
        self._dequantizer.write(packed, dtype, staged)
        out.copy_(staged, non_blocking=True)
        if self._is_cuda:
            event = event or torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._arrived[index] = event

    def _buffer(self, index: int, num_bytes: int) -> Tensor:
        """`num_bytes` of a buffer that nothing is copied from any more; a larger one for a row that is longer."""
        buffer = self._buffers[index]
        if buffer is None or len(buffer) < num_bytes:
            size = max(num_bytes, self._staging_bytes)
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._is_cuda)
            self._buffers[index] = buffer
        return buffer[:num_bytes]
