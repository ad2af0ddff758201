"""A step's cosines and sines in one launch."""

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch

_ELEMENTS_PER_PROGRAM = 512


@triton.jit(do_not_specialize=["positions", "num_tokens"])
def _rope_tables_kernel(
    positions,
    inverse_frequencies,
    cosines,
    sines,
    num_tokens,
    factor,
    HALF: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    PDL: tl.constexpr,
):
    """TOKENS rows of both tables."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, COLUMNS)
    frequency = tl.load(inverse_frequencies + column, mask=column < HALF, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    position = tl.load(positions + token, mask=token < num_tokens, other=0)
    angle = position.to(tl.float32)[:, None] * frequency[None, :]
    offsets = token.to(tl.int64)[:, None] * HALF + column[None, :]
    is_inside = (token < num_tokens)[:, None] & (column < HALF)[None, :]
    # Compiled to the functions of CUDA's math library, which reduce angles of any size; at long contexts the
    # hardware's approximations would be off by more than bfloat16 resolves.
    tl.store(cosines + offsets, tl.cos(angle) * factor, mask=is_inside)
    tl.store(sines + offsets, tl.sin(angle) * factor, mask=is_inside)


def rope_tables(
    positions: torch.Tensor, inverse_frequencies: torch.Tensor, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [T, R/2] float32; see `quire.kernels.rope.rope_tables`."""
    num_tokens, half = positions.shape[0], inverse_frequencies.shape[0]
    cosines = inverse_frequencies.new_empty((num_tokens, half))
    sines = torch.empty_like(cosines)
    columns = triton.next_power_of_2(half)
    tokens = max(1, _ELEMENTS_PER_PROGRAM // columns)
    if num_tokens:
        _rope_tables_kernel[(triton.cdiv(num_tokens, tokens),)](
            positions,
            inverse_frequencies,
            cosines,
            sines,
            num_tokens,
            factor,
            HALF=half,
            COLUMNS=columns,
            TOKENS=tokens,
            PDL=programmatic_launch.is_supported(positions.device),
            num_warps=4,
            **programmatic_launch.options(positions),
        )
    return cosines, sines
