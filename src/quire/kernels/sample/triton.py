"""A draw in three launches, whatever the batch holds:

    statistics   one program per row and chunk: largest logit, where it stands or sum of weights relative to it
    cut          one program per row; returns at once unless top_k, top_p or min_p say that tokens are dropped
    draw         one program per row: picks the chunk by the sums, then the token in it

So that greedy and plain batches read their logits once. A weight is exp((logit - peak) / temperature). Weights are
summed in float32 inside a chunk, in float64 across chunks.
"""

import torch
import triton
import triton.language as tl

from quire.kernels import programmatic_launch
from quire.kernels.sample.device_tensors import EXHAUSTED, NOT_FINITE, DeviceSamplingParams, DrawWorkspace, chunk_size
from quire.kernels.sample.triton_cut import cut_kernel

_LOG2_E = tl.constexpr(1.4426950408889634)
_INFINITY = tl.constexpr(float("inf"))
_NOWHERE = tl.constexpr(2**31 - 1)
_NOT_FINITE = tl.constexpr(NOT_FINITE)
_EXHAUSTED = tl.constexpr(EXHAUSTED)
_UNIT = tl.constexpr(2.0**-52)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _statistics_kernel(
    logits,
    slots,
    temperatures,
    peaks,
    peak_ids,
    sums,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(logits + row * VOCAB + token, mask=token < VOCAB, other=-_INFINITY)
    temperature = tl.load(temperatures + tl.load(slots + row))
    values = tl.where(values != values, _INFINITY, values)
    peak = tl.max(values, 0)
    place = row * NUM_CHUNKS + chunk
    tl.store(peaks + place, peak)
    if temperature > 0.0:
        # No infinity minus infinity; what a chunk without a finite peak sums up to is not used.
        origin = tl.where(tl.abs(peak) == _INFINITY, 0.0, peak)
        weights = tl.exp2((values - origin) * tl.math.div_rn(_LOG2_E, temperature))
        tl.store(sums + place, tl.sum(weights, 0))
    else:
        tl.store(peak_ids + place, tl.min(tl.where(values == peak, token, _NOWHERE), 0))


@triton.jit
def uniform(seed, sample_index, position):
    """The number of `philox.uniform`, float64."""
    zero = position.to(tl.uint32) * 0
    high, low, _, _ = tl.philox(seed, position.to(tl.uint32), zero, sample_index.to(tl.uint32), zero)
    bits = ((high.to(tl.uint64) << 32) | low.to(tl.uint64)) >> 12
    return (bits.to(tl.float64) + 0.5) * _UNIT


@triton.jit
def _first_beyond(cumulative, weights, target, index):
    """The first index at which the cumulative weight exceeds `target`, never one without weight."""
    has_weight = weights > 0.0
    beyond = tl.min(tl.where((cumulative > target) & has_weight, index, _NOWHERE), 0)
    last = tl.max(tl.where(has_weight, index, 0), 0)
    return tl.minimum(beyond, last)


@triton.jit
def _draw_in_order(
    row_logits, peaks_row, sums_row, ties_row, cut, best, peak, scale, number, VOCAB: tl.constexpr, CHUNK: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Inverts the cumulative distribution at `number`: first over chunks, then inside one of them."""
    chunks = tl.arange(0, CHUNKS)
    sums = tl.load(sums_row + chunks, mask=chunks < NUM_CHUNKS, other=0.0)
    masses = sums.to(tl.float64) * tl.exp2((peak - best) * scale).to(tl.float64)
    cumulative = tl.cumsum(masses, 0)
    target = number * tl.sum(masses, 0)
    chunk = _first_beyond(cumulative, masses, target, chunks)
    is_chunk = chunks == chunk
    mass = tl.sum(tl.where(is_chunk, masses, 0.0), 0)
    before = tl.sum(tl.where(is_chunk, cumulative, 0.0), 0) - mass

    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(row_logits + token, mask=token < VOCAB, other=-_INFINITY)
    weights = tl.exp2((values - tl.load(peaks_row + chunk)) * scale)
    if cut > -_INFINITY:
        is_tie = values == cut
        rank = tl.cumsum(is_tie.to(tl.int32), 0)
        is_kept = (values > cut) | (is_tie & (rank <= tl.load(ties_row + chunk)))
        weights = tl.where(is_kept, weights, 0.0)
    inside = weights.to(tl.float64)
    # The rest is a fraction of the chunk: what is rounded here and there may differ, but stays in the chunk.
    rest = tl.maximum(target - before, 0.0) / mass
    return _first_beyond(tl.cumsum(inside, 0), inside, rest * tl.sum(inside, 0), token)


@triton.jit(do_not_specialize_on_alignment=["slots", "positions", "token_ids_out"])
def _draw_kernel(
    logits,
    slots,
    positions,
    temperatures,
    seeds,
    sample_indices,
    peaks,
    peak_ids,
    sums,
    kept_ties,
    cuts,
    token_ids_out,
    last_tokens,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    position = tl.load(positions + row)
    cut = tl.load(cuts + row)
    start = row * NUM_CHUNKS
    chunks = tl.arange(0, CHUNKS)
    peak = tl.load(peaks + start + chunks, mask=chunks < NUM_CHUNKS, other=-_INFINITY)
    temperature = tl.load(temperatures + slot)
    best = tl.max(peak, 0)
    token_id = tl.where(best == -_INFINITY, _EXHAUSTED, _NOT_FINITE)
    if tl.abs(best) != _INFINITY:
        if temperature > 0.0:
            number = uniform(tl.load(seeds + slot), tl.load(sample_indices + slot), position)
            token_id = _draw_in_order(
                logits + row * VOCAB,
                peaks + start,
                sums + start,
                kept_ties + start,
                cut,
                best,
                peak,
                tl.math.div_rn(_LOG2_E, temperature),
                number,
                VOCAB,
                CHUNK,
                NUM_CHUNKS,
                CHUNKS,
            )
        else:
            first_ids = tl.load(peak_ids + start + chunks, mask=chunks < NUM_CHUNKS, other=_NOWHERE)
            token_id = tl.min(tl.where(peak == best, first_ids, _NOWHERE), 0)
    tl.store(token_ids_out + row, token_id)
    tl.store(last_tokens + slot, tl.maximum(token_id, 0))


def draw(
    logits: torch.Tensor,
    params: DeviceSamplingParams,
    slots: torch.Tensor,
    positions: torch.Tensor,
    workspace: DrawWorkspace,
    token_ids_out: torch.Tensor,
    last_tokens: torch.Tensor,
) -> None:
    """See `quire.kernels.sample.device.draw`."""
    num_rows, vocab_size = logits.shape
    if num_rows == 0:
        return
    chunk = chunk_size(vocab_size)
    num_chunks = triton.cdiv(vocab_size, chunk)
    chunks = triton.next_power_of_2(num_chunks)
    is_pdl = programmatic_launch.is_supported(logits.device)
    options = programmatic_launch.options(logits)
    _statistics_kernel[(num_chunks, num_rows)](
        logits,
        slots,
        params.temperature,
        workspace.peaks,
        workspace.peak_ids,
        workspace.sums,
        VOCAB=vocab_size,
        CHUNK=chunk,
        NUM_CHUNKS=num_chunks,
        PDL=is_pdl,
        num_warps=max(1, chunk // 512),
        **options,
    )
    cut_kernel[(num_rows,)](
        logits,
        slots,
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        workspace.peaks,
        workspace.sums,
        workspace.kept_ties,
        workspace.cuts,
        workspace.chunk_lists,
        VOCAB=vocab_size,
        CHUNK=chunk,
        NUM_CHUNKS=num_chunks,
        CHUNKS=chunks,
        PDL=is_pdl,
        num_warps=max(4, chunk // 128),
        **options,
    )
    _draw_kernel[(num_rows,)](
        logits,
        slots,
        positions,
        params.temperature,
        params.seed,
        params.sample_index,
        workspace.peaks,
        workspace.peak_ids,
        workspace.sums,
        workspace.kept_ties,
        workspace.cuts,
        token_ids_out,
        last_tokens,
        VOCAB=vocab_size,
        CHUNK=chunk,
        NUM_CHUNKS=num_chunks,
        CHUNKS=chunks,
        PDL=is_pdl,
        num_warps=max(1, chunk // 256),
        **options,
    )
