"""The small ops of a step on a GPU: checked against their references, then timed at the shapes of two models.

Usage: python benchmarks/gpu_small_ops.py [--tokens 1,32,256,2048,16384] [--check-only]
Columns per number of tokens: microseconds per call in a CUDA graph of 20 calls (median of 7 replays) and GB/s of the
bytes that must be read and written. Below a few thousand tokens everything stays in the L2 cache, as it does in a
model, where the op before has just written it. `host` is the time that an eager call keeps the host, in microseconds.
Block copies are eager calls, with their upload; their columns are blocks, not tokens.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import triton

from quire.kernels.block_copy import copy_blocks
from quire.kernels.block_copy import reference as block_copy_reference
from quire.kernels.rms_norm import reference as rms_norm_reference
from quire.kernels.rms_norm import rms_norm
from quire.kernels.rope import reference as rope_reference
from quire.kernels.rope import rope_tables
from quire.kernels.rope_kv_write import reference as rope_kv_write_reference
from quire.kernels.rope_kv_write import rope_kv_write
from quire.kernels.silu_mul import reference as silu_mul_reference
from quire.kernels.silu_mul import silu_mul

NUM_CALLS = 20
NUM_REPLAYS = 7
BLOCK_SIZE = 16
COPIED_BLOCKS = (1, 8, 64)
EPSILON = 1e-6
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Model:
    """Sizes that the ops depend on."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_qk_norm: bool
    num_layers: int

    @property
    def qkv_width(self) -> int:
        """Columns of the product of queries, keys and values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


MODELS = (
    Model("Llama-3.1-8B", 4096, 14336, 32, 8, 128, False, 32),
    Model("Qwen3-0.6B", 1024, 3072, 16, 8, 128, True, 28),
)


@dataclass
class Case:
    """One op on one shape: the call, its check, and the bytes that it must read and write."""

    call: Callable[[], object]
    check: Callable[[], None]
    num_bytes: int


def assert_close(name: str, actual: torch.Tensor, expected: torch.Tensor, ratio: float = 6e-3) -> None:
    """Fails unless the root-mean-square error is at most `ratio` of the expected values' root mean square."""
    actual, expected = actual.double().cpu(), expected.double().cpu()
    error = float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    assert error <= ratio, f"{name}: error ratio {error:.2e}, allowed {ratio:.0e}"


