"""Tables: what they take from the pool, share and give back."""

import pytest

PROMPT = list(range(100, 110))  # two blocks and a half


def test_growing_appends_the_blocks_that_are_missing(cache) -> None:
    table, num_cached = cache.manager.open(PROMPT)
    assert (num_cached, table.block_ids, table.capacity) == (0, [], 0)
    assert cache.manager.grow(table, 10) == [0, 1, 2]
    assert (table.block_ids, table.capacity, table.num_tokens) == ([0, 1, 2], 12, 10)
    assert cache.manager.grow(table, 12) == []
    assert table.num_tokens == 12
    assert cache.manager.grow(table, 13) == [3]
    cache.manager.check_invariants()


def test_growing_beyond_the_free_blocks_changes_nothing(make_cache) -> None:
    cache = make_cache(num_blocks=4)
    cache.run(PROMPT)
    table, _ = cache.begin(PROMPT[:5])
    before = cache.manager.statistics(), list(table.block_ids), table.num_tokens, table.capacity
    assert cache.manager.grow(table, 17) is None
    assert before == (cache.manager.statistics(), table.block_ids, table.num_tokens, table.capacity)
    cache.manager.check_invariants()
    assert len(cache.manager.grow(table, 16)) == 2


def test_a_prompt_is_found_after_its_request_has_ended(cache) -> None:
    table, _ = cache.begin(PROMPT)
    block_ids = list(table.block_ids)
    cache.manager.close(table)
    assert cache.manager.num_free_blocks == 16
    again, num_cached = cache.manager.open([*PROMPT, 1, 2, 3])
    assert (num_cached, again.block_ids) == (8, block_ids[:2])
    assert cache.manager.num_free_blocks == 14
    cache.manager.check_invariants()


def test_a_prompt_is_shared_while_its_request_runs(cache) -> None:
    first, _ = cache.begin(PROMPT)
    second, num_cached = cache.begin(PROMPT)
    assert num_cached == 8
    assert first.block_ids[:2] == second.block_ids[:2]
    assert first.block_ids[2] != second.block_ids[2]
    cache.manager.close(first)
    assert cache.manager.num_free_blocks == 13


@pytest.mark.parametrize(("num_tokens", "num_cached"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (10, 8)])
def test_the_last_token_is_always_computed(cache, num_tokens: int, num_cached: int) -> None:
    cache.run(PROMPT)
    assert cache.run(PROMPT[:num_tokens]) == num_cached


def test_outputs_are_found_too(cache) -> None:
    table, _ = cache.begin(PROMPT)
    token_ids = list(PROMPT)
    for token_id in range(10):
        token_ids.append(token_id)
        assert cache.manager.grow(table, len(token_ids)) is not None
        cache.manager.commit(table, token_ids, len(token_ids) - 1)
        cache.manager.check_invariants()
    cache.manager.close(table)
    assert cache.run([*token_ids, 1]) == 16


def test_only_what_is_known_and_computed_is_committed(cache) -> None:
    table, _ = cache.manager.open(PROMPT)
    cache.manager.grow(table, 12)
    cache.manager.commit(table, PROMPT, 7)
    assert cache.manager.statistics().num_cached_blocks == 1
    # Two tokens are pending: computed further than known.
    cache.manager.commit(table, PROMPT, 12)
    assert cache.manager.statistics().num_cached_blocks == 2
    cache.manager.commit(table, [*PROMPT, 1, 2], 12)
    assert cache.manager.statistics().num_cached_blocks == 3


def test_each_block_is_hashed_once(make_cache) -> None:
    hashed: list[bytes] = []

    def hash_block(data: bytes) -> bytes:
        hashed.append(data)
        return data[-16:]

    cache = make_cache(hash_block=hash_block)
    table, _ = cache.manager.open([1])
    cache.manager.grow(table, 16)
    for num_computed in range(17):
        cache.manager.commit(table, list(range(16)), num_computed)
    assert len(hashed) == 4
    cache.manager.close(table)
    # Two blocks come from the cache and are hashed to be found; the third is new.
    cache.begin([*range(8), 50, 51, 52, 53])
    assert len(hashed) == 4 + 2 + 1


def test_a_table_that_may_not_read_the_cache_still_fills_it(cache) -> None:
    cache.run(PROMPT)
    assert cache.run(PROMPT, read_cache=False) == 0
    assert cache.manager.statistics().num_queried_tokens == len(PROMPT)
    cache.manager.reset_prefix_cache()
    cache.run(PROMPT, read_cache=False)
    assert cache.run(PROMPT) == 8


def test_of_equal_blocks_the_first_stays_while_it_is_used(cache) -> None:
    first, _ = cache.begin(PROMPT, read_cache=False)
    second, _ = cache.begin(PROMPT, read_cache=False)
    assert cache.manager.statistics().num_cached_blocks == 2
    third, _ = cache.begin(PROMPT)
    assert third.block_ids[:2] == first.block_ids[:2]
    cache.manager.close(second)
    cache.manager.check_invariants()


def test_of_equal_blocks_the_newer_takes_the_place_of_a_free_one_and_its_children_stay(make_cache) -> None:
    cache = make_cache(num_blocks=6)
    cache.run([*range(8), 20, 21, 22, 23, 1])  # three full blocks
    table, num_cached = cache.begin(list(range(8)))  # the second is computed again, for its last token
    assert num_cached == 4
    assert cache.manager.statistics().num_cached_blocks == 3
    again, num_cached = cache.manager.open([*range(8), 20, 21, 22, 23, 1])
    assert (num_cached, again.block_ids[:2]) == (12, table.block_ids)
    cache.manager.check_invariants()


