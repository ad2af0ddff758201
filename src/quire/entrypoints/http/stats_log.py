"""The periodic log line: throughput, queue and KV use."""

import asyncio
import logging
from collections.abc import Callable

from quire.types.stats import EngineStats

logger = logging.getLogger("quire.stats")


def describe_interval(before: EngineStats, now: EngineStats, seconds: float) -> str:
    """One line about the time between two reports. Prompt throughput counts computed tokens only."""
    prompt = now.num_prompt_tokens - before.num_prompt_tokens
    computed = prompt - (now.num_cached_prompt_tokens - before.num_cached_prompt_tokens)
    hit = now.cache.num_hit_tokens - before.cache.num_hit_tokens
    queried = now.cache.num_queried_tokens - before.cache.num_queried_tokens
    generated = now.num_generated_tokens - before.num_generated_tokens
    preempted = now.num_preemptions - before.num_preemptions
    line = (
        f"prompt {computed / seconds:.1f} tok/s, generation {generated / seconds:.1f} tok/s, "
        f"running {now.num_running}, waiting {now.num_waiting}, KV cache {now.cache.usage:.1%}, "
        f"prefix cache hit rate {hit / queried if queried else 0.0:.1%}"
    )
    further = (("deferred", now.num_deferred), ("preempted", preempted))
    return line + "".join(f", {name} {count}" for name, count in further if count)


async def log_stats(read_stats: Callable[[], EngineStats], interval_seconds: float) -> None:
    """Logs a line per interval until it is cancelled: at INFO while there is work, at DEBUG when idle."""
    loop = asyncio.get_running_loop()
    before, before_time = read_stats(), loop.time()
    while True:
        await asyncio.sleep(interval_seconds)
        now, now_time = read_stats(), loop.time()
        busy = now.step != before.step or now.num_running or now.num_waiting
        level = logging.INFO if busy else logging.DEBUG
        logger.log(level, "%s", describe_interval(before, now, now_time - before_time))
        before, before_time = now, now_time
