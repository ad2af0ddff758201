"""Number formats: of weights and activations, and of the KV cache."""

from collections import Counter
from pathlib import Path

import torch

from quire.checkpoint.checkpoint import Checkpoint
from quire.errors import ConfigError

DTYPES_BY_NAME = {
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "float32": torch.float32,
    "int8": torch.int8,
}
_BY_CONFIG_NAME = {"bfloat16": "BF16", "float16": "F16"}
_BFLOAT16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
_UNQUANTISED = frozenset(("F64", "F32", "F16", "BF16"))


def resolve_dtype(
    name: str, checkpoint: Checkpoint, *, device: str = "cpu", flags: frozenset[str] | None = None
) -> torch.dtype:
    """The format of weights and activations.

    On a GPU "auto" is the checkpoint's own format where that has 16 bits, otherwise bfloat16: it has the range of the
    float32 numbers, or of the quantised ones, that it stands for.

    On a CPU "auto" is bfloat16 where the CPU multiplies it in hardware and the checkpoint has no more precision than
    that (bfloat16 or quantised), otherwise float32. CPUs are slow at float16, so only asking for it gives it.

    Args:
        name: `ModelConfig.dtype`.
        checkpoint: The opened model.
        device: "cpu" or "cuda".
        flags: The CPU's features; read from the machine by default.
    """
    if name != "auto":
        return DTYPES_BY_NAME[name]
    stored = prevailing_format(checkpoint)
    if device == "cuda":
        return torch.float16 if stored == "F16" else torch.bfloat16
    flags = cpu_flags() if flags is None else flags
    fits_bfloat16 = stored == "BF16" or stored not in _UNQUANTISED
    return torch.bfloat16 if flags & _BFLOAT16_FLAGS and fits_bfloat16 else torch.float32


def check_quantization(name: str | None, checkpoint: Checkpoint, *, device: str = "cpu") -> None:
    """Raises ConfigError where `ModelConfig.quantization` fits neither the checkpoint nor the device."""
    if name == "gguf" and checkpoint.format != "gguf":
        raise ConfigError(
            f"quantization gguf needs a GGUF file, {checkpoint.name} is {checkpoint.format}",
            hint="leave it out, or name a .gguf file",
            param="quantization",
        )
    if name in ("int8", "int4") and device != "cpu":
        raise ConfigError(
            f"quantization {name} is for CPUs, a GPU has no kernels for it",
            hint="leave it out, or use --device cpu",
            param="quantization",
        )


def resolve_kv_cache_dtype(name: str, dtype: torch.dtype, *, device: str = "cpu") -> torch.dtype:
    """The format of keys and values; "auto" is the model's.

    Raises:
        ConfigError: Another one than the model's on a GPU.
    """
    wanted = dtype if name == "auto" else DTYPES_BY_NAME[name]
    if device == "cuda" and wanted != dtype:
        raise ConfigError(
            f"kv_cache_dtype {name} is not that of the model, {dtype_name(dtype)}, and a GPU needs them equal",
            hint="leave it out" + (f", or use --dtype {name}" if wanted.is_floating_point else ""),
            param="kv_cache_dtype",
        )
    return wanted


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


def prevailing_format(checkpoint: Checkpoint) -> str:
    """The format of most of the checkpoint's bytes ("BF16", "Q4_K"); without tensors, what its config names."""
    if not checkpoint.tensors:
        return _BY_CONFIG_NAME.get(checkpoint.architecture.dtype or "", "F32")
    num_bytes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        num_bytes[tensor.dtype] += tensor.num_bytes
    return num_bytes.most_common(1)[0][0]
