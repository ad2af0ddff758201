"""Few rows times a weight, bound by reading the weight once: a pipeline of tiles through the tensor cores."""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch
from quire.kernels.linear.tiles import MAX_TILES, PARTIAL_ELEMENTS, SkinnyTiles, partial_elements
from quire.kernels.linear.triton_parts import (
    LINE_ELEMENTS,
    Launch,
    load_inputs,
    load_residual,
    prefetch,
    store_result,
)

_MIN_WEIGHT_FIRST = 64


class Workspace(NamedTuple):
    """Scratch of a device for split products, shared by all of them: kernels of one stream run in order.

    Attributes:
        partials: [PARTIAL_ELEMENTS] float32; meaningless between launches.
        counters: [MAX_TILES] int32; all zero between launches.
    """

    partials: torch.Tensor
    counters: torch.Tensor


@cache
def workspace(device: torch.device) -> Workspace:
    """Of this device, allocated on the first call; that must not be while a CUDA graph is captured."""
    return Workspace(
        torch.empty(PARTIAL_ELEMENTS, dtype=torch.float32, device=device),
        torch.zeros(MAX_TILES, dtype=torch.int32, device=device),
    )


@triton.jit
def _accumulate(weight_tile, inputs, product, WEIGHT_FIRST: tl.constexpr):
    """product + weight_tile [N, K] @ inputs [T, K].T, as [N, T] where WEIGHT_FIRST, else [T, N]."""
    return (
        tl.dot(weight_tile, tl.trans(inputs), product)
        if WEIGHT_FIRST
        else tl.dot(inputs, tl.trans(weight_tile), product)
    )


