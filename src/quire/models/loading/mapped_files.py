"""Files of weights mapped into memory, read by the pages that are touched."""

import mmap
import warnings
from pathlib import Path

import torch
from torch import Tensor

from quire.checkpoint.tensor_entry import TensorEntry
from quire.errors import CheckpointNotFoundError, CorruptCheckpointError


class MappedFiles:
    """Maps each file once; hands out the bytes of tensors as views, which must not be written to."""

    def __init__(self) -> None:
        self._files: dict[Path, Tensor] = {}
        self._mappings: dict[Path, mmap.mmap] = {}

    def rows(self, entry: TensorEntry) -> Tensor:
        """The tensor's bytes, uint8 [rows, bytes per row], not copied.

        Raises:
            CheckpointNotFoundError: The file is gone.
            CorruptCheckpointError: The file has become shorter since its header was read.
        """
        file_bytes = self._map(entry.file)
        if entry.offset + entry.num_bytes > len(file_bytes):
            raise CorruptCheckpointError(
                f"{entry.file}: tensor {entry.name!r} ends at byte {entry.offset + entry.num_bytes} "
                f"of {len(file_bytes)}; the file has changed"
            )
        num_rows = entry.shape[0] if entry.shape else 1
        return file_bytes[entry.offset : entry.offset + entry.num_bytes].view(num_rows, -1)

    def forget(self, entry: TensorEntry) -> None:
        """Gives back the memory that a tensor's bytes took; reading them again takes it again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = entry.offset // mmap.PAGESIZE * mmap.PAGESIZE
            length = entry.offset + entry.num_bytes - start
            self._mappings[entry.file].madvise(mmap.MADV_DONTNEED, start, length)

    def _map(self, path: Path) -> Tensor:
        if path not in self._files:
            try:
                with path.open("rb") as file:
                    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise CheckpointNotFoundError(f"{path}: cannot be read ({error})") from error
            with warnings.catch_warnings():
                # torch warns that nothing keeps us from writing to memory that cannot be written to.
                warnings.simplefilter("ignore", UserWarning)
                self._mappings[path] = mapping
                self._files[path] = torch.frombuffer(mapping, dtype=torch.uint8)
        return self._files[path]
