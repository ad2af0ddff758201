"""What is found again, what is not, and the reason that is given."""

import random

import pytest

from quire.kvcache.block_pool import BlockPool
from quire.kvcache.prefix_index import PrefixIndex, keyed_block_hash
from quire.types.ids import BlockId

PROMPT = list(range(100, 110))


def misses(cache) -> dict[str, int]:
    statistics = cache.manager.statistics()
    names = ("no_match", "under_one_block", "evicted", "other_salt", "other_adapter")
    return {name: count for name in names if (count := getattr(statistics, f"num_missed_{name}"))}


def test_the_hash_is_keyed_and_128_bits_long() -> None:
    first, second = keyed_block_hash(b"1" * 32), keyed_block_hash(b"2" * 32)
    assert len(first(b"data")) == 16
    assert first(b"data") == keyed_block_hash(b"1" * 32)(b"data") != second(b"data")


def test_a_block_is_found_only_behind_the_same_beginning(cache) -> None:
    cache.run([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert cache.run([5, 6, 7, 8, 5, 6, 7, 8, 9]) == 0
    assert cache.run([1, 2, 3, 4, 1, 2, 3, 4, 9]) == 4


@pytest.mark.parametrize("names", [("", "a"), ("a", ""), ("a", "b")])
def test_other_salts_never_share(cache, names: tuple[str, str]) -> None:
    first, second = names
    cache.run(PROMPT, salt=first)
    assert cache.run(PROMPT, salt=second) == 0
    assert cache.run(PROMPT, salt=second) == cache.run(PROMPT, salt=first) == 8


def test_salt_and_adapter_are_not_mixed_up(cache) -> None:
    cache.run(PROMPT, salt="x")
    assert cache.run(PROMPT, adapter="x") == 0
    cache.run(PROMPT, salt="ab", adapter="c")
    assert cache.run(PROMPT, salt="a", adapter="bc") == 0


def test_a_prompt_that_was_never_seen_has_no_match(cache) -> None:
    cache.run(PROMPT)
    assert misses(cache) == {"no_match": 1}


def test_a_prompt_that_is_found_whole_misses_nothing(cache) -> None:
    cache.run(PROMPT)
    cache.run(PROMPT)
    assert misses(cache) == {"no_match": 1}


def test_a_prompt_that_ends_differently_has_no_match_there(cache) -> None:
    cache.run(PROMPT)
    assert cache.run([*PROMPT[:4], 0, 0, 0, 0, 0]) == 4
    assert misses(cache) == {"no_match": 2}


def test_a_prompt_without_a_block_that_could_be_used_is_under_one_block(cache) -> None:
    cache.run([1, 2, 3, 4])
    cache.run([1])
    assert misses(cache) == {"under_one_block": 2}


def test_an_evicted_block_is_remembered(make_cache) -> None:
    cache = make_cache(num_blocks=4)
    cache.run(PROMPT)
    cache.fill(3)  # one block keeps its content, the first
    assert cache.run(PROMPT) == 4
    assert misses(cache) == {"no_match": 1, "evicted": 1}
    assert cache.manager.statistics().num_evicted_blocks == 3


def test_what_was_evicted_is_remembered_in_bounds(make_cache) -> None:
    cache = make_cache(num_blocks=4)
    cache.run(PROMPT)
    for token_id in range(8):
        cache.fill(4, token_id)
    cache.run(PROMPT)
    assert misses(cache) == {"no_match": 2}


def test_a_reset_forgets_what_was_evicted(make_cache) -> None:
    cache = make_cache(num_blocks=4)
    cache.run(PROMPT)
    cache.fill(4)
    cache.manager.reset_prefix_cache()
    cache.run(PROMPT)
    assert misses(cache) == {"no_match": 2}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"salt": "s", "adapter": "a"}, "other_salt"),
        ({"salt": "s"}, "other_adapter"),
        ({"salt": "t", "adapter": "b"}, "other_adapter"),
    ],
)
def test_a_prompt_known_under_another_name_says_so(cache, options: dict[str, str], reason: str) -> None:
    cache.run(PROMPT, adapter="a")
    cache.run(PROMPT, **options)
    assert misses(cache) == {"no_match": 1, reason: 1}


