"""One tensor of a checkpoint: where its bytes are."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor, found and bounds checked.

    Attributes:
        name: As in its file: Hugging Face's name, or GGUF's ("blk.0.attn_q.weight").
        dtype: "F32", "BF16", "Q4_1", ...: the name that the file format gives it.
        shape: Row-major, as torch has it.
        offset: Of the first byte, from the start of the file.
        num_bytes: `offset + num_bytes` lies within the file.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
