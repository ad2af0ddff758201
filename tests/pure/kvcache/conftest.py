"""A small cache that sequences can be run through."""

from collections.abc import Callable

import pytest

from quire.kvcache.block_table import BlockTable
from quire.kvcache.manager import KVCacheManager


class SmallCache:
    """Four tokens per block."""

    def __init__(self, num_blocks: int = 16, **options: object) -> None:
        self.manager = KVCacheManager(num_blocks=num_blocks, block_size=4, **options)  # type: ignore[arg-type]

    def begin(self, token_ids: list[int], **options: object) -> tuple[BlockTable, int]:
        """Opens a table and computes all of its tokens."""
        table, num_cached = self.manager.open(token_ids, **options)  # type: ignore[arg-type]
        assert self.manager.grow(table, len(token_ids)) is not None
        self.manager.commit(table, token_ids, len(token_ids))
        self.manager.check_invariants()
        return table, num_cached

    def run(self, token_ids: list[int], **options: object) -> int:
        """Runs a sequence to its end; returns how many tokens came from the cache."""
        table, num_cached = self.begin(token_ids, **options)
        self.manager.close(table)
        self.manager.check_invariants()
        return num_cached

    def fill(self, num_blocks: int, token_id: int = 999) -> None:
        """Runs a sequence that takes so many blocks and is like no other."""
        self.run([token_id] * (4 * num_blocks), read_cache=False)


@pytest.fixture
def cache() -> SmallCache:
    return SmallCache()


@pytest.fixture
def make_cache() -> Callable[..., SmallCache]:
    return SmallCache
