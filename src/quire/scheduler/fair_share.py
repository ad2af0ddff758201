"""Who gives way to whom, so that every tenant gets its share.

Service is counted in tokens, divided by the tenant's weight: a virtual time per tenant, as in start-time fair
queueing (Goyal, Vin, Cheng, 1996) with the token counters of VTC (Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024). The order of the queue follows it, see `WaitingQueue`. That alone does not help who finds all
slots or blocks taken by answers that go on for long, so a tenant within its fair share may claim them from one that
exceeds its own. What a tenant holds is its dominant share of slots and blocks (Ghodsi et al., "Dominant Resource
Fairness", NSDI 2011).
"""

from collections.abc import Collection, Iterable

from quire.scheduler.sequence import Sequence
from quire.scheduler.tenant import Tenant


def choose_yielder(
    sequence: Sequence,
    running: Iterable[Sequence],
    tenants: Iterable[Tenant],
    *,
    spared: Collection[Sequence],
    num_blocks_needed: int,
    max_num_seqs: int,
    num_blocks: int,
) -> Sequence | None:
    """The running sequence that gives its slot and blocks to a waiting one of another tenant.

    The other tenant must be within its fair share with it and behind in service; who gives way must exceed its own,
    and keeps at least one sequence. So two tenants never claim from each other in turn, and each goes on.

    Args:
        sequence: The first in the queue.
        running: All that may hold a slot.
        tenants: All that are known; those that hold a slot share the engine with the one of `sequence`.
        spared: Those of `running` that do not give way, as the step holds a part of their prompt.
        num_blocks_needed: What `sequence` takes.
        max_num_seqs: All slots.
        num_blocks: All blocks.

    Returns:
        The one that loses least work, of the worst priority there is, but not of a better one than `sequence`;
        None if nobody has to give way.
    """
    claimant = sequence.tenant
    sharing = [tenant for tenant in tenants if tenant.num_running or tenant is claimant]
    sum_of_weights = sum(tenant.weight for tenant in sharing)

    def exceeds(tenant: Tenant, held: float, there_are: int) -> bool:
        return held * sum_of_weights > tenant.weight * there_are * (1 + 1e-9)

    served_more = {tenant for tenant in sharing if tenant.service > claimant.service and tenant.num_running > 1}
    if not served_more or exceeds(claimant, claimant.num_running + 1, max_num_seqs):
        return None
    held = _num_blocks_held(running)
    if exceeds(claimant, held.get(claimant, 0) + num_blocks_needed, num_blocks):
        return None
    yielding = {
        tenant
        for tenant in served_more
        if exceeds(tenant, tenant.num_running, max_num_seqs) or exceeds(tenant, held.get(tenant, 0), num_blocks)
    }
    candidates = [
        other
        for other in running
        if other.tenant in yielding
        and other.slot is not None
        and other.rank[0] >= sequence.rank[0]
        and other not in spared
    ]
    return max(candidates, key=_willingness, default=None)


def _num_blocks_held(running: Iterable[Sequence]) -> dict[Tenant, int]:
    held: dict[Tenant, int] = {}
    for sequence in running:
        if sequence.table is not None:
            held[sequence.tenant] = held.get(sequence.tenant, 0) + len(sequence.table.block_ids)
    return held


def _willingness(sequence: Sequence) -> tuple[int, int, int]:
    priority, arrival = sequence.rank
    return priority, sequence.num_reused_tokens - sequence.num_computed_tokens, arrival
