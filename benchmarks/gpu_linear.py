"""Products with few rows on a GPU: our kernels beside cuBLAS, on the weight shapes of two models.

Usage: python benchmarks/gpu_linear.py [--sweep | --quick | --chain] [--check] [--models 8b,0.6b] [--shapes qkv,o]
           [--tokens 1,8,16,32,64] [--out rows.jsonl]

--check   compares with float64 first; tiles whose result is off are named and left out
--quick   the tiles that `quire.kernels.linear.tiles` chooses (the default)
--sweep   all sensible tiles; prints the best ones, and lines for `tiles.MEASURED`
--chain   all products of a decode step in a row, as a model calls them, with and without programmatic launch

Each time is that of one launch inside a CUDA graph of many, over so many copies of the weight that the L2 cache does
not help; the median of the replays. "floor" is the time to read the weight at 4.24 TB/s. "unfused" is norm, cuBLAS,
gate as separate launches; "cuBLAS" is the product alone.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product

import torch
import triton

from quire.kernels import programmatic_launch
from quire.kernels.linear import NormWeight, cuda, tiles, triton_skinny, triton_vector
from quire.kernels.linear.tiles import SkinnyTiles, Tiles, VectorTiles
from quire.kernels.rms_norm import reference as rms_norm_reference

BYTES_PER_SECOND = 4.24e12
COPIES_BYTES = 1.5e9
MAX_COPIES = 32
GRAPH_SECONDS = 4e-3
NUM_REPLAYS = 9
SHARED_MEMORY_BYTES = 227 * 1024
MAX_ERROR_RATIO = 1e-2


@dataclass(frozen=True)
class Shape:
    """A product of a model: weight [weight_rows, num_in] and what goes with it."""

    model: str
    name: str
    weight_rows: int
    num_in: int
    norm: bool = False
    gated: bool = False
    add: bool = False
    float32_out: bool = False

    @property
    def num_out(self) -> int:
        return self.weight_rows // 2 if self.gated else self.weight_rows

    @property
    def num_bytes(self) -> int:
        return 2 * self.weight_rows * self.num_in

    @property
    def floor_us(self) -> float:
        return 1e6 * self.num_bytes / BYTES_PER_SECOND


def shapes_of(model: str, hidden: int, heads_out: int, qkv: int, gate_up: int, vocabulary: int) -> list[Shape]:
    return [
        Shape(model, "qkv", qkv, hidden, norm=True),
        Shape(model, "o", hidden, heads_out, add=True),
        Shape(model, "gate_up", gate_up, hidden, norm=True, gated=True),
        Shape(model, "down", hidden, gate_up // 2, add=True),
        Shape(model, "head", vocabulary, hidden, float32_out=True),
    ]


MODELS = {
    "8b": shapes_of("8b", 4096, 4096, 6144, 28672, 128256),
    "0.6b": shapes_of("0.6b", 1024, 2048, 4096, 6144, 151936),
}
NUM_LAYERS = {"8b": 32, "0.6b": 28}


class Operands:
    """Random tensors of a product, with several copies of the weight."""

    def __init__(self, shape: Shape, num_tokens: int, weights: list[torch.Tensor]) -> None:
        self.shape = shape
        self.weights = weights
        self.x = torch.randn(num_tokens, shape.num_in, device="cuda").bfloat16()
        factors = (torch.rand(shape.num_in, device="cuda") + 0.5).bfloat16()
        self.norm = NormWeight(factors, 1e-5) if shape.norm else None
        self.add_to = torch.zeros(num_tokens, shape.num_out, device="cuda").bfloat16() if shape.add else None
        self.out_dtype = torch.float32 if shape.float32_out else None

    def arguments(self, number: int) -> tuple:
        """Of `cuda.fused` and `cuda.unfused`, with one of the copies."""
        weight = self.weights[number % len(self.weights)]
        return self.x, weight, None, self.norm, self.shape.gated, self.add_to, self.out_dtype


def make_weights(shape: Shape) -> list[torch.Tensor]:
    num_copies = max(2, min(MAX_COPIES, int(COPIES_BYTES // shape.num_bytes)))
    scale = shape.num_in**-0.5
    return [
        torch.randn(shape.weight_rows, shape.num_in, device="cuda", dtype=torch.bfloat16).mul_(scale)
        for _ in range(num_copies)
    ]


def microseconds(run: Callable[[int], object], num_calls: int) -> float:
    """Per call of run(0), run(1), ... in one CUDA graph."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(num_calls):
            run(number)
    times = []
    for _ in range(NUM_REPLAYS + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / num_calls)
    return statistics.median(times[2:])


