"""The way of a step's host arrays to the device, and of its results back."""

from collections.abc import Sequence

import numpy as np
import torch

_ALIGNMENT = 16
_NUM_BUFFERS = 4


class Staging:
    """Sends the arrays of one step to the device in one copy that nobody waits for.

    They pass through pinned memory. There are several such buffers, because the copies of earlier steps may still
    be under way; one is written again only after its own copy is done. The device side is one buffer: the copy into
    it follows, in the order of the stream, all that reads the step before.

    Attributes:
        on_device: The device side, bytes. The first array of an upload begins at 0. Grows, and moves then, only when
            an upload exceeds `num_bytes`.
    """

    def __init__(self, device: torch.device, num_bytes: int = 1 << 20) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._next = 0
        self._allocate(num_bytes)

    def upload(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The arrays on the device, valid until the next upload. Contiguous arrays of any numeric dtype."""
        offsets, end = [], 0
        for array in arrays:
            offsets.append(end)
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if end > self._num_bytes:
            self._allocate(1 << (end - 1).bit_length())
        index = self._claim()
        host = self._hosts[index]
        for array, offset in zip(arrays, offsets, strict=True):
            host[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        self.on_device[:end].copy_(self._pinned[index][:end], non_blocking=True)
        if self._is_cuda:
            self._copied[index].record()
        return [
            self.on_device[offset : offset + array.nbytes].view(_torch_dtype(array)).view(array.shape)
            for array, offset in zip(arrays, offsets, strict=True)
        ]

    def _claim(self) -> int:
        """The next pinned buffer, once it is no longer in use."""
        self._next = (self._next + 1) % _NUM_BUFFERS
        if self._is_cuda:
            self._copied[self._next].synchronize()
        return self._next

    def _allocate(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._pinned = [
            torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._is_cuda) for _ in range(_NUM_BUFFERS)
        ]
        self._hosts = [pinned.numpy() for pinned in self._pinned]
        self.on_device = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        if self._is_cuda:
            self._copied = [torch.cuda.Event() for _ in range(_NUM_BUFFERS)]  # type: ignore[no-untyped-call]


def _torch_dtype(array: np.ndarray) -> torch.dtype:
    return _TORCH_DTYPES[array.dtype]


_TORCH_DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


class Download:
    """A device tensor on its way to the host.

    Args:
        tensor: Copied in the order of the stream; may be overwritten by what is launched afterwards.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._host.copy_(tensor, non_blocking=True)

    def numpy(self) -> np.ndarray:
        """The values; only once the stream has been waited for."""
        values: np.ndarray = self._host.numpy()
        return values
