"""The ledger of a GPU: who gets how much of the card, found by running the largest step once.

        |<------------------------------ the whole card ------------------------------>|
        |<---------- gpu_memory_utilization x the card ----------->|
        | rest | weights | activations | graphs | sampler | KV cache | ... | other processes |

The rest is what is not torch's: the CUDA context, the libraries and kernels that are loaded into it, and a margin. The
KV cache is the only part that is chosen; all others are measured or estimated before it is allocated.

What is allocated after the KV cache, all of it within the ledger:
- The temporary tensors of a step. They are no larger than those of the largest step, which torch's allocator has kept.
- The memory of CUDA graphs, which are captured when they are first needed; reserved as an estimate.
- Kernels that are loaded when they are first needed; part of the margin.

Other processes are told apart by subtraction: what is in use when this process has its context but has not allocated
anything, less the size of a context. So they are counted as they were at the start; what they take later is not ours
to give.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from quire.checkpoint.architecture import ModelArchitecture
from quire.config.cache import CacheConfig
from quire.errors import InsufficientMemoryError
from quire.worker.memory import GIB, MemoryLedger

MIB = 1024**2

CONTEXT_BYTES = 512 * MIB
"""Of a CUDA context with its lazily loaded modules; measured sizes lie between 0.3 and 0.6 GiB."""

MAX_LIBRARY_BYTES = 1 * GIB
"""What libraries and kernels take beside torch's allocator is less; a larger difference is another process's doing."""

GRAPH_BYTES = 4 * MIB
"""What the driver keeps for a captured decode step of a few hundred kernels, beside its tensors."""

MIN_MARGIN_BYTES = 64 * MIB
MARGIN_SHARE = 512
"""The margin is this part of the card, and no less than the minimum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReading:
    """The card at one moment, in bytes.

    Attributes:
        free_bytes: What no process holds.
        reserved_bytes: What torch's allocator holds for this process.
        allocated_bytes: What tensors take of that.
        peak_reserved_bytes: The most that torch's allocator has held since `measure_step` began.
    """

    total_bytes: int
    free_bytes: int
    reserved_bytes: int = 0
    allocated_bytes: int = 0
    peak_reserved_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaMemoryLedger(MemoryLedger):
    """A GPU's memory by purpose, in bytes.

    Attributes:
        available_bytes: The whole card.
        utilization: The fraction of it that this process may use.
        activation_bytes: Of the largest step, measured; 0 before that.
        rest_bytes: Context, libraries and margin. Part of `available_bytes`.
        graph_bytes: Reserved for CUDA graphs.
        sampler_bytes: Reserved for the sampler.
        foreign_bytes: What other processes hold.
    """

    graph_bytes: int = 0
    sampler_bytes: int = 0
    foreign_bytes: int = 0

    @property
    def obtainable_bytes(self) -> int:
        """What other processes leave of the card."""
        return self.available_bytes - self.foreign_bytes

    @property
    def fixed_parts(self) -> tuple[tuple[str, int], ...]:
        """What comes out of `available_bytes` whatever the size of the KV cache, by name."""
        return (
            ("weights", self.weight_bytes),
            ("activations", self.activation_bytes),
            ("CUDA graphs", self.graph_bytes),
            ("sampler", self.sampler_bytes),
            ("context and libraries", self.rest_bytes),
        )

    def max_useful_blocks(self, config: CacheConfig, *, max_num_seqs: int, max_model_len: int) -> int:
        """Any number, as a cache of past prompts; without prefix caching what all sequences need."""
        if config.enable_prefix_caching:
            return self.available_bytes // self.block_bytes
        return max_num_seqs * self.count_blocks(max_model_len)

    def as_dict(self) -> dict[str, int]:
        """Bytes by purpose."""
        return {
            "weights": self.weight_bytes,
            "kv_cache": self.kv_cache_bytes,
            "activations": self.activation_bytes,
            "cuda_graphs": self.graph_bytes,
            "sampler": self.sampler_bytes,
            "rest": self.rest_bytes,
            "other_processes": self.foreign_bytes,
            "available": self.available_bytes,
        }

    def rows(self) -> list[tuple[str, int, str]]:
        """Purpose, bytes and a note, for the table."""
        return [
            ("weights", self.weight_bytes, ""),
            ("KV cache", self.kv_cache_bytes, self.kv_cache_note()),
            ("activations", self.activation_bytes, "largest step, measured"),
            ("CUDA graphs", self.graph_bytes, "reserved"),
            ("sampler", self.sampler_bytes, "reserved"),
            ("rest", self.rest_bytes, "context, libraries, margin"),
            ("other processes", self.foreign_bytes, "when this one started"),
            ("card", self.available_bytes, f"of which {self.utilization:.0%} may be used"),
        ]


