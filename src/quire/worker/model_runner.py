"""One step on one device: applies the plan, runs the model, draws the next tokens."""

import time

import numpy as np
import torch

from quire.kernels.block_copy import copy_blocks
from quire.kernels.sample import DrawTokens, SamplingBatch, draw_tokens, pick_logprobs
from quire.types.ids import SequenceId, SlotIndex
from quire.types.plan import PositionLogprobs, StepPlan, StepResult
from quire.worker.batch_state import BatchState, StepRows
from quire.worker.failures import add_failure
from quire.worker.prompt_logprobs import PromptSpan, clip_num_top, find_prompt_spans, score_span, to_positions
from quire.worker.sampling_state import SamplingState
from quire.worker.step_model import StepModel
from quire.worker.token_masks import wait_for_mask

_NO_TOKEN = 0


class ModelRunner:
    """Runs plans in order on the sequences that it holds.

    Args:
        model: Runs the forward pass.
        kv_caches: What a copy of a block copies, each [num_blocks, block_size, ...].
        draw: The sampler.
    """

    def __init__(
        self,
        model: StepModel,
        kv_caches: list[tuple[torch.Tensor, torch.Tensor]],
        *,
        max_num_seqs: int,
        max_model_len: int,
        vocab_size: int,
        draw: DrawTokens = draw_tokens,
    ) -> None:
        self._model = model
        self._draw = draw
        self._kv_caches = kv_caches
        self._vocab_size = vocab_size
        self.sampling = SamplingState(max_num_seqs=max_num_seqs, vocab_size=vocab_size)
        self.state = BatchState(
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            block_size=kv_caches[0][0].shape[1],
            vocab_size=vocab_size,
            sampling=self.sampling,
        )

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one plan. Modifies the state of the slots that it names and the KV cache.

        When it raises, the plan's slots are empty; later plans can run.
        """
        started = time.perf_counter()
        result = StepResult(step=plan.step, token_ids=[_NO_TOKEN] * sum(plan.samples))
        try:
            if plan.block_copies:
                copy_blocks(self._kv_caches, plan.block_copies)
            result.failures = self.state.apply(plan)
            rows = self.state.select(plan, result.failures)
            if len(rows.slots):
                self._run(plan, rows, result)
        except BaseException:
            self.state.vacate_all(plan)
            raise
        result.execute_seconds = time.perf_counter() - started
        return result

    def _run(self, plan: StepPlan, rows: StepRows, result: StepResult) -> None:
        """Computes the rows, then draws; fills in `result`."""
        spans = find_prompt_spans(self.state, plan, rows, self.sampling.num_prompt_logprobs, self._vocab_size)
        drawing_rows = (rows.num_tokens.cumsum() - 1)[rows.samples]
        num_samples = len(drawing_rows)
        logit_rows = np.concatenate([drawing_rows, *(span.logit_rows for span in spans)])
        self.state.advance(rows)
        hidden = self._model.run(self.state, rows, logit_rows)
        if num_samples:
            self._sample(plan, rows, hidden[:num_samples], result)
        if spans:
            self._score_prompts(spans, hidden[num_samples:], result)

    def _sample(self, plan: StepPlan, rows: StepRows, hidden: torch.Tensor, result: StepResult) -> None:
        """Draws the next tokens of the rows that want one; their hidden states are [N, hidden]."""
        slots = rows.slots[rows.samples]
        plan_indices = rows.plan_indices[rows.samples]
        logits = self._model.compute_logits(hidden)
        scored = self._scored_rows(slots)
        # Before the sampler edits the logits in place.
        logprobs = torch.log_softmax(logits[scored], dim=-1) if scored else None
        batch = self._sampling_batch(slots)
        batch.mask = wait_for_mask(plan, plan_indices)
        token_ids, failed = self._draw(logits, batch)
        self.state.append_tokens(slots, token_ids)
        self.sampling.append(slots, token_ids)
        result.token_ids = _spread(token_ids, plan, plan_indices)
        if logprobs is not None:
            num_tops = [self._num_top(int(slots[row])) for row in scored]
            picked = _pick_by_width(logprobs, token_ids[scored], num_tops)
            result.logprobs = {
                plan.sequence_ids[plan_indices[row]]: entry for row, entry in zip(scored, picked, strict=True)
            }
        for row in np.flatnonzero(failed).tolist():
            index = plan_indices[row]
            is_exhausted = bool(logits[row].max() == -torch.inf)
            self._fail(plan.slots[index], plan.sequence_ids[index], result, is_exhausted=is_exhausted)

    def _sampling_batch(self, slots: np.ndarray) -> SamplingBatch:
        """How the next tokens of `slots` [N] are drawn."""
        state = self.state
        return self.sampling.batch(slots, state.token_ids, state.num_prompt_tokens, state.num_tokens)

    def _scored_rows(self, slots: np.ndarray) -> list[int]:
        """Rows of those slots whose log-probabilities are asked for."""
        wanted = self.sampling.num_logprobs
        return [row for row, slot in enumerate(slots.tolist()) if slot in wanted] if wanted else []

    def _num_top(self, slot: int) -> int:
        return clip_num_top(self.sampling.num_logprobs[slot], self._vocab_size)

    def _score_prompts(self, spans: list[PromptSpan], hidden: torch.Tensor, result: StepResult) -> None:
        """Fills in the log-probabilities of the spans; the hidden states [P, hidden] follow each other."""
        for span in spans:
            rows, hidden = hidden[: len(span.token_ids)], hidden[len(span.token_ids) :]
            scored = score_span(span, rows, self._model.compute_logits, self._vocab_size)
            if scored is None:
                self._fail(span.slot, span.sequence_id, result)
            else:
                result.prompt_logprobs[span.sequence_id] = scored

    def _fail(
        self, slot: SlotIndex, sequence_id: SequenceId, result: StepResult, *, is_exhausted: bool = False
    ) -> None:
        """Gives up one sequence; the others go on."""
        self.state.vacate(slot)
        add_failure(result, sequence_id, is_exhausted=is_exhausted)
        result.logprobs.pop(sequence_id, None)
        result.prompt_logprobs.pop(sequence_id, None)


def _spread(token_ids: np.ndarray, plan: StepPlan, plan_indices: np.ndarray) -> list[int]:
    """One token for each sequence of the plan that draws; those that could not run get a meaningless one."""
    num_samples = sum(plan.samples)
    if len(token_ids) == num_samples:
        tokens: list[int] = token_ids.tolist()
        return tokens
    spread = [_NO_TOKEN] * num_samples
    places = (np.cumsum(plan.samples) - 1)[plan_indices]
    for place, token_id in zip(places.tolist(), token_ids.tolist(), strict=True):
        spread[place] = token_id
    return spread


def _pick_by_width(logprobs: torch.Tensor, token_ids: np.ndarray, num_tops: list[int]) -> list[PositionLogprobs]:
    """Entries for rows [L, V] that ask for different numbers of alternatives; each width is read in one go."""
    picked: dict[int, PositionLogprobs] = {}
    for num_top in sorted(set(num_tops)):
        rows = [row for row, wanted in enumerate(num_tops) if wanted == num_top]
        chosen = logprobs if len(rows) == len(num_tops) else logprobs[rows]
        picked.update(zip(rows, to_positions(pick_logprobs(chosen, token_ids[rows], num_top)), strict=True))
    return [picked[row] for row in range(len(num_tops))]
