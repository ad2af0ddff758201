"""Where top_k, top_p and min_p cut a row off: the least logit that is kept, without sorting the vocabulary.

The cut of top_k (or top_p) is the greatest logit at which enough stands at it or above it: enough tokens (or enough
weight). It is searched for between two bounds, in eighths: one pass over the row measures what stands above each of
seven pivots. Chunks whose peak lies below the lower bound are not read, so that later passes read little of most rows:

    low |--.--.--.--.--|--.--.--.| top        a pass over the row
                    low|'''''''''|top        the next one
                       low|''|top
"""

import triton
import triton.language as tl

from quire.kernels.sample.batch import TOP_P_ROUNDING

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_INFINITY = tl.constexpr(float("inf"))
_ROUNDING = tl.constexpr(TOP_P_ROUNDING)
_TILE = tl.constexpr(4)
"""Chunks that are read together, to have enough loads under way."""
_LOWEST = tl.constexpr(-3.0e38)
_TINY = tl.constexpr(1e-37)
_NEGLIGIBLE = tl.constexpr(90.0)
"""A token this many temperatures below the best one has no weight in float32."""


@triton.jit
def _list_chunks(chunk_list, peak, chunk, low):
    """Writes down the chunks that reach `low`, in order; returns how many there are."""
    is_active = peak >= low
    count = is_active.to(tl.int32)
    tl.debug_barrier()
    tl.store(chunk_list + tl.cumsum(count, 0) - 1, chunk, mask=is_active)
    tl.debug_barrier()
    return tl.sum(count, 0)