def open_ledger(
    start: DeviceReading, config: CacheConfig, *, weight_bytes: int, block_bytes: int, block_size: int
) -> CudaMemoryLedger:
    """The ledger before anything is loaded.

    Args:
        start: Taken when the context exists and torch has allocated nothing.
        config: For the fraction.
        weight_bytes: As expected from the architecture.
        block_bytes: Of one block of the KV cache over all layers.
        block_size: Tokens per block.
    """
    in_use_bytes = start.total_bytes - start.free_bytes
    return CudaMemoryLedger(
        available_bytes=start.total_bytes,
        utilization=config.gpu_memory_utilization,
        weight_bytes=weight_bytes,
        activation_bytes=0,
        rest_bytes=CONTEXT_BYTES + margin_bytes(start.total_bytes),
        foreign_bytes=max(0, in_use_bytes - start.reserved_bytes - CONTEXT_BYTES),
        block_bytes=block_bytes,
        block_size=block_size,
    )


def check_card_is_free(ledger: CudaMemoryLedger, config: CacheConfig) -> None:
    """Refuses to start where other processes hold what this one is to use. An exact size of the KV cache is checked
    later, by itself.

    Raises:
        InsufficientMemoryError: The fraction exceeds what is free, by more than the 1 % that contexts differ in size.
    """
    if config.kv_cache_memory_bytes is not None or config.num_gpu_blocks_override is not None:
        return
    if ledger.limit_bytes <= ledger.obtainable_bytes + ledger.available_bytes // 100:
        return
    percent = 100 * ledger.obtainable_bytes // ledger.available_bytes
    fits = percent * ledger.available_bytes // 100 - ledger.fixed_bytes >= ledger.block_bytes
    raise InsufficientMemoryError(
        f"gpu_memory_utilization={ledger.utilization:g} asks for {ledger.limit_bytes / GIB:.2f} of the card's "
        f"{ledger.available_bytes / GIB:.2f} GiB, and {ledger.obtainable_bytes / GIB:.2f} GiB are free: other "
        f"processes hold {ledger.foreign_bytes / GIB:.2f} GiB",
        hint=f"--gpu-memory-utilization {percent / 100:.2f} fits, or end the other processes"
        if fits
        else "end the other processes (`nvidia-smi` lists them), or take a smaller or a quantised model",
        param="gpu_memory_utilization",
    )


