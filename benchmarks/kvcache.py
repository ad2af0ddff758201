"""Measures the KV cache's bookkeeping: waste, and what its operations cost. No model, no torch.

    python benchmarks/kvcache.py

Waste is (allocated slots - tokens) / allocated slots, summed over all steps of a run before dividing. In the run 64
sequences decode at a time; one that reaches its length ends and a new one begins. A length (prompt and answer) is
drawn uniformly within 1/8 of the nominal one, a prompt is a quarter to three quarters of it, and no two prompts share
anything. So every token count between a prompt's and a sequence's full length weighs as much as it would in use.

A pair is one block allocated and freed again. Rates are the best of several rounds, on one core. Exits with 1 if a
target is missed.
"""

import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quire.kvcache.block_pool import BlockPool
from quire.kvcache.block_table import BlockTable
from quire.kvcache.manager import KVCacheManager

ROUNDS = 25
BLOCK_SIZE = 16
NUM_RUNNING = 64
BLOCKS_PER_SEQUENCE = 32
MIN_PAIRS_PER_SECOND = 500_000


@dataclass(frozen=True)
class Row:
    """One line of the report; `passed` is None where there is no target."""

    name: str
    measured: str
    target: str = ""
    passed: bool | None = None


def measure_waste(num_tokens: int, num_steps: int) -> tuple[float, float]:
    """Waste over the decode life of sequences of about `num_tokens`: (of all steps together, of the worst step)."""
    randomness = random.Random(num_tokens)
    cache = KVCacheManager(num_blocks=NUM_RUNNING * (num_tokens // 8), block_size=BLOCK_SIZE)
    tables: list[tuple[BlockTable, int]] = []
    num_slots = num_wasted = 0
    worst = 0.0
    for step in range(num_steps):
        while len(tables) < NUM_RUNNING:
            length = randomness.randint(num_tokens * 7 // 8, num_tokens * 9 // 8)
            table, _ = cache.open([step], read_cache=False)
            cache.grow(table, int(length * randomness.uniform(0.25, 0.75)))
            tables.append((table, length))
        statistics = cache.statistics()
        num_slots += statistics.num_slots_in_use
        num_wasted += statistics.num_wasted_slots
        worst = max(worst, statistics.waste)
        remaining = []
        for table, length in tables:
            if table.num_tokens == length:
                cache.close(table)
            else:
                cache.grow(table, table.num_tokens + 1)
                remaining.append((table, length))
        tables = remaining
    return num_wasted / num_slots, worst


def best_seconds(run: Callable[[], int]) -> float:
    """Seconds per unit in the best round; `run` returns how many units it did."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        num_units = run()
        best = min(best, (time.perf_counter() - begin) / num_units)
    return best


def pool_pairs(num_blocks: int) -> Callable[[], int]:
    """Allocates and frees single blocks."""
    pool = BlockPool(num_blocks, lambda block_id: None)
    allocate, release = pool.allocate, pool.release

    def run() -> int:
        for _ in range(20_000):
            release(allocate(1))  # type: ignore[arg-type]
        return 20_000

    return run


def evicting_pool_pairs(num_blocks: int) -> Callable[[], int]:
    """The same where every block keeps content, so that each allocation takes the least recently used."""
    pool = BlockPool(num_blocks, lambda block_id: None)
    allocate, keep_content, release = pool.allocate, pool.keep_content, pool.release
    block_ids = allocate(num_blocks) or []
    for block_id in block_ids:
        keep_content(block_id)
    release(block_ids)

    def run() -> int:
        for _ in range(20_000):
            taken = allocate(1) or []
            keep_content(taken[0])
            release(taken)
        return 20_000

    return run


def manager_pairs() -> int:
    """Sequences that grow by one block at a time and close."""
    cache = KVCacheManager(num_blocks=4096, block_size=BLOCK_SIZE)
    for _ in range(500):
        table, _ = cache.open([1], read_cache=False)
        for num_blocks in range(1, BLOCKS_PER_SEQUENCE + 1):
            cache.grow(table, num_blocks * BLOCK_SIZE)
        cache.close(table)
    return 500 * BLOCKS_PER_SEQUENCE


def caching_pairs() -> int:
    """The same with content: every block is looked up, computed, indexed, and evicted by a later sequence."""
    cache = KVCacheManager(num_blocks=1024, block_size=BLOCK_SIZE)
    num_tokens = BLOCKS_PER_SEQUENCE * BLOCK_SIZE
    for number in range(200):
        token_ids = [number] * num_tokens
        table, _ = cache.open(token_ids)
        cache.grow(table, num_tokens)
        cache.commit(table, token_ids, num_tokens)
        cache.close(table)
    return 200 * BLOCKS_PER_SEQUENCE


def repeated_prompt() -> tuple[KVCacheManager, list[int]]:
    """A cache that holds a prompt."""
    cache = KVCacheManager(num_blocks=1024, block_size=BLOCK_SIZE)
    token_ids = list(range(BLOCKS_PER_SEQUENCE * BLOCK_SIZE + 1))
    table, _ = cache.open(token_ids)
    cache.grow(table, len(token_ids))
    cache.commit(table, token_ids, len(token_ids))
    cache.close(table)
    return cache, token_ids


def found_blocks() -> int:
    """Opens and closes tables whose prompt is found whole."""
    cache, token_ids = repeated_prompt()
    for _ in range(500):
        table, num_cached = cache.open(token_ids)
        assert num_cached == len(token_ids) - 1
        cache.close(table)
    return 500 * BLOCKS_PER_SEQUENCE


def idle_grows() -> int:
    """`grow` where the capacity suffices."""
    cache, token_ids = repeated_prompt()
    table, _ = cache.open(token_ids)
    cache.grow(table, len(token_ids))
    grow, num_tokens = cache.grow, len(token_ids)
    for _ in range(20_000):
        grow(table, num_tokens)
    return 20_000


def idle_commits() -> int:
    """`commit` where no block has become full."""
    cache, token_ids = repeated_prompt()
    table, _ = cache.open(token_ids)
    cache.grow(table, len(token_ids))
    commit, num_tokens = cache.commit, len(token_ids)
    for _ in range(20_000):
        commit(table, token_ids, num_tokens)
    return 20_000


def statistics_of_1024_tables() -> int:
    """`statistics` beside 1,024 open tables."""
    cache = KVCacheManager(num_blocks=4096, block_size=BLOCK_SIZE)
    for number in range(1024):
        cache.grow(cache.open([number], read_cache=False)[0], 40)
    for _ in range(50):
        cache.statistics()
    return 50


def waste_rows() -> list[Row]:
    """Waste against its targets."""
    rows = []
    for num_tokens, limit in ((512, 0.04), (2048, 0.02)):
        mean, worst = measure_waste(num_tokens, num_steps=4 * num_tokens)
        name = f"waste, sequences of about {num_tokens:,} tokens"
        rows.append(Row(name, f"{mean:.2%}", f"< {limit:.0%}", mean < limit))
        rows.append(Row("  in the worst step", f"{worst:.2%}"))
    return rows


def rate_row(name: str, run: Callable[[], int], *, has_target: bool = False) -> Row:
    """Pairs per second, against the target if it has one."""
    rate = 1 / best_seconds(run)
    if not has_target:
        return Row(name, f"{rate:,.0f} /s")
    return Row(name, f"{rate:,.0f} /s", f">= {MIN_PAIRS_PER_SECOND:,} /s", rate >= MIN_PAIRS_PER_SECOND)


def all_rows() -> list[Row]:
    """Everything that is measured."""
    return [
        *waste_rows(),
        rate_row("pairs, pool of 10,000 blocks", pool_pairs(10_000), has_target=True),
        rate_row("pairs, same, each evicting", evicting_pool_pairs(10_000), has_target=True),
        rate_row("pairs, manager: grow by one block, close", manager_pairs, has_target=True),
        rate_row("pairs, pool of 1,000 blocks", pool_pairs(1_000)),
        rate_row("pairs, pool of 1,000,000 blocks", pool_pairs(1_000_000)),
        rate_row("pairs, 1,000 blocks, each evicting", evicting_pool_pairs(1_000)),
        rate_row("pairs, 1,000,000 blocks, each evicting", evicting_pool_pairs(1_000_000)),
        Row("open, grow, commit, close; miss and evict", f"{best_seconds(caching_pairs) * 1e6:.2f} µs per block"),
        Row("open and close a cached prompt", f"{best_seconds(found_blocks) * 1e6:.2f} µs per block"),
        Row("grow that needs nothing", f"{best_seconds(idle_grows) * 1e9:.0f} ns"),
        Row("commit that fills no block", f"{best_seconds(idle_commits) * 1e9:.0f} ns"),
        Row("statistics of 1,024 tables", f"{best_seconds(statistics_of_1024_tables) * 1e6:.0f} µs"),
    ]


def processor_name() -> str:
    """As the kernel tells it, where it does."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> int:
    """Prints the report; 1 if a target is missed."""
    print(f"Python {platform.python_version()}, {processor_name()}, blocks of {BLOCK_SIZE} tokens\n")
    print(f"{'':44}{'measured':>20}{'target':>18}")
    rows = all_rows()
    for row in rows:
        verdict = "" if row.passed is None else "  ok" if row.passed else "  MISSED"
        print(f"{row.name:44}{row.measured:>20}{row.target:>18}{verdict}")
    return 0 if all(row.passed is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
