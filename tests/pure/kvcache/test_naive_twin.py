"""The KV cache against a twin that keeps lists and looks everything up, and against a picture of the memory."""

from dataclasses import dataclass, field
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire.kvcache.block_table import BlockTable
from quire.kvcache.manager import KVCacheManager
from quire.kvcache.prefix_index import BlockHash
from quire.types.stats import CacheStats

Name = tuple[str, str]
Content = tuple[Name, tuple[int, ...]]


@dataclass
class Entry:
    """An indexed page: `parent` is the serial of the content before it."""

    page: int
    serial: int
    parent: int


@dataclass(eq=False)
class NaiveTable:
    name: Name
    pages: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_hashed: int = 0
    is_shared: bool = True


class NaiveCache:
    """What the KV cache does, with nothing remembered that can be counted."""

    def __init__(self, num_pages: int, page_size: int, *, caching: bool) -> None:
        self.num_pages, self.page_size, self.caching = num_pages, page_size, caching
        self.empty = list(reversed(range(num_pages)))
        self.kept: list[int] = []
        self.tables: list[NaiveTable] = []
        self.index: dict[Content, Entry] = {}
        self.serials = [0] * num_pages
        self.last_serial = 0
        self.evicted: list[Content] = []
        self.counters: dict[str, int] = {}

    def count(self, counter: str, amount: int = 1) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + amount

    def num_references(self, page: int) -> int:
        return sum(table.pages.count(page) for table in self.tables)

    def content_of(self, page: int) -> Content | None:
        return next((content for content, entry in self.index.items() if entry.page == page), None)

    def allocate(self, count: int) -> list[int] | None:
        if count > len(self.empty) + len(self.kept):
            return None
        while len(self.empty) < count:
            page = self.kept.pop(0)
            content = self.content_of(page)
            assert content is not None
            del self.index[content]
            self.count("num_evicted_blocks")
            if content not in self.evicted:
                self.evicted = [*self.evicted, content][-self.num_pages :]
            self.empty.append(page)
        return [self.empty.pop() for _ in range(count)]

    def open(self, token_ids: list[int], name: Name, *, read_cache: bool) -> NaiveTable:
        table = NaiveTable(name, is_shared=self.caching)
        self.tables.append(table)
        if not (self.caching and read_cache):
            return table
        self.count("num_queried_tokens", len(token_ids))
        num_pages = (len(token_ids) - 1) // self.page_size
        if num_pages < 1:
            self.count("num_missed_under_one_block")
        serial = 0
        for number in range(1, num_pages + 1):
            prefix = tuple(token_ids[: number * self.page_size])
            entry = self.index.get((name, prefix))
            if entry is None or entry.parent != serial:
                self.count(self.explain(name, prefix))
                break
            serial = entry.serial
            if entry.page in self.kept:
                self.kept.remove(entry.page)
            table.pages.append(entry.page)
        table.num_hashed = len(table.pages)
        table.num_tokens = table.num_hashed * self.page_size
        self.count("num_hit_tokens", table.num_tokens)
        return table

    def explain(self, name: Name, prefix: tuple[int, ...]) -> str:
        adapter, _ = name
        if (name, prefix) in self.evicted:
            return "num_missed_evicted"
        others = [other for other, content in self.index if content == prefix and other != name]
        if any(other_adapter == adapter for other_adapter, _ in others):
            return "num_missed_other_salt"
        return "num_missed_other_adapter" if others else "num_missed_no_match"

    def grow(self, table: NaiveTable, num_tokens: int) -> list[int] | None:
        num_needed = -(-num_tokens // self.page_size)
        pages = self.allocate(max(0, num_needed - len(table.pages)))
        if pages is not None:
            table.pages += pages
            table.num_tokens = num_tokens
        return pages

    def commit(self, table: NaiveTable, token_ids: list[int], num_computed: int) -> None:
        num_full = min(num_computed, len(token_ids)) // self.page_size
        while table.is_shared and table.num_hashed < num_full:
            number = table.num_hashed
            parent = self.serials[table.pages[number - 1]] if number else 0
            prefix = tuple(token_ids[: (number + 1) * self.page_size])
            self.add((table.name, prefix), table.pages[number], parent)
            table.num_hashed += 1

    def add(self, content: Content, page: int, parent: int) -> None:
        entry = self.index.get(content)
        if entry is not None and entry.parent == parent:
            serial = self.serials[page] = entry.serial
            if self.num_references(entry.page):
                return
        else:
            self.last_serial += 1
            serial = self.serials[page] = self.last_serial
        if entry is not None and entry.page in self.kept:
            self.kept.remove(entry.page)
            self.empty.append(entry.page)
        self.index[content] = Entry(page, serial, parent)

    def fork(self, parent: NaiveTable, num_tokens: int) -> NaiveTable | None:
        num_shared, partial = divmod(num_tokens, self.page_size)
        own = self.allocate(1 if partial else 0)
        if own is None:
            return None
        table = NaiveTable(parent.name, parent.pages[:num_shared] + own, num_tokens)
        table.num_hashed = min(parent.num_hashed, num_shared)
        table.is_shared = parent.is_shared
        self.tables.append(table)
        return table

    def close(self, table: NaiveTable) -> None:
        self.tables.remove(table)
        for page in reversed(table.pages):
            if not self.num_references(page):
                (self.kept if self.content_of(page) else self.empty).append(page)

    def reset(self) -> None:
        self.index.clear()
        self.evicted.clear()
        self.empty += reversed(self.kept)
        self.kept.clear()
        for table in self.tables:
            table.is_shared = False

    def statistics(self) -> CacheStats:
        num_in_use = len({page for table in self.tables for page in table.pages})
        return CacheStats(
            num_blocks=self.num_pages,
            num_blocks_in_use=num_in_use,
            num_cached_blocks=len(self.index),
            num_slots_in_use=num_in_use * self.page_size,
            num_wasted_slots=sum(len(table.pages) * self.page_size - table.num_tokens for table in self.tables),
            **self.counters,
        )


@dataclass(eq=False)
class Sequence:
    """What a scheduler would know. `origin` is all that its content depends on besides its tokens."""

    tokens: list[int]
    origin: tuple[Name, int]
    table: BlockTable
    num_computed: int
    twin: NaiveTable | None


def one_bit_hash(data: bytes) -> bytes:
    """Collides all the time."""
    return bytes([sum(data) & 1])


class CacheMachine(RuleBasedStateMachine):
    """Sequences of few different tokens in few small blocks.

    `memory` holds, for every slot of every block, all that its keys and values depend on. A sequence must find
    there what it has computed, and nothing else, whatever the others do.
    """

    hash_block: ClassVar[BlockHash | None] = None

    @initialize(num_blocks=st.integers(1, 12), block_size=st.sampled_from([1, 2, 4]), caching=st.integers(0, 9))
    def start(self, num_blocks: int, block_size: int, caching: int) -> None:
        self.block_size = block_size
        self.cache = KVCacheManager(
            num_blocks=num_blocks,
            block_size=block_size,
            enable_prefix_caching=caching > 0,
            hash_block=self.hash_block,
        )
        self.twin = None if self.hash_block else NaiveCache(num_blocks, block_size, caching=caching > 0)
        self.memory: list[list[object]] = [[None] * block_size for _ in range(num_blocks)]
        self.sequences: list[Sequence] = []
        self.epoch = 0

    def slot(self, table: BlockTable, position: int) -> tuple[int, int]:
        return table.block_ids[position // self.block_size], position % self.block_size

    def pick(self, number: int) -> Sequence:
        return self.sequences[number % len(self.sequences)]

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        adapter=st.sampled_from(["", "", "a"]),
        salt=st.sampled_from(["", "", "s"]),
        read_cache=st.sampled_from([True, True, True, False]),
    )
    def open(self, tokens: list[int], adapter: str, salt: str, read_cache: bool) -> None:
        table, num_cached = self.cache.open(tokens, salt=salt, adapter=adapter, read_cache=read_cache)
        assert num_cached == table.num_tokens == table.capacity < len(tokens)
        twin = self.twin.open(tokens, (adapter, salt), read_cache=read_cache) if self.twin else None
        self.sequences.append(Sequence(tokens, ((adapter, salt), self.epoch), table, num_cached, twin))

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12), salt=st.sampled_from(["", "", "s"]))
    def serve(self, tokens: list[int], salt: str) -> None:
        """The usual beginning of a sequence, in one rule so that short runs go deep."""
        self.open(tokens, "", salt, True)
        self.compute(-1, [])
        self.commit(-1, 0, 0)

    @precondition(lambda self: self.sequences)
    @rule(number=st.integers(0, 9), new_tokens=st.lists(st.integers(0, 1), max_size=6))
    def compute(self, number: int, new_tokens: list[int]) -> None:
        sequence = self.pick(number)
        tokens, before = sequence.tokens + new_tokens, list(sequence.table.block_ids)
        grown = self.cache.grow(sequence.table, len(tokens))
        if self.twin and sequence.twin:
            assert grown == self.twin.grow(sequence.twin, len(tokens))
        assert sequence.table.block_ids == before + (grown or [])
        if grown is None:
            return
        for position in range(sequence.num_computed, len(tokens)):
            block_id, offset = self.slot(sequence.table, position)
            self.memory[block_id][offset] = (sequence.origin, tuple(tokens[: position + 1]))
        sequence.tokens, sequence.num_computed = tokens, len(tokens)

    @precondition(lambda self: self.sequences)
    @rule(number=st.integers(0, 9), lag=st.sampled_from([0, 0, 1, 3]), num_pending=st.sampled_from([0, 0, 1, 2]))
    def commit(self, number: int, lag: int, num_pending: int) -> None:
        sequence = self.pick(number)
        known = sequence.tokens[: max(0, len(sequence.tokens) - num_pending)]
        num_computed = max(0, sequence.num_computed - lag)
        self.cache.commit(sequence.table, known, num_computed)
        if self.twin and sequence.twin:
            self.twin.commit(sequence.twin, known, num_computed)

    @precondition(lambda self: self.sequences)
    @rule(number=st.integers(0, 9), drop=st.integers(0, 6))
    def fork(self, number: int, drop: int) -> None:
        parent = self.pick(number)
        num_tokens = max(0, parent.num_computed - drop)
        forked = self.cache.fork(parent.table, num_tokens)
        twin = self.twin.fork(parent.twin, num_tokens) if self.twin and parent.twin else None
        if forked is None:
            assert twin is None
            return
        table, copies = forked
        assert len(copies) == (1 if num_tokens % self.block_size else 0)
        for source, destination in copies:
            self.memory[destination] = list(self.memory[source])
        self.sequences.append(Sequence(parent.tokens[:num_tokens], parent.origin, table, num_tokens, twin))

    @precondition(lambda self: self.sequences)
    @rule(number=st.integers(0, 9))
    def close(self, number: int) -> None:
        sequence = self.pick(number)
        self.sequences.remove(sequence)
        self.cache.close(sequence.table)
        if self.twin and sequence.twin:
            self.twin.close(sequence.twin)
        assert (sequence.table.block_ids, sequence.table.num_tokens, sequence.table.capacity) == ([], 0, 0)

    @rule(chance=st.integers(0, 5))
    def reset(self, chance: int) -> None:
        if chance == 0:
            self.epoch += 1
            self.cache.reset_prefix_cache()
            if self.twin:
                self.twin.reset()

    @invariant()
    def memory_is_what_each_sequence_computed(self) -> None:
        for sequence in self.sequences:
            for position in range(sequence.num_computed):
                block_id, offset = self.slot(sequence.table, position)
                assert self.memory[block_id][offset] == (sequence.origin, tuple(sequence.tokens[: position + 1]))

    @invariant()
    def invariants_hold(self) -> None:
        self.cache.check_invariants()

    @invariant()
    def twin_agrees(self) -> None:
        if self.twin is None:
            return
        assert self.cache.statistics() == self.twin.statistics()
        assert self.cache.num_free_blocks == len(self.twin.empty) + len(self.twin.kept)
        for sequence in self.sequences:
            assert sequence.twin is not None and sequence.table.block_ids == sequence.twin.pages


class CollidingCacheMachine(CacheMachine):
    """With a hash that is worth nothing: less is found, never anything wrong."""

    hash_block: ClassVar[BlockHash | None] = staticmethod(one_bit_hash)


TestTwin = CacheMachine.TestCase
TestTwin.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestCollisions = CollidingCacheMachine.TestCase
TestCollisions.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)
