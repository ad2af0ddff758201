"""Time to the first token of a prompt whose first 1,024 tokens were seen before, against one that is new.

Usage: python benchmarks/shared_prefix.py [MODEL]. Exits with 1 if the second takes more than a fifth of the first.
"""

import random
import statistics
import sys
import time

from quire import LLM, SamplingParams

PREFIX_TOKENS = 1024
QUESTION_TOKENS = 16
ROUNDS = 5
TARGET = 1 / 5


def first_token_seconds(llm: LLM, token_ids: list[int]) -> float:
    """Seconds until one token has been produced."""
    begin = time.perf_counter()
    llm.generate([token_ids], SamplingParams(temperature=0.0, max_tokens=1), use_tqdm=False)
    return time.perf_counter() - begin


def main() -> int:
    """Prints the medians and their ratio."""
    llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "", max_model_len=2048, use_tqdm_on_load=False)
    numbers = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [numbers.randrange(10, 49_000) for _ in range(count)]

    first_token_seconds(llm, tokens(64))
    new, seen = [], []
    for _ in range(ROUNDS):
        prefix = tokens(PREFIX_TOKENS)
        new.append(first_token_seconds(llm, prefix + tokens(QUESTION_TOKENS)))
        seen.append(first_token_seconds(llm, prefix + tokens(QUESTION_TOKENS)))
    ratio = statistics.median(seen) / statistics.median(new)
    print(f"new {statistics.median(new) * 1e3:.0f} ms, seen {statistics.median(seen) * 1e3:.0f} ms, ratio {ratio:.3f}")
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
