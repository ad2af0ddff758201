"""Sizes of the GPU kernels' tiles and grids, as pure functions of the shapes."""

from typing import NamedTuple

import torch


class DecodeConfig(NamedTuple):
    """How single queries are computed.

    Attributes:
        tile_tokens: Keys of a sequence that a program reads at a time.
        num_warps: Of a program. More of them wait for each other where contexts differ in length.
        min_part_tokens: A sequence's context is not cut finer than this.
        max_parts: Of one sequence, where the batch may not count.
        programs_per_multiprocessor: Contexts are cut until there are about this many.
        is_batch_invariant: Whether a part's length may depend on its own sequence only.
    """

    tile_tokens: int
    num_warps: int
    num_stages: int
    min_part_tokens: int
    max_parts: int
    programs_per_multiprocessor: int
    is_batch_invariant: bool


class PrefillConfig(NamedTuple):
    """How tiles of consecutive queries are computed.

    Attributes:
        tile_rows: Rows of a product: consecutive queries times the heads that share a key head.
        tile_keys: Keys that a program reads at a time.
        max_registers: Of a thread; fewer let more programs share a multiprocessor. None for what the compiler likes.
    """

    tile_rows: int
    tile_keys: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None


# Sequences times key heads for each multiprocessor, measured on an H200.
_FEW = 0.2
_MAX_CUT = 4.0
"""Up to here contexts are cut: where many differ in length, finely."""
_CROWD = 9.5
"""From here on small programs hide each other's ends without a cut."""
_SMALL_PROGRAMS = ((2.7, 5), (_MAX_CUT, 16))
"""(up to so many, programs for each multiprocessor)"""


def decode_config(head_dim: int, dtype: torch.dtype) -> DecodeConfig:
    """For queries of `dtype`. In 16 bits three programs share a multiprocessor, each with two tiles on their way."""
    if dtype == torch.float32:
        return DecodeConfig(
            tile_tokens=32,
            num_warps=8,
            num_stages=2,
            min_part_tokens=256,
            max_parts=16,
            programs_per_multiprocessor=3,
            is_batch_invariant=True,
        )
    return DecodeConfig(
        tile_tokens=64 if head_dim <= 128 else 32,
        num_warps=2 if head_dim <= 128 else 4,
        num_stages=3,
        min_part_tokens=64,
        max_parts=64,
        programs_per_multiprocessor=3,
        is_batch_invariant=False,
    )


def batch_config(config: DecodeConfig, num_units: int, num_multiprocessors: int) -> DecodeConfig:
    """`config` for a batch of so many sequences times key heads; leaves a batch-invariant one as it is."""
    share = num_units / num_multiprocessors
    if config.is_batch_invariant or share < _FEW or _MAX_CUT < share < _CROWD:
        return config
    programs = next((programs for most, programs in _SMALL_PROGRAMS if share <= most), 1)
    return config._replace(tile_tokens=32, num_warps=config.num_warps // 2, programs_per_multiprocessor=programs)


def prefill_config(head_dim: int, dtype: torch.dtype) -> PrefillConfig:
    """For queries of `dtype`. All products in 16 bits are tall enough for the tensor cores' fast path.

    Up to 128 elements two programs share a multiprocessor: one computes its softmax and waits for keys while the other
    keeps the tensor cores busy.
    """
    if dtype == torch.float32:
        return PrefillConfig(tile_rows=32, tile_keys=16, num_warps=4 if head_dim <= 128 else 8, num_stages=2)
    if head_dim <= 64:
        return PrefillConfig(tile_rows=128, tile_keys=64, num_warps=8, num_stages=3, max_registers=128)
    if head_dim <= 128:
        return PrefillConfig(tile_rows=128, tile_keys=64, num_warps=8, num_stages=2, max_registers=128)
    return PrefillConfig(tile_rows=128, tile_keys=32, num_warps=8, num_stages=3)


def count_parts(
    num_decodes: int, num_kv_heads: int, max_context_length: int, num_multiprocessors: int, config: DecodeConfig
) -> tuple[int, int]:
    """How finely the contexts of a batch are cut.

    Batch-invariant: each into as many parts as the longest may need, whatever the batch. Otherwise a small batch until
    it fills the GPU, a large one not at all.

    Returns:
        wanted: Parts of all sequences if all contexts are long; at least 1.
        most: Parts that there may be; `num_decodes` where none is cut.
    """
    most = max(1, -(-max_context_length // config.min_part_tokens))
    if config.is_batch_invariant:
        return max(1, num_decodes), num_decodes * min(most, config.max_parts)
    wanted = max(1, num_decodes, config.programs_per_multiprocessor * num_multiprocessors // num_kv_heads)
    if num_decodes * num_kv_heads > _MAX_CUT * num_multiprocessors:
        return wanted, num_decodes
    # Each sequence may have one more than its share.
    return wanted, min(num_decodes * most, num_decodes + wanted)
