"""The sampler of a device: parameters by slot, and what a step does with its logits.

Sequences enter and leave on the host; `flush` takes to the device what has changed, in one copy. Then a step draws:
most by `draw` alone, inside a CUDA graph, and those with a special row by `draw_eager`:

    logits -> mask -> edits -> bad words -> penalties -> draw -> counts, last tokens
       |                                                             |
       '---------- raw logits ----------> log-probabilities <--------'
"""

from dataclasses import dataclass

import numpy as np
import torch

from quire.kernels.sample import LogitEdits, TokenMask
from quire.kernels.sample import device as sampler
from quire.kernels.sample.device import (
    DeviceBadWords,
    DeviceEdits,
    DeviceMask,
    DevicePenalties,
    DeviceSamplingParams,
    DrawWorkspace,
)
from quire.types.plan import NewSequence, PositionLogprobs
from quire.worker.occurrences import TokenCounts
from quire.worker.prompt_logprobs import MAX_DEVICE_BYTES, PendingPositions, clip_num_top, to_positions
from quire.worker.sampling_state import SlotEdits, SlotParameters, has_penalties
from quire.worker.staging import Staging

_STAGING_BYTES = 1 << 16
_NO_IDS = np.empty(0, np.int64)


@dataclass(slots=True)
class PendingLogprobs:
    """Log-probabilities of drawn tokens on their way to the host.

    Attributes:
        rows: Rows of the drawing batch that asked for them, in the order of the groups.
        groups: Those that report equally many alternatives come together.
    """

    rows: list[int]
    groups: list[PendingPositions]

    def read(self) -> dict[int, PositionLogprobs]:
        """By row of the drawing batch; only once the stream has been waited for. Meaningless for rows that failed."""
        positions = [position for group in self.groups for piece in group.read() for position in to_positions(piece)]
        return dict(zip(self.rows, positions, strict=True))


@dataclass(slots=True)
class _Penalties:
    repetition: float
    frequency: float
    presence: float


@dataclass(slots=True)
class _BadWords:
    """The bad words of a slot that have more than one token.

    Attributes:
        ring_size: R.
        words: Last token, place of the others in `storage`, how many these are.
        storage: [R + ...] int32 on the device: the ring of the last R tokens of the answer, then the words' tokens.
    """

    ring_size: int
    words: list[tuple[int, int, int]]
    storage: torch.Tensor | None = None

    @property
    def address(self) -> int:
        """Of the storage."""
        assert self.storage is not None, "flush has not been called"
        return self.storage.data_ptr()


@dataclass(slots=True)
class _Step:
    """The rows of a step that need more than a draw. All by row of the drawing batch.

    Attributes:
        mask: Tokens that rows may draw.
        edits: Changes that the host knows.
        penalised: (row, slot).
        watched: (row, slot, tokens in the answer) of those with bad words of several tokens.
        scored: (row, alternatives) of those that report log-probabilities, grouped by alternatives.
    """

    mask: TokenMask | None
    edits: LogitEdits | None
    penalised: list[tuple[int, int]]
    watched: list[tuple[int, int, int]]
    scored: list[tuple[int, int]]

    @property
    def changes_logits(self) -> bool:
        return self.mask is not None or self.edits is not None or bool(self.penalised or self.watched)


@dataclass(slots=True)
class _Uploaded:
    """A step's arrays on the device; see `_Step`."""

    mask: DeviceMask
    edits: DeviceEdits
    penalties: DevicePenalties
    bad_words: DeviceBadWords
    rings: torch.Tensor
    scored_rows: torch.Tensor


