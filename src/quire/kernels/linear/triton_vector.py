"""One or two rows times a weight: multiply and add, without tensor cores."""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch
from quire.kernels.linear.tiles import VectorTiles, bucket
from quire.kernels.linear.triton_parts import Launch, load_inputs, load_residual, norm_scale, prefetch, store_result

if TYPE_CHECKING:
    from quire.kernels.linear import NormWeight


_PER_THREAD = tl.constexpr(8)
"""Neighbouring inputs that a thread reads at once: 16 bytes."""


@triton.jit
def _dot(weight_block, inputs):
    """[1, N, K] * [T, 1, K], summed over what is one thread's: [T, N, K / 8] float32."""
    products = weight_block.to(tl.float32) * inputs
    threads: tl.constexpr = products.shape[2] // _PER_THREAD
    return tl.sum(products.reshape(products.shape[0], products.shape[1], threads, _PER_THREAD), axis=3)


@triton.jit
def _prefetch_block(
    tile_rows,
    start,
    last_row,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Asks for the block of inputs that begins at `start`, or the last one; the compiler delays ordinary loads."""
    first = tile_rows + tl.minimum(start, NUM_IN - BLOCK_K)
    prefetch(first, last_row, NUM_IN, BLOCK_N, BLOCK_K)
    if GATED:
        prefetch(first + NUM_OUT * NUM_IN, last_row, NUM_IN, BLOCK_N, BLOCK_K)


@triton.jit
def _load_inputs(x, norm_weight, k, token, num_tokens, NUM_IN: tl.constexpr, EVEN: tl.constexpr):
    """Inputs k [1, 1, K] of all rows, times the norm's weight, and their squares before that: float32."""
    is_token = (token < num_tokens)[:, None, None]
    inputs = tl.load(x + token[:, None, None] * NUM_IN + k, mask=is_token & (k < NUM_IN), other=0.0).to(tl.float32)
    squares = inputs
    if norm_weight is not None:
        squares = inputs * inputs
        inputs *= load_inputs(norm_weight + k, k < NUM_IN, EVEN, "evict_last").to(tl.float32)
    return inputs, squares


@triton.jit(do_not_specialize=["num_tokens"])
def vector_kernel(
    x,
    weight,
    bias,
    norm_weight,
    out,
    num_tokens,
    epsilon,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program n computes columns n * BLOCK_N and following.

    The first block of the weight is in registers, or on its way there, when the kernel starts to wait for its
    predecessor. All tensors are [T, N, K] with a size of 1 where they do not vary: then x and the weight have the same
    layout over the threads and nothing moves through shared memory before the final sum.
    """
    NUM_BLOCKS: tl.constexpr = (NUM_IN + BLOCK_K - 1) // BLOCK_K
    EVEN: tl.constexpr = NUM_IN % BLOCK_K == 0
    PREFETCH: tl.constexpr = PDL and NUM_BLOCKS > 1 and NUM_IN % 8 == 0
    tile = tl.program_id(0)
    k = tl.arange(0, BLOCK_K)[None, None, :]
    # A row past the end reads the last one; its result is not stored.
    last_row = NUM_OUT - 1 - tile * BLOCK_N
    row = tl.minimum(tl.arange(0, BLOCK_N), last_row)[None, :, None]
    tile_rows = weight + tile.to(tl.int64) * (BLOCK_N * NUM_IN)
    gate_rows = tile_rows + (row * NUM_IN + k)
    up_rows = gate_rows + NUM_OUT * NUM_IN
    next_gate = load_inputs(gate_rows, k < NUM_IN, EVEN, "evict_first")
    next_up = load_inputs(up_rows, k < NUM_IN, EVEN, "evict_first") if GATED else next_gate
    if PREFETCH:
        _prefetch_block(tile_rows, BLOCK_K, last_row, NUM_IN, NUM_OUT, GATED, BLOCK_N, BLOCK_K)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()

    token = tl.arange(0, BLOCK_T)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    residual = load_residual(out, token, column, num_tokens, NUM_OUT, ADD)
    products = tl.zeros((BLOCK_T, BLOCK_N, BLOCK_K // _PER_THREAD), tl.float32)
    up_products = products
    squares = tl.zeros((BLOCK_T, 1, BLOCK_K), tl.float32)
    for block in range(NUM_BLOCKS):
        start = block * BLOCK_K
        inputs, block_squares = _load_inputs(x, norm_weight, start + k, token, num_tokens, NUM_IN, EVEN)
        gate, up = next_gate, next_up
        following = start + BLOCK_K
        if PREFETCH:
            _prefetch_block(tile_rows, following + BLOCK_K, last_row, NUM_IN, NUM_OUT, GATED, BLOCK_N, BLOCK_K)
        if NUM_BLOCKS > 1:
            next_gate = load_inputs(gate_rows + following, following + k < NUM_IN, False, "evict_first")
        products += _dot(gate, inputs)
        if GATED:
            if NUM_BLOCKS > 1:
                next_up = load_inputs(up_rows + following, following + k < NUM_IN, False, "evict_first")
            up_products += _dot(up, inputs)
        squares += block_squares
    product = tl.sum(products, axis=2)
    up_product = tl.sum(up_products, axis=2) if GATED else product
    if norm_weight is not None:
        scale = norm_scale(tl.sum(squares, axis=2), epsilon, NUM_IN)
        product *= scale
        up_product *= scale
    store_result(product, up_product, residual, bias, out, token, column, num_tokens, NUM_OUT, GATED, ADD)


def launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: "NormWeight | None",
    out: torch.Tensor,
    tiles: VectorTiles,
    *,
    gated: bool,
    add: bool,
) -> Launch:
    """What writes the product into `out` [T, N], or adds it there; see `quire.kernels.linear.linear`."""
    num_tokens, num_in = x.shape
    num_out = out.shape[1]
    norm_weight, epsilon = (None, 0.0) if norm is None else norm
    keywords = {
        "NUM_IN": num_in,
        "NUM_OUT": num_out,
        "GATED": gated,
        "ADD": add,
        "BLOCK_T": bucket(num_tokens),
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "PDL": programmatic_launch.is_supported(x.device),
        "num_warps": tiles.num_warps,
        **programmatic_launch.options(x),
    }
    grid = (triton.cdiv(num_out, tiles.block_n),)
    return Launch(vector_kernel, grid, (x, weight, bias, norm_weight, out, num_tokens, epsilon), keywords)
