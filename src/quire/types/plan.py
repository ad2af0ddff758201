"""What the scheduler tells a worker to do in one step, and what comes back.

A plan carries differences: a sequence is described whole when it enters a slot, afterwards only by how many
tokens to compute and which blocks were added. The worker keeps the rest.
"""

from dataclasses import dataclass, field
from typing import Protocol

from quire.types.ids import BlockId, SequenceId, SlotIndex
from quire.types.sampling import SamplingParams


@dataclass(slots=True)
class NewSequence:
    """A sequence that enters a slot: for the first time, or again after a preemption.

    Attributes:
        token_ids: Prompt, then the tokens produced so far.
        num_computed_tokens: Leading tokens whose keys and values the blocks already hold.
        block_ids: All blocks, those for this step included.
        stop_token_ids: Tokens that end the sequence; masked until `sampling.min_tokens` are produced.
    """

    sequence_id: SequenceId
    slot: SlotIndex
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    block_ids: list[BlockId]
    sampling: SamplingParams
    seed: int
    sample_index: int
    stop_token_ids: frozenset[int] = frozenset()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()


class TokenMasks(Protocol):
    """Which tokens some rows of a plan may draw; computed while the device runs the step.

    Attributes:
        rows: Their indices in the plan.
    """

    rows: list[int]

    def start(self) -> None:
        """Begins to compute: the results of all plans before this one have been taken in. May be called again."""

    def result(self) -> bytearray:
        """Waits for the masks: [rows, ceil(vocabulary / 32)] uint32, a bit per token, the lowest first.

        Raises:
            CancelledError: They were cancelled.
        """

    def cancel(self) -> None:
        """Lets `result` raise, as nobody will start them any more."""


@dataclass(slots=True)
class StepPlan:
    """One step. A worker applies it in the order of the fields, then runs it, and modifies nothing in it.

    While the same sequences compute one token each, the last four lists are the very objects of the plan before.

    Attributes:
        step: Counts up from 1.
        released_slots: Slots whose sequence has left; may be filled again by `new_sequences`.
        block_copies: (source, destination) pairs whose keys and values are copied before anything is written.
        new_sequences: Sequences that enter a slot in this step; each also stands in `slots`.
        new_block_ids: Blocks appended to the tables of sequences that were already in a slot.
        slots: Slot of each sequence that runs in this step.
        sequence_ids: Their ids, in the same order.
        num_tokens: How many further tokens of each are computed, at least 1.
        samples: Whether its last computed token is its last token, so that a next one is drawn.
        masks: For the rows that draw under a grammar. `result` may be called when the plan before has been waited
            for, not earlier on the thread that waits.
    """

    step: int
    released_slots: list[SlotIndex] = field(default_factory=list)
    block_copies: list[tuple[BlockId, BlockId]] = field(default_factory=list)
    new_sequences: list[NewSequence] = field(default_factory=list)
    new_block_ids: dict[SlotIndex, list[BlockId]] = field(default_factory=dict)
    slots: list[SlotIndex] = field(default_factory=list)
    sequence_ids: list[SequenceId] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)
    masks: TokenMasks | None = None


@dataclass(slots=True)
class PositionLogprobs:
    """Log-probabilities at one position. Entry 0 is the token that stands there; then the most likely ones.

    Attributes:
        token_ids: The token itself, then the top k in falling order (the token may appear again there).
        logprobs: Natural logarithms of the raw model distribution.
        ranks: 1 for the most likely token of the vocabulary.
    """

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]


@dataclass(slots=True)
class StepResult:
    """What a step produced.

    Attributes:
        step: The plan's number.
        token_ids: The token drawn for each sequence whose `samples` is true, in the plan's order.
        logprobs: For sequences that ask for them.
        prompt_logprobs: For sequences that ask for them: the positions 1.. that this step computed, in order.
            The first prompt token has none.
        failures: Sequences that could not be computed, with a text for the log. Their token is meaningless.
        exhausted: Those among them to which nothing was left to draw, with finite logits.
        execute_seconds: Time the device (or the CPU) spent on the step.
    """

    step: int
    token_ids: list[int]
    logprobs: dict[SequenceId, PositionLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[SequenceId, list[PositionLogprobs]] = field(default_factory=dict)
    failures: dict[SequenceId, str] = field(default_factory=dict)
    exhausted: set[SequenceId] = field(default_factory=set)
    execute_seconds: float = 0.0
