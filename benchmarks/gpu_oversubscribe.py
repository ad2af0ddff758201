"""An engine whose requests want twice the KV cache that there is, for some minutes: nothing may fail, and the card's
memory stays flat.

    python benchmarks/gpu_oversubscribe.py MODEL_FOLDER [--minutes 5] [--sequences 768] [--results FILE]

`--sequences` requests are open at any time; their lengths are such that half-way through their answers they want
`--oversubscription` times the cache; a smaller share of the card (`--engine '{"gpu_memory_utilization": 0.3}'`) makes
them shorter. Every answer must have its full length. Weights are random. Exits with 1 if a
request fails or is short, if blocks are left in use, or if the memory held grows by more than 0.5 % of the card.
"""

import argparse
import random
import sys
import time
from typing import Any

import torch

from gpu_report import Feeder, append_rows, engine_options, print_table
from quire import LLM

GROWTH_LIMIT = 0.005
SAMPLE_SECONDS = 2.0


class Watch:
    """The card's memory that this process holds, over time; others may come and go."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []

    def take(self) -> None:
        """Adds a sample if the last one is old enough."""
        now = time.perf_counter()
        if torch.cuda.is_available() and (not self.samples or now - self.samples[-1][0] > SAMPLE_SECONDS):
            self.samples.append((now, torch.cuda.memory_reserved()))

    def growth(self, begin: float) -> int:
        """By how much the largest of the last tenth exceeds the largest of the first fifth, in bytes."""
        used = [size for moment, size in self.samples if moment >= begin]
        if len(used) < 10:
            return 0
        return max(used[-len(used) // 10 :]) - max(used[: len(used) // 5])


class Lengths:
    """Draws prompt and answer lengths around the means that oversubscribe a cache.

    Args:
        mean_tokens: Of a sequence that is half-way through its answer.
        limit: The longest prompt and answer together.
    """

    def __init__(self, mean_tokens: float, limit: int) -> None:
        # As long a prompt as half an answer, each drawn evenly from half to three halves of its mean.
        self.mean_prompt = max(4, int(min(mean_tokens / 2, limit / 4.5)))
        self.mean_answer = 2 * self.mean_prompt
        self._random = random.Random(1)

    def draw(self) -> tuple[int, int]:
        numbers = self._random
        prompt = numbers.randint(self.mean_prompt // 2, 3 * self.mean_prompt // 2)
        return prompt, numbers.randint(self.mean_answer // 2, 3 * self.mean_answer // 2)


def run(llm: LLM, options: argparse.Namespace) -> dict[str, Any]:
    """Keeps the requests coming until the time is over, then lets them end."""
    info = llm._engine.info
    cache_tokens = info.num_blocks * info.block_size
    lengths = Lengths(options.oversubscription * cache_tokens / options.sequences, info.max_model_len - 1)
    wanted = options.sequences * (lengths.mean_prompt + lengths.mean_answer / 2)
    print(
        f"cache {cache_tokens:,} tokens, {options.sequences} sequences want {wanted:,.0f}, "
        f"{wanted / cache_tokens:.2f} x as many; "
        f"prompts of {lengths.mean_prompt}, answers of {lengths.mean_answer} tokens on average",
        flush=True,
    )
    if wanted < 0.95 * options.oversubscription * cache_tokens:
        raise SystemExit("the requests cannot want as much: raise --sequences, or lower gpu_memory_utilization")
    feeder, watch = Feeder(llm), Watch()
    expected: dict[Any, int] = {}

    def feed() -> None:
        prompt, answer = lengths.draw()
        expected[feeder.add(prompt, answer)] = answer

    begin = time.perf_counter()
    for _ in range(options.sequences):
        feed()
    completed = failed = num_tokens = num_steps = 0
    peak_usage = 0.0
    stats: Any = None
    while not feeder.is_idle:
        stats = feeder.step()
        num_steps += 1
        peak_usage = max(peak_usage, stats.cache.usage)
        watch.take()
        for output in feeder.finished:
            length = len(output.outputs[0].token_ids) if output.error is None else -1
            is_good = length == expected.pop(output.request_id)
            completed, failed = completed + is_good, failed + (not is_good)
            num_tokens += max(0, length)
            if time.perf_counter() - begin < 60 * options.minutes:
                feed()
        feeder.finished.clear()
    seconds = time.perf_counter() - begin
    return {
        "minutes": seconds / 60,
        "completed": completed,
        "failed": failed + len(expected),
        "preemptions": stats.num_preemptions,
        "oversubscription": wanted / cache_tokens,
        "peak_cache_usage": peak_usage,
        "blocks_left": stats.cache.num_blocks_in_use,
        "out_tok_s": num_tokens / seconds,
        "steps": num_steps,
        "memory_growth_mib": watch.growth(begin) / 2**20,
        "memory_used_gib": watch.samples[-1][1] / 2**30 if watch.samples else None,
    }


def main() -> int:
    """Runs, prints the table, and judges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--sequences", type=int, default=768)
    parser.add_argument("--oversubscription", type=float, default=2.0)
    parser.add_argument("--engine", help="more options of LLM, a JSON object")
    parser.add_argument("--results", help="file that the raw row is added to")
    options = parser.parse_args()
    defaults = {"load_format": "dummy", "max_model_len": 8192, "max_num_seqs": options.sequences}
    defaults |= {"gpu_memory_utilization": 0.92, "enable_prefix_caching": True, "use_tqdm_on_load": False}
    llm = LLM(options.model, **{**defaults, **engine_options(options.engine)})
    row = run(llm, options)
    total = torch.cuda.mem_get_info()[1] / 2**20 if torch.cuda.is_available() else float("inf")
    has_passed = not row["failed"] and not row["blocks_left"] and row["memory_growth_mib"] <= GROWTH_LIMIT * total
    append_rows(options.results, [{"model": options.model, "engine": options.engine, "passed": has_passed, **row}])
    print_table([row], tuple(row))
    print("passed" if has_passed else "FAILED")
    llm.shutdown()
    return 0 if has_passed else 1


if __name__ == "__main__":
    sys.exit(main())
