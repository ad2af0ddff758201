"""Log-probabilities of prompt tokens, computed in slices so that long prompts need no [T, vocabulary] at once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from quire.kernels.sample import TokenLogprobs, pick_logprobs
from quire.types.ids import SequenceId, SlotIndex
from quire.types.plan import PositionLogprobs, StepPlan
from quire.worker.batch_state import BatchState, StepRows

_SLICE_NUM_BYTES = 64 * 1024 * 1024


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


def find_prompt_spans(state: BatchState, plan: StepPlan, rows: StepRows, vocab_size: int) -> list[PromptSpan]:
    """What the step's sequences owe: a token's row predicts the position after it, as far as that is prompt."""
    num_top = state.sampling.num_prompt_logprobs
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
    slice_length = max(1, _SLICE_NUM_BYTES // (4 * vocab_size))
    for start in range(0, len(span.token_ids), slice_length):
        stop = start + slice_length
        logprobs = torch.log_softmax(compute_logits(hidden[start:stop]), dim=-1)
        picked = pick_logprobs(logprobs, span.token_ids[start:stop], span.num_top)
        if np.isnan(picked.logprobs).any():
            return None
        scored += to_positions(picked)
    return scored


def clip_num_top(num_logprobs: int, vocab_size: int) -> int:
    """Alternatives to report for a `logprobs` parameter: -1 asks for all."""
    return vocab_size if num_logprobs == -1 else min(num_logprobs, vocab_size)


def to_positions(picked: TokenLogprobs) -> list[PositionLogprobs]:
    """One value per position."""
    columns = (picked.token_ids.tolist(), picked.logprobs.tolist(), picked.ranks.tolist())
    return [PositionLogprobs(*entry) for entry in zip(*columns, strict=True)]
