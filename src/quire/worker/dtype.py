"""Number formats: of weights and activations, and of the KV cache."""

from collections import Counter
from pathlib import Path

import torch

from quire.checkpoint.checkpoint import Checkpoint

_BY_NAME = {
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "float32": torch.float32,
}
_BFLOAT16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
_UNQUANTISED = frozenset(("F64", "F32", "F16", "BF16"))


def resolve_dtype(name: str, checkpoint: Checkpoint, *, flags: frozenset[str] | None = None) -> torch.dtype:
    """The format of weights and activations on a CPU.

    "auto" is bfloat16 where the CPU multiplies it in hardware and the checkpoint has no more precision than that
    (bfloat16 or quantised), otherwise float32. CPUs are slow at float16, so only asking for it gives it.

    Args:
        name: `ModelConfig.dtype`.
        checkpoint: The opened model.
        flags: The CPU's features; read from the machine by default.
    """
    if name != "auto":
        return _BY_NAME[name]
    flags = cpu_flags() if flags is None else flags
    return torch.bfloat16 if flags & _BFLOAT16_FLAGS and _fits_bfloat16(checkpoint) else torch.float32


def resolve_kv_cache_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The format of keys and values; "auto" is the model's."""
    return dtype if name == "auto" else _BY_NAME[name]


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Features of the first CPU: "flags" on x86, "Features" on ARM; empty where they cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _fits_bfloat16(checkpoint: Checkpoint) -> bool:
    """Whether most of the checkpoint's bytes are bfloat16 or quantised."""
    if not checkpoint.tensors:
        return checkpoint.architecture.dtype == "bfloat16"
    num_bytes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        num_bytes[tensor.dtype] += tensor.num_bytes
    largest = num_bytes.most_common(1)[0][0]
    return largest == "BF16" or largest not in _UNQUANTISED
