"""The sequences in the slots, kept between steps: a plan only names what has changed."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quire.errors import RequestFailedError
from quire.types.ids import BlockId, SequenceId, SlotIndex
from quire.types.plan import NewSequence, StepPlan

UNKNOWN_TOKEN = -1
"""Stands for a token that the device has drawn and the host has not seen."""

_NOBODY = -1


class SlotSampling(Protocol):
    """Sampling parameters by slot, on whatever device."""

    def enter(self, new: NewSequence) -> None:
        """Takes in the parameters of a sequence. Raises RequestFailedError for those it cannot honour."""

    def leave(self, slot: int) -> None:
        """Forgets a slot."""


@dataclass(slots=True)
class StepRows:
    """The sequences of a plan that can run, S of them, in the plan's order unless reordered.

    Attributes:
        plan_indices: [S] int64; where each stands in the plan.
        slots: [S] int64.
        starts: [S] int64; tokens computed before this step.
        num_tokens: [S] int64; tokens computed in it.
        samples: [S] bool; whether a next token is drawn.
    """

    plan_indices: np.ndarray
    slots: np.ndarray
    starts: np.ndarray
    num_tokens: np.ndarray
    samples: np.ndarray

    def reordered(self, order: np.ndarray) -> "StepRows":
        """The same sequences in another order, [S] int64."""
        return StepRows(
            self.plan_indices[order],
            self.slots[order],
            self.starts[order],
            self.num_tokens[order],
            self.samples[order],
        )


class BatchState:
    """Tokens and block tables by slot.

        token_ids[slot]     | prompt | answer, the token drawn last included |
        num_computed        | keys and values exist          |

    A token is written here when it is drawn, so a plan that was made before anyone on the host has seen it can run.
    A slot whose sequence has failed is empty; plans made before that was known find nobody in it.

    Args:
        sampling: Told who enters and leaves a slot.

    Attributes:
        token_ids: [max_num_seqs, max_model_len + 1] int32.
        block_tables: [max_num_seqs, blocks of max_model_len + 1 tokens] int32.
        num_tokens, num_computed_tokens, num_prompt_tokens: [max_num_seqs] int64.
        table_changes: (slot, first index, blocks) that the last `apply` appended to block tables.
    """

    def __init__(
        self, *, max_num_seqs: int, max_model_len: int, block_size: int, vocab_size: int, sampling: SlotSampling
    ) -> None:
        self.block_size = block_size
        self._vocab_size = vocab_size
        # numpy's zeros take memory when they are first written: long contexts cost nothing until they are used.
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), np.int32)
        self.block_tables = np.zeros((max_num_seqs, max_model_len // block_size + 1), np.int32)
        self.num_tokens = np.zeros(max_num_seqs, np.int64)
        self.num_computed_tokens = np.zeros(max_num_seqs, np.int64)
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int64)
        self._num_table_blocks = np.zeros(max_num_seqs, np.int64)
        self._sequence_ids = np.full(max_num_seqs, _NOBODY, np.int64)
        self.table_changes: list[tuple[SlotIndex, int, list[BlockId]]] = []
        self.sampling = sampling

    def apply(self, plan: StepPlan) -> dict[SequenceId, str]:
        """Takes in a plan's differences. Modifies the slots that it names.

        Returns:
            Sequences that could not enter their slot, and why. Their slots are empty.
        """
        failures = {}
        self.table_changes = []
        for slot in plan.released_slots:
            self.vacate(slot)
        for new in plan.new_sequences:
            try:
                self._enter(new)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one sequence concerns it alone
                self.vacate(new.slot)
                failures[new.sequence_id] = f"it could not enter the batch: {error}"
        for slot, block_ids in plan.new_block_ids.items():
            if self._sequence_ids[slot] != _NOBODY:
                self._append_blocks(slot, block_ids)
        return failures

    def vacate(self, slot: SlotIndex) -> None:
        """Empties a slot."""
        self._sequence_ids[slot] = _NOBODY
        self.sampling.leave(slot)

    def vacate_all(self, plan: StepPlan) -> None:
        """Empties every slot of a plan that could not be run; what they hold can no longer be relied on."""
        for slot in plan.slots:
            self.vacate(slot)

    def select(self, plan: StepPlan, failures: dict[SequenceId, str]) -> StepRows:
        """The plan's sequences that are in their slots. Adds the others to `failures`."""
        slots = np.array(plan.slots, np.int64)
        num_tokens = np.array(plan.num_tokens, np.int64)
        samples = np.array(plan.samples, bool)
        present = self._sequence_ids[slots] == np.array(plan.sequence_ids, np.int64)
        plan_indices = np.arange(len(slots))
        if not present.all():
            for index in np.flatnonzero(~present).tolist():
                failures.setdefault(plan.sequence_ids[index], "it has failed in an earlier step")
            plan_indices = plan_indices[present]
            slots, num_tokens, samples = slots[present], num_tokens[present], samples[present]
        rows = StepRows(plan_indices, slots, self.num_computed_tokens[slots], num_tokens, samples)
        self._check(rows)
        return rows

    def advance(self, rows: StepRows) -> None:
        """Notes that the rows' tokens are being computed."""
        self.num_computed_tokens[rows.slots] = rows.starts + rows.num_tokens

    def append_tokens(self, slots: np.ndarray, token_ids: np.ndarray | int) -> None:
        """Appends the token drawn for each of `slots` [N]; `UNKNOWN_TOKEN` where it is not known here."""
        self.token_ids[slots, self.num_tokens[slots]] = token_ids
        self.num_tokens[slots] += 1

    def holds(self, slot: SlotIndex, sequence_id: SequenceId) -> bool:
        """Whether that sequence is in that slot."""
        return bool(self._sequence_ids[slot] == sequence_id)

    def check_invariants(self) -> None:
        """Asserts that every slot in use is consistent."""
        used = self._sequence_ids != _NOBODY
        assert len(set(self._sequence_ids[used].tolist())) == used.sum(), "a sequence stands in two slots"
        assert (self.num_computed_tokens[used] <= self.num_tokens[used]).all()
        assert (self.num_prompt_tokens[used] <= self.num_tokens[used]).all()
        assert (self.num_computed_tokens[used] <= self._num_table_blocks[used] * self.block_size).all()

    def _enter(self, new: NewSequence) -> None:
        slot, num_tokens = new.slot, len(new.token_ids)
        if not 0 < num_tokens < self.token_ids.shape[1]:
            raise RequestFailedError(f"it has {num_tokens} tokens, max_model_len is {self.token_ids.shape[1] - 1}")
        token_ids = np.array(new.token_ids, np.int64)
        if token_ids.min() < 0 or token_ids.max() >= self._vocab_size:
            outside = token_ids[(token_ids < 0) | (token_ids >= self._vocab_size)][0]
            raise RequestFailedError(f"token {outside} is not in the vocabulary of {self._vocab_size}")
        self.sampling.leave(slot)
        self.sampling.enter(new)
        self.token_ids[slot, :num_tokens] = token_ids
        self.num_tokens[slot] = num_tokens
        self.num_prompt_tokens[slot] = new.num_prompt_tokens
        self.num_computed_tokens[slot] = new.num_computed_tokens
        self._num_table_blocks[slot] = 0
        self._append_blocks(slot, new.block_ids)
        self._sequence_ids[slot] = new.sequence_id

    def _append_blocks(self, slot: SlotIndex, block_ids: list[BlockId]) -> None:
        start = int(self._num_table_blocks[slot])
        self.table_changes.append((slot, start, block_ids))
        self.block_tables[slot, start : start + len(block_ids)] = block_ids
        self._num_table_blocks[slot] += len(block_ids)

    def _check(self, rows: StepRows) -> None:
        """A plan that would read or write foreign memory is refused."""
        ends = rows.starts + rows.num_tokens
        known = self.num_tokens[rows.slots]
        assert (rows.num_tokens > 0).all() and (ends <= known).all(), "the plan computes tokens that do not exist"
        assert ((ends == known) == rows.samples).all(), "the plan draws tokens before the last known one is computed"
        capacity = self._num_table_blocks[rows.slots] * self.block_size
        assert (ends <= capacity).all(), "the plan computes tokens that have no block"
