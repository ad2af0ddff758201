"""A plan in the making, and a plan in flight."""

from quire.scheduler.sequence import Sequence
from quire.types.ids import SlotIndex
from quire.types.plan import NewSequence, StepPlan


class InFlight:
    """A plan that was handed out.

    Attributes:
        rows: Its sequences, in the plan's order.
        sampled: Those of them that draw a token, in the same order; the same list where all do.
    """

    __slots__ = ("plan", "rows", "sampled")

    def __init__(self, plan: StepPlan, rows: list[Sequence], sampled: list[Sequence]) -> None:
        self.plan = plan
        self.rows = rows
        self.sampled = sampled


class Draft:
    """A plan in the making.

    Attributes:
        singles: Sequences that compute one token and draw the next; they may still be taken out again.
        chunks: Sequences that compute any number; until `seal`, `plan.num_tokens` speaks of them only.
        has_preempted: Whether a sequence gave way while it was made.
    """

    __slots__ = ("chunks", "has_preempted", "plan", "singles")

    def __init__(self, step: int) -> None:
        self.plan = StepPlan(step=step)
        self.singles: list[Sequence] = []
        self.chunks: list[Sequence] = []
        self.has_preempted = False

    def add_chunk(self, sequence: Sequence, num_tokens: int, *, samples: bool) -> None:
        """Adds a sequence that computes `num_tokens`."""
        self.chunks.append(sequence)
        self.plan.num_tokens.append(num_tokens)
        self.plan.samples.append(samples)

    def take_back(self, sequence: Sequence) -> None:
        """Undoes what the draft holds of a sequence that is no chunk. Its blocks are left to the caller."""
        assert sequence.slot is not None and sequence.table is not None
        if sequence in self.singles:
            self.singles.remove(sequence)
            sequence.num_tokens -= 1
            sequence.num_computed_tokens -= 1
            sequence.table.num_tokens -= 1
        self.plan.new_block_ids.pop(sequence.slot, None)

    def seal(self, released_slots: list[SlotIndex], before: InFlight | None) -> InFlight:
        """Completes the plan; with what the plan `before` has, where the same sequences compute one token each."""
        plan, singles = self.plan, self.singles
        plan.released_slots = released_slots
        if before is not None and not self.chunks and before.rows is before.sampled and singles == before.rows:
            same = before.plan
            plan.slots, plan.sequence_ids = same.slots, same.sequence_ids
            plan.num_tokens, plan.samples = same.num_tokens, same.samples
            return InFlight(plan, before.rows, before.rows)
        rows = singles + self.chunks
        drawing = [row for row, samples in zip(self.chunks, plan.samples, strict=True) if samples]
        plan.num_tokens = [1] * len(singles) + plan.num_tokens
        plan.samples = [True] * len(singles) + plan.samples
        plan.slots = [sequence.slot for sequence in rows]  # type: ignore[misc]
        plan.sequence_ids = [sequence.sequence_id for sequence in rows]
        return InFlight(plan, rows, singles + drawing if self.chunks else rows)


def describe(sequence: Sequence) -> NewSequence:
    """A sequence that has entered a slot, with all the blocks that it has."""
    assert sequence.slot is not None and sequence.table is not None
    return NewSequence(
        sequence_id=sequence.sequence_id,
        slot=sequence.slot,
        token_ids=list(sequence.token_ids),
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_computed_tokens=sequence.num_computed_tokens,
        block_ids=list(sequence.table.block_ids),
        sampling=sequence.sampling,
        seed=sequence.seed,
        sample_index=sequence.sample_index,
        # Under a grammar its mask keeps them out while they are not to be drawn.
        stop_token_ids=sequence.stop_token_ids if sequence.constraint is None else frozenset(),
        bad_words_token_ids=sequence.request.bad_words_token_ids,
    )
