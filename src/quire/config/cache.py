"""The KV cache."""

from dataclasses import dataclass

from quire.config.option import option
from quire.errors import ConfigError

KV_CACHE_DTYPES = ("auto", "float16", "bfloat16", "float32", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """How much memory the KV cache takes and how it is cut into blocks."""

    block_size: int = option(16, help="Tokens per block: 16, 32 or 64 on a GPU, any power of two on a CPU.")
    gpu_memory_utilization: float = option(
        0.92,
        basic=True,
        aliases=("--device-memory-utilization",),
        help="Fraction of the GPU's memory that this process may use for everything: weights, activations, CUDA graphs "
        "and libraries, and the KV cache, which gets what is left. On a CPU it is a fraction of the available memory, "
        "and the KV cache takes no more than max_num_seqs sequences of max_model_len need, 4 GiB at most.",
    )
    kv_cache_memory_bytes: int | None = option(
        None,
        human_integer=True,
        help="Exact size of the KV cache in bytes, instead of the fraction.",
    )
    num_gpu_blocks_override: int | None = option(None, help="Exact number of blocks, for tests.")
    kv_cache_dtype: str = option(
        "auto",
        choices=KV_CACHE_DTYPES,
        help="Number format of keys and values; auto is the model's. On a GPU it cannot be another; int8 is for CPUs.",
    )
    enable_prefix_caching: bool = option(True, help="Keep the blocks of past prompts and reuse them.")

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size must be a power of two, got {self.block_size}", param="block_size")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}",
                param="gpu_memory_utilization",
            )
        for name in ("kv_cache_memory_bytes", "num_gpu_blocks_override"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}", param=name)
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            raise ConfigError(
                f"kv_cache_dtype must be one of {', '.join(KV_CACHE_DTYPES)}, got {self.kv_cache_dtype!r}",
                param="kv_cache_dtype",
            )