def calls_for(shape: Shape, num_copies: int) -> int:
    wanted = int(GRAPH_SECONDS * 1e6 / (shape.floor_us + 2.0))
    return max(num_copies, min(640, wanted))


def expected_result(operands: Operands) -> torch.Tensor:
    """In float64, by chunks of the weight; `reference.linear` would not fit the memory."""
    x, weight, _, norm, gated, add_to, _ = operands.arguments(0)
    wide = x.double()
    if norm is not None:
        wide = rms_norm_reference.rms_norm(wide, norm.weight.double(), norm.epsilon)
    result = torch.cat([wide @ part.double().t() for part in weight.split(8192)], dim=1)
    if gated:
        gate, up = result.chunk(2, dim=1)
        result = gate * torch.sigmoid(gate) * up
    return result if add_to is None else result + add_to.double()


def error_ratio(operands: Operands, run: Callable[..., torch.Tensor], expected: torch.Tensor) -> float:
    actual = run(*operands.arguments(0)).double()
    if operands.add_to is not None:
        operands.add_to.zero_()
    return float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def run_with(chosen: Tiles) -> Callable[..., torch.Tensor]:
    return lambda *arguments: cuda.fused(*arguments, chosen)


def vector_candidates(shape: Shape, num_tokens: int) -> Iterator[VectorTiles]:
    halves = 2 if shape.gated else 1
    for num_warps, blocks, block_n in product((4, 8), (1, 2, 4, 8), (1, 2, 4, 8, 16)):
        block_k = 256 * num_warps * blocks
        per_thread = 8 * blocks * block_n * halves
        if 16 <= per_thread <= 128 // num_tokens and block_k < 2 * shape.num_in and block_k <= 4096:
            yield VectorTiles(block_n, block_k, num_warps)


