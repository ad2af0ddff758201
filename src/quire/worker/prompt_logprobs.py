"""Log-probabilities of prompt tokens, computed in slices so that long prompts need no [T, vocabulary] at once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from quire.kernels.sample import TokenLogprobs, complete_logprobs, pick_logprobs, pick_logprobs_on_device
from quire.types.ids import SequenceId, SlotIndex
from quire.types.plan import PositionLogprobs, StepPlan
from quire.worker.batch_state import BatchState, StepRows
from quire.worker.staging import Download

_SLICE_NUM_BYTES = 64 * 1024 * 1024
_COPIES_PER_SLICE = 8
"""Of a slice of logits, while its most likely tokens are sorted out on a device."""

MAX_DEVICE_BYTES = _SLICE_NUM_BYTES * _COPIES_PER_SLICE
"""Bytes of device memory that picking log-probabilities takes at most, where the vocabulary is below 16 M tokens."""


@dataclass(slots=True)
class PromptSpan:
    """The prompt positions of one sequence that a step predicts, P of them.

    Attributes:
        logit_rows: [P] int64; rows of the step's flat token axis that predict them.
        token_ids: [P] int64; the tokens that stand there.
        num_top: Alternatives to report per position.
    """

    slot: SlotIndex
    sequence_id: SequenceId
    logit_rows: np.ndarray
    token_ids: np.ndarray
    num_top: int


def find_prompt_spans(
    state: BatchState, plan: StepPlan, rows: StepRows, num_top: dict[int, int], vocab_size: int
) -> list[PromptSpan]:
    """What the step's sequences owe: a token's row predicts the position after it, as far as that is prompt.

    Args:
        state: The sequences in the slots.
        plan: The step.
        rows: Those of its sequences that run.
        num_top: By slot, where prompt log-probabilities are asked for, the number of alternatives; -1 for all.
        vocab_size: The most alternatives there are.
    """
    if not num_top:
        return []
    spans = []
    flat_starts = rows.num_tokens.cumsum() - rows.num_tokens
    for index, slot in enumerate(rows.slots.tolist()):
        start = int(rows.starts[index])
        end = min(start + int(rows.num_tokens[index]), int(state.num_prompt_tokens[slot]) - 1)
        if slot in num_top and start < end:
            spans.append(
                PromptSpan(
                    SlotIndex(slot),
                    plan.sequence_ids[rows.plan_indices[index]],
                    flat_starts[index] + np.arange(end - start),
                    state.token_ids[slot, start + 1 : end + 1].astype(np.int64),
                    clip_num_top(num_top[slot], vocab_size),
                )
            )
    return spans


def score_span(
    span: PromptSpan, hidden: torch.Tensor, compute_logits: Callable[[torch.Tensor], torch.Tensor], vocab_size: int
) -> list[PositionLogprobs] | None:
    """Log-probabilities of a span from the hidden states [P, hidden] of its rows; None where they hold NaN."""
    scored: list[PositionLogprobs] = []
    slice_length = _slice_length(vocab_size)
    for start in range(0, len(span.token_ids), slice_length):
        stop = start + slice_length
        logprobs = torch.log_softmax(compute_logits(hidden[start:stop]), dim=-1)
        picked = pick_logprobs(logprobs, span.token_ids[start:stop], span.num_top)
        if np.isnan(picked.logprobs).any():
            return None
        scored += to_positions(picked)
    return scored


class PendingPositions:
    """Log-probabilities of positions on their way from the device, in order."""

    def __init__(self) -> None:
        self._parts: list[tuple[Download, Download, Download]] = []

    def add(self, logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> None:
        """Picks the entries of further positions and sends them off. Does not wait for the device.

        Args:
            logits: [L, V] float32 contiguous; may be overwritten by what is launched afterwards.
            token_ids: [L] int32; the tokens that stand there.
            num_top: Alternatives to report.
        """
        slice_length = _slice_length(logits.shape[1])
        for start in range(0, len(logits), slice_length):
            stop = start + slice_length
            picked = pick_logprobs_on_device(logits[start:stop], token_ids[start:stop], num_top)
            self._parts.append((Download(picked.token_ids), Download(picked.logprobs), Download(picked.ranks)))

    def read(self) -> list[TokenLogprobs]:
        """The entries, in pieces; only once the stream has been waited for."""
        return [complete_logprobs(*(download.numpy() for download in part)) for part in self._parts]


@dataclass(slots=True)
class PendingPromptLogprobs:
    """What a step on a device owes of one prompt."""

    span: PromptSpan
    positions: PendingPositions

    def read(self) -> list[PositionLogprobs] | None:
        """One entry per position, None where they hold NaN; only once the stream has been waited for."""
        pieces = self.positions.read()
        if any(np.isnan(piece.logprobs).any() for piece in pieces):
            return None
        return [position for piece in pieces for position in to_positions(piece)]


def launch_span(
    span: PromptSpan, hidden: torch.Tensor, compute_logits: Callable[[torch.Tensor], torch.Tensor], vocab_size: int
) -> PendingPromptLogprobs:
    """`score_span` for a device: launches it, and waits for nothing."""
    positions = PendingPositions()
    token_ids = torch.from_numpy(span.token_ids.astype(np.int32))
    if hidden.is_cuda:
        token_ids = token_ids.pin_memory()
    token_ids = token_ids.to(hidden.device, non_blocking=True)
    slice_length = _slice_length(vocab_size)
    for start in range(0, len(token_ids), slice_length):
        stop = start + slice_length
        positions.add(compute_logits(hidden[start:stop]), token_ids[start:stop], span.num_top)
    return PendingPromptLogprobs(span, positions)


def _slice_length(vocab_size: int) -> int:
    """Rows of logits that are looked at together."""
    return max(1, _SLICE_NUM_BYTES // (4 * vocab_size))


def clip_num_top(num_logprobs: int, vocab_size: int) -> int:
    """Alternatives to report for a `logprobs` parameter: -1 asks for all."""
    return vocab_size if num_logprobs == -1 else min(num_logprobs, vocab_size)


def to_positions(picked: TokenLogprobs) -> list[PositionLogprobs]:
    """One value per position."""
    columns = (picked.token_ids.tolist(), picked.logprobs.tolist(), picked.ranks.tolist())
    return [PositionLogprobs(*entry) for entry in zip(*columns, strict=True)]
