"""Sizes of the GPU kernels' tiles and grids, as pure functions of the shapes."""

from typing import NamedTuple

import torch


class DecodeConfig(NamedTuple):
    """How single queries are computed.

    Attributes:
        tile_tokens: Keys of a sequence that a program reads at a time.
        num_warps: Of a program. More of them wait for each other where contexts differ in length.
        min_split_tokens: A sequence's context is not cut finer than this.
        max_splits: Of one sequence; bounds the workspace and the merge.
        programs_per_multiprocessor: Contexts are split until there are about this many; one more where sequences and
            key heads are fewer than multiprocessors.
        is_batch_invariant: Whether a split's length may depend on its own sequence only.
    """

    tile_tokens: int
    num_warps: int
    num_stages: int
    min_split_tokens: int
    max_splits: int
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


_CROWD = 1280
"""Sequences times key heads that fill the multiprocessors of an H200 several times over."""


def decode_config(head_dim: int, dtype: torch.dtype) -> DecodeConfig:
    """For queries of `dtype`. In 16 bits three programs share a multiprocessor, each with two tiles on their way."""
    if dtype == torch.float32:
        return DecodeConfig(
            tile_tokens=32,
            num_warps=8,
            num_stages=2,
            min_split_tokens=256,
            max_splits=16,
            programs_per_multiprocessor=3,
            is_batch_invariant=True,
        )
    return DecodeConfig(
        tile_tokens=64 if head_dim <= 128 else 32,
        num_warps=2 if head_dim <= 128 else 4,
        num_stages=3,
        min_split_tokens=64,
        max_splits=64,
        programs_per_multiprocessor=3,
        is_batch_invariant=False,
    )


def crowd_config(config: DecodeConfig, num_decodes: int, num_kv_heads: int) -> DecodeConfig:
    """`config` for a batch that needs no splits: where sequences abound, many small programs hide each other's ends.

    Leaves a batch-invariant one as it is.
    """
    if config.is_batch_invariant or num_decodes * num_kv_heads < _CROWD:
        return config
    return config._replace(tile_tokens=32, num_warps=config.num_warps // 2, num_stages=3)


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


def num_splits(
    num_decodes: int, num_kv_heads: int, max_context_length: int, num_multiprocessors: int, config: DecodeConfig
) -> int:
    """Programs per sequence and key head, at least 1.

    A small batch is split until it fills the GPU, a large one not at all. Batch-invariant: as many as the longest
    context may need, whatever the batch.
    """
    most = max(1, min(config.max_splits, -(-max_context_length // config.min_split_tokens)))
    if config.is_batch_invariant:
        return most
    num_units = max(1, num_decodes * num_kv_heads)
    programs = config.programs_per_multiprocessor + (num_units < num_multiprocessors)
    wanted = programs * num_multiprocessors // num_units
    return max(1, min(wanted, most))
