"""Which number formats a model has on a CPU: weights, activations, keys and values."""

import math
from collections import Counter
from dataclasses import dataclass

import torch

from quire.checkpoint.architecture import ModelArchitecture
from quire.checkpoint.checkpoint import Checkpoint
from quire.checkpoint.tensor_entry import TensorEntry
from quire.config.engine import EngineConfig
from quire.errors import ConfigError
from quire.kernels.linear.native import FLOAT_FORMATS
from quire.kernels.native import MISSING_HINT, extension
from quire.models.loading.native_packing import STORED, weight_format
from quire.worker.dtype import (
    DTYPES_BY_NAME,
    check_quantization,
    dtype_name,
    prevailing_format,
    resolve_dtype,
    resolve_kv_cache_dtype,
)

_GGUF_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFormats:
    """Formats of a model on a CPU.

    Attributes:
        activations: The dtype that the model is built with.
        weights: What `NativePacking` is told to make of them; of no meaning to torch, whose weights are activations'.
        kv_cache: Of keys and values.
        name: For people: that of most of the weights ("Q4_1", "bfloat16").
    """

    activations: torch.dtype
    weights: str
    kv_cache: torch.dtype
    name: str


def is_compiled_for(architecture: ModelArchitecture) -> bool:
    """Whether there are compiled kernels and they take a model's sizes: heads of 4 to 256 numbers, in fours."""
    return extension() is not None and architecture.head_dim in range(4, 257, 4)


def choose_formats(config: EngineConfig, checkpoint: Checkpoint) -> CpuFormats:
    """Resolves `dtype`, `quantization` and `kv_cache_dtype`.

    The compiled kernels compute in float32 whatever the weights are. Weights keep the format that they are stored in,
    unless `dtype` names one for all; `quantization` rounds them at load. Keys and values are bfloat16, and float32
    beside float32 weights.

    Raises:
        ConfigError: Formats that need compiled kernels where there are none, or that contradict each other.
    """
    model, kv_name = config.model, config.cache.kv_cache_dtype
    check_quantization(model.quantization, checkpoint)
    if not is_compiled_for(checkpoint.architecture):
        _refuse_without_kernels(config, checkpoint.architecture)
        dtype = resolve_dtype(model.dtype, checkpoint)
        return CpuFormats(
            activations=dtype,
            weights=STORED,
            kv_cache=resolve_kv_cache_dtype(kv_name, dtype),
            name=dtype_name(dtype),
        )
    stored = prevailing_format(checkpoint)
    weights = STORED
    if model.quantization in ("int8", "int4"):
        weights = model.quantization
    elif model.dtype != "auto" and not (model.quantization == "gguf" and stored not in _GGUF_FLOATS):
        weights = FLOAT_FORMATS[DTYPES_BY_NAME[model.dtype]]
    elif not checkpoint.tensors:
        weights = weight_format(stored, STORED)
    name = weight_format(stored, weights)
    default = torch.float32 if name == "float32" else torch.bfloat16
    kv_cache = default if kv_name == "auto" else DTYPES_BY_NAME[kv_name]
    shown = weights if weights in ("int8", "int4") else name
    return CpuFormats(activations=torch.float32, weights=weights, kv_cache=kv_cache, name=shown)


def matrices_by_format(checkpoint: Checkpoint, formats: CpuFormats) -> dict[str, int]:
    """How many of the checkpoint's matrices are multiplied in each format."""
    if not is_compiled_for(checkpoint.architecture):
        return {formats.name: sum(len(tensor.shape) == 2 for tensor in checkpoint.tensors.values())}
    chosen = Counter(
        weight_format(tensor.dtype, formats.weights) for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2
    )
    return dict(chosen)


def expected_weight_bytes(checkpoint: Checkpoint, formats: CpuFormats, num_parameters: int) -> int:
    """Memory of packed weights, before they are loaded.

    Args:
        checkpoint: Whose tensors they are.
        formats: As chosen.
        num_parameters: Of the model; a head that is tied to the embedding counts once.
    """
    if formats.weights == "int4":
        architecture = checkpoint.architecture
        vocabulary = architecture.vocab_size * architecture.hidden_size * (2 - architecture.tie_word_embeddings)
        return (num_parameters - vocabulary) * 5 // 8 + vocabulary * 34 // 32
    if formats.weights != STORED or not checkpoint.tensors:
        bits = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8}
        return num_parameters * bits.get(formats.weights, 32) // 8
    return sum(_packed_bytes(tensor) for tensor in checkpoint.tensors.values())


def _packed_bytes(tensor: TensorEntry) -> int:
    """Of a tensor that keeps its format, or becomes 8 bits because no kernel reads it."""
    is_converted = weight_format(tensor.dtype, STORED) not in (tensor.dtype, *FLOAT_FORMATS.values())
    return math.prod(tensor.shape) * 34 // 32 if is_converted else tensor.num_bytes


def _refuse_without_kernels(config: EngineConfig, architecture: ModelArchitecture) -> None:
    reason, hint = "quire was installed without them", MISSING_HINT
    if extension() is not None:
        reason, hint = f"they have none for heads of {architecture.head_dim} numbers", "leave it out"
    for option, value in (
        ("quantization", config.model.quantization if config.model.quantization in ("int8", "int4") else None),
        ("kv_cache_dtype", config.cache.kv_cache_dtype if config.cache.kv_cache_dtype == "int8" else None),
    ):
        if value is not None:
            raise ConfigError(f"{option} {value} needs the compiled CPU kernels, and {reason}", hint=hint, param=option)
