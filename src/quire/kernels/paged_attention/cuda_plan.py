"""Who reads which slots in a step on a GPU: a few small tensors, made on the host without a look at any key.

Sequences with one query (decoding) and tiles of consecutive queries of all others go to two kernels:

    flat axis   | s0: 5 tokens of a prompt   | s1: 1 | s2: 1 |
    tiles         (s0, 0, 4 queries), (s0, 4, 1 query)
    decodes                                    (s1), (s2)

Block tables stay on the device, one row per slot, so that a step uploads what is new in it only.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from quire.kernels.paged_attention.cuda_config import (
    DecodeConfig,
    PrefillConfig,
    batch_config,
    count_parts,
    decode_config,
    prefill_config,
)

_ANY_LENGTH = 2**30
_CPU_MULTIPROCESSORS = 4
"""What the interpreter pretends to have."""


@dataclass(slots=True)
class DecodeWorkspace:
    """Where the parts of a split context wait to be merged. Shared by all layers and steps of one stream.

    P programs of the largest launch, G query heads per key head.

    Attributes:
        partials: [P * G * D] float32; sums of values, weighted relative to the part's largest score.
        statistics: [P * 2 * G] float32; the largest score and the sum of the weights.
        counters: [P] int32; parts that have arrived. Zero between launches.
        num_multiprocessors: Of the device.
    """

    partials: torch.Tensor
    statistics: torch.Tensor
    counters: torch.Tensor
    num_multiprocessors: int


@dataclass(slots=True)
class CudaAttentionMetadata:
    """A step's plan. All tensors int32, on the device.

    Attributes:
        num_tokens: T, padding included.
        decodes: [num_decodes, 3]; (slot, row of the flat axis, context length) of sequences with one query. A context
            length of 0 marks padding: its row becomes zeros.
        tiles: [num_tiles, 4]; (slot, first row, number of queries, position of the first query); see `make_tiles`.
        block_tables: [slots, max_blocks]; a sequence's blocks in the row of its slot.
        max_context_length: Tokens; no decode's context is longer. Grids depend on it.
        workspace: From `make_decode_workspace`.
        parts: How contexts are cut, by sliding window; filled in by the first layer that needs it.
    """

    num_tokens: int
    decodes: torch.Tensor
    tiles: torch.Tensor
    block_tables: torch.Tensor
    max_context_length: int
    workspace: DecodeWorkspace
    parts: dict[int | None, torch.Tensor] = field(default_factory=dict)


def make_decode_workspace(
    max_num_decodes: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    config: DecodeConfig | None = None,
) -> DecodeWorkspace:
    """Allocates for up to `max_num_decodes` rows of `decodes`, padding included, and contexts of any length.

    At most a few megabytes in 16 bits, where large batches are not split. In float32, where they are, at most
    max_num_decodes * H * D * 16 numbers.

    Args:
        max_num_decodes: Of one step.
        num_heads: Of the queries.
        num_kv_heads: Of keys and values.
        head_dim: Elements of a head.
        dtype: Of the queries.
        device: Of the queries.
        config: Instead of the default.
    """
    device = torch.device(device)
    num_multiprocessors = _CPU_MULTIPROCESSORS
    if device.type == "cuda":
        num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    default = decode_config(head_dim, dtype)
    num_programs = 1
    for num_decodes in range(1, max_num_decodes + 1):
        used = config or batch_config(default, num_decodes * num_kv_heads, num_multiprocessors)
        _, num_parts = count_parts(num_decodes, num_kv_heads, _ANY_LENGTH, num_multiprocessors, used)
        if num_parts > num_decodes:
            num_programs = max(num_programs, num_parts * num_kv_heads)
    group_size = num_heads // num_kv_heads
    return DecodeWorkspace(
        partials=torch.empty(num_programs * group_size * head_dim, dtype=torch.float32, device=device),
        statistics=torch.empty(num_programs * 2 * group_size, dtype=torch.float32, device=device),
        counters=torch.zeros(num_programs, dtype=torch.int32, device=device),
        num_multiprocessors=num_multiprocessors,
    )


def tile_size(
    num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, config: PrefillConfig | None = None
) -> int:
    """The most queries that a tile may hold."""
    group_size = num_heads // num_kv_heads
    tile_rows = (config or prefill_config(head_dim, dtype)).tile_rows
    assert group_size <= tile_rows, f"{group_size} query heads per key head, tiles have {tile_rows} rows"
    return tile_rows // group_size


def make_decodes(
    query_lengths: npt.NDArray[np.int64],
    context_lengths: npt.NDArray[np.int64],
    slots: npt.NDArray[np.int64],
    first_rows: npt.NDArray[np.int64],
) -> npt.NDArray[np.int32]:
    """The sequences with one query, the longest context first; arguments as for `make_tiles`.

    Returns:
        [num_decodes, 3] int32: slot, row of the flat axis, context length.
    """
    decodes = np.stack((slots, first_rows, context_lengths), axis=1)[query_lengths == 1].astype(np.int32)
    by_length = np.argsort(-decodes[:, 2], kind="stable")
    return np.take(decodes, by_length, axis=0)


def make_tiles(
    query_lengths: npt.ArrayLike,
    context_lengths: npt.ArrayLike,
    slots: npt.ArrayLike,
    first_rows: npt.ArrayLike,
    tile_size: int,
) -> npt.NDArray[np.int32]:
    """Cuts the sequences with more than one query into tiles; those that read most come first.

    Args:
        query_lengths: [S] tokens of each sequence in this step.
        context_lengths: [S] tokens of each sequence after this step.
        slots: [S] row of the block tables of each sequence.
        first_rows: [S] row of the flat axis where each sequence starts.
        tile_size: From the function of this name.

    Returns:
        [num_tiles, 4] int32: slot, first row, number of queries (1 to `tile_size`), position of the first query.
    """
    lengths = np.asarray(query_lengths, dtype=np.int64)
    counts = np.where(lengths > 1, -(-lengths // tile_size), 0)
    sequences = np.repeat(np.arange(len(lengths)), counts)
    offsets = (np.arange(len(sequences)) - np.repeat(np.cumsum(counts) - counts, counts)) * tile_size
    starts = np.asarray(context_lengths, dtype=np.int64) - lengths
    num_queries = np.minimum(lengths[sequences] - offsets, tile_size)
    positions = starts[sequences] + offsets
    first = np.asarray(first_rows, dtype=np.int64)[sequences] + offsets
    tiles = np.stack((np.asarray(slots, dtype=np.int64)[sequences], first, num_queries, positions), axis=1)
    return tiles[np.argsort(-(positions + num_queries), kind="stable")].astype(np.int32)
