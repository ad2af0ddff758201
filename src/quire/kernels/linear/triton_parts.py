"""What the kernels of this folder share: loads with a tail, the end of a product."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Launch(NamedTuple):
    """A kernel and all that it is launched with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def run(self) -> None:
        """Launches it on the current stream."""
        self.kernel[self.grid](*self.arguments, **self.keywords)

    def compile(self) -> None:
        """Compiles it only; the result lies in Triton's cache on disk."""
        self.kernel.warmup(*self.arguments, grid=self.grid, **self.keywords)


LINE_ELEMENTS = tl.constexpr(64)
"""Of bfloat16 or float16 in a line of the L2 cache."""


@triton.jit
def prefetch(rows, last_row, NUM_IN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Asks the L2 cache for [ROWS, COLUMNS] of a weight with NUM_IN columns; not under the interpreter.

    `rows` points to the first element; rows after `last_row` are not there.
    """
    LINES: tl.constexpr = COLUMNS // LINE_ELEMENTS
    index = tl.arange(0, ROWS * LINES)
    lines = rows + tl.minimum(index // LINES, last_row) * NUM_IN + (index % LINES) * LINE_ELEMENTS
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; // dummy $0", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def load_inputs(pointers, is_inside, EVEN: tl.constexpr, POLICY: tl.constexpr):
    """Loads; zeros where `is_inside` is false, which is not looked at where EVEN."""
    return (
        tl.load(pointers, eviction_policy=POLICY)
        if EVEN
        else tl.load(pointers, mask=is_inside, other=0.0, eviction_policy=POLICY)
    )


@triton.jit
def norm_scale(squares, epsilon, NUM_IN: tl.constexpr):
    """Sums of squares -> 1 / root mean square."""
    return tl.rsqrt(squares / NUM_IN + epsilon)


@triton.jit
def load_residual(out, token, column, num_tokens, NUM_OUT: tl.constexpr, ADD: tl.constexpr):
    """What the product is added to, [T, N]; early, so that nobody waits for it at the end. Nothing unless ADD."""
    is_inside = (token < num_tokens)[:, None] & (column < NUM_OUT)[None, :]
    return tl.load(out + token[:, None] * NUM_OUT + column[None, :], mask=is_inside, other=0.0) if ADD else 0.0


@triton.jit
def store_result(
    product,
    up,
    residual,
    bias,
    out,
    token,
    column,
    num_tokens,
    NUM_OUT: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
):
    """Bias, gate, addition; writes `product` [T, N] float32 to rows `token` and columns `column` of `out`.

    `up`, like `product`, counts only where GATED, `residual` where ADD. Rows from `num_tokens` on and columns from
    NUM_OUT on are left out.
    """
    is_column = column < NUM_OUT
    if bias is not None:
        product += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if GATED:
        if bias is not None:
            up += tl.load(bias + NUM_OUT + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
        product = product / (1.0 + tl.exp(-product)) * up
    if ADD:
        product += residual.to(tl.float32)
    where = out + token[:, None] * NUM_OUT + column[None, :]
    tl.store(where, product.to(out.dtype.element_ty), mask=(token < num_tokens)[:, None] & is_column[None, :])
