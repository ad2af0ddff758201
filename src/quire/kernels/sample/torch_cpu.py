"""The vectorised sampler. Does only what the batch needs: an all-greedy batch costs one argmax.

    rows -- temperature 0 --> argmax
         '- others ---------> weights of all tokens --> draw in vocabulary order, in two levels
                                   ^ top_k, top_p: all below the row's cut set to 0

A cut is a logit. It is found by selection and by sorting the few values above it, never the vocabulary.
"""

import numpy as np
import torch

from quire.kernels.sample.batch import TOP_P_ROUNDING, LogitEdits, Penalties, SamplingBatch, TokenMask
from quire.kernels.sample.philox import uniform

_CHUNK = 256
_NUCLEUS_SIZES = (256, 4096)
_BELOW_ONE = float(np.nextafter(1.0, 0.0))


def draw_tokens(logits: torch.Tensor, batch: SamplingBatch) -> tuple[np.ndarray, np.ndarray]:
    """See `quire.kernels.sample.draw_tokens`."""
    if batch.mask is not None:
        apply_mask(logits, batch.mask)
    if batch.edits is not None:
        apply_edits(logits, batch.edits)
    if batch.penalties is not None:
        apply_penalties(logits, batch.penalties)
    values = logits.numpy()
    token_ids = values.argmax(1)  # a NaN counts as the greatest
    best = values[np.arange(len(values)), token_ids]
    failed = ~np.isfinite(best)
    drawn = (batch.temperature > 0.0) & ~failed
    if drawn.any():
        rows = np.flatnonzero(drawn)
        token_ids[rows] = _draw(logits, best, batch, rows)
    return token_ids, failed


def apply_mask(logits: torch.Tensor, mask: TokenMask) -> None:
    """Excludes the tokens that the rows of a mask may not draw. Modifies `logits` [N, V]."""
    values = logits.numpy()
    bits = np.unpackbits(mask.words.astype("<u4", copy=False).view(np.uint8), axis=1, bitorder="little")
    for row, allowed in zip(mask.rows.tolist(), bits[:, : values.shape[1]].view(bool), strict=True):
        values[row, ~allowed] = -np.inf


def apply_edits(logits: torch.Tensor, edits: LogitEdits) -> None:
    """Excludes and biases tokens. Modifies `logits` [N, V]."""
    values = logits.numpy()
    for row, allowed in edits.allowed:
        kept = values[row, allowed]
        values[row] = -np.inf
        values[row, allowed] = kept
    values[edits.excluded_rows, edits.excluded_ids] = -np.inf
    values[edits.bias_rows, edits.bias_ids] += edits.biases


def apply_penalties(logits: torch.Tensor, penalties: Penalties) -> None:
    """Makes tokens that have occurred less likely. Modifies `logits` [N, V]."""
    values = logits.numpy()
    entries = (penalties.rows, penalties.token_ids)
    kept = values[entries]
    with np.errstate(all="ignore"):  # a penalty that overflows makes its own row fail
        kept = np.where(kept > 0, kept / penalties.repetition, kept * penalties.repetition)
    kept -= penalties.frequency * penalties.output_counts
    kept -= penalties.presence * (penalties.output_counts > 0)
    values[entries] = kept


def _draw(logits: torch.Tensor, best: np.ndarray, batch: SamplingBatch, rows: np.ndarray) -> np.ndarray:
    """Tokens of `rows`, whose temperature is positive and whose largest logits are `best[rows]`."""
    weights = _weights(logits, best, batch, rows)
    vocab_size = logits.shape[1]
    limited_k = (batch.top_k[rows] > 0) & (batch.top_k[rows] < vocab_size)
    limited = np.flatnonzero(limited_k | (batch.top_p[rows] < 1.0))
    if len(limited):
        totals = _chunk_sums(weights).sum(1)
        row_values, row_weights = logits.numpy(), weights.numpy()[:, :vocab_size]
        for index in limited.tolist():
            _cut(row_values[rows[index]], row_weights[index], batch, rows[index], totals[index])
    return _draw_in_order(weights, uniform(batch.seed[rows], batch.sample_index[rows], batch.position[rows]))


