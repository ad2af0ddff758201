"""Products in float32 whose rows do not depend on each other, bit for bit.

Every result is one sum over the inputs in their order, in tiles of one size whatever the number of rows, so a row
yields the same alone, in a batch and in a prompt. Made for comparisons, not for speed.
"""

import torch
import triton
import triton.language as tl

_BLOCK_T = 16
_BLOCK_N = 32
_BLOCK_K = 64


@triton.jit(do_not_specialize=["num_tokens"])
def float32_kernel(
    x,
    weight,
    bias,
    out,
    num_tokens,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program (n, t) computes a tile [BLOCK_T, BLOCK_N]; rows and columns past the ends are zeros."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    is_token, is_column = token < num_tokens, column < NUM_OUT
    x_rows = x + token.to(tl.int64)[:, None] * NUM_IN + k[None, :]
    weight_rows = weight + column.to(tl.int64)[:, None] * NUM_IN + k[None, :]
    product = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for start in range(0, NUM_IN, BLOCK_K):
        is_inside = (start + k < NUM_IN)[None, :]
        inputs = tl.load(x_rows + start, mask=is_token[:, None] & is_inside, other=0.0)
        tile = tl.load(weight_rows + start, mask=is_column[:, None] & is_inside, other=0.0)
        product = tl.dot(inputs, tl.trans(tile), product, input_precision="ieee")
    if bias is not None:
        product += tl.load(bias + column, mask=is_column, other=0.0)[None, :]
    where = out + token.to(tl.int64)[:, None] * NUM_OUT + column[None, :]
    is_result = is_token[:, None] & is_column[None, :]
    if ADD:
        product += tl.load(where, mask=is_result, other=0.0)
    tl.store(where, product, mask=is_result)


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, *, add: bool) -> None:
    """Writes x @ weight.T + bias into `out` [T, N], or adds it there."""
    num_tokens, num_in = x.shape
    num_out = weight.shape[0]
    float32_kernel[(triton.cdiv(num_out, _BLOCK_N), triton.cdiv(num_tokens, _BLOCK_T))](
        x,
        weight,
        bias,
        out,
        num_tokens,
        NUM_IN=num_in,
        NUM_OUT=num_out,
        ADD=add,
        BLOCK_T=_BLOCK_T,
        BLOCK_N=_BLOCK_N,
        BLOCK_K=_BLOCK_K,
        num_warps=4,
        num_stages=3,
    )
