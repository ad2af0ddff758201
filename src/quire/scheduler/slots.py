"""Who runs: the sequences that hold a slot and a table of blocks."""

from quire.kvcache.block_table import BlockTable
from quire.kvcache.manager import KVCacheManager
from quire.scheduler import invariants
from quire.scheduler.intake import num_blocks_for
from quire.scheduler.sequence import Sequence
from quire.types.ids import SlotIndex
from quire.types.plan import StepPlan


class Slots:
    """Gives slots and tables to sequences and takes them back.

    Attributes:
        running: In the order in which they entered. Those that have left their slot stay until `sort_out`.
    """

    def __init__(self, cache: KVCacheManager, max_num_seqs: int) -> None:
        self._cache = cache
        self._max_num_seqs = max_num_seqs
        self.running: list[Sequence] = []
        self._has_left = False
        self._free = [SlotIndex(index) for index in reversed(range(max_num_seqs))]
        self._released: list[SlotIndex] = []

    @property
    def num_running(self) -> int:
        """Sequences in a slot."""
        return self._max_num_seqs - len(self._free)

    def sort_out(self) -> None:
        """Drops those that have left from `running`."""
        if self._has_left:
            self.running = [sequence for sequence in self.running if sequence.slot is not None]
            self._has_left = False

    def take_released(self) -> list[SlotIndex]:
        """The slots that were left since the last call."""
        released, self._released = self._released, []
        return released

    def prepare(self, sequence: Sequence, plan: StepPlan, last_step: int) -> bool:
        """Gives a sequence a table with what it can reuse, if a slot is free and all that it is known to need fits.

        Args:
            sequence: Has neither slot nor table.
            plan: Gets the copies of blocks that the table needs.
            last_step: The last plan that was handed out; what it computes can be reused.

        Returns:
            Whether it got one; otherwise nothing has changed.
        """
        if not self._free:
            return False
        cache = self._cache
        num_free_before = cache.num_free_blocks
        if self.num_running and num_free_before < sequence.num_blocks_needed:
            return False
        source = self._fork_source(sequence, last_step)
        if source is not None:
            assert source.table is not None
            forked = cache.fork(source.table, sequence.num_prompt_tokens - 1)
            if forked is None:
                return False
            (table, copies), num_reused = forked, sequence.num_prompt_tokens - 1
        else:
            request = sequence.request
            table, num_reused = cache.open(
                sequence.token_ids, salt=request.cache_salt, adapter=request.adapter, read_cache=sequence.reads_cache
            )
            copies = []
        # A block for each that runs is left free: entering now and being preempted soon would cost more.
        num_missing = num_blocks_for(sequence, cache) - len(table.block_ids) + self.num_running
        if num_missing > cache.num_free_blocks:
            # Remembered, so that a long prompt is not looked up in vain in every step.
            sequence.num_blocks_needed = num_missing + num_free_before - cache.num_free_blocks
            cache.close(table)
            return False
        sequence.table, sequence.num_reused_tokens = table, num_reused
        plan.block_copies += copies
        return True

    def _fork_source(self, sequence: Sequence, last_step: int) -> Sequence | None:
        """Another sample of the request, in a slot, whose prompt an earlier plan has computed."""
        if not sequence.reads_cache or (sequence.num_preemptions and self._cache.enable_prefix_caching):
            # In the second case its own outputs may be in the cache as well.
            return None
        return sequence.group.sharer(last_step)

    def enter(self, sequence: Sequence) -> BlockTable:
        """Puts a sequence that was prepared into a slot. Returns its table."""
        table = sequence.table
        assert table is not None, "it was not prepared"
        sequence.slot = self._free.pop()
        sequence.num_computed_tokens = sequence.num_reused_tokens
        sequence.tenant.num_running += 1
        sequence.charge(sequence.num_reused_tokens)
        self.running.append(sequence)
        return table

    def leave(self, sequence: Sequence, *, keep_content: bool) -> None:
        """Takes slot and table from a sequence. Its blocks can be reused at once, because plans execute in order.

        Args:
            sequence: Holds both.
            keep_content: Whether others may find what it has computed in the cache.
        """
        slot, table = sequence.slot, sequence.table
        assert slot is not None and table is not None
        if keep_content:
            num_known = min(sequence.num_computed_tokens, len(sequence.token_ids))
            self._cache.commit(table, sequence.token_ids, num_known)
        self._cache.close(table)
        sequence.charge()
        sequence.tenant.num_running -= 1
        self._released.append(slot)
        self._free.append(slot)
        self._has_left = True
        sequence.slot = sequence.table = None
        sequence.num_computed_tokens = 0
        sequence.shareable_after_step = 0
        sequence.num_blocks_needed = 0
        sequence.num_ready_tokens = 0

    def check_invariants(self) -> list[Sequence]:
        """Asserts that every slot is either free or held by one sequence; returns those."""
        running = [sequence for sequence in self.running if sequence.slot is not None]
        invariants.check_slots(running, self._free, self._max_num_seqs)
        if not running:
            assert self._cache.num_free_blocks == self._cache.num_blocks, "blocks leaked"
        return running