def _weights(logits: torch.Tensor, best: np.ndarray, batch: SamplingBatch, rows: np.ndarray) -> torch.Tensor:
    """Probabilities of `rows` relative to the most likely token, those below min_p zero: [M, V] float32, with
    columns of zeros up to a multiple of `_CHUNK`.
    """
    vocab_size = logits.shape[1]
    padded = torch.empty(len(rows), -(-vocab_size // _CHUNK) * _CHUNK)
    padded[:, vocab_size:] = 0.0
    weights = padded[:, :vocab_size]
    taken = logits if len(rows) == len(logits) else logits[torch.from_numpy(rows)]
    torch.sub(taken, torch.from_numpy(best[rows, None]), out=weights)
    weights.mul_(torch.from_numpy((1.0 / batch.temperature[rows, None]).astype(np.float32))).exp_()
    min_p = batch.min_p[rows, None]
    if min_p.any():
        values = weights.numpy()
        np.multiply(values, values >= min_p.astype(np.float32), out=values)
    return padded


def _cut(values: np.ndarray, weights: np.ndarray, batch: SamplingBatch, row: int, total: float) -> None:
    """Sets the weights [V] of a row's tokens beyond top_k and top_p to 0; its logits are `values` [V]."""
    vocab_size, top_k = len(values), int(batch.top_k[row])
    candidates = values
    if 0 < top_k < vocab_size:
        least = np.partition(values, vocab_size - top_k)[vocab_size - top_k]
        _drop_below(least, values, weights)
        if batch.top_p[row] >= 1.0:
            return
        candidates, total = values[values >= least], weights.sum(dtype=np.float64)
    least, num_ties = _nucleus(candidates, batch, row, total)
    _drop_below(least, values, weights)
    ties = np.flatnonzero(values == least)
    weights[ties[num_ties:]] = 0.0


def _drop_below(least: np.float32, values: np.ndarray, weights: np.ndarray) -> None:
    np.multiply(weights, values >= least, out=weights)


def _nucleus(values: np.ndarray, batch: SamplingBatch, row: int, total: float) -> tuple[np.float32, int]:
    """The smallest set of logits [C], largest first, whose share of the weight `total` reaches the row's top_p.

    Returns:
        The least logit of the set, and how many logits of just this value belong to it.
    """
    limit = batch.top_p[row] * TOP_P_ROUNDING * total
    best, size_of_all = values.max(), len(values)
    for size in (*_NUCLEUS_SIZES, size_of_all):
        largest = values if size >= size_of_all else np.partition(values, size_of_all - size)[size_of_all - size :]
        falling = np.sort(largest)[::-1]
        weights = np.exp((falling.astype(np.float64) - best) / batch.temperature[row])
        weights[weights < batch.min_p[row]] = 0.0
        num_kept = max(1, int((weights.cumsum() - weights < limit).sum()))
        if num_kept < len(falling) or size >= size_of_all:
            break
    least = falling[num_kept - 1]
    return least, int((falling[:num_kept] == least).sum())


def _draw_in_order(weights: torch.Tensor, numbers: np.ndarray) -> np.ndarray:
    """Inverts the cumulative distributions [M, V] at `numbers` [M]: first over chunks, then inside one chunk."""
    sums = _chunk_sums(weights)
    index = np.arange(len(sums))
    cumulative = sums.cumsum(1)
    target = numbers * cumulative[:, -1]
    chunk = (cumulative <= target[:, None]).sum(1)
    # Rounding may not carry the rest out of its chunk.
    rest = (target - (cumulative[index, chunk] - sums[index, chunk])) / sums[index, chunk]
    inside = weights.view(len(sums), -1, _CHUNK).numpy()[index, chunk].astype(np.float64).cumsum(1)
    target = np.clip(rest, 0.0, _BELOW_ONE) * inside[:, -1]
    token_ids: np.ndarray = chunk * _CHUNK + (inside <= target[:, None]).sum(1)
    return token_ids


def _chunk_sums(weights: torch.Tensor) -> np.ndarray:
    """Sums [M, V / _CHUNK] float64 of weights [M, V]."""
    sums: np.ndarray = weights.view(len(weights), -1, _CHUNK).sum(-1).numpy()
    return sums.astype(np.float64)
