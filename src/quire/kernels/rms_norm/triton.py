"""RMS norm in one pass: a row stays in registers between the sum of its squares and the output."""

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch

_MIN_ELEMENTS_PER_PROGRAM = 512
_BYTES_PER_THREAD = 32
_MAX_WARPS = 16


@triton.jit(do_not_specialize=["rows", "num_rows"])
def _rms_norm_kernel(
    x,
    weight,
    rows,
    output,
    row_stride,
    num_rows,
    epsilon,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Normalises ROWS rows of x, those that `rows` names unless it is None."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    is_inside = (row < num_rows)[:, None] & (column < WIDTH)
    # Loaded with the layout of x, although the rows are equal: no exchange between threads, and before the wait.
    weights = tl.load(tl.broadcast_to(weight + column, [ROWS, COLUMNS]), mask=is_inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    source = row if rows is None else tl.load(rows + row, mask=row < num_rows, other=0)
    offsets = source.to(tl.int64)[:, None] * row_stride + column
    values = tl.load(x + offsets, mask=is_inside, other=0.0).to(tl.float32)
    mean_of_squares = tl.sum(values * values, axis=1) / WIDTH
    values = values * tl.rsqrt(mean_of_squares + epsilon)[:, None] * weights
    tl.store(output + row.to(tl.int64)[:, None] * WIDTH + column, values, mask=is_inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, rows: torch.Tensor | None = None) -> torch.Tensor:
    """See `quire.kernels.rms_norm.rms_norm`."""
    width = x.shape[-1]
    flat = x if x.dim() == 2 else x.reshape(-1, width)
    assert flat.stride(1) == 1, f"the elements of a row must be adjacent, strides {x.stride()}"
    num_rows = flat.shape[0] if rows is None else rows.shape[0]
    output = x.new_empty(x.shape if rows is None else (num_rows, width))
    columns, rows_per_program, num_warps = _config(width, x.element_size())
    if num_rows:
        _rms_norm_kernel[(triton.cdiv(num_rows, rows_per_program),)](
            flat,
            weight,
            rows,
            output,
            flat.stride(0),
            num_rows,
            epsilon,
            WIDTH=width,
            COLUMNS=columns,
            ROWS=rows_per_program,
            PDL=programmatic_launch.is_supported(x.device),
            num_warps=num_warps,
            **programmatic_launch.options(x),
        )
    return output


def _config(width: int, element_size: int) -> tuple[int, int, int]:
    """(columns, rows, warps) of a program; of the width alone, so that a row's sums never depend on its neighbours."""
    columns = triton.next_power_of_2(width)
    rows = max(1, _MIN_ELEMENTS_PER_PROGRAM // columns)
    num_warps = columns * rows * element_size // (32 * _BYTES_PER_THREAD)
    return columns, rows, min(max(num_warps, 1), _MAX_WARPS)
