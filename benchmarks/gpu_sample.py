"""The sampler on a GPU: checked against the CPU's, then timed inside CUDA graphs.

Usage: python benchmarks/gpu_sample.py [--vocab 128256 151936] [--rows 1 32 256 1024] [--check-rows 48]
A check passes if every token is the CPU's, or if the random number lies within 1e-6 of the boundary between the two.
Columns: microseconds per draw, 20 draws to a graph, median of 9 replays. Logits: "flat" as of random weights (standard
normal), "peaked" as of a trained model (most of the weight on a few tokens).
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch

from quire.kernels.sample import SamplingBatch, draw_tokens
from quire.kernels.sample.batch import TOP_P_ROUNDING
from quire.kernels.sample.device import DeviceSamplingParams, DrawWorkspace, draw
from quire.kernels.sample.philox import uniform

LIMITS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top_p 0.9": {"top_p": 0.9},
    "top_k 50, top_p 0.95": {"top_k": 50, "top_p": 0.95},
}
CHECKED: list[dict[str, float]] = [
    *LIMITS.values(),
    {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    {"temperature": 1.5, "min_p": 0.05},
    {"temperature": 2.0, "top_p": 0.999},
    {"top_k": 5000},
    {"top_k": 40_000, "top_p": 0.5},
    {"min_p": 0.001, "top_p": 0.3},
]
DRAWS_PER_GRAPH = 20
SLACK = 1e-6


class Batch:
    """N rows with the same or different limits, on the device."""

    def __init__(self, logits: torch.Tensor, limits: list[dict[str, float]]) -> None:
        num_rows, vocab_size = logits.shape
        device = logits.device
        self.logits = logits
        self.limits = limits
        self.params = DeviceSamplingParams.make(num_rows, device)
        for name, default in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
            values = getattr(self.params, name)
            values[:num_rows] = torch.tensor([row.get(name, default) for row in limits], dtype=values.dtype)
        self.params.seed[:num_rows] = torch.arange(num_rows)
        self.slots = torch.arange(num_rows, dtype=torch.int32, device=device)
        self.positions = self.slots + 100
        self.workspace = DrawWorkspace.make(num_rows, vocab_size, device)
        self.token_ids = torch.empty(num_rows, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(num_rows + 1, dtype=torch.int32, device=device)

    def draw(self) -> None:
        """Launches one draw."""
        draw(self.logits, self.params, self.slots, self.positions, self.workspace, self.token_ids, self.last_tokens)

    def on_the_cpu(self) -> SamplingBatch:
        """The same parameters for the CPU's sampler, in float32 precision."""
        num_rows = len(self.limits)
        columns = {
            name: getattr(self.params, name)[:num_rows].cpu().numpy()
            for name in ("temperature", "top_k", "top_p", "min_p", "seed", "sample_index")
        }
        return SamplingBatch(
            **{name: column.astype(np.float64) for name, column in columns.items() if column.dtype == np.float32},
            **{name: column.astype(np.int64) for name, column in columns.items() if column.dtype != np.float32},
            position=self.positions.cpu().numpy().astype(np.int64),
        )


def make_logits(kind: str, num_rows: int, vocab_size: int) -> torch.Tensor:
    """Logits [N, V] on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(num_rows, vocab_size, generator=generator, device="cuda")
    if kind == "peaked":
        logits *= 2.5
        likely = torch.randint(vocab_size, (num_rows, 30), generator=generator, device="cuda")
        logits.scatter_(1, likely, torch.linspace(12, 20, 30, device="cuda").expand(num_rows, -1))
    return logits


def boundary_distance(logits: np.ndarray, batch: SamplingBatch, row: int, token_ids: tuple[int, int]) -> float:
    """How far the random number is from the boundaries between two tokens, exactly computed; 1 if one is dropped."""
    values = logits.astype(np.float64)
    weights = np.exp((values - values.max()) / batch.temperature[row])
    weights[weights < batch.min_p[row]] = 0.0
    top_k = int(batch.top_k[row])
    if 0 < top_k < len(values):
        weights[values < np.partition(values, len(values) - top_k)[len(values) - top_k]] = 0.0
    order = np.lexsort((np.arange(len(values)), -values))
    before = weights[order].cumsum() - weights[order]
    if batch.top_p[row] < 1.0:
        weights[order[before >= batch.top_p[row] * TOP_P_ROUNDING * weights.sum()]] = 0.0
    if not weights[list(token_ids)].all():
        return 1.0
    cumulative = weights.cumsum() / weights.sum()
    number = uniform(batch.seed[[row]], batch.sample_index[[row]], batch.position[[row]])[0]
    low, high = sorted(token_ids)
    return float(max(abs(cumulative[low] - number), abs(cumulative[high - 1] - number)))


def check(kind: str, num_rows: int, vocab_size: int) -> bool:
    """Draws once here and once on the CPU; prints and returns whether they agree."""
    logits = make_logits(kind, num_rows, vocab_size)
    batch = Batch(logits, [CHECKED[row % len(CHECKED)] for row in range(num_rows)])
    batch.draw()
    on_cpu = batch.on_the_cpu()
    expected, failed = draw_tokens(logits.cpu(), on_cpu)
    found = batch.token_ids.cpu().numpy()
    different = np.flatnonzero(expected != found).tolist()
    wrong = []
    for row in different:
        tokens = (int(expected[row]), int(found[row]))
        if boundary_distance(logits[row].cpu().numpy(), on_cpu, row, tokens) > SLACK:
            wrong.append((batch.limits[row], tokens))
    agrees = not wrong and not failed.any()
    print(f"{kind} V {vocab_size}: {num_rows} rows, {len(different)} at a boundary, {'ok' if agrees else wrong}")
    return agrees


def median_microseconds(run: Callable[[], None]) -> float:
    """Of one run, measured over replays of a graph that holds several."""
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(DRAWS_PER_GRAPH):
            run()
    times = []
    for _ in range(11):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / DRAWS_PER_GRAPH)
    return statistics.median(times[2:])


def main() -> None:
    """Checks, then prints one row per vocabulary, kind of logits and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[128256, 151936])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256, 1024])
    parser.add_argument("--check-rows", type=int, default=48)
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    kinds = ("flat", "peaked")
    results = [check(kind, arguments.check_rows, vocab) for vocab in arguments.vocab for kind in kinds]
    if not all(results):
        sys.exit("the sampler is wrong: not timed")
    print(f"\n{'V':>7} {'logits':>7} {'rows':>5}" + "".join(f"{name:>22}" for name in LIMITS))
    for vocab_size in arguments.vocab:
        for kind in kinds:
            for num_rows in arguments.rows:
                logits = make_logits(kind, num_rows, vocab_size)
                times = [median_microseconds(Batch(logits, [limits] * num_rows).draw) for limits in LIMITS.values()]
                print(f"{vocab_size:>7} {kind:>7} {num_rows:>5}" + "".join(f"{time:>22.1f}" for time in times))


if __name__ == "__main__":
    main()
