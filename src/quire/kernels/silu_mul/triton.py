"""silu(gate) * up on a flat grid over pieces of rows."""

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch

_NUM_WARPS = 4
_BYTES_PER_THREAD = 16
_MANY_PROGRAMS = 8192


@triton.jit
def _silu_mul_kernel(gate_up, output, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr):
    """COLUMNS columns of one row; `WIDTH` is that of the output."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    pieces = tl.cdiv(WIDTH, COLUMNS)
    row = (tl.program_id(0) // pieces).to(tl.int64)
    column = tl.program_id(0) % pieces * COLUMNS + tl.arange(0, COLUMNS)
    is_inside = column < WIDTH
    if PDL:
        tl.extra.cuda.gdc_wait()
    gate = tl.load(gate_up + row * (2 * WIDTH) + column, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * (2 * WIDTH) + WIDTH + column, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(output + row * WIDTH + column, gate / (1.0 + tl.exp(-gate)) * up, mask=is_inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `quire.kernels.silu_mul.silu_mul`. Does not modify gate_up."""
    assert gate_up.is_contiguous(), f"gate_up must be contiguous, strides {gate_up.stride()}"
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty((num_rows, width))
    columns = _columns(num_rows, width, gate_up.element_size())
    if num_rows:
        _silu_mul_kernel[(num_rows * triton.cdiv(width, columns),)](
            gate_up,
            output,
            WIDTH=width,
            COLUMNS=columns,
            PDL=programmatic_launch.is_supported(gate_up.device),
            num_warps=_NUM_WARPS,
            **programmatic_launch.options(gate_up),
        )
    return output


def _columns(num_rows: int, width: int, element_size: int) -> int:
    """Columns of a program: one vector per thread, two where there are programs enough to fill any device."""
    columns = 32 * _NUM_WARPS * _BYTES_PER_THREAD // element_size
    return 2 * columns if num_rows * triton.cdiv(width, columns) > _MANY_PROGRAMS else columns