def skinny_candidates(shape: Shape, num_tokens: int) -> Iterator[SkinnyTiles]:
    halves = 2 if shape.gated else 1
    blocks_t = (0,) if num_tokens <= 64 else (64, 128)
    for block_n, stage_kb, split_k, pipeline_kb, block_t in product(
        (32, 64, 128), (16, 32), (1, 2, 4), (64, 100, 200), blocks_t
    ):
        block_k = stage_kb * 512 // (block_n * halves)
        tokens = block_t or max(16 if block_n < 64 else 8, tiles.bucket(num_tokens))
        programs = triton.cdiv(shape.num_out, block_n) * split_k * triton.cdiv(num_tokens, tokens)
        stage_bytes = 2 * block_k * (block_n * halves + tokens)
        num_stages = 1 + pipeline_kb * 1024 // stage_bytes
        sensible = (
            32 <= block_k <= min(256, shape.num_in // split_k)
            and 3 <= num_stages <= 7
            and 48 <= programs <= (320 if split_k > 1 else 10**6)
            and (split_k == 1 or shape.num_in // split_k >= 512)
            and (block_n >= 64 or (2 * block_n >= tokens and shape.weight_rows < 10**5))
            and (pipeline_kb < 200 or programs <= 200)
            and stage_bytes * num_stages < SHARED_MEMORY_BYTES
        )
        if sensible:
            num_warps = 8 if block_n * halves * max(1, tokens // 64) >= 256 else 4
            chosen = SkinnyTiles(block_n, block_k, split_k, num_warps, num_stages, block_t)
            if tiles.partial_elements(chosen, num_tokens, shape.weight_rows) <= tiles.PARTIAL_ELEMENTS:
                yield chosen


def candidates(shape: Shape, num_tokens: int) -> list[Tiles]:
    """Without duplicates, the chosen ones first."""
    found: list[Tiles] = []
    chosen = tiles.choose(num_tokens, shape.weight_rows, shape.num_in, gated=shape.gated)
    if chosen is not None:
        found.append(chosen)
    if num_tokens <= 4:
        found.extend(vector_candidates(shape, num_tokens))
    found.extend(skinny_candidates(shape, num_tokens))
    return list(dict.fromkeys(found))


def compile_in_child(job: tuple[Shape, int, Tiles]) -> str | None:
    """Fills Triton's cache on disk; what went wrong, if anything."""
    shape, num_tokens, chosen = job
    # One element stands for the whole weight: the kernel is not run.
    weight = torch.empty(1, device="cuda", dtype=torch.bfloat16).expand(shape.weight_rows, shape.num_in)
    operands = Operands(shape, num_tokens, [weight])
    out = operands.add_to
    if out is None:
        out = torch.empty(num_tokens, shape.num_out, device="cuda", dtype=operands.out_dtype or torch.bfloat16)
    options = {"gated": shape.gated, "add": shape.add}
    try:
        if isinstance(chosen, VectorTiles):
            triton_vector.launch(operands.x, weight, None, operands.norm, out, chosen, **options).compile()
        else:
            triton_skinny.launch(operands.x, weight, None, out, chosen, **options).compile()
    except Exception as error:  # noqa: BLE001 - any compiler failure only loses the candidate
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def compile_all(jobs: list[tuple[Shape, int, Tiles]]) -> set[tuple[Shape, int, Tiles]]:
    """Those that compile."""
    started = time.perf_counter()
    num_processes = max(1, min(14, (os.cpu_count() or 2) - 2))
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        failures = list(pool.map(compile_in_child, jobs, chunksize=4))
    good = {job for job, failure in zip(jobs, failures, strict=True) if failure is None}
    print(f"{len(good)} of {len(jobs)} candidates compiled in {time.perf_counter() - started:.0f} s")
    for failure in sorted({failure for failure in failures if failure}):
        print("  " + failure[:150])
    return good


def describe(chosen: Tiles | None) -> str:
    if chosen is None:
        return "cuBLAS"
    values = ", ".join(str(value) for value in asdict(chosen).values())
    return f"{type(chosen).__name__}({values})"


def measure(operands: Operands, options: list[Tiles | None]) -> dict[str, float]:
    """Microseconds of cuBLAS alone, unfused, and of each of the tiles."""
    shape = operands.shape
    num_calls = calls_for(shape, len(operands.weights))
    out = torch.empty(len(operands.x), shape.weight_rows, device="cuda", dtype=torch.bfloat16)
    transposed = [weight.t() for weight in operands.weights]
    times = {
        "cublas_us": microseconds(lambda i: torch.mm(operands.x, transposed[i % len(transposed)], out=out), num_calls),
        "unfused_us": microseconds(lambda i: cuda.unfused(*operands.arguments(i)), num_calls),
    }
    for chosen in options:
        if chosen is None:
            continue
        try:
            run = run_with(chosen)
            times[describe(chosen)] = microseconds(lambda i, run=run: run(*operands.arguments(i)), num_calls)
        except (triton.runtime.errors.OutOfResources, RuntimeError) as error:
            print(f"  {shape.name} {describe(chosen)}: {str(error).splitlines()[0][:120]}")
    return times


class Report:
    """Prints a table, keeps the rows."""

    def __init__(self, path: str | None) -> None:
        self.file = open(path, "a", encoding="utf-8") if path else None  # noqa: SIM115 - open for the whole run
        self.birth = {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "commit": commit(),
            "command": " ".join(sys.argv),
        }
        self.winners: list[str] = []

    def row(self, **values: object) -> None:
        if self.file:
            self.file.write(json.dumps(self.birth | values) + "\n")
            self.file.flush()

    def heading(self) -> None:
        print(
            f"{'model':<6}{'weight':<8}{'T':>4}{'floor':>8}{'cuBLAS':>15}{'unfused':>9}{'ours':>15}{'gain':>6}  tiles"
        )

    def cell(self, shape: Shape, num_tokens: int, times: dict[str, float], chosen: Tiles | None) -> None:
        """`chosen`: as the rules have it; the best of all times is printed."""
        ours = {name: us for name, us in times.items() if not name.endswith("_us")}
        best = min(ours, key=lambda name: ours[name]) if ours else "cuBLAS"
        best_us = ours.get(best, times["unfused_us"])
        floor, cublas, unfused = shape.floor_us, times["cublas_us"], times["unfused_us"]
        by_rule = ours.get(describe(chosen))
        note = f"  (chosen now: {describe(chosen)} {by_rule:.2f})" if by_rule and describe(chosen) != best else ""
        print(
            f"{shape.model:<6}{shape.name:<8}{num_tokens:>4}{floor:>8.2f}{cublas:>8.2f} ({floor / cublas:.2f})"
            f"{unfused:>9.2f}{best_us:>8.2f} ({floor / best_us:.2f}){unfused / best_us:>6.2f}  {best}{note}",
            flush=True,
        )
        winner = best if best_us < unfused else "CuBLAS"
        key = (shape.weight_rows, shape.num_in, shape.gated, tiles.bucket(num_tokens))
        self.winners.append(f"    {key}: {winner},")
        for name, us in times.items():
            self.row(model=shape.model, weight=shape.name, tokens=num_tokens, what=name, us=us, floor_us=floor)


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def run_cells(shapes: list[Shape], tokens: list[int], report: Report, *, sweep: bool, check: bool) -> None:
    options: dict[tuple[Shape, int], list[Tiles | None]] = {}
    for shape, num_tokens in product(shapes, tokens):
        chosen = tiles.choose(num_tokens, shape.weight_rows, shape.num_in, gated=shape.gated)
        options[shape, num_tokens] = list(candidates(shape, num_tokens)) if sweep else [chosen]
    jobs = [(*cell, one) for cell, found in options.items() for one in found if one is not None]
    good = compile_all(jobs)
    report.heading()
    for shape in shapes:
        weights = make_weights(shape)
        for num_tokens in tokens:
            chosen = tiles.choose(num_tokens, shape.weight_rows, shape.num_in, gated=shape.gated)
            operands = Operands(shape, num_tokens, weights)
            usable = [one for one in options[shape, num_tokens] if (shape, num_tokens, one) in good]
            if check:
                usable = checked(operands, usable)
            report.cell(shape, num_tokens, measure(operands, usable), chosen)
        del weights, operands
        torch.cuda.empty_cache()
    if sweep:
        print("\nMEASURED = {\n" + "\n".join(report.winners) + "\n}")


def checked(operands: Operands, options: list[Tiles | None]) -> list[Tiles | None]:
    """Those that compute the right numbers; says which do not."""
    right = []
    expected = expected_result(operands)
    for chosen in options:
        try:
            error = error_ratio(operands, run_with(chosen), expected)
        except (triton.runtime.errors.OutOfResources, RuntimeError) as failure:
            print(f"  {operands.shape.name} {describe(chosen)}: {str(failure).splitlines()[0][:120]}")
            continue
        if error <= MAX_ERROR_RATIO:
            right.append(chosen)
        else:
            print(f"  WRONG: {operands.shape} T={len(operands.x)} {describe(chosen)}: error ratio {error:.2e}")
    return right


def run_chain(model: str, tokens: list[int], report: Report) -> None:
    """All products of a step in one graph; other kernels, attention for one, would stand between them."""
    *layer_shapes, head = MODELS[model]
    num_layers = NUM_LAYERS[model]
    weights = [[make_one(shape) for shape in layer_shapes] for _ in range(num_layers)]
    head_weight = make_one(head)
    floor = num_layers * sum(shape.floor_us for shape in layer_shapes) + head.floor_us
    print(f"\n{model}: {num_layers} layers and the head, floor {floor / 1e3:.3f} ms")
    for num_tokens in tokens:
        operands = [Operands(shape, num_tokens, [head_weight]) for shape in (*layer_shapes, head)]

        def step(multiply: Callable[..., object], operands: list[Operands] = operands) -> None:
            for layer in weights:
                for one, weight in zip(operands[:-1], layer, strict=True):
                    multiply(one.x, weight, None, one.norm, one.shape.gated, one.add_to, None)
            multiply(operands[-1].x, head_weight, None, None, False, None, torch.float32)

        def plain(x: torch.Tensor, weight: torch.Tensor, *_: object) -> None:
            torch.mm(x, weight.t())

        times = {
            "chain_cublas_us": microseconds(lambda _, plain=plain, step=step: step(plain), 1),
            "chain_unfused_us": microseconds(lambda _, step=step: step(cuda.unfused), 1),
            "chain_us": microseconds(lambda _, step=step: step(cuda.linear), 1),
        }
        supported = programmatic_launch.is_supported
        programmatic_launch.is_supported = lambda _: False
        times["chain_without_programmatic_launch_us"] = microseconds(lambda _, step=step: step(cuda.linear), 1)
        programmatic_launch.is_supported = supported
        cells = ", ".join(f"{name[:-3]} {us / 1e3:.3f} ms ({floor / us:.2f})" for name, us in times.items())
        print(f"  T={num_tokens}: {cells}", flush=True)
        for name, us in times.items():
            report.row(model=model, weight="chain", tokens=num_tokens, what=name, us=us, floor_us=floor)


def make_one(shape: Shape) -> torch.Tensor:
    weight = torch.empty(shape.weight_rows, shape.num_in, device="cuda", dtype=torch.bfloat16)
    return weight.normal_(std=shape.num_in**-0.5)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    for name in ("sweep", "quick", "chain"):
        kind.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--models", default="8b,0.6b")
    parser.add_argument("--shapes", default="qkv,o,gate_up,down,head")
    parser.add_argument("--tokens", default="1,8,16,32,64")
    parser.add_argument("--out", help="file that the rows are appended to, one JSON object a line")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = parse_arguments()
    torch.manual_seed(0)
    tokens = [int(number) for number in args.tokens.split(",")]
    report = Report(args.out)
    models = args.models.split(",")
    if args.chain:
        for model in models:
            run_chain(model, tokens, report)
        return
    names = args.shapes.split(",")
    shapes = [shape for model in models for shape in MODELS[model] if shape.name in names]
    run_cells(shapes, tokens, report, sweep=args.sweep, check=args.check)


if __name__ == "__main__":
    main()