def test_evicted_here_goes_before_known_elsewhere(make_cache) -> None:
    cache = make_cache(num_blocks=8)
    cache.run(PROMPT)
    cache.fill(8)
    cache.run(PROMPT, salt="s")
    cache.run(PROMPT)
    assert misses(cache) == {"no_match": 2, "evicted": 1}


def test_a_lookup_finds_the_least_used_beginning_last_evicted(make_cache) -> None:
    cache = make_cache(num_blocks=6)
    cache.run([1] * 13)  # three full blocks, oldest
    cache.run([2] * 9)  # two full blocks
    cache.manager.close(cache.manager.open([1] * 13)[0])  # used again, now the newest
    cache.fill(3)
    table, num_cached = cache.manager.open([1] * 13)
    assert num_cached == 12
    cache.manager.close(table)
    assert cache.manager.open([2] * 9)[1] == 0
    cache.manager.check_invariants()


def test_the_tail_of_a_prompt_is_evicted_before_its_head(make_cache) -> None:
    cache = make_cache(num_blocks=5)
    cache.run(list(range(17)))  # four full blocks, one empty
    for num_left in (3, 2, 1, 0):
        cache.manager.close(cache.begin([900 + num_left], read_cache=False)[0])
        table, _ = cache.manager.open([0])
        cache.manager.grow(table, 4 * (5 - num_left))
        cache.manager.close(table)
        assert cache.manager.statistics().num_cached_blocks == num_left


def test_namespaces_end_with_their_last_block_and_table(make_cache) -> None:
    cache = make_cache(num_blocks=4)
    for number in range(100):
        cache.run(PROMPT, salt=f"salt {number}")
    assert len(cache.manager._index._namespaces) <= 4


@pytest.mark.parametrize("num_digests", [1, 2, 5])
def test_when_all_digests_collide_only_equal_tokens_match(make_cache, num_digests: int) -> None:
    cache = make_cache(hash_block=lambda data: bytes([sum(data) % num_digests]))
    randomness = random.Random(0)
    seen: set[tuple[str, tuple[int, ...]]] = set()
    num_hits = 0
    for _ in range(300):
        token_ids = [randomness.randint(0, 1) for _ in range(randomness.randint(1, 14))]
        salt = randomness.choice(["", "s"])
        num_cached = cache.run(token_ids, salt=salt)
        assert num_cached == 0 or (salt, tuple(token_ids[:num_cached])) in seen
        num_hits += num_cached > 0
        seen |= {(salt, tuple(token_ids[:end])) for end in range(4, len(token_ids) + 1, 4)}
    assert num_hits > 0


def test_one_digest_for_all_does_not_find_the_first_block_behind_itself(make_cache) -> None:
    cache = make_cache(hash_block=lambda data: b"same")
    cache.run([1] * 5)
    assert cache.run([1] * 13) == 4


def test_an_index_remembers_no_more_than_it_is_told() -> None:
    def on_evict(block_id: BlockId) -> None:
        index.evict(block_id)

    pool = BlockPool(4, on_evict)
    index = PrefixIndex(pool, 4, num_remembered=1)
    namespace = index.namespace("", "")
    for number in range(3):
        block_ids = pool.allocate(1)
        index.add(namespace, None, block_ids[0], bytes([number] * 64))
        pool.release(block_ids)
    pool.release(pool.allocate(4))
    found, reason = index.match(namespace, bytes([2] * 64), 64)
    assert (found, reason.value) == ([], "evicted")
    assert index.match(namespace, bytes([0] * 64), 64)[1].value == "no match"
    index.check_invariants()