def test_without_prefix_caching_nothing_is_found_or_counted(make_cache) -> None:
    cache = make_cache(enable_prefix_caching=False)
    table, _ = cache.begin(PROMPT)
    forked, copies = cache.manager.fork(table, 9)
    assert forked.block_ids[:2] == table.block_ids[:2]
    assert copies == [(table.block_ids[2], forked.block_ids[2])]
    cache.manager.grow(forked, 16)
    cache.manager.commit(forked, list(range(16)), 16)
    assert cache.run(PROMPT) == 0
    statistics = cache.manager.statistics()
    assert (statistics.num_cached_blocks, statistics.num_queried_tokens, statistics.num_blocks_in_use) == (0, 0, 5)
    cache.manager.close(table)
    cache.manager.close(forked)
    assert cache.manager.num_free_blocks == 16


def test_a_fork_shares_full_blocks_and_copies_the_partial_one(cache) -> None:
    parent, _ = cache.begin(PROMPT)
    table, copies = cache.manager.fork(parent, 9)
    assert table.block_ids == [*parent.block_ids[:2], 3]
    assert copies == [(parent.block_ids[2], 3)]
    assert (table.num_tokens, table.capacity) == (9, 12)
    cache.manager.close(parent)
    cache.manager.check_invariants()
    assert cache.manager.statistics().num_blocks_in_use == 3


def test_a_fork_at_the_end_of_a_block_copies_nothing(cache) -> None:
    parent, _ = cache.begin(PROMPT)
    table, copies = cache.manager.fork(parent, 8)
    assert (table.block_ids, copies) == (parent.block_ids[:2], [])
    assert cache.manager.fork(parent, 0)[0].block_ids == []
    cache.manager.check_invariants()


def test_a_fork_without_a_free_block_changes_nothing(make_cache) -> None:
    cache = make_cache(num_blocks=3)
    parent, _ = cache.begin(PROMPT)
    before = cache.manager.statistics()
    assert cache.manager.fork(parent, 9) is None
    assert cache.manager.statistics() == before
    cache.manager.check_invariants()
    assert cache.manager.fork(parent, 8) is not None


def test_a_fork_goes_on_to_commit_its_own_blocks(cache) -> None:
    parent, _ = cache.begin(PROMPT)
    table, _ = cache.manager.fork(parent, 9)
    token_ids = [*PROMPT[:9], 1, 2, 3]
    cache.manager.grow(table, 12)
    cache.manager.commit(table, token_ids, 12)
    cache.manager.close(parent)
    cache.manager.close(table)
    assert cache.run([*token_ids, 4]) == 12


def test_fork_and_parent_may_both_commit_a_block_that_they_share(cache) -> None:
    parent, _ = cache.manager.open(PROMPT)
    cache.manager.grow(parent, 10)
    table, _ = cache.manager.fork(parent, 8)
    cache.manager.commit(parent, PROMPT, 8)
    cache.manager.commit(table, PROMPT, 8)
    cache.manager.check_invariants()
    cache.manager.close(parent)
    cache.manager.close(table)
    assert cache.run(PROMPT) == 8


def test_after_a_reset_nothing_old_is_found_or_comes_back(cache) -> None:
    cache.run([7] * 9)
    running, _ = cache.begin(PROMPT)
    cache.manager.reset_prefix_cache()
    cache.manager.check_invariants()
    forked, _ = cache.manager.fork(running, 9)
    token_ids = [*PROMPT, 1, 2]
    for table in (running, forked):
        cache.manager.grow(table, 12)
        cache.manager.commit(table, token_ids, 12)
    assert cache.manager.statistics().num_cached_blocks == 0
    assert cache.run(PROMPT) == 0
    assert cache.run([7] * 9) == 0
    cache.manager.close(running)
    cache.manager.close(forked)
    assert cache.run(PROMPT) == 8
    assert cache.manager.statistics().num_evicted_blocks == 0
    assert cache.manager.num_free_blocks == 16


def test_a_closed_table_is_empty_and_closing_it_again_is_our_bug(cache) -> None:
    table, _ = cache.begin(PROMPT)
    planned = table.block_ids
    cache.manager.close(table)
    assert (table.block_ids, table.num_tokens, table.capacity) == ([], 0, 0)
    assert len(planned) == 3, "a list that was read before stays as it was"
    with pytest.raises(AssertionError, match="closed twice"):
        cache.manager.close(table)
    with pytest.raises(AssertionError, match="closed table"):
        cache.manager.fork(table, 0)


def test_waste_is_what_tables_hold_beyond_their_tokens(cache) -> None:
    first, _ = cache.begin(PROMPT)
    statistics = cache.manager.statistics()
    assert (statistics.num_slots_in_use, statistics.num_wasted_slots) == (12, 2)
    cache.begin(PROMPT)  # shares two blocks, has half of one to itself
    statistics = cache.manager.statistics()
    assert (statistics.num_slots_in_use, statistics.num_wasted_slots) == (16, 4)
    assert statistics.waste == 0.25
    first.num_tokens = 12  # the scheduler's fast path
    assert cache.manager.statistics().num_wasted_slots == 2


def test_the_invariants_notice_a_block_that_leaks(cache) -> None:
    table, _ = cache.begin(PROMPT)
    table.block_ids.pop()
    table.capacity -= 4
    with pytest.raises(AssertionError, match="block 2: 1 references"):
        cache.manager.check_invariants()
