"""Log-probabilities without a normalised copy of the logits: two passes over a row, one program per row."""

import torch
import triton
import triton.language as tl

_INFINITY = tl.constexpr(float("inf"))
_TOKENS = 4096


@triton.jit(do_not_specialize_on_alignment=["token_ids", "logprobs", "ranks", "peaks", "log_sums"])
def _logprobs_kernel(logits, token_ids, logprobs, ranks, peaks, log_sums, VOCAB: tl.constexpr, TOKENS: tl.constexpr):
    """Of one row: log-probability and rank of its token; peak and logarithm of the sum relative to it."""
    row = tl.program_id(0)
    row_logits = logits + row.to(tl.int64) * VOCAB
    token_id = tl.maximum(tl.load(token_ids + row), 0)
    lane = tl.arange(0, TOKENS)

    peak_of_lane = tl.full([TOKENS], -_INFINITY, tl.float32)
    sum_of_lane = tl.zeros([TOKENS], tl.float32)
    has_nan = tl.zeros([TOKENS], tl.int32)
    for start in range(0, VOCAB, TOKENS):
        values = tl.load(row_logits + start + lane, mask=start + lane < VOCAB, other=-_INFINITY)
        has_nan |= (values != values).to(tl.int32)
        peak = tl.maximum(peak_of_lane, tl.where(values != values, 0.0, values))
        origin = tl.where(tl.abs(peak) == _INFINITY, 0.0, peak)
        sum_of_lane = sum_of_lane * tl.exp(peak_of_lane - origin) + tl.exp(tl.minimum(values, peak) - origin)
        peak_of_lane = peak
    peak = tl.max(peak_of_lane, 0)
    is_valid = (tl.abs(peak) != _INFINITY) & (tl.max(has_nan, 0) == 0)
    origin = tl.where(is_valid, peak, 0.0)
    scaled = tl.where(sum_of_lane > 0.0, sum_of_lane * tl.exp(tl.minimum(peak_of_lane - origin, 0.0)), 0.0)
    log_sum = tl.where(is_valid, tl.log(tl.where(is_valid, tl.sum(scaled, 0), 1.0)), float("nan"))
    own = (tl.load(row_logits + token_id) - origin) - log_sum
    num_greater = tl.zeros([TOKENS], tl.int32)
    for start in range(0, VOCAB, TOKENS):
        values = tl.load(row_logits + start + lane, mask=start + lane < VOCAB, other=-_INFINITY)
        # By the rounded log-probabilities, like the alternatives' ranks: equal ones share a rank.
        num_greater += (((values - origin) - log_sum) > own).to(tl.int32)
    tl.store(logprobs + row, own)
    tl.store(ranks + row, tl.sum(num_greater, 0) + 1)
    tl.store(peaks + row, origin)
    tl.store(log_sums + row, log_sum)


def own_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities and ranks of tokens; what turns logits into log-probabilities.

    Args:
        logits: [L, V] float32 contiguous.
        token_ids: [L] int32; negative ones are read as 0.

    Returns:
        Log-probabilities [L] float32, NaN where the row holds NaN or +inf, or -inf only; ranks [L] int32; peaks and
        log_sums [L] float32: a log-probability is (logit - peak) - log_sum.
    """
    num_rows, vocab_size = logits.shape
    logprobs, peaks, log_sums = logits.new_empty(3, num_rows).unbind(0)
    ranks = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    if num_rows:
        _logprobs_kernel[(num_rows,)](
            logits,
            token_ids,
            logprobs,
            ranks,
            peaks,
            log_sums,
            VOCAB=vocab_size,
            TOKENS=min(_TOKENS, triton.next_power_of_2(vocab_size)),
            num_warps=16,
        )
    return logprobs, ranks, peaks, log_sums
