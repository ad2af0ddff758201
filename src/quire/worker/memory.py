"""Who gets how much memory, and what to do when it is not enough. `cuda_memory.py` has what is special to a GPU."""

import os
from dataclasses import dataclass
from pathlib import Path

from quire.checkpoint.architecture import ModelArchitecture
from quire.config.cache import CacheConfig
from quire.errors import InsufficientMemoryError
from quire.worker.control_groups import memory_room

GIB = 1024**3
CPU_KV_CACHE_LIMIT_BYTES = 4 * GIB

_NO_ROOM_HINT = "free memory, or take a smaller or a quantised model, or fewer --max-num-batched-tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLedger:
    """The device's memory by purpose, in bytes. This one is a CPU's.

    Attributes:
        available_bytes: What was free before anything was loaded.
        utilization: The fraction of it that may be used.
        activation_bytes: Estimate for the largest step.
        rest_bytes: What the process held before: interpreter and libraries. Not part of `available_bytes`.
    """

    available_bytes: int
    utilization: float
    weight_bytes: int
    activation_bytes: int
    rest_bytes: int
    block_bytes: int
    block_size: int
    num_blocks: int = 0

    @property
    def kv_cache_bytes(self) -> int:
        """Keys and values of all blocks. Taken from the system as blocks are first used."""
        return self.num_blocks * self.block_bytes

    @property
    def limit_bytes(self) -> int:
        """What may be used."""
        return int(self.available_bytes * self.utilization)

    @property
    def obtainable_bytes(self) -> int:
        """What could be used if the user allowed it."""
        return self.available_bytes

    @property
    def fixed_parts(self) -> tuple[tuple[str, int], ...]:
        """What comes out of `available_bytes` whatever the size of the KV cache, by name."""
        return (("weights", self.weight_bytes), ("activations", self.activation_bytes))

    @property
    def fixed_bytes(self) -> int:
        """The sum of `fixed_parts`."""
        return sum(num_bytes for _, num_bytes in self.fixed_parts)

    @property
    def kv_room_bytes(self) -> int:
        """What is left of the permitted fraction for the KV cache; may be negative."""
        return min(self.limit_bytes, self.obtainable_bytes) - self.fixed_bytes

    def max_useful_blocks(self, config: CacheConfig, *, max_num_seqs: int, max_model_len: int) -> int:
        """More would not be worth their memory: 4 GiB, but what one whole sequence needs, and no more than all do."""
        blocks_per_sequence = self.count_blocks(max_model_len)
        limit = max(CPU_KV_CACHE_LIMIT_BYTES // self.block_bytes, blocks_per_sequence)
        return min(max_num_seqs * blocks_per_sequence, limit)

    def count_blocks(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens takes."""
        return -(-num_tokens // self.block_size)

    def as_dict(self) -> dict[str, int]:
        """Bytes by purpose."""
        return {
            "weights": self.weight_bytes,
            "kv_cache": self.kv_cache_bytes,
            "activations": self.activation_bytes,
            "rest": self.rest_bytes,
            "available": self.available_bytes,
        }

    def table(self) -> str:
        """The ledger for the log, one line per purpose."""
        lines = [f"  {name:<15}{size / GIB:8.2f} GiB  {note}".rstrip() for name, size, note in self.rows()]
        return "\n".join(("memory", *lines))

    def rows(self) -> list[tuple[str, int, str]]:
        """Purpose, bytes and a note, for the table."""
        return [
            ("weights", self.weight_bytes, ""),
            ("KV cache", self.kv_cache_bytes, self.kv_cache_note()),
            ("activations", self.activation_bytes, "largest step, estimated"),
            ("rest", self.rest_bytes, "interpreter and libraries"),
            ("available", self.available_bytes, f"before loading, of which {self.utilization:.0%} may be used"),
        ]

    def kv_cache_note(self) -> str:
        """The KV cache in tokens and blocks."""
        return f"{self.num_blocks * self.block_size:,} tokens in {self.num_blocks:,} blocks"


def choose_num_blocks(ledger: MemoryLedger, config: CacheConfig, *, max_num_seqs: int, max_model_len: int) -> int:
    """Blocks of the KV cache.

    An exact number or size is taken as it is. Otherwise: all that is left, up to what is useful on the device.

    Raises:
        InsufficientMemoryError: Not even one sequence of `max_model_len` fits; the text says what would.
    """
    if config.num_gpu_blocks_override is not None:
        return _checked(config.num_gpu_blocks_override, "num_gpu_blocks_override", ledger, max_model_len)
    if config.kv_cache_memory_bytes is not None:
        num_blocks = config.kv_cache_memory_bytes // ledger.block_bytes
        return _checked(num_blocks, "kv_cache_memory_bytes", ledger, max_model_len)
    room = max(0, ledger.kv_room_bytes) // ledger.block_bytes
    num_blocks = min(room, ledger.max_useful_blocks(config, max_num_seqs=max_num_seqs, max_model_len=max_model_len))
    if num_blocks < ledger.count_blocks(max_model_len):
        raise _too_few_blocks(num_blocks, ledger, max_model_len)
    return num_blocks


def check_weights_fit(ledger: MemoryLedger) -> None:
    """Refuses to load a model that leaves no room.

    Raises:
        InsufficientMemoryError: Weights and activations alone exceed what may be used.
    """
    if ledger.kv_room_bytes >= ledger.block_bytes:
        return
    raise InsufficientMemoryError(
        f"the weights take {_gib(ledger.weight_bytes)} and leave nothing for the KV cache: "
        f"{_account(ledger, ledger.utilization)}",
        hint=_utilization_hint(ledger, ledger.block_bytes) or _NO_ROOM_HINT,
        param="model",
    )


def _checked(num_blocks: int, option: str, ledger: MemoryLedger, max_model_len: int) -> int:
    """A number of blocks that the user has set, if it fits the device and holds a sequence."""
    room = (ledger.obtainable_bytes - ledger.fixed_bytes) // ledger.block_bytes
    if num_blocks > room:
        raise InsufficientMemoryError(
            f"a KV cache of {_gib(num_blocks * ledger.block_bytes)} does not fit: {_account(ledger, 1.0)}",
            hint=f"--kv-cache-memory-bytes {room * ledger.block_bytes} fits" if room > 0 else _NO_ROOM_HINT,
            param=option,
        )
    if num_blocks * ledger.block_size < max_model_len:
        needed = ledger.count_blocks(max_model_len)
        raise InsufficientMemoryError(
            f"one sequence of max_model_len={max_model_len} tokens needs {needed} blocks of "
            f"{ledger.block_size} tokens, {option} gives {num_blocks}",
            hint=f"{_fitting_length(num_blocks, ledger)}--kv-cache-memory-bytes {needed * ledger.block_bytes} "
            "holds one whole sequence",
            param=option,
        )
    return num_blocks


def _too_few_blocks(num_blocks: int, ledger: MemoryLedger, max_model_len: int) -> InsufficientMemoryError:
    needed = ledger.count_blocks(max_model_len) * ledger.block_bytes
    other = _utilization_hint(ledger, needed) or "or free memory, or take a smaller model"
    return InsufficientMemoryError(
        f"one sequence of max_model_len={max_model_len} tokens needs {_gib(needed)} of KV cache, "
        f"there is {_gib(max(0, ledger.kv_room_bytes))}: {_account(ledger, ledger.utilization)}",
        hint=f"{_fitting_length(num_blocks, ledger)}{other}",
        param="max_model_len",
    )


def _fitting_length(num_blocks: int, ledger: MemoryLedger) -> str:
    return f"--max-model-len {num_blocks * ledger.block_size} fits; " if num_blocks else ""


def _utilization_hint(ledger: MemoryLedger, kv_bytes: int) -> str | None:
    """The --gpu-memory-utilization that makes room for so much KV cache, where there is one."""
    needed = ledger.fixed_bytes + kv_bytes
    percent = -(-100 * needed // max(1, ledger.available_bytes))
    if not ledger.utilization * 100 < percent <= 100 or needed > ledger.obtainable_bytes:
        return None
    return f"--gpu-memory-utilization {percent / 100:.2f} makes room"


def _account(ledger: MemoryLedger, utilization: float) -> str:
    """The subtraction whose result was too small."""
    share = f" x {utilization:g}" if utilization < 1.0 else ""
    whole = f"{_gib(ledger.available_bytes)} available{share}"
    if ledger.obtainable_bytes < ledger.available_bytes * utilization:
        whole = f"{_gib(ledger.obtainable_bytes)} free of {_gib(ledger.available_bytes)}"
    return " - ".join([whole, *(f"{_gib(num_bytes)} {name}" for name, num_bytes in ledger.fixed_parts if num_bytes)])


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"


def count_parameters(architecture: ModelArchitecture, *, copies_tied_head: bool = True) -> int:
    """Numbers in the weights, norms and biases included.

    Args:
        architecture: The model's.
        copies_tied_head: Whether an output projection that is tied to the embedding is packed as a copy of it.
    """
    hidden = architecture.hidden_size
    query = architecture.num_attention_heads * architecture.head_dim
    key_value = architecture.num_key_value_heads * architecture.head_dim
    layer = hidden * (query + 2 * key_value) + query * hidden + 3 * hidden * architecture.intermediate_size
    layer += 2 * hidden + 2 * architecture.head_dim * architecture.qk_norm
    layer += (query + 2 * key_value) * architecture.attention_bias + hidden * architecture.attention_output_bias
    layer += (2 * architecture.intermediate_size + hidden) * architecture.mlp_bias
    num_vocabularies = 1 if architecture.tie_word_embeddings and not copies_tied_head else 2
    return num_vocabularies * architecture.vocab_size * hidden + architecture.num_hidden_layers * layer + hidden


def estimate_activation_bytes(architecture: ModelArchitecture, *, num_tokens: int, num_rows: int) -> int:
    """Peak of one step's temporary tensors, counted in float32.

    The widest moments are the MLP (its two inputs and their product beside the residual) and the sampler (the
    logits, their log-probabilities and one copy).
    """
    attention = 2 * (architecture.num_attention_heads + 2 * architecture.num_key_value_heads) * architecture.head_dim
    per_token = 4 * architecture.hidden_size + max(attention, 3 * architecture.intermediate_size)
    return 4 * (num_tokens * per_token + 3 * num_rows * architecture.vocab_size)


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that this process can still take: what the machine has free, or its control group if that is less."""
    group = memory_room()
    machine = _machine_bytes(meminfo)
    return machine if group is None else min(machine, group)


def _machine_bytes(meminfo: Path) -> int:
    if not meminfo.exists():  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def resident_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Memory that this process holds and no file backs; 0 where the system does not tell."""
    if not status.exists():
        return 0
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
