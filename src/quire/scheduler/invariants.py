"""What must hold of a scheduler between any two calls."""

from collections.abc import Iterable

from quire.scheduler.draft import InFlight
from quire.scheduler.sequence import SampleGroup, Sequence
from quire.types.ids import SlotIndex


def check_slots(running: list[Sequence], free_slots: list[SlotIndex], max_num_seqs: int) -> None:
    """Asserts that every slot is either free or held by one sequence."""
    held = [sequence.slot for sequence in running if sequence.slot is not None]
    assert sorted([*held, *free_slots]) == list(range(max_num_seqs)), "a slot is lost or held twice"


def check_places(groups: Iterable[SampleGroup], running: list[Sequence], waiting: list[Sequence]) -> None:
    """Asserts that every sample runs, waits or is held, and only one of these."""
    groups = list(groups)
    samples = [sequence for group in groups for sequence in group.samples]
    held = [sequence for group in groups for sequence in group.held]
    places = [*running, *waiting, *held]
    assert len(set(places)) == len(places), "a sequence stands in two places"
    assert set(places) == set(samples), "a sequence is lost"
    assert all(len(group.held) < len(group.samples) for group in groups), "samples are held for nobody"


def check_sequence(sequence: Sequence, in_flight: Iterable[InFlight]) -> None:
    """Asserts that the counts of a sequence agree with each other, its table and the plans in flight."""
    num_drawn = sum(record.sampled.count(sequence) for record in in_flight)
    num_known = len(sequence.token_ids)
    assert not sequence.is_finished, "an ended sequence was kept"
    assert sequence.num_pending == num_drawn, "pending tokens are not those in flight"
    assert sequence.num_tokens <= sequence.max_num_tokens, "more tokens than allowed"
    if sequence.report_interval == 1:
        assert sequence.num_reported_tokens == num_known, "a report is overdue"
    else:
        assert sequence.num_reported_tokens <= num_known < sequence.report_at, "a report is overdue"
        assert sequence.num_quiet_tokens < sequence.report_at, "it would not be looked at when it is due"
    assert sequence.num_quiet_tokens < sequence.max_num_tokens, "it would not be looked at when it ends"
    if sequence.slot is None:
        assert sequence.table is None and sequence.num_computed_tokens == 0, "blocks without a slot"
        return
    assert sequence.table is not None, "a slot without blocks"
    assert sequence.num_computed_tokens < sequence.num_tokens, "nothing left to compute"
    assert sequence.num_computed_tokens == sequence.table.num_tokens, "the table counts other tokens"
    assert sequence.num_computed_tokens <= sequence.table.capacity, "tokens without a block"
    assert sequence.num_quiet_tokens <= sequence.table.num_tokens_to_commit, "a full block would not be shared"
    if sequence.num_tokens <= sequence.num_ready_tokens:
        assert not sequence.is_behind, "ready, but it wants more than one token"
        assert sequence.num_ready_tokens < sequence.max_num_tokens, "ready beyond its last token"
        assert sequence.num_ready_tokens <= sequence.table.capacity, "ready without a block"


def check_budget(running: list[Sequence], max_num_batched_tokens: int) -> None:
    """Asserts that one step can serve every sequence that wants one token, and that one of each tenant is behind."""
    active = [sequence for sequence in running if sequence.num_tokens < sequence.max_num_tokens]
    assert len(active) <= max_num_batched_tokens, "more sequences than a step can serve"
    behind = [(sequence.tenant.name, sequence.rank[0]) for sequence in running if sequence.is_behind]
    assert len(behind) == len(set(behind)), "a sequence entered while another of its tenant had not caught up"
