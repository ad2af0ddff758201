"""Steps on a GPU: launched without waiting for anything, finished when the engine asks for their results.

    host     | launch 1 | launch 2 |      finish 1 | launch 3 | finish 2 | ...
    device              | step 1             | step 2              | step 3

The host knows how many tokens each sequence has, but not those that are still being drawn: the device keeps the
last token of every slot itself. A decode step is the replay of a CUDA graph; steps that hold parts of prompts are
launched kernel by kernel, while the device is busy with the step before.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch

from quire.kernels.block_copy import copy_blocks
from quire.kernels.paged_attention import attend
from quire.kernels.paged_attention.cuda_plan import (
    CudaAttentionMetadata,
    make_decode_workspace,
    make_decodes,
    make_tiles,
    tile_size,
)
from quire.kernels.sample import TokenMask
from quire.kernels.sample.device import EXHAUSTED
from quire.kernels.step_inputs import StepInputs, step_inputs
from quire.layers.forward_batch import ForwardBatch
from quire.types.ids import SequenceId, SlotIndex
from quire.types.plan import StepPlan, StepResult
from quire.worker.batch_state import UNKNOWN_TOKEN, BatchState, StepRows
from quire.worker.decode_graphs import DecodeGraphs
from quire.worker.device_sampling import DeviceSampling, PendingLogprobs
from quire.worker.failures import add_failure
from quire.worker.forward_inputs import token_positions
from quire.worker.moment import Moment
from quire.worker.prompt_logprobs import PendingPromptLogprobs, PromptSpan, find_prompt_spans, launch_span
from quire.worker.staging import Download, Staging
from quire.worker.step_model import Model
from quire.worker.token_masks import wait_for_mask

_NO_TOKEN = 0
_NO_BLOCK = -1


@dataclass(slots=True)
class _WaitingDraw:
    """A draw that is launched when its mask is known; see `CudaModelRunner._draw`."""

    step: "LaunchedStep"
    logits: torch.Tensor
    slots: np.ndarray
    slots_on_device: torch.Tensor
    positions: torch.Tensor


@dataclass(slots=True)
class LaunchedStep:
    """A step that the device has been told to run.

    Attributes:
        plan: What was asked for.
        rows: Its sequences that run, in the order in which the device takes them.
        failures: Those that could not even be launched.
        drawn: The tokens drawn, [N] int32 in the order of the rows that draw, negative where none could be.
        logprobs: Of those rows that ask for them.
        prompt_logprobs: Of the prompts that ask for them.
        begin, end: When the device begins and ends it.
        error: Why its draw could not be launched.
    """

    plan: StepPlan
    rows: StepRows
    failures: dict[SequenceId, str]
    begin: Moment
    end: Moment | None = None
    drawn: Download | None = None
    logprobs: PendingLogprobs | None = None
    prompt_logprobs: list[PendingPromptLogprobs] = field(default_factory=list)
    error: Exception | None = None


class CudaModelRunner:
    """Launches plans in order on the sequences that it holds.

    Runs on CPU tensors too, under Triton's interpreter and without graphs: for tests.

    Args:
        model: Loaded, on the device.
        kv_caches: Per layer keys and values, each [num_blocks, block_size, num_kv_heads, head_dim].
        num_heads: Of the queries.
        graph_buckets: Batch sizes whose decode step becomes a CUDA graph; none for kernel by kernel.
        on_stream: What a draw that `finish` still has to launch is launched in; `launch` is called there.
    """

    def __init__(
        self,
        model: Model,
        kv_caches: list[tuple[torch.Tensor, torch.Tensor]],
        *,
        num_heads: int,
        max_num_seqs: int,
        max_model_len: int,
        vocab_size: int,
        graph_buckets: Sequence[int] = (),
        on_stream: Callable[[], AbstractContextManager[None]] = torch.inference_mode,
    ) -> None:
        self._on_stream = on_stream
        self._model = model
        self.kv_caches = kv_caches
        self._block_size = kv_caches[0][0].shape[1]
        self._max_model_len = max_model_len
        self._num_heads = num_heads
        self._padding_slot = max_num_seqs
        self._device = device = kv_caches[0][0].device
        self._vocab_size = vocab_size
        self.sampling = DeviceSampling(max_num_seqs=max_num_seqs, vocab_size=vocab_size, device=device)
        self.state = BatchState(
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            block_size=self._block_size,
            vocab_size=vocab_size,
            sampling=self.sampling,
        )
        tables_shape = (max_num_seqs + 1, max_model_len // self._block_size + 1)
        self._block_tables = torch.zeros(tables_shape, dtype=torch.int32, device=device)
        self._last_tokens = torch.zeros(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._drawn = torch.empty(max_num_seqs, dtype=torch.int32, device=device)
        num_kv_heads, head_dim = kv_caches[0][0].shape[2:]
        self._workspace = make_decode_workspace(
            max_num_seqs, num_heads, num_kv_heads, head_dim, dtype=model.dtype, device=device
        )
        self._tile_size = tile_size(num_heads, num_kv_heads, head_dim, model.dtype)
        self._no_tiles = torch.empty((0, 4), dtype=torch.int32, device=device)
        self._staging = Staging(device)
        self._table_staging = Staging(device)
        self._graphs: DecodeGraphs | None = None
        if graph_buckets:
            self._decode_staging = Staging(device, 4 * 4 * max(graph_buckets))
            self._decode_inputs = self._decode_staging.on_device.view(torch.int32)
            self._logits = torch.empty((max(graph_buckets), vocab_size), dtype=torch.float32, device=device)
            self._graphs = DecodeGraphs(self._run_decode, self._pad_decode, graph_buckets)
        self._failed_steps: dict[SequenceId, int] = {}
        self._waiting_draw: _WaitingDraw | None = None

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Launches one plan. Modifies the state of the slots that it names and, later, the KV cache.

        A plan with masks ends before its draw, which the next call launches: the masks come from the results of the
        plan before, and the host must not wait for them while it could take those in.

        When it raises, the plan's slots are empty; later plans can run.
        """
        self._launch_waiting_draw()
        try:
            begin = Moment(self._device)
            if plan.block_copies:
                copy_blocks(self.kv_caches, plan.block_copies)
            failures = self.state.apply(plan)
            rows = self.state.select(plan, failures)
            step = LaunchedStep(plan, rows, failures, begin)
            if len(rows.slots):
                self.sampling.flush()
                self._launch(step)
            elif self.state.table_changes:
                self._append_to_tables()
            if self._waiting_draw is None:
                step.end = Moment(self._device)
        except BaseException:
            self._waiting_draw = None
            self.state.vacate_all(plan)
            raise
        return step

    def finish(self, step: LaunchedStep) -> StepResult:
        """Waits for the device to end a step; the oldest one first."""
        if self._waiting_draw is not None and self._waiting_draw.step is step:
            with self._on_stream():
                self._launch_waiting_draw()
        if step.error is not None:
            raise step.error
        assert step.end is not None, "the step has not been launched"
        step.end.wait()
        result = StepResult(
            step=step.plan.step,
            token_ids=[_NO_TOKEN] * sum(step.plan.samples),
            failures=step.failures,
            execute_seconds=step.end.seconds_since(step.begin),
        )
        if step.drawn is not None:
            self._read_drawn(step, step.drawn.numpy(), result)
        if step.logprobs is not None:
            drawing = step.rows.plan_indices[step.rows.samples]
            for row, entry in step.logprobs.read().items():
                result.logprobs[step.plan.sequence_ids[drawing[row]]] = entry
        for pending in step.prompt_logprobs:
            self._read_prompt_logprobs(step.plan, pending, result)
        self._report_earlier_failures(step, result)
        for sequence_id in result.failures:
            result.logprobs.pop(sequence_id, None)
            result.prompt_logprobs.pop(sequence_id, None)
        return result

    @torch.inference_mode()
    def run_padded_decode(self, num_rows: int) -> None:
        """A decode step of padding, kernel by kernel, without a draw."""
        (packed,) = Staging(self._device).upload([self._padding_rows(num_rows)])
        self._decode(packed)

    @torch.inference_mode()
    def run_padded_attention(self, num_rows: int) -> None:
        """The attention of such a step alone, in each of its kinds."""
        keys, values = self.kv_caches[0]
        query = torch.zeros((num_rows, self._num_heads, keys.shape[3]), dtype=self._model.dtype, device=self._device)
        padding = torch.zeros((num_rows, 3), dtype=torch.int32, device=self._device)
        metadata = CudaAttentionMetadata(
            num_tokens=num_rows,
            decodes=padding,
            tiles=self._no_tiles,
            block_tables=self._block_tables,
            max_context_length=self._max_model_len,
            workspace=self._workspace,
        )
        for sliding_window in self._model.sliding_windows:
            attend(query, keys, values, metadata, 1.0, sliding_window)

    def capture(self, num_rows: int) -> None:
        """Captures the graph of a decode step in advance."""
        if self._graphs is not None and (bucket := self._graphs.bucket(num_rows)) is not None:
            self._graphs.ensure(bucket, draws=True)

    @torch.inference_mode()
    def run_padded_prompts(self, num_tokens: int, num_rows: int, *, draws: bool = True) -> None:
        """Computes prompts of `num_tokens` tokens altogether and draws `num_rows` tokens, all of it padding.

        With the largest numbers it takes as much memory as any step will. Writes nothing that a sequence could see.
        """
        lengths = np.full(-(-num_tokens // self._max_model_len), self._max_model_len, np.int64)
        lengths[-1] = num_tokens - lengths[:-1].sum()
        tables = np.full(len(lengths), self._padding_slot, np.int64)
        tiles = make_tiles(lengths, lengths, tables, lengths.cumsum() - lengths, self._tile_size)
        packed = self._padding_rows(num_tokens)
        logit_rows = np.arange(num_rows) % num_tokens
        draw_arrays = np.full(num_rows, self._padding_slot, np.int32), np.zeros(num_rows, np.int32)
        # A staging of its own: the start runs several of these at a time.
        staging = Staging(self._device)
        uploaded = staging.upload([packed, np.empty((0, 3), np.int32), tiles, logit_rows, *draw_arrays])
        packed_on_device, decodes, tiles_on_device, logit_rows_on_device, slots, positions = uploaded
        inputs = self._make_inputs(num_tokens)
        batch = self._make_batch(
            packed_on_device, inputs, logit_rows_on_device, decodes, tiles_on_device, self._max_model_len
        )
        logits = self._model.compute_logits(self._model(batch))
        if draws:
            self.sampling.draw(logits, slots, positions, self._drawn[:num_rows], self._last_tokens)

    def _launch(self, step: LaunchedStep) -> None:
        rows = step.rows
        spans = find_prompt_spans(self.state, step.plan, rows, self.sampling.num_prompt_logprobs, self._vocab_size)
        is_decode = bool((rows.num_tokens == 1).all() and rows.samples.all()) and not spans
        bucket = self._graphs.bucket(len(rows.slots)) if self._graphs is not None and is_decode else None
        if bucket is None:
            self._launch_kernels(step, spans)
        else:
            self._launch_graph(step, bucket)

    def _launch_graph(self, step: LaunchedStep, bucket: int) -> None:
        """A decode step of at most `bucket` sequences."""
        assert self._graphs is not None
        # The device takes rows up in order: the longest contexts first leave no long one to be waited for at the end.
        rows = step.rows = step.rows.reordered(np.argsort(-step.rows.starts, kind="stable"))
        num_rows = len(rows.slots)
        draws = step.plan.masks is None and not self.sampling.needs_eager(rows.slots)
        self._graphs.ensure(bucket, draws=draws)
        self._decode_staging.upload([self._pack_decode(rows, bucket)])
        self._graphs.replay(bucket, draws=draws)
        self.state.advance(rows)
        if draws:
            self._take_drawn(step, rows.slots)
        else:
            slots, positions = self._staging.upload(_draw_arrays(rows.slots, self.state))
            self._draw(step, self._logits[:num_rows], rows.slots, slots, positions)

    def _launch_kernels(self, step: LaunchedStep, spans: list[PromptSpan]) -> None:
        """Any step."""
        rows = step.rows
        if self.state.table_changes:
            self._append_to_tables()
        ends = rows.starts + rows.num_tokens
        flat_starts = rows.num_tokens.cumsum() - rows.num_tokens
        drawing_slots = rows.slots[rows.samples]
        logit_rows = np.concatenate(
            [(flat_starts + rows.num_tokens - 1)[rows.samples], *(span.logit_rows for span in spans)]
        )
        decodes = make_decodes(rows.num_tokens, ends, rows.slots, flat_starts)
        tiles = make_tiles(rows.num_tokens, ends, rows.slots, flat_starts, self._tile_size)
        packed = self._pack_tokens(rows)
        uploaded = self._staging.upload(
            [packed, decodes, tiles, logit_rows.astype(np.int64), *_draw_arrays(drawing_slots, self.state)]
        )
        packed_on_device, decodes_on_device, tiles_on_device, logit_rows_on_device, slots, positions = uploaded
        inputs = self._make_inputs(packed.shape[1])
        batch = self._make_batch(
            packed_on_device, inputs, logit_rows_on_device, decodes_on_device, tiles_on_device, int(ends.max())
        )
        self.state.advance(rows)
        hidden = self._model(batch)
        num_drawing = len(drawing_slots)
        if num_drawing:
            self._draw(step, self._model.compute_logits(hidden[:num_drawing]), drawing_slots, slots, positions)
        hidden = hidden[num_drawing:]
        for span in spans:
            of_span, hidden = hidden[: len(span.token_ids)], hidden[len(span.token_ids) :]
            step.prompt_logprobs.append(launch_span(span, of_span, self._model.compute_logits, self._vocab_size))

    def _run_decode(self, bucket: int, draws: bool) -> None:
        """What a graph captures: reads `bucket` rows of the fixed inputs; draws, or leaves logits in `_logits`."""
        packed = self._decode_inputs[: 4 * bucket].view(4, bucket)
        logits, positions = self._decode(packed)
        if draws:
            self.sampling.draw(logits, packed[2], positions, self._drawn[:bucket], self._last_tokens)
        else:
            self._logits[:bucket].copy_(logits)

    def _decode(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A step in which each token of packed [4, N], see `step_inputs`, is a sequence of its own.

        Returns:
            Logits [N, V] float32, and the positions [N] int32 of the tokens that follow.
        """
        bucket = packed.shape[1]
        inputs = self._make_inputs(bucket)
        inputs.decodes = torch.empty((bucket, 3), dtype=torch.int32, device=self._device)
        inputs.draw_positions = torch.empty(bucket, dtype=torch.int32, device=self._device)
        batch = self._make_batch(packed, inputs, None, inputs.decodes, self._no_tiles, self._max_model_len)
        return self._model.compute_logits(self._model(batch)), inputs.draw_positions

    def _pack_decode(self, rows: StepRows, bucket: int) -> np.ndarray:
        """[4, bucket] int32 for `step_inputs`, padded. New blocks go along where there is one per sequence."""
        packed = self._padding_rows(bucket)
        num_rows = len(rows.slots)
        packed[0, :num_rows] = self.state.token_ids[rows.slots, rows.starts]
        packed[1, :num_rows] = rows.starts
        packed[2, :num_rows] = rows.slots
        changes = self.state.table_changes
        if changes:
            position_of = dict(zip(rows.slots.tolist(), range(num_rows), strict=True))
            first_positions = rows.starts
            block_size = self._block_size
            for slot, first, block_ids in changes:
                row = position_of.get(slot)
                if row is None or len(block_ids) != 1 or first_positions[row] != first * block_size:
                    self._append_to_tables()
                    packed[3] = _NO_BLOCK
                    break
                packed[3, row] = block_ids[0]
        return packed

    def _padding_rows(self, bucket: int) -> np.ndarray:
        packed = np.full((4, bucket), -1, np.int32)
        packed[0] = 0
        packed[2] = self._padding_slot
        return packed

    def _pad_decode(self, bucket: int) -> None:
        self._decode_staging.upload([self._padding_rows(bucket)])

    def _pack_tokens(self, rows: StepRows) -> np.ndarray:
        """[4, T] int32 for `step_inputs`: every token of the step."""
        positions = token_positions(rows)
        slots = np.repeat(rows.slots, rows.num_tokens)
        packed = np.empty((4, len(slots)), np.int32)
        packed[0] = self.state.token_ids[slots, positions]
        packed[1] = positions
        packed[2] = slots
        packed[3] = _NO_BLOCK
        return packed

    def _append_to_tables(self) -> None:
        """Sends the new entries of the block tables to the device."""
        width = self._block_tables.shape[1]
        changes = self.state.table_changes
        sizes = [len(block_ids) for _, _, block_ids in changes]
        starts = np.array([slot * width + first for slot, first, _ in changes], np.int64)
        offsets = np.arange(sum(sizes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        blocks = np.fromiter((block for _, _, block_ids in changes for block in block_ids), np.int32, sum(sizes))
        index, values = self._table_staging.upload([np.repeat(starts, sizes) + offsets, blocks])
        self._block_tables.view(-1).index_copy_(0, index, values)

    def _make_batch(
        self,
        packed: torch.Tensor,
        inputs: StepInputs,
        logit_rows: torch.Tensor | None,
        decodes: torch.Tensor,
        tiles: torch.Tensor,
        max_context_length: int,
    ) -> ForwardBatch:
        """The forward pass over packed tokens [4, T] on the device, see `step_inputs`; fills in `inputs`."""
        step_inputs(packed, self._block_tables, self._last_tokens, inputs, block_size=self._block_size)
        return ForwardBatch(
            token_ids=inputs.token_ids,
            positions=packed[1],
            slot_mapping=inputs.slot_mapping,
            logit_rows=logit_rows,
            kv_caches=self.kv_caches,
            attention=CudaAttentionMetadata(
                num_tokens=packed.shape[1],
                decodes=decodes,
                tiles=tiles,
                block_tables=self._block_tables,
                max_context_length=max_context_length,
                workspace=self._workspace,
            ),
        )

    def _make_inputs(self, num_tokens: int) -> StepInputs:
        return StepInputs(
            token_ids=torch.empty(num_tokens, dtype=torch.int32, device=self._device),
            slot_mapping=torch.empty(num_tokens, dtype=torch.int64, device=self._device),
        )

    def _draw(
        self,
        step: LaunchedStep,
        logits: torch.Tensor,
        slots: np.ndarray,
        slots_on_device: torch.Tensor,
        positions: torch.Tensor,
    ) -> None:
        """Draws the next tokens of `slots` [N] from logits [N, V]; later if that takes a mask."""
        draw = _WaitingDraw(step, logits, slots, slots_on_device, positions)
        if step.plan.masks is None:
            self._launch_draw(draw, None)
        else:
            self._waiting_draw = draw

    def _launch_waiting_draw(self) -> None:
        """Waits for the masks of the last step, if it has any, and launches its draw."""
        draw, self._waiting_draw = self._waiting_draw, None
        if draw is None:
            return
        step = draw.step
        try:
            self._launch_draw(draw, wait_for_mask(step.plan, step.rows.plan_indices[step.rows.samples]))
            step.end = Moment(self._device)
        except Exception as error:  # noqa: BLE001 - raised by `finish`
            # It is this step that has failed, and not the one that is being launched.
            step.error = error
            self.state.vacate_all(step.plan)

    def _launch_draw(self, draw: _WaitingDraw, mask: TokenMask | None) -> None:
        slots = draw.slots
        drawn = self._drawn[: len(slots)]
        num_produced = self.state.num_tokens[slots] - self.state.num_prompt_tokens[slots]
        draw.step.logprobs = self.sampling.draw_eager(
            draw.logits, slots, num_produced, draw.slots_on_device, draw.positions, drawn, self._last_tokens, mask
        )
        self._take_drawn(draw.step, slots)

    def _take_drawn(self, step: LaunchedStep, slots: np.ndarray) -> None:
        """Sends the drawn tokens of `slots` to the host, which has not seen them when it plans the next step."""
        step.drawn = Download(self._drawn[: len(slots)])
        self.state.append_tokens(slots, UNKNOWN_TOKEN)

    def _read_drawn(self, step: LaunchedStep, drawn: np.ndarray, result: StepResult) -> None:
        """Fills in the tokens of the sequences that drew, and who failed."""
        rows, plan = step.rows, step.plan
        plan_indices = rows.plan_indices[rows.samples]
        for row in np.flatnonzero(drawn < 0).tolist():
            index = plan_indices[row]
            is_exhausted = bool(drawn[row] == EXHAUSTED)
            self._fail(plan, plan.slots[index], plan.sequence_ids[index], result, is_exhausted=is_exhausted)
        token_ids = np.full(len(result.token_ids), _NO_TOKEN)
        token_ids[(np.cumsum(plan.samples) - 1)[plan_indices]] = drawn
        result.token_ids = token_ids.tolist()

    def _read_prompt_logprobs(self, plan: StepPlan, pending: PendingPromptLogprobs, result: StepResult) -> None:
        scored, span = pending.read(), pending.span
        if scored is None:
            self._fail(plan, span.slot, span.sequence_id, result)
        else:
            result.prompt_logprobs[span.sequence_id] = scored

    def _fail(
        self,
        plan: StepPlan,
        slot: SlotIndex,
        sequence_id: SequenceId,
        result: StepResult,
        *,
        is_exhausted: bool = False,
    ) -> None:
        """Gives up one sequence; the others go on. A plan that was launched in the meantime may still name it."""
        if self.state.holds(slot, sequence_id):
            self.state.vacate(slot)
        add_failure(result, sequence_id, is_exhausted=is_exhausted)
        self._failed_steps[sequence_id] = plan.step

    def _report_earlier_failures(self, step: LaunchedStep, result: StepResult) -> None:
        if not self._failed_steps:
            return
        for sequence_id in step.plan.sequence_ids:
            if sequence_id in self._failed_steps:
                result.failures.setdefault(sequence_id, "it has failed in an earlier step")
        # Plans that can name it are in flight already: a few steps later nobody does.
        self._failed_steps = {
            sequence_id: failed for sequence_id, failed in self._failed_steps.items() if failed + 8 > step.plan.step
        }


def _draw_arrays(slots: np.ndarray, state: BatchState) -> list[np.ndarray]:
    """Slots and positions of the tokens to be drawn, [N] int32 each."""
    return [slots.astype(np.int32), state.num_tokens[slots].astype(np.int32)]