@triton.jit
def _multiply(
    x_rows,
    gate_rows,
    up_rows,
    is_token,
    first_k,
    k,
    NUM_IN: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    EVEN: tl.constexpr,
    GATED: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """The products of x with the gate's (or the only) rows and with the up rows, both [T, N].

    The pointers are to inputs `first_k` + `k` of each row.
    """
    product = tl.zeros((BLOCK_N, BLOCK_T) if WEIGHT_FIRST else (BLOCK_T, BLOCK_N), tl.float32)
    up_product = product
    for block in tl.range(NUM_BLOCKS, num_stages=NUM_STAGES):
        start = block * BLOCK_K
        is_inside = first_k + start + k < NUM_IN
        inputs = load_inputs(x_rows + start, is_token[:, None] & is_inside[None, :], False, "evict_last")
        gate = load_inputs(gate_rows + start, is_inside[None, :], EVEN, "evict_first")
        product = _accumulate(gate, inputs, product, WEIGHT_FIRST)
        if GATED:
            up = load_inputs(up_rows + start, is_inside[None, :], EVEN, "evict_first")
            up_product = _accumulate(up, inputs, up_product, WEIGHT_FIRST)
    return (
        tl.trans(product) if WEIGHT_FIRST else product,
        tl.trans(up_product) if WEIGHT_FIRST else up_product,
    )


@triton.jit
def _sum_of_parts(first_part, offsets, is_part, NUM_PARTS: tl.constexpr, STRIDE: tl.constexpr):
    """Sums of NUM_PARTS partial results in their order, whoever wrote them last."""
    total = tl.load(first_part + offsets, mask=is_part, other=0.0, cache_modifier=".cg")
    for part in tl.static_range(1, NUM_PARTS):
        total += tl.load(first_part + part * STRIDE + offsets, mask=is_part, other=0.0, cache_modifier=".cg")
    return total


@triton.jit(do_not_specialize=["num_tokens"])
def skinny_kernel(
    x,
    weight,
    bias,
    out,
    partials,
    counters,
    num_tokens,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    PREFETCH_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Programs (t * SPLIT_K + s, n), s < SPLIT_K, compute rows t * BLOCK_T and columns n * BLOCK_N and following.

    WEIGHT_FIRST makes the weight the tensor cores' left operand, of at least 64 rows; else x is, of at least 16.

    Of the programs that share a tile each writes its partial sums, then counts itself; the last one adds all up in a
    fixed order and sets the counter back. Everything that another kernel may touch is touched after `gdc_wait`.
    """
    NUM_BLOCKS: tl.constexpr = (NUM_IN + BLOCK_K * SPLIT_K - 1) // (BLOCK_K * SPLIT_K)
    EVEN: tl.constexpr = NUM_BLOCKS * BLOCK_K * SPLIT_K == NUM_IN
    split = tl.program_id(0) % SPLIT_K
    token_block = tl.program_id(0) // SPLIT_K
    tile = tl.program_id(1)
    first_k = split * (NUM_BLOCKS * BLOCK_K)
    k = tl.arange(0, BLOCK_K)
    # A row past the end reads the last one; its result is not stored.
    last_row = NUM_OUT - 1 - tile * BLOCK_N
    tile_rows = weight + tile.to(tl.int64) * (BLOCK_N * NUM_IN) + first_k
    gate_rows = tile_rows + (tl.minimum(tl.arange(0, BLOCK_N), last_row)[:, None] * NUM_IN + k[None, :])
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if PREFETCH_K > 0:
            prefetch(tile_rows, last_row, NUM_IN, BLOCK_N, PREFETCH_K)
            if GATED:
                prefetch(tile_rows + NUM_OUT * NUM_IN, last_row, NUM_IN, BLOCK_N, PREFETCH_K)
        tl.extra.cuda.gdc_wait()

    token = token_block * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    residual = load_residual(out, token, column, num_tokens, NUM_OUT, ADD)
    product, up_product = _multiply(
        x + first_k + token[:, None] * NUM_IN + k[None, :],
        gate_rows,
        gate_rows + NUM_OUT * NUM_IN,
        token < num_tokens,
        first_k,
        k,
        NUM_IN,
        NUM_BLOCKS,
        EVEN,
        GATED,
        WEIGHT_FIRST,
        BLOCK_T,
        BLOCK_N,
        BLOCK_K,
        NUM_STAGES,
    )
    is_last = True
    if SPLIT_K > 1:
        PART: tl.constexpr = BLOCK_T * BLOCK_N
        STRIDE: tl.constexpr = PART * (2 if GATED else 1)
        unit = token_block * tl.num_programs(1) + tile
        is_result = (token < num_tokens)[:, None] & (column < NUM_OUT)[None, :]
        offsets = tl.arange(0, BLOCK_T)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = partials + unit * (SPLIT_K * STRIDE)
        tl.store(parts + split * STRIDE + offsets, product, mask=is_result)
        if GATED:
            tl.store(parts + split * STRIDE + PART + offsets, up_product, mask=is_result)
        # All threads have stored before the one that counts makes their stores visible.
        tl.debug_barrier()
        is_last = tl.atomic_add(counters + unit, 1, sem="acq_rel") == SPLIT_K - 1
        if is_last:
            tl.store(counters + unit, 0)
            product = _sum_of_parts(parts, offsets, is_result, SPLIT_K, STRIDE)
            if GATED:
                up_product = _sum_of_parts(parts + PART, offsets, is_result, SPLIT_K, STRIDE)
    if is_last:
        store_result(product, up_product, residual, bias, out, token, column, num_tokens, NUM_OUT, GATED, ADD)


def launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    tiles: SkinnyTiles,
    *,
    gated: bool,
    add: bool,
) -> Launch:
    """What writes the product into `out` [T, N], or adds it there; see `quire.kernels.linear.linear`."""
    num_tokens, num_in = x.shape
    num_out = out.shape[1]
    num_tiles = triton.cdiv(num_out, tiles.block_n)
    weight_first = tiles.block_n >= _MIN_WEIGHT_FIRST
    block_t = tiles.tokens_per_program(num_tokens)
    num_token_blocks = triton.cdiv(num_tokens, block_t)
    if tiles.split_k > 1:
        needed = partial_elements(tiles, num_tokens, weight.shape[0])
        assert num_tiles * num_token_blocks <= MAX_TILES and needed <= PARTIAL_ELEMENTS, (
            f"{tiles} of {num_tokens} x {num_out}: {needed} partials"
        )
    arguments = (x, weight, bias, out, *workspace(x.device), num_tokens)
    keywords = {
        "NUM_IN": num_in,
        "NUM_OUT": num_out,
        "GATED": gated,
        "ADD": add,
        "WEIGHT_FIRST": weight_first,
        "BLOCK_T": block_t,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "SPLIT_K": tiles.split_k,
        "NUM_STAGES": tiles.num_stages,
        "PREFETCH_K": _prefetched_inputs(tiles, num_in),
        "PDL": programmatic_launch.is_supported(x.device),
        "num_warps": tiles.num_warps,
        **programmatic_launch.options(x),
    }
    return Launch(skinny_kernel, (tiles.split_k * num_token_blocks, num_tiles), arguments, keywords)


def _prefetched_inputs(tiles: SkinnyTiles, num_in: int) -> int:
    """Inputs of each weight row that a program asks for while it waits: about what its pipeline holds."""
    wanted = tiles.block_k * (tiles.num_stages - 1)
    available = num_in // tiles.split_k
    power_of_two = 1 << (min(wanted, available).bit_length() - 1)
    return power_of_two if power_of_two >= LINE_ELEMENTS.value and num_in % 8 == 0 else 0
