"""The block pool by itself."""

import pytest

from quire.kvcache.block_pool import BlockPool


def make_pool(num_blocks: int) -> tuple[BlockPool, list[int]]:
    evicted: list[int] = []
    return BlockPool(num_blocks, evicted.append), evicted


def keep(pool: BlockPool, block_ids: list[int]) -> None:
    for block_id in block_ids:
        pool.keep_content(block_id)
    pool.release(block_ids)


def test_new_blocks_are_handed_out_in_order() -> None:
    pool, _ = make_pool(4)
    assert pool.allocate(3) == [0, 1, 2]
    assert pool.allocate(1) == [3]
    assert pool.num_free == 0


def test_what_was_freed_last_is_handed_out_first_and_in_the_same_order() -> None:
    pool, _ = make_pool(8)
    block_ids = pool.allocate(3)
    pool.release(block_ids)
    assert pool.allocate(3) == block_ids


def test_too_many_blocks_are_refused_and_nothing_changes() -> None:
    pool, evicted = make_pool(4)
    keep(pool, pool.allocate(2))
    assert pool.allocate(5) is None
    assert (pool.num_free, evicted) == (4, [])
    pool.check_invariants()
    assert pool.allocate(4) is not None


def test_empty_blocks_go_before_those_that_keep_content() -> None:
    pool, evicted = make_pool(4)
    keep(pool, pool.allocate(2))
    assert pool.allocate(2) == [2, 3]
    assert evicted == []
    assert len(pool.allocate(1)) == 1
    assert evicted == [1]
    pool.check_invariants()


def test_content_is_evicted_least_recently_used_first_and_tails_before_heads() -> None:
    pool, evicted = make_pool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    keep(pool, first)
    keep(pool, second)
    pool.add_references(first)
    pool.release(first)
    pool.allocate(4)
    assert evicted == [*reversed(second), *reversed(first)]


def test_a_free_block_with_content_can_be_taken_again() -> None:
    pool, evicted = make_pool(3)
    block_ids = pool.allocate(3)
    keep(pool, block_ids)
    pool.add_references(block_ids[:2])
    pool.add_references(block_ids[:1])
    assert [pool.num_references(block_id) for block_id in block_ids] == [2, 1, 0]
    assert pool.num_free == 1
    assert pool.allocate(1) == block_ids[2:]
    assert evicted == block_ids[2:]
    pool.check_invariants()


def test_content_that_is_dropped_makes_the_block_empty() -> None:
    pool, evicted = make_pool(3)
    keep(pool, pool.allocate(3))
    pool.drop_content(1)
    assert pool.allocate(1) == [1]
    pool.drop_all_content()
    assert pool.keeping_blocks() == []
    assert pool.allocate(2) is not None
    assert evicted == []
    pool.check_invariants()


def test_releasing_a_free_block_is_our_bug() -> None:
    pool, _ = make_pool(2)
    block_ids = pool.allocate(1)
    pool.release(block_ids)
    with pytest.raises(AssertionError, match="released more often than taken"):
        pool.release(block_ids)
