"""Packed products beside torch.nn.functional.linear, on the weight shapes of SmolLM2-135M.

Usage: python benchmarks/linear.py [--threads 2] [--dtype float32|bfloat16] [--cpu-time]
Weights are taken in turn from 200 MB of them, so that they come from memory as in a model. The best of five rounds
counts. Columns: microseconds, GFLOP/s, GB/s of weights.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from quire.kernels.linear import linear, pack

SHAPES = {"qkv": (960, 576), "output": (576, 576), "gate_up": (3072, 576), "down": (576, 1536), "logits": (49152, 576)}
ROWS = (1, 2, 8, 16, 32, 64, 512)
WEIGHT_BYTES = 200 * 10**6
ROUND_FLOP = 2 * 10**9


def best_seconds(run: Callable[[int], object], num_calls: int, clock: Callable[[], float]) -> float:
    """Seconds per call of the best of five rounds, after a warm-up."""
    best = float("inf")
    for _ in range(6):
        started = clock()
        for number in range(num_calls):
            run(number)
        best = min(best, (clock() - started) / num_calls)
    return best


@torch.inference_mode()
def main() -> None:
    """Prints one row per shape and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds; with one thread, for a busy machine")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    dtype = getattr(torch, args.dtype)
    print(f"{args.dtype}, {args.threads} threads, torch {torch.__version__}")
    print(f"{'weight':<10}{'rows':>6}{'functional.linear':>32}{'packed':>32}{'ratio':>8}")
    for name, (num_out, num_in) in SHAPES.items():
        num_bytes = num_out * num_in * dtype.itemsize
        weights = [torch.randn(num_out, num_in).to(dtype) for _ in range(max(1, min(30, WEIGHT_BYTES // num_bytes)))]
        packed = [pack(weight) for weight in weights]
        for num_rows in ROWS:
            x = torch.randn(num_rows, num_in).to(dtype)
            flop = 2 * num_rows * num_out * num_in
            num_calls = max(len(weights), min(60, ROUND_FLOP // flop))
            plain = best_seconds(
                lambda i, x=x, weights=weights: functional.linear(x, weights[i % len(weights)]), num_calls, clock
            )
            ours = best_seconds(lambda i, x=x, packed=packed: linear(x, packed[i % len(packed)]), num_calls, clock)
            cells = (f"{1e6 * s:.0f} us {flop / s / 1e9:.0f} {num_bytes / s / 1e9:.1f}" for s in (plain, ours))
            print(f"{name:<10}{num_rows:>6}" + "".join(f"{cell:>32}" for cell in cells) + f"{plain / ours:>8.2f}")


if __name__ == "__main__":
    main()
