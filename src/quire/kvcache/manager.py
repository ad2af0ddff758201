"""The KV cache as the scheduler sees it: tables that open, grow, fork and close."""

import struct
from collections.abc import Sequence
from operator import attrgetter

from quire.kvcache.block_pool import BlockPool
from quire.kvcache.block_table import NEVER, BlockTable
from quire.kvcache.prefix_index import TOKEN_BYTES, BlockHash, MissReason, PrefixIndex
from quire.types.ids import BlockId
from quire.types.stats import CacheStats

_num_tokens = attrgetter("num_tokens")
_capacity = attrgetter("capacity")


class KVCacheManager:
    """Gives blocks to sequences and shares those with equal content.

    A table refers to every block that it names; a block that several tables name is full, and nobody writes to it.
    Content outlives its last reference until the block is needed for something else, least recently used first.

    Args:
        num_blocks: Blocks that exist, at least 1.
        block_size: Tokens per block.
        enable_prefix_caching: Whether content can be found again.
        hash_block: For tests; see `PrefixIndex`.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int = 16,
        enable_prefix_caching: bool = True,
        hash_block: BlockHash | None = None,
    ) -> None:
        assert num_blocks > 0 and block_size > 0, f"{num_blocks} blocks of {block_size} tokens"
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._pool = BlockPool(num_blocks, self._on_evict)
        self._index = PrefixIndex(self._pool, num_blocks, hash_block=hash_block)
        self._tables: set[BlockTable] = set()
        self._num_queried_tokens = 0
        self._num_hit_tokens = 0
        self._num_evicted_blocks = 0
        self._misses = dict.fromkeys(MissReason, 0)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no table names, whatever they hold."""
        return self._pool.num_free

    def open(
        self, token_ids: Sequence[int], *, salt: str = "", adapter: str = "", read_cache: bool = True
    ) -> tuple[BlockTable, int]:
        """Makes a table that begins with the blocks that hold the beginning of `token_ids` already.

        Counts the lookup and, if it ended early, why.

        Args:
            token_ids: Prompt, and outputs if there are any. The last one is never taken from the cache.
            salt: Only sequences with equal salts share.
            adapter: Only sequences with equal adapters share.
            read_cache: False to begin with an empty table; what it computes is shared nevertheless.

        Returns:
            The table, and how many tokens it holds: a multiple of `block_size`, less than `len(token_ids)`.
        """
        if not self.enable_prefix_caching:
            table = BlockTable(None, NEVER)
        else:
            table = BlockTable(self._index.namespace(adapter, salt), self.block_size)
            if read_cache:
                self._take_cached(table, token_ids)
        self._tables.add(table)
        return table, table.num_tokens

    def grow(self, table: BlockTable, num_tokens: int) -> list[BlockId] | None:
        """Makes room for `num_tokens` in total, and counts them as occupied.

        Returns:
            The blocks appended; None, and nothing is changed, if there are too few free ones.
        """
        num_missing = num_tokens - table.capacity
        if num_missing <= 0:
            table.num_tokens = num_tokens
            return []
        block_size = self.block_size
        block_ids = self._pool.allocate((num_missing + block_size - 1) // block_size)
        if block_ids is not None:
            table.block_ids += block_ids
            table.capacity += len(block_ids) * block_size
            table.num_tokens = num_tokens
        return block_ids

    def commit(self, table: BlockTable, token_ids: Sequence[int], num_computed_tokens: int) -> None:
        """Lets others find the blocks that have become full. A block is looked at once.

        Args:
            table: Of the sequence; it has grown to hold the computed tokens.
            token_ids: Known tokens of the sequence, from the first on.
            num_computed_tokens: Leading tokens that are computed, or will be before any later plan. May exceed
                the known ones, which then count.
        """
        if num_computed_tokens < table.num_tokens_to_commit:
            return
        num_full_blocks = min(num_computed_tokens, len(token_ids)) // self.block_size
        if num_full_blocks > table.num_hashed_blocks:
            self._add_to_index(table, token_ids, num_full_blocks)

    def fork(self, parent: BlockTable, num_tokens: int) -> tuple[BlockTable, list[tuple[BlockId, BlockId]]] | None:
        """Makes a table with the first `num_tokens` of another: full blocks are shared, a partial one is copied.

        Returns:
            The table, and the (source, destination) pair of the copy if one is needed; None, and nothing is
            changed, if that needs a block and none is free.
        """
        assert parent in self._tables, "fork of a closed table"
        assert 0 <= num_tokens <= parent.num_tokens, f"fork at {num_tokens} of {parent.num_tokens} tokens"
        num_shared, num_partial_tokens = divmod(num_tokens, self.block_size)
        own = self._pool.allocate(1) if num_partial_tokens else []
        if own is None:
            return None
        table = BlockTable(parent.namespace, parent.num_tokens_to_commit)
        table.block_ids = parent.block_ids[:num_shared]
        self._pool.add_references(table.block_ids)
        copies = [(parent.block_ids[num_shared], block_id) for block_id in own]
        table.block_ids += own
        table.capacity = len(table.block_ids) * self.block_size
        table.num_tokens = num_tokens
        table.num_hashed_blocks = min(parent.num_hashed_blocks, num_shared)
        if table.num_tokens_to_commit != NEVER:
            table.num_tokens_to_commit = (table.num_hashed_blocks + 1) * self.block_size
        self._tables.add(table)
        return table, copies

    def close(self, table: BlockTable) -> None:
        """Gives all references up, the last block first, so that of equally old content the beginning stays longest.

        The table is empty then and must not be used any more.
        """
        assert table in self._tables, "a table is closed twice"
        self._tables.remove(table)
        self._pool.release(table.block_ids)
        table.block_ids = []
        table.num_tokens = table.capacity = table.num_hashed_blocks = 0
        table.num_tokens_to_commit = NEVER

    def reset_prefix_cache(self) -> None:
        """Forgets all content. What open tables hold, and what they go on to compute from it, is never found."""
        self._index.clear()
        self._pool.drop_all_content()
        for table in self._tables:
            table.num_tokens_to_commit = NEVER

    def statistics(self) -> CacheStats:
        """A snapshot. O(open tables)."""
        num_blocks_in_use = self.num_blocks - self._pool.num_free
        # Shared blocks are full, so that no unused slot is counted twice.
        num_wasted_slots = sum(map(_capacity, self._tables)) - sum(map(_num_tokens, self._tables))
        misses = self._misses
        return CacheStats(
            num_blocks=self.num_blocks,
            num_blocks_in_use=num_blocks_in_use,
            num_cached_blocks=self._index.num_indexed,
            num_wasted_slots=num_wasted_slots,
            num_slots_in_use=num_blocks_in_use * self.block_size,
            num_queried_tokens=self._num_queried_tokens,
            num_hit_tokens=self._num_hit_tokens,
            num_missed_no_match=misses[MissReason.NO_MATCH],
            num_missed_under_one_block=misses[MissReason.UNDER_ONE_BLOCK],
            num_missed_evicted=misses[MissReason.EVICTED],
            num_missed_other_salt=misses[MissReason.OTHER_SALT],
            num_missed_other_adapter=misses[MissReason.OTHER_ADAPTER],
            num_evicted_blocks=self._num_evicted_blocks,
        )

    def _on_evict(self, block_id: BlockId) -> None:
        self._num_evicted_blocks += 1
        self._index.evict(block_id)

    def _take_cached(self, table: BlockTable, token_ids: Sequence[int]) -> None:
        block_size = self.block_size
        self._num_queried_tokens += len(token_ids)
        num_usable_blocks = (len(token_ids) - 1) // block_size
        if num_usable_blocks <= 0:
            self._misses[MissReason.UNDER_ONE_BLOCK] += 1
            return
        assert table.namespace is not None
        packed = _pack(token_ids[: num_usable_blocks * block_size])
        block_ids, miss = self._index.match(table.namespace, packed, block_size * TOKEN_BYTES)
        if miss is not None:
            self._misses[miss] += 1
        self._pool.add_references(block_ids)
        table.block_ids = block_ids
        table.num_hashed_blocks = len(block_ids)
        table.num_tokens = table.capacity = len(block_ids) * block_size
        table.num_tokens_to_commit = table.num_tokens + block_size
        self._num_hit_tokens += table.num_tokens

    def _add_to_index(self, table: BlockTable, token_ids: Sequence[int], num_full_blocks: int) -> None:
        block_size, block_ids, namespace = self.block_size, table.block_ids, table.namespace
        assert namespace is not None
        first = table.num_hashed_blocks
        packed = _pack(token_ids[first * block_size : num_full_blocks * block_size])
        num_block_bytes = block_size * TOKEN_BYTES
        parent = block_ids[first - 1] if first else None
        start = 0
        for block_id in block_ids[first:num_full_blocks]:
            self._index.add(namespace, parent, block_id, packed[start : start + num_block_bytes])
            parent = block_id
            start += num_block_bytes
        table.num_hashed_blocks = num_full_blocks
        table.num_tokens_to_commit = (num_full_blocks + 1) * block_size

    def check_invariants(self) -> None:
        """Asserts that tables, references, free blocks and index agree. O(blocks + table entries)."""
        self._pool.check_invariants()
        self._index.check_invariants()
        references = [0] * self.num_blocks
        for table in self._tables:
            for block_id in table.block_ids:
                references[block_id] += 1
        counts = self._pool.reference_counts()
        assert references == counts, _describe_difference(references, counts)
        for table in self._tables:
            self._check_table(table)

    def _check_table(self, table: BlockTable) -> None:
        block_ids = table.block_ids
        assert len(set(block_ids)) == len(block_ids), "a table names a block twice"
        assert table.capacity == len(block_ids) * self.block_size, "capacity differs from the blocks"
        assert 0 <= table.num_tokens <= table.capacity, "more tokens than slots"
        assert table.num_hashed_blocks <= len(block_ids), "more blocks hashed than there are"
        assert table.num_tokens_to_commit in (NEVER, (table.num_hashed_blocks + 1) * self.block_size)
        for block_id in block_ids[table.num_tokens // self.block_size :]:
            assert self._pool.num_references(block_id) == 1, f"block {block_id} is shared and not full"


def _describe_difference(named: list[int], counted: list[int]) -> str:
    index = next(index for index, (left, right) in enumerate(zip(named, counted, strict=True)) if left != right)
    return f"block {index}: {counted[index]} references, named by {named[index]} tables"


def _pack(token_ids: Sequence[int]) -> bytes:
    return struct.pack(f"{len(token_ids)}I", *token_ids)
