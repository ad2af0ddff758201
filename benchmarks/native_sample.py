"""The compiled sampler against the one of torch and numpy: the same tokens, then milliseconds per draw.

Usage: python benchmarks/native_sample.py [--rows 1 32] [--vocab 49152] [--threads 2] [--instruction-sets NAME ...]
Columns: milliseconds per draw, median of 15, of torch and of each instruction set. Logits: "flat" as of random weights
(standard normal), "peaked" as of a trained model. A draw fails the check if its token is not torch's.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from quire.kernels import native
from quire.kernels.sample import DrawTokens, NativeSampler, SamplingBatch, TokenMask, draw_tokens

LIMITS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {},
    "top_p 0.95": {"top_p": 0.95},
    "top_k 50": {"top_k": 50},
    "top_k 50, top_p 0.95": {"top_k": 50, "top_p": 0.95},
    "top_k 1000": {"top_k": 1000},
    "min_p 0.05": {"min_p": 0.05},
    "greedy, masked": {"temperature": 0.0, "masked": True},
}


def make_logits(num_rows: int, vocab_size: int) -> dict[str, torch.Tensor]:
    """[N, V] of each kind."""
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(num_rows, vocab_size, generator=generator)
    peaked = 4 * torch.randn(num_rows, vocab_size, generator=generator)
    likely = torch.randint(0, vocab_size, (num_rows, 50), generator=generator)
    peaked.scatter_add_(1, likely, torch.full(likely.shape, 8.0))
    return {"flat": flat, "peaked": peaked}


def make_batch(num_rows: int, vocab_size: int, limits: dict[str, Any]) -> SamplingBatch:
    """Rows with the same limits and different random numbers."""
    mask = None
    if limits.get("masked"):
        words = np.random.default_rng(0).integers(0, 2**32, (num_rows, -(-vocab_size // 32)), dtype=np.uint32)
        mask = TokenMask(np.arange(num_rows), words)
    return SamplingBatch(
        temperature=np.full(num_rows, limits.get("temperature", 0.8)),
        top_k=np.full(num_rows, limits.get("top_k", 0)),
        top_p=np.full(num_rows, limits.get("top_p", 1.0)),
        min_p=np.full(num_rows, limits.get("min_p", 0.0)),
        seed=np.arange(num_rows),
        sample_index=np.zeros(num_rows, np.int64),
        position=np.arange(num_rows),
        mask=mask,
    )


def milliseconds(function: Callable[[], object], repeats: int = 15) -> float:
    """Median of several calls."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def main() -> None:
    """Prints a table; exits with 1 if a token differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--instruction-sets", nargs="+", default=None)
    options = parser.parse_args()
    extension = native.extension()
    if extension is None:
        sys.exit("the package was built without a compiler")
    torch.set_num_threads(options.threads)
    pool = extension.ThreadPool(options.threads)
    names = options.instruction_sets or extension.instruction_sets()
    samplers: dict[str, DrawTokens] = {"torch": draw_tokens}
    samplers |= {name: NativeSampler(pool, name).draw_tokens for name in names}
    print(f"{'':34}" + "".join(f"{name:>13}" for name in samplers))
    num_different = 0
    for num_rows in options.rows:
        for kind, logits in make_logits(num_rows, options.vocab).items():
            for limits_name, limits in LIMITS.items():
                batch = make_batch(num_rows, options.vocab, limits)
                expected, _ = draw_tokens(logits.clone(), batch)
                figures = []
                for draw in samplers.values():
                    num_different += int((draw(logits.clone(), batch)[0] != expected).sum())
                    figures.append(milliseconds(lambda draw=draw, logits=logits, batch=batch: draw(logits, batch)))
                label = f"{num_rows} {kind}, {limits_name}"
                print(f"{label:34}" + "".join(f"{figure:13.3f}" for figure in figures))
    print(f"tokens that differ from torch's: {num_different}")
    sys.exit(num_different > 0)


if __name__ == "__main__":
    main()