def settle_ledger(
    ledger: CudaMemoryLedger,
    *,
    start: DeviceReading,
    loaded: DeviceReading,
    profiled: DeviceReading,
    graph_bytes: int,
    sampler_bytes: int,
) -> CudaMemoryLedger:
    """The ledger with everything but the number of blocks.

    Args:
        ledger: From `open_ledger`.
        start: The reading that it was opened with.
        loaded: Taken when the weights, and all tensors that stay, are on the card.
        profiled: From `measure_step` with the largest step; torch must still hold what that took.
        graph_bytes: To reserve for CUDA graphs that are not captured yet.
        sampler_bytes: To reserve for what the sampler has not allocated yet.
    """
    ours = profiled.reserved_bytes - start.reserved_bytes
    growth = start.free_bytes - profiled.free_bytes - ours
    library_bytes = min(max(0, growth), MAX_LIBRARY_BYTES)
    # Tensors lie in segments that are a little larger than they are.
    rounding_bytes = loaded.reserved_bytes - loaded.allocated_bytes
    return replace(
        ledger,
        weight_bytes=loaded.allocated_bytes - start.allocated_bytes,
        activation_bytes=max(0, profiled.peak_reserved_bytes - loaded.reserved_bytes),
        graph_bytes=graph_bytes,
        sampler_bytes=sampler_bytes,
        rest_bytes=CONTEXT_BYTES + library_bytes + rounding_bytes + margin_bytes(ledger.available_bytes),
        foreign_bytes=ledger.foreign_bytes + max(0, growth - library_bytes),
    )


def torch_memory_fraction(ledger: CudaMemoryLedger, config: CacheConfig) -> float:
    """The part of the card that torch's allocator may hold, for `torch.cuda.set_per_process_memory_fraction`.

    It is what the user permits and 1 % of the card more. Before it takes more than that, the allocator gives back what
    it keeps unused; without a limit it would first take what is free, and break the promise to other processes. An
    exact size of the KV cache promises nothing, so the limit is the card.
    """
    if config.kv_cache_memory_bytes is not None or config.num_gpu_blocks_override is not None:
        return 1.0
    permitted_bytes = ledger.limit_bytes + ledger.available_bytes // 100 - ledger.rest_bytes
    return min(1.0, max(0.0, permitted_bytes / ledger.available_bytes))


def estimate_graph_bytes(architecture: ModelArchitecture, *, num_graphs: int, num_rows: int, dtype_bytes: int) -> int:
    """What CUDA graphs of the decode step take once all are captured.

    Graphs share the memory of their tensors, so the largest counts: activations as in `estimate_activation_bytes`, and
    the logits with one copy in float32.

    Args:
        architecture: The model's.
        num_graphs: That may be captured.
        num_rows: Sequences in the largest.
        dtype_bytes: Of an activation.
    """
    attention = 2 * (architecture.num_attention_heads + 2 * architecture.num_key_value_heads) * architecture.head_dim
    per_row = 4 * architecture.hidden_size + max(attention, 3 * architecture.intermediate_size)
    return num_rows * (dtype_bytes * per_row + 2 * 4 * architecture.vocab_size) + num_graphs * GRAPH_BYTES


def margin_bytes(total_bytes: int) -> int:
    """What stays unused on a card of this size."""
    return max(MIN_MARGIN_BYTES, total_bytes // MARGIN_SHARE)


def read_device(device: torch.device) -> DeviceReading:
    """The card now. Creates the CUDA context if there is none; waits for nothing."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return DeviceReading(
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        reserved_bytes=torch.cuda.memory_reserved(device),
        allocated_bytes=torch.cuda.memory_allocated(device),
        peak_reserved_bytes=torch.cuda.max_memory_reserved(device),
    )


def measure_step(run: Callable[[], object], device: torch.device, *, num_tokens: int) -> DeviceReading:
    """Runs the largest step and reads the card after it. Torch's allocator keeps what the step took.

    Args:
        run: Launches the step; what it allocates must be gone when it returns.
        device: Where.
        num_tokens: In the step, for the error.

    Raises:
        InsufficientMemoryError: The step does not fit beside the weights.
    """
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        run()
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError as error:
        after = read_device(device)
        raise InsufficientMemoryError(
            f"a step of {num_tokens} tokens does not fit beside the weights: torch holds "
            f"{after.peak_reserved_bytes / GIB:.2f} of the card's {after.total_bytes / GIB:.2f} GiB and needs more",
            hint=f"--max-num-batched-tokens {max(1, num_tokens // 4)} takes less",
            param="max_num_batched_tokens",
        ) from error
    return read_device(device)