def sampled_rows(num_tokens: int) -> torch.Tensor:
    """A few rows for references that are slow."""
    return torch.tensor(sorted({0, num_tokens // 3, num_tokens // 2, num_tokens - 1}), device="cuda")


def rms_norm_case(model: Model, num_tokens: int) -> Case:
    """The norm of all rows."""
    x = torch.randn(num_tokens, model.hidden_size, device="cuda").to(DTYPE)
    weight = torch.randn(model.hidden_size, device="cuda").to(DTYPE)
    call = partial(rms_norm, x, weight, EPSILON)

    def check() -> None:
        assert_close("rms_norm", call(), rms_norm_reference.rms_norm(x, weight, EPSILON))

    return Case(call, check, 2 * x.numel() * x.element_size())


def gathered_rms_norm_case(model: Model, num_tokens: int) -> Case:
    """The norm of a quarter of the rows, from last to first."""
    x = torch.randn(num_tokens, model.hidden_size, device="cuda").to(DTYPE)
    weight = torch.randn(model.hidden_size, device="cuda").to(DTYPE)
    rows = torch.arange(0, num_tokens, 4, device="cuda").flip(0)
    call = partial(rms_norm, x, weight, EPSILON, rows)

    def check() -> None:
        assert_close("rms_norm of rows", call(), rms_norm_reference.rms_norm(x[rows], weight, EPSILON))

    return Case(call, check, 2 * len(rows) * model.hidden_size * x.element_size())


def silu_mul_case(model: Model, num_tokens: int) -> Case:
    """The gated activation."""
    gate_up = torch.randn(num_tokens, 2 * model.intermediate_size, device="cuda").to(DTYPE)
    call = partial(silu_mul, gate_up)

    def check() -> None:
        rows = sampled_rows(num_tokens)
        assert_close("silu_mul", call()[rows], silu_mul_reference.silu_mul(gate_up[rows]))

    return Case(call, check, 3 * num_tokens * model.intermediate_size * gate_up.element_size())


def inverse_frequencies(model: Model) -> torch.Tensor:
    """Rope's default frequencies with a base of 500,000."""
    exponents = torch.arange(0, model.head_dim, 2, device="cuda") / model.head_dim
    return 500_000.0**-exponents


def rope_tables_case(model: Model, num_tokens: int) -> Case:
    """Cosines and sines at positions up to 2^20."""
    positions = torch.linspace(0, 2**20, num_tokens, device="cuda").to(torch.int32)
    frequencies = inverse_frequencies(model)
    call = partial(rope_tables, positions, frequencies, 1.0, DTYPE)

    def check() -> None:
        expected = rope_reference.rope_tables(positions, frequencies, 1.0)
        for name, table, expected_table in zip(("cosines", "sines"), call(), expected, strict=True):
            worst = float((table.double() - expected_table).abs().max())
            assert worst < 3e-7, f"{name} are off by up to {worst:.1e}"

    return Case(call, check, 2 * num_tokens * len(frequencies) * 4)


def rope_kv_write_case(model: Model, num_tokens: int) -> Case:
    """Norm where the model has one, rope, and writes to shuffled slots, the last of which is padding."""
    shape = (num_tokens // BLOCK_SIZE + 1, BLOCK_SIZE, model.num_kv_heads, model.head_dim)
    caches = tuple(torch.full(shape, torch.nan, dtype=DTYPE, device="cuda") for _ in range(2))
    slots = torch.randperm(num_tokens + 1, device="cuda")[:num_tokens]
    if num_tokens > 1:
        slots[-1] = -1
    positions = torch.arange(num_tokens, dtype=torch.int32, device="cuda") + 100_000
    qkv = torch.randn(num_tokens, model.qkv_width, device="cuda").to(DTYPE)
    norms = [torch.randn(model.head_dim, device="cuda").to(DTYPE) if model.has_qk_norm else None for _ in range(2)]
    options = {"num_heads": model.num_heads, "num_kv_heads": model.num_kv_heads, "epsilon": EPSILON}
    options |= {"query_norm": norms[0], "key_norm": norms[1]}
    frequencies = inverse_frequencies(model)
    rotation = rope_tables(positions, frequencies, 1.0, DTYPE)
    call = partial(rope_kv_write, qkv, rotation, *caches, slots, **options)

    def check() -> None:
        query = call()
        rows = sampled_rows(num_tokens)
        exact = (table.cpu() for table in rope_reference.rope_tables(positions[rows], frequencies, 1.0))
        expected_caches = [torch.full(shape, torch.nan, dtype=DTYPE) for _ in range(2)]
        on_cpu = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
        expected = rope_kv_write_reference.rope_kv_write(
            qkv[rows].cpu(), tuple(exact), *expected_caches, slots[rows].cpu(), **on_cpu
        )
        assert_close("query", query[rows], expected)
        written = slots[rows][slots[rows] >= 0].cpu()
        for name, cache, expected_cache in zip(("keys", "values"), caches, expected_caches, strict=True):
            flat, expected_flat = (tensor.cpu().view(-1, *shape[2:]) for tensor in (cache, expected_cache))
            assert_close(name, flat[written], expected_flat[written])
            num_unwritten = int(flat[:, 0, 0].isnan().sum())
            assert num_unwritten == len(flat) - int((slots >= 0).sum()), f"{name}: {num_unwritten} slots unwritten"

    tables_num_bytes = 2 * num_tokens * len(frequencies) * 4
    return Case(call, check, 2 * qkv.numel() * qkv.element_size() + tables_num_bytes)


def block_copy_case(model: Model, num_blocks: int) -> Case:
    """Copies of blocks in all layers."""
    shape = (2 * num_blocks, BLOCK_SIZE, model.num_kv_heads, model.head_dim)
    caches = [tuple(torch.randn(shape, device="cuda").to(DTYPE) for _ in range(2)) for _ in range(model.num_layers)]
    pairs = [(block, block + num_blocks) for block in range(num_blocks)]
    call = partial(copy_blocks, caches, pairs)

    def check() -> None:
        for some_pairs in (pairs, [(0, 1), (1, 0)]):
            expected = [(keys.clone(), values.clone()) for keys, values in caches]
            copy_blocks(caches, some_pairs)
            block_copy_reference.copy_blocks(expected, some_pairs)
            for layer, expected_layer in zip(caches, expected, strict=True):
                assert all(torch.equal(one, other) for one, other in zip(layer, expected_layer, strict=True))

    num_bytes = 2 * 2 * model.num_layers * num_blocks * caches[0][0][0].numel() * DTYPE.itemsize
    return Case(call, check, num_bytes)


def graph_seconds(call: Callable[[], object]) -> float:
    """Seconds per call, back to back in a CUDA graph."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(NUM_CALLS):
            call()
    graph.replay()
    return median_event_seconds(graph.replay) / NUM_CALLS


def eager_seconds(call: Callable[[], object]) -> float:
    """Seconds per call on the device, launched from the host."""

    def run() -> None:
        for _ in range(NUM_CALLS):
            call()

    run()
    return median_event_seconds(run) / NUM_CALLS


def median_event_seconds(run: Callable[[], object]) -> float:
    """Median seconds between two events around `run`."""
    seconds = []
    for _ in range(NUM_REPLAYS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        seconds.append(before.elapsed_time(after) / 1e3)
    return statistics.median(seconds)


def host_seconds(call: Callable[[], object]) -> float:
    """Seconds that an eager call keeps the host, while the device's queue has room."""
    rounds = []
    for _ in range(NUM_REPLAYS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(NUM_CALLS):
            call()
        rounds.append((time.perf_counter() - started) / NUM_CALLS)
    return statistics.median(rounds)


def print_row(name: str, cases: list[Case], measure: Callable[[Callable[[], object]], float]) -> None:
    """Times the cases and prints them side by side; the host's time is that of the first."""
    cells = []
    for case in cases:
        seconds = measure(case.call)
        cells.append(f"{1e6 * seconds:.1f} us {case.num_bytes / seconds / 1e9:.0f}")
    host = f"{1e6 * host_seconds(cases[0].call):.1f}"
    print(f"{name:<34}" + "".join(f"{cell:>17}" for cell in cells) + f"{host:>8}", flush=True)


OPS: dict[str, Callable[[Model, int], Case]] = {
    "rms_norm": rms_norm_case,
    "rms_norm of a quarter": gathered_rms_norm_case,
    "silu_mul": silu_mul_case,
    "rope_tables": rope_tables_case,
    "rope_kv_write": rope_kv_write_case,
}


@torch.inference_mode()
def main() -> None:
    """Checks all, then prints one row per op and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,32,256,2048,16384")
    parser.add_argument("--check-only", action="store_true")
    args = parser.parse_args()
    token_counts = [int(count) for count in args.tokens.split(",")]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, {DTYPE}")
    print(f"{'us per call and GB/s':<34}" + "".join(f"{count:>17}" for count in token_counts) + f"{'host':>8}")
    for model in MODELS:
        for op, make_case in OPS.items():
            torch.manual_seed(0)
            cases = [make_case(model, count) for count in token_counts]
            for case in cases:
                case.check()
            if not args.check_only:
                print_row(f"{model.name} {op}", cases, graph_seconds)
        copies = [block_copy_case(model, count) for count in COPIED_BLOCKS]
        for case in copies:
            case.check()
        if not args.check_only:
            print_row(f"{model.name} copy of {COPIED_BLOCKS}", copies, eager_seconds)
    print("checks passed")


if __name__ == "__main__":
    main()