@triton.jit
def _load_tile(row_logits, chunk_list, first, num_listed, VOCAB: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """TILE chunks of the list: their numbers [TILE], which of them exist [TILE], their values [TILE, CHUNK]."""
    index = first + tl.arange(0, TILE)
    exists = index < num_listed
    chunk = tl.load(chunk_list + index, mask=exists, other=0)
    place = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    values = tl.load(row_logits + place, mask=exists[:, None] & (place < VOCAB), other=-_INFINITY)
    return chunk, exists, values


@triton.jit
def _pivots(low, top):
    """`low`, and seven eighths of the way to `top`."""
    step = (top - low) * 0.125
    return (
        low,
        low + step,
        low + step * 2.0,
        low + step * 3.0,
        low + step * 4.0,
        low + step * 5.0,
        low + step * 6.0,
        low + step * 7.0,
    )


@triton.jit
def _measure(values, is_count, best, scale, end, p0, p1, p2, p3, p4, p5, p6, p7):
    """What stands at or above each pivot: tokens or weight; and the least and greatest value in [p0, end).

    Sums over the first axis of values [TILE, CHUNK] only.
    """
    weights = tl.where(is_count, 1.0, tl.exp2((values - best) * scale))
    is_inside = (values >= p0) & (values < end)
    return (
        tl.sum(tl.where(values >= p0, weights, 0.0), 0),
        tl.sum(tl.where(values >= p1, weights, 0.0), 0),
        tl.sum(tl.where(values >= p2, weights, 0.0), 0),
        tl.sum(tl.where(values >= p3, weights, 0.0), 0),
        tl.sum(tl.where(values >= p4, weights, 0.0), 0),
        tl.sum(tl.where(values >= p5, weights, 0.0), 0),
        tl.sum(tl.where(values >= p6, weights, 0.0), 0),
        tl.sum(tl.where(values >= p7, weights, 0.0), 0),
        tl.min(tl.where(is_inside, values, _INFINITY), 0),
        tl.max(tl.where(is_inside, values, -_INFINITY), 0),
    )


@triton.jit
def _measure_all(
    row_logits, chunk_list, num_listed, is_count, best, scale, end, p0, p1, p2, p3, p4, p5, p6, p7,
    VOCAB: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`_measure` of the listed chunks, in total."""
    m0 = tl.zeros([CHUNK], tl.float32)
    m1, m2, m3, m4, m5, m6, m7 = m0, m0, m0, m0, m0, m0, m0
    least, greatest = m0 + _INFINITY, m0 - _INFINITY
    first = 0
    while first < num_listed:
        _, _, values = _load_tile(row_logits, chunk_list, first, num_listed, VOCAB, CHUNK, TILE)
        t0, t1, t2, t3, t4, t5, t6, t7, low, high = _measure(
            values, is_count, best, scale, end, p0, p1, p2, p3, p4, p5, p6, p7
        )
        m0, m1, m2, m3, m4, m5, m6, m7 = m0 + t0, m1 + t1, m2 + t2, m3 + t3, m4 + t4, m5 + t5, m6 + t6, m7 + t7
        least, greatest = tl.minimum(least, low), tl.maximum(greatest, high)
        first += TILE
    return (
        tl.sum(m0, 0),
        tl.sum(m1, 0),
        tl.sum(m2, 0),
        tl.sum(m3, 0),
        tl.sum(m4, 0),
        tl.sum(m5, 0),
        tl.sum(m6, 0),
        tl.sum(m7, 0),
        tl.min(least, 0),
        tl.max(greatest, 0),
    )


@triton.jit
def _at(index, v0, v1, v2, v3, v4, v5, v6, v7):
    """One of eight scalars."""
    low = tl.where(index == 1, v1, v0)
    low = tl.where(index == 2, v2, low)
    low = tl.where(index == 3, v3, low)
    low = tl.where(index == 4, v4, low)
    low = tl.where(index == 5, v5, low)
    low = tl.where(index == 6, v6, low)
    return tl.where(index == 7, v7, low)


@triton.jit
def _narrow(
    target, low, top, end, above, p0, p1, p2, p3, p4, p5, p6, p7, m0, m1, m2, m3, m4, m5, m6, m7, least, greatest
):
    """Moves the bounds to the eighth in which `target` is reached.

    The cut is in [low, end), no value in there is greater than `top`; `above` is what stands at `end` or above it.
    Returns low, top, end, above, and what stands at the new `low` or above it.
    """
    index = (
        (m1 >= target).to(tl.int32)
        + (m2 >= target).to(tl.int32)
        + (m3 >= target).to(tl.int32)
        + (m4 >= target).to(tl.int32)
        + (m5 >= target).to(tl.int32)
        + (m6 >= target).to(tl.int32)
        + (m7 >= target).to(tl.int32)
    )
    new_low = tl.maximum(_at(index, p0, p1, p2, p3, p4, p5, p6, p7), least)
    next_pivot = _at(index, p1, p2, p3, p4, p5, p6, p7, end)
    new_above = _at(index, m1, m2, m3, m4, m5, m6, m7, above)
    new_top = tl.minimum(greatest, tl.minimum(next_pivot, top))
    # All together is not enough: all is kept. And where eighths are too small for float32, nothing moves any more.
    is_stuck = (new_low == low) & (new_top == top) & (next_pivot == end)
    is_over = (m0 < target) | is_stuck
    new_low = tl.where(is_over, low, new_low)
    new_top = tl.where(is_over, low, new_top)
    return new_low, new_top, next_pivot, new_above


@triton.jit
def _sum_kept(
    row_logits, chunk_list, num_listed, peaks_row, sums_row, ties_row, cut, num_ties, scale,
    VOCAB: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sums of the weights that are kept in the listed chunks, of those just at the cut the first `num_ties`."""
    first = 0
    while first < num_listed:
        chunk, exists, values = _load_tile(row_logits, chunk_list, first, num_listed, VOCAB, CHUNK, TILE)
        peak = tl.load(peaks_row + chunk, mask=exists, other=0.0)
        weights = tl.exp2((values - peak[:, None]) * scale)
        more = tl.sum(tl.where(values > cut, weights, 0.0), 1)
        ties = tl.sum((values == cut).to(tl.int32), 1)
        ties_before = tl.cumsum(ties, 0) - ties
        kept_ties = tl.minimum(tl.maximum(num_ties - ties_before, 0), ties)
        tie_weight = tl.exp2((tl.minimum(cut, peak) - peak) * scale)
        tl.store(sums_row + chunk, more + kept_ties.to(tl.float32) * tie_weight, mask=exists)
        tl.store(ties_row + chunk, kept_ties, mask=exists)
        num_ties -= tl.sum(ties, 0)
        first += TILE


@triton.jit
def _kth_peak(peak, top_k, CHUNKS: tl.constexpr):
    """The top_k-th greatest peak, a lower bound of the top_k-th greatest logit; -inf where there are fewer."""
    if CHUNKS > 128:
        return -_INFINITY
    else:  # noqa: RET505 - decided when it is compiled
        num_greater = tl.sum((peak[None, :] >= peak[:, None]).to(tl.int32), 1)
        return tl.max(tl.where(num_greater >= top_k, peak, -_INFINITY), 0)


@triton.jit
def _search(
    is_count, target, top_p, low, best, scale, row_logits, peak, chunk, chunk_list,
    VOCAB: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Searches [low, best] for the greatest logit at which what stands at it or above it reaches `target`.

    `is_count` tells whether tokens are counted or weighed. A negative `target` stands for the share `top_p` of all
    weight at `low` or above.

    Returns the logit, what stands above it (0 where nothing had to be measured), and the target.
    """
    top, end = best, best + _INFINITY
    above = best - best
    while (low < top) | (target < 0.0):
        num_listed = _list_chunks(chunk_list, peak, chunk, low)
        p0, p1, p2, p3, p4, p5, p6, p7 = _pivots(low, top)
        m0, m1, m2, m3, m4, m5, m6, m7, least, greatest = _measure_all(
            row_logits, chunk_list, num_listed, is_count, best, scale, end, p0, p1, p2, p3, p4, p5, p6, p7,
            VOCAB, CHUNK, TILE,
        )  # fmt: skip
        target = tl.where(target < 0.0, top_p * _ROUNDING * m0, target)
        low, top, end, above = _narrow(
            target, low, top, end, above, p0, p1, p2, p3, p4, p5, p6, p7, m0, m1, m2, m3, m4, m5, m6, m7, least,
            greatest,
        )  # fmt: skip
    return low, above, target


@triton.jit
def _bounds_of_top_p(top_p, floor, best, temperature, peak, sums, scale, VOCAB: tl.constexpr):
    """The weight that the kept tokens must reach, of all in the row, and a lower bound of the cut."""
    masses = sums.to(tl.float64) * tl.exp2((peak - best) * scale).to(tl.float64)
    total = tl.sum(masses, 0).to(tl.float32)
    # Tokens of the weight w or less weigh at most w * VOCAB together.
    bound = tl.log2((1.0 - top_p * _ROUNDING) * total / VOCAB) - 0.01
    low = tl.maximum(floor, best + bound * temperature * _LN_2)
    return top_p * _ROUNDING * total, tl.minimum(low, best)


@triton.jit
def _find_cut(
    temperature, top_k, top_p, min_p, best, scale, row_logits, peak, sums, chunk, chunk_list,
    VOCAB: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The least logit that is kept, and how many tokens that have just this logit."""
    cut = tl.maximum(best - _NEGLIGIBLE * temperature, _LOWEST)
    if min_p > 0.0:
        cut = tl.maximum(cut, best + temperature * tl.log(min_p))
    limits_k = (top_k > 0) & (top_k < VOCAB)
    num_ties = VOCAB
    # First top_k, then top_p of what is left: one loop, so that the search is compiled once.
    for stage in range(2):
        is_count = stage == 0
        if (is_count & limits_k) | ((stage == 1) & (top_p < 1.0)):
            low, target = cut, -1.0
            if is_count:
                target = top_k.to(tl.float32)
                low = tl.maximum(low, _kth_peak(peak, top_k, CHUNKS))
            elif (min_p <= 0.0) & (not limits_k):
                target, low = _bounds_of_top_p(top_p, cut, best, temperature, peak, sums, scale, VOCAB)
            cut, above, target = _search(
                is_count, target, top_p, low, best, scale, row_logits, peak, chunk, chunk_list, VOCAB, CHUNK, TILE
            )
            if not is_count:
                weight = tl.maximum(tl.exp2((cut - best) * scale), _TINY)
                num_ties = tl.minimum(tl.maximum(tl.ceil((target - above) / weight), 1.0), VOCAB * 1.0).to(tl.int32)
    return cut, num_ties


@triton.jit(do_not_specialize_on_alignment=["slots"])
def cut_kernel(
    logits,
    slots,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    peaks,
    sums,
    kept_ties,
    cuts,
    chunk_lists,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Finds the cut of one row, and what is left of each chunk. See `DrawWorkspace` for the results."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    temperature, top_k = tl.load(temperatures + slot), tl.load(top_ks + slot)
    top_p, min_p = tl.load(top_ps + slot), tl.load(min_ps + slot)
    cut = -_INFINITY
    if (temperature > 0.0) & (((top_k > 0) & (top_k < VOCAB)) | (top_p < 1.0) | (min_p > 0.0)):
        row_logits = logits + row * VOCAB
        chunk_list = chunk_lists + row * NUM_CHUNKS
        chunk = tl.arange(0, CHUNKS)
        is_chunk = chunk < NUM_CHUNKS
        place = row * NUM_CHUNKS + chunk
        peak = tl.load(peaks + place, mask=is_chunk, other=-_INFINITY)
        best = tl.max(peak, 0)
        if tl.abs(best) != _INFINITY:
            scale = tl.math.div_rn(_LOG2_E, temperature)
            sum_of_chunk = tl.load(sums + place, mask=is_chunk, other=0.0)
            cut, num_ties = _find_cut(
                temperature, top_k, top_p, min_p, best, scale, row_logits, peak, sum_of_chunk, chunk, chunk_list,
                VOCAB, CHUNK, CHUNKS, _TILE,
            )  # fmt: skip
            tl.store(sums + place, 0.0, mask=is_chunk & (peak < cut))
            num_listed = _list_chunks(chunk_list, peak, chunk, cut)
            _sum_kept(
                row_logits, chunk_list, num_listed, peaks + row * NUM_CHUNKS, sums + row * NUM_CHUNKS,
                kept_ties + row * NUM_CHUNKS, cut, num_ties, scale, VOCAB, CHUNK, _TILE,
            )  # fmt: skip
    tl.store(cuts + row, cut)
