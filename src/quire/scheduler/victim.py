"""Who gives way when blocks run out."""

from collections.abc import Iterable

from quire.scheduler.sequence import Sequence


def choose_victim(running: Iterable[Sequence]) -> Sequence | None:
    """The running sequence to preempt: worst priority first, then the one that loses least work.

    The one that has been served longest by rank is never chosen. It therefore runs until it ends, then the next
    in rank does, and so on: however short blocks are, two sequences cannot preempt each other for ever.

    Returns:
        None if there are not two sequences that hold a slot.
    """
    holders = [sequence for sequence in running if sequence.slot is not None]
    if len(holders) < 2:
        return None
    first = min(holders, key=lambda sequence: sequence.rank)
    return max((sequence for sequence in holders if sequence is not first), key=_willingness)


def num_tokens_lost(sequence: Sequence) -> int:
    """Tokens to compute again after a preemption.

    What it found in the cache when it entered will be there again: others refer to it, or it has been kept
    through times as short of blocks as these. Its own blocks are the next that the cache hands out.
    """
    return sequence.num_computed_tokens - sequence.num_reused_tokens


def _willingness(sequence: Sequence) -> tuple[int, int, int]:
    priority, arrival = sequence.rank
    return priority, -num_tokens_lost(sequence), arrival
