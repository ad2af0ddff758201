"""Who gives way when blocks run out."""

from collections.abc import Iterable

from quire.scheduler.sequence import Sequence
from quire.scheduler.tenant import Tenant


def choose_victim(running: Iterable[Sequence]) -> Sequence | None:
    """The running sequence to preempt: worst priority first, then of the tenant with most blocks for its weight,
    then the one that loses least work.

    The one that has been served longest by rank is never chosen. It therefore runs until it ends, then the next
    in rank does, and so on: however short blocks are, two sequences cannot preempt each other for ever.

    Returns:
        None if there are not two sequences that hold a slot.
    """
    holders = [sequence for sequence in running if sequence.slot is not None]
    if len(holders) < 2:
        return None
    first = min(holders, key=lambda sequence: sequence.rank)
    held: dict[Tenant, float] = {}
    for sequence in holders:
        num_blocks = len(sequence.table.block_ids) if sequence.table is not None else 0
        held[sequence.tenant] = held.get(sequence.tenant, 0.0) + num_blocks / sequence.tenant.weight

    def willingness(sequence: Sequence) -> tuple[int, float, int, int]:
        priority, arrival = sequence.rank
        return priority, held[sequence.tenant], -num_tokens_lost(sequence), arrival

    return max((sequence for sequence in holders if sequence is not first), key=willingness)


def num_tokens_lost(sequence: Sequence) -> int:
    """Tokens to compute again after a preemption.

    What it found in the cache when it entered will be there again: others refer to it, or it has been kept
    through times as short of blocks as these. Its own blocks are the next that the cache hands out.
    """
    return sequence.num_computed_tokens - sequence.num_reused_tokens