class DeviceSampling:
    """Sampling parameters of the sequences in the slots, and everything that draws their tokens.

    Slots whose parameters cannot be honoured by `draw` alone are special: their steps take `draw_eager`.

    Args:
        max_num_seqs: Slots; slot `max_num_seqs` belongs to rows that are padding.
        vocab_size: V.
        device: Of the logits. A CPU will do, under Triton's interpreter.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self._max_num_seqs = max_num_seqs
        self._vocab_size = vocab_size
        self._device = device
        self._host = SlotParameters(max_num_seqs=max_num_seqs, vocab_size=vocab_size)
        self._params = DeviceSamplingParams.make(max_num_seqs, device)
        self._workspace = DrawWorkspace.make(max_num_seqs, vocab_size, device)
        self._counts = TokenCounts(max_num_seqs=max_num_seqs, vocab_size=vocab_size, device=device)
        self._penalties: dict[int, _Penalties] = {}
        self._bad_words: dict[int, _BadWords] = {}
        self._is_special = np.zeros(max_num_seqs, bool)
        self._arrived: dict[int, NewSequence] = {}
        self._arrivals_staging = Staging(device, max(8 * 4 * max_num_seqs, _STAGING_BYTES))
        self._step_staging = Staging(device, _STAGING_BYTES)

    @property
    def num_prompt_logprobs(self) -> dict[int, int]:
        """By slot, where asked for; -1 stands for the whole vocabulary."""
        return self._host.num_prompt_logprobs

    def enter(self, new: NewSequence) -> None:
        """Takes in the parameters of a sequence. Modifies its slot on the host; `flush` does the rest.

        Raises:
            RequestFailedError: A token id outside the vocabulary.
        """
        slot, sampling = new.slot, new.sampling
        self._host.enter(new)
        self._arrived[slot] = new
        if has_penalties(sampling):
            self._penalties[slot] = _Penalties(
                sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty
            )
        self._update_special(slot)

    def leave(self, slot: int) -> None:
        """Forgets a slot. Steps that were launched before may still draw for it."""
        self._host.leave(slot)
        self._arrived.pop(slot, None)
        self._penalties.pop(slot, None)
        self._bad_words.pop(slot, None)
        self._counts.leave(slot)
        self._is_special[slot] = False

    def flush(self) -> None:
        """Launches what brings the device up to date with the sequences that have entered. Before each step."""
        if not self._arrived:
            return
        arrived, self._arrived = self._arrived, {}
        arrays = [self._pack_params(np.array(list(arrived), np.int64))]
        penalised = [new for slot, new in arrived.items() if slot in self._penalties]
        arrays += [np.array(new.token_ids, np.int32) for new in penalised]
        for slot, new in arrived.items():
            edits = self._host.edits.get(slot)
            if edits is not None and any(before for before, _ in edits.bad_words):
                storage, self._bad_words[slot] = _watch(edits, new.token_ids[new.num_prompt_tokens :])
                arrays.append(storage)
        packed, *others = self._arrivals_staging.upload(arrays)
        sampler.write_params(self._params, packed)
        for new, token_ids in zip(penalised, others, strict=False):
            self._counts.fill(new.slot, token_ids, new.num_prompt_tokens)
        watching = [slot for slot in arrived if slot in self._bad_words]
        for slot, storage_on_device in zip(watching, others[len(penalised) :], strict=True):
            # A copy of its own: it outlives the staging buffer.
            self._bad_words[slot].storage = storage_on_device.clone()

    def needs_eager(self, slots: np.ndarray) -> bool:
        """Whether drawing for `slots` [N] takes `draw_eager`."""
        return bool(self._is_special[slots].any())

    def draw(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        token_ids_out: torch.Tensor,
        last_tokens: torch.Tensor,
    ) -> None:
        """Draws, see `quire.kernels.sample.device.draw`. Needs nothing from the host: a CUDA graph can hold it."""
        sampler.draw(logits, self._params, slots, positions, self._workspace, token_ids_out, last_tokens)

    def draw_eager(
        self,
        logits: torch.Tensor,
        slots: np.ndarray,
        num_produced: np.ndarray,
        slots_on_device: torch.Tensor,
        positions: torch.Tensor,
        token_ids_out: torch.Tensor,
        last_tokens: torch.Tensor,
        mask: TokenMask | None = None,
    ) -> PendingLogprobs | None:
        """Draws with everything that the slots ask for. Modifies `logits` where they change some.

        Args:
            logits: [N, V] float32 contiguous.
            slots: [N] int64; on the device [N] int32.
            num_produced: [N] int64; tokens in the answers, those included that only the device has seen.
            slots_on_device: See `slots`.
            positions: [N] int32; index of the drawn token in its sequence.
            token_ids_out: [N] int32; negative for rows that failed, see `draw`.
            last_tokens: [max_num_seqs + 1] int32; gets the tokens too.
            mask: Tokens that rows may draw; None where all may draw all.

        Returns:
            Log-probabilities of the raw logits, where a slot asks for them.
        """
        if mask is None and not self.needs_eager(slots):
            self.draw(logits, slots_on_device, positions, token_ids_out, last_tokens)
            return None
        step = self._plan_step(slots.tolist(), num_produced.tolist(), mask)
        uploaded = self._upload(step)
        raw = self._raw_logits(logits, step, uploaded)
        if step.mask is not None:
            sampler.apply_mask(logits, uploaded.mask)
        if step.edits is not None:
            sampler.apply_edits(logits, uploaded.edits)
        if step.watched:
            sampler.exclude_bad_words(logits, uploaded.bad_words)
        if step.penalised:
            sampler.apply_penalties(logits, uploaded.penalties)
        self.draw(logits, slots_on_device, positions, token_ids_out, last_tokens)
        if step.penalised:
            sampler.count_drawn_tokens(uploaded.penalties, token_ids_out)
        if step.watched:
            sampler.remember_drawn_tokens(uploaded.rings, token_ids_out)
        self._retire_edits(slots.tolist(), num_produced.tolist())
        return self._launch_logprobs(raw, step, uploaded, token_ids_out) if step.scored else None

    def max_bytes(self) -> int:
        """Bytes of device memory that it may take beyond what it took when it was made."""
        raw_logits = self._max_num_seqs * self._vocab_size * 4
        masks = self._max_num_seqs * -(-self._vocab_size // 32) * 4
        return self._counts.max_bytes() + raw_logits + masks + MAX_DEVICE_BYTES

    def _update_special(self, slot: int) -> None:
        host = self._host
        self._is_special[slot] = slot in host.edits or slot in host.num_logprobs or slot in self._penalties

    def _pack_params(self, slots: np.ndarray) -> np.ndarray:
        """[8, E] int32 for `write_params`."""
        host = self._host
        packed = np.empty((8, len(slots)), np.int32)
        packed[0] = slots
        packed[1] = host.temperature[slots].astype(np.float32).view(np.int32)
        packed[2] = np.minimum(host.top_k[slots], self._vocab_size)
        packed[3] = host.top_p[slots].astype(np.float32).view(np.int32)
        packed[4] = host.min_p[slots].astype(np.float32).view(np.int32)
        packed[5] = host.sample_index[slots]
        packed[6:] = host.seed[slots].view(np.int32).reshape(-1, 2).T
        return packed

    def _plan_step(self, slots: list[int], num_produced: list[int], mask: TokenMask | None) -> _Step:
        """What the rows of a batch ask for beyond a draw."""
        host = self._host
        scored = [
            (row, clip_num_top(host.num_logprobs[slot], self._vocab_size))
            for row, slot in enumerate(slots)
            if slot in host.num_logprobs
        ]
        return _Step(
            mask=mask,
            edits=host.collect_edits(slots, num_produced, _single_bad_words) if host.edits else None,
            penalised=[(row, slot) for row, slot in enumerate(slots) if slot in self._penalties],
            watched=[(row, slot, num_produced[row]) for row, slot in enumerate(slots) if slot in self._bad_words],
            scored=sorted(scored, key=lambda entry: entry[1]),
        )

    def _upload(self, step: _Step) -> _Uploaded:
        """Sends all arrays of a step in one copy."""
        edits = step.edits if step.edits is not None else LogitEdits()
        mask = step.mask if step.mask is not None else TokenMask(_NO_IDS, np.empty((0, 0), np.uint32))
        penalties = [self._penalties[slot] for _, slot in step.penalised]
        arrays = [
            np.array([row for row, _ in edits.allowed], np.int32),
            np.repeat(np.array([row for row, _ in edits.allowed], np.int32), [len(ids) for _, ids in edits.allowed]),
            np.concatenate([_NO_IDS, *(ids for _, ids in edits.allowed)]).astype(np.int32),
            edits.excluded_rows.astype(np.int32),
            edits.excluded_ids.astype(np.int32),
            edits.bias_rows.astype(np.int32),
            edits.bias_ids.astype(np.int32),
            edits.biases,
            np.array([row for row, _ in step.penalised], np.int32),
            np.array([self._counts.row(slot).data_ptr() for _, slot in step.penalised], np.int64),
            np.array([entry.repetition for entry in penalties], np.float32),
            np.array([entry.frequency for entry in penalties], np.float32),
            np.array([entry.presence for entry in penalties], np.float32),
            self._pack_bad_words(step),
            self._pack_rings(step),
            np.array([row for row, _ in step.scored], np.int32),
            mask.rows.astype(np.int32),
            np.ascontiguousarray(mask.words).view(np.int32),
        ]
        tensors = self._step_staging.upload(arrays)
        return _Uploaded(
            mask=DeviceMask(tensors[16], tensors[17]),
            edits=DeviceEdits(*tensors[:8]),
            penalties=DevicePenalties(*tensors[8:13]),
            bad_words=DeviceBadWords(tensors[13]),
            rings=tensors[14],
            scored_rows=tensors[15],
        )

    def _pack_bad_words(self, step: _Step) -> np.ndarray:
        """[7, W] int64, see `DeviceBadWords`."""
        entries = []
        for row, slot, num_produced in step.watched:
            watch = self._bad_words[slot]
            entries += [
                (row, last, watch.address + 4 * place, length, watch.address, watch.ring_size, num_produced)
                for last, place, length in watch.words
            ]
        return np.ascontiguousarray(np.array(entries, np.int64).reshape(-1, 7).T)

    def _pack_rings(self, step: _Step) -> np.ndarray:
        """[4, S] int64, see `remember_drawn_tokens`."""
        entries = [
            (row, self._bad_words[slot].address, self._bad_words[slot].ring_size, num_produced)
            for row, slot, num_produced in step.watched
        ]
        return np.ascontiguousarray(np.array(entries, np.int64).reshape(-1, 4).T)

    def _raw_logits(self, logits: torch.Tensor, step: _Step, uploaded: _Uploaded) -> torch.Tensor:
        """The logits of the rows that are scored, in their order; a copy unless they are all, and stay as they are."""
        is_all = len(step.scored) == len(logits) and step.scored[0][1] == step.scored[-1][1]
        if not step.scored or (is_all and not step.changes_logits):
            return logits
        return logits.index_select(0, uploaded.scored_rows)

    def _launch_logprobs(
        self, raw: torch.Tensor, step: _Step, uploaded: _Uploaded, token_ids: torch.Tensor
    ) -> PendingLogprobs:
        """Picks the entries of the scored rows from their raw logits [L, V]."""
        scored_ids = token_ids.index_select(0, uploaded.scored_rows)
        groups, start = [], 0
        widths = [num_top for _, num_top in step.scored]
        while start < len(widths):
            stop = start + widths.count(widths[start])
            group = PendingPositions()
            group.add(raw[start:stop], scored_ids[start:stop], widths[start])
            groups.append(group)
            start = stop
        return PendingLogprobs([row for row, _ in step.scored], groups)

    def _retire_edits(self, slots: list[int], num_produced: list[int]) -> None:
        """Forgets edits that have had their time, so that later steps need not look for any."""
        if not self._host.edits:
            return
        for slot, count in zip(slots, num_produced, strict=True):
            edits = self._host.edits.get(slot)
            if edits is not None and edits.is_over(count + 1):
                del self._host.edits[slot]
                self._update_special(slot)


def _watch(edits: SlotEdits, outputs: list[int]) -> tuple[np.ndarray, _BadWords]:
    """What the device must know of a slot's bad words, given its answer so far; and how to find it there."""
    longer = [(before, last) for before, last in edits.bad_words if before]
    ring_size = max(len(before) for before, _ in longer)
    ring = np.full(ring_size, -1, np.int32)
    for index in range(max(0, len(outputs) - ring_size), len(outputs)):
        ring[index % ring_size] = outputs[index]
    words, place = [], ring_size
    for before, last in longer:
        words.append((last, place, len(before)))
        place += len(before)
    storage = np.concatenate([ring, *(np.array(before, np.int32) for before, _ in longer)])
    return storage, _BadWords(ring_size, words)


def _single_bad_words(_slot: int, edits: SlotEdits) -> np.ndarray:
    """Bad words of one token; the device looks for the longer ones."""
    return np.array([last for before, last in edits.bad_words if not before], np.int64)
