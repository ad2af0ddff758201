"""One launch for all tokens of a step."""

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch
from quire.kernels.step_inputs import StepInputs

_TOKENS_PER_PROGRAM = 128


@triton.jit(do_not_specialize=["num_tokens"])
def _step_inputs_kernel(
    packed,
    block_tables,
    last_tokens,
    token_ids,
    slot_mapping,
    decodes,
    draw_positions,
    num_tokens,
    table_stride,
    BLOCK_SIZE: tl.constexpr,
    ARE_DECODES: tl.constexpr,
    TOKENS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    is_row = row < num_tokens
    known = tl.load(packed + row, mask=is_row, other=0)
    position = tl.load(packed + num_tokens + row, mask=is_row, other=-1)
    slot = tl.load(packed + 2 * num_tokens + row, mask=is_row, other=0)
    new_block = tl.load(packed + 3 * num_tokens + row, mask=is_row, other=-1)
    is_token = is_row & (position >= 0)
    table_entry = block_tables + slot.to(tl.int64) * table_stride + position // BLOCK_SIZE
    begins_block = is_token & (new_block >= 0)
    tl.store(table_entry, new_block, mask=begins_block)
    block = tl.load(table_entry, mask=is_token & (new_block < 0), other=0)
    block = tl.where(begins_block, new_block, block)
    drawn = tl.load(last_tokens + slot, mask=is_token & (known < 0), other=0)
    token = tl.where(known < 0, drawn, known)
    tl.store(token_ids + row, tl.where(is_token, token, 0), mask=is_row)
    cache_slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
    tl.store(slot_mapping + row, tl.where(is_token, cache_slot, -1), mask=is_row)
    if ARE_DECODES:
        tl.store(decodes + 3 * row, slot, mask=is_row)
        tl.store(decodes + 3 * row + 1, row, mask=is_row)
        tl.store(decodes + 3 * row + 2, position + 1, mask=is_row)
        tl.store(draw_positions + row, position + 1, mask=is_row)


def step_inputs(
    packed: torch.Tensor,
    block_tables: torch.Tensor,
    last_tokens: torch.Tensor,
    outputs: StepInputs,
    *,
    block_size: int,
) -> None:
    """See `quire.kernels.step_inputs.step_inputs`."""
    num_tokens = packed.shape[1]
    _step_inputs_kernel[(triton.cdiv(num_tokens, _TOKENS_PER_PROGRAM),)](
        packed,
        block_tables,
        last_tokens,
        outputs.token_ids,
        outputs.slot_mapping,
        outputs.decodes,
        outputs.draw_positions,
        num_tokens,
        block_tables.stride(0),
        BLOCK_SIZE=block_size,
        ARE_DECODES=outputs.decodes is not None,
        TOKENS=_TOKENS_PER_PROGRAM,
        PDL=programmatic_launch.is_supported(packed.device),
        num_warps=4,
        **programmatic_launch.options(packed),
    )
