"""Paged attention on a GPU, beside the limits of its memory (decoding) and of its tensor cores (prompts).

Usage: python benchmarks/gpu_attention.py [--quick] [--sweep] [--only decode|prefill] [--heads 32] [--kv-heads 8]
           [--head-dim 128] [--block-size 16] [--dtype bfloat16] [--bandwidth 4.24e12] [--flops 7.9e14]

Each case is checked against dense attention in float32 first. A time is the median of replays of a CUDA graph that
goes over the caches of several layers, so that nothing is found in the second-level cache; `--sweep` tries other tile
sizes, warps and stages and prints the best first. Contexts in a decoding case are equal; the grid is that of a graph
captured for contexts of up to `MODEL_LENGTH`.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import triton

from quire.kernels.paged_attention import triton_decode, triton_prefill
from quire.kernels.paged_attention.cuda_config import DecodeConfig, PrefillConfig, decode_config, prefill_config
from quire.kernels.paged_attention.cuda_plan import (
    CudaAttentionMetadata,
    make_decode_workspace,
    make_tiles,
    tile_size,
)

MODEL_LENGTH = 8192
CACHE_BYTES = 300e6
"""Of the layers of a case together: several times a second-level cache."""
MAX_LAYERS = 64
DECODES = tuple((batch, context) for batch in (1, 32, 256) for context in (400, 640, 4096))
PREFILLS = ((64, 0, 1024), (1, 0, 16384), (1, 30000, 2048))
QUICK_DECODES = ((1, 400), (32, 400), (256, 400))
QUICK_PREFILLS = ((64, 0, 1024), (1, 0, 8192))
SWEPT_DECODES = ((1, 400), (32, 400), (100, 1200), (256, 280))
SWEPT_PREFILLS = ((64, 0, 1024), (1, 0, 16384))

Config = DecodeConfig | PrefillConfig


@dataclass
class Work:
    """One case: sequences of equal length, `now` tokens of each in the step behind `before`.

    Attributes:
        layers: Keys and values, each [num_blocks, block_size, H_kv, D].
    """

    query: torch.Tensor
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    block_tables: torch.Tensor
    before: int
    now: int

    @property
    def num_sequences(self) -> int:
        return len(self.block_tables)

    @property
    def context(self) -> int:
        return self.before + self.now


def make_work(args: argparse.Namespace, num_sequences: int, before: int, now: int) -> Work:
    """Random numbers, blocks in random order."""
    blocks_each = -(-(before + now) // args.block_size)
    num_blocks = num_sequences * blocks_each
    shape = (num_blocks, args.block_size, args.kv_heads, args.head_dim)
    layer_bytes = 2 * num_blocks * args.block_size * args.kv_heads * args.head_dim * args.dtype.itemsize
    num_layers = max(1, min(MAX_LAYERS, int(CACHE_BYTES / layer_bytes))) if now == 1 else 1
    layers = [
        (torch.randn(shape, device="cuda", dtype=args.dtype), torch.randn(shape, device="cuda", dtype=args.dtype))
        for _ in range(num_layers)
    ]
    tables = torch.randperm(num_blocks, device="cuda").view(num_sequences, blocks_each).to(torch.int32)
    query = torch.randn(num_sequences * now, args.heads, args.head_dim, device="cuda", dtype=args.dtype)
    return Work(query, layers, tables, before, now)


def make_metadata(args: argparse.Namespace, work: Work, config: Config | None) -> CudaAttentionMetadata:
    """The step's plan; the workspace and the tiles fit the configuration."""
    count = work.num_sequences
    slots, rows = np.arange(count), np.arange(count) * work.now
    contexts = np.full(count, work.context)
    size = tile_size(
        args.heads, args.kv_heads, args.head_dim, args.dtype, config if isinstance(config, PrefillConfig) else None
    )
    decodes = np.stack((slots, rows, contexts), axis=1) if work.now == 1 else np.empty((0, 3))
    return CudaAttentionMetadata(
        num_tokens=count * work.now,
        decodes=torch.from_numpy(decodes.astype(np.int32)).cuda(),
        tiles=torch.from_numpy(make_tiles(np.full(count, work.now), contexts, slots, rows, size)).cuda(),
        block_tables=work.block_tables,
        max_context_length=max(MODEL_LENGTH, work.context),
        workspace=make_decode_workspace(
            count,
            args.heads,
            args.kv_heads,
            args.head_dim,
            dtype=args.dtype,
            device="cuda",
            config=config if isinstance(config, DecodeConfig) else None,
        ),
    )


def make_run(args: argparse.Namespace, work: Work, config: Config | None = None) -> Callable[[], torch.Tensor]:
    """A function that computes all layers and returns the last one's output."""
    metadata = make_metadata(args, work, config)
    output = torch.empty_like(work.query)
    scale = args.head_dim**-0.5

    def run() -> torch.Tensor:
        for keys, values in work.layers:
            if work.now == 1:
                assert not isinstance(config, PrefillConfig)
                triton_decode.decode(work.query, keys, values, metadata, scale, None, None, output, config)
            else:
                assert not isinstance(config, DecodeConfig)
                triton_prefill.prefill(work.query, keys, values, metadata, scale, None, None, output, config)
        return output

    return run


def check(args: argparse.Namespace, work: Work, output: torch.Tensor) -> float:
    """Relative error of some rows of the first and last sequence in the last layer."""
    keys, values = work.layers[-1]
    errors = []
    group_size = args.heads // args.kv_heads
    for sequence in {0, work.num_sequences - 1}:
        blocks = work.block_tables[sequence].long()
        flat = [cache[blocks].flatten(0, 1).float().repeat_interleave(group_size, dim=1) for cache in (keys, values)]
        for token in {0, work.now // 3, work.now - 1}:
            row, end = sequence * work.now + token, work.before + token + 1
            scores = torch.einsum("hd,lhd->hl", work.query[row].float(), flat[0][:end]) * args.head_dim**-0.5
            expected = torch.einsum("hl,lhd->hd", scores.softmax(dim=-1), flat[1][:end])
            difference = output[row].float() - expected
            errors.append(float(difference.square().mean().sqrt() / expected.square().mean().sqrt()))
    return max(errors)


def seconds_per_layer(run: Callable[[], torch.Tensor], num_layers: int, num_replays: int) -> float:
    """Median over replays of a graph of `run`."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times: list[float] = []
    for _ in range(num_replays + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[2:]) / num_layers


def describe(args: argparse.Namespace, work: Work, seconds: float) -> str:
    """Microseconds, rate and fraction of the limit."""
    if work.now == 1:
        tokens = work.num_sequences * work.context
        rate = 2 * tokens * args.kv_heads * args.head_dim * args.dtype.itemsize / seconds
        return f"{1e6 * seconds:>10.1f} us {rate / 1e9:>8.0f} GB/s   {rate / args.bandwidth:>5.2f}"
    visible = work.num_sequences * (work.now * work.before + work.now * (work.now + 1) // 2)
    rate = 4 * args.heads * args.head_dim * visible / seconds
    return f"{1e6 * seconds:>10.1f} us {rate / 1e12:>8.0f} TFLOP/s {rate / args.flops:>4.2f}"


def label(work: Work) -> str:
    """The case's name in the table."""
    if work.now == 1:
        return f"decode {work.num_sequences} x {work.context}"
    behind = f" behind {work.before}" if work.before else ""
    return f"prefill {work.num_sequences} x {work.now}{behind}"


def decode_configs(default: DecodeConfig) -> Iterator[DecodeConfig]:
    """Other ways to decode."""
    tiles = ((64, 4, 2), (64, 4, 3), (64, 4, 4), (64, 2, 2), (64, 2, 3), (32, 4, 4), (32, 2, 4), (128, 4, 2))
    for (tile, warps, stages), split in itertools.product(tiles, (64,)):
        yield default._replace(tile_tokens=tile, num_warps=warps, num_stages=stages, min_part_tokens=split)
    yield default._replace(programs_per_multiprocessor=2)
    yield default._replace(programs_per_multiprocessor=6)


def prefill_configs(default: PrefillConfig) -> Iterator[PrefillConfig]:
    """Other ways to compute prompts."""
    yield default
    yield PrefillConfig(128, 64, 8, 2)
    yield PrefillConfig(128, 64, 8, 3)
    yield PrefillConfig(128, 64, 8, 4)
    yield PrefillConfig(128, 128, 8, 2)
    yield PrefillConfig(128, 128, 8, 3)
    yield PrefillConfig(128, 32, 8, 2, max_registers=128)
    yield PrefillConfig(128, 32, 8, 3, max_registers=128)
    yield PrefillConfig(128, 32, 4, 3)
    yield PrefillConfig(64, 64, 4, 2)
    yield PrefillConfig(64, 64, 4, 2, max_registers=168)
    yield PrefillConfig(64, 32, 4, 3, max_registers=128)
    yield PrefillConfig(64, 128, 4, 2)


def sweep(args: argparse.Namespace, work: Work, num_replays: int) -> None:
    """Prints the configurations of a case, the fastest first."""
    configs: list[Config] = (
        list(decode_configs(decode_config(args.head_dim, args.dtype)))
        if work.now == 1
        else list(prefill_configs(prefill_config(args.head_dim, args.dtype)))
    )
    results = []
    for config in configs:
        try:
            run = make_run(args, work, config)
            error = check(args, work, run())
            seconds = seconds_per_layer(run, len(work.layers), num_replays)
        except triton.runtime.errors.OutOfResources as reason:
            print(f"  {label(work)}: {tuple(config)} does not fit: {reason}")
            continue
        results.append((seconds, f"{describe(args, work, seconds)}   error {error:.0e}   {tuple(config)}"))
    for _, line in sorted(results):
        print(f"  {label(work):<28}{line}")


@torch.inference_mode()
def main() -> None:
    """Prints one row per case, or per case and configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few cases, few replays")
    parser.add_argument("--sweep", action="store_true", help="all configurations on few cases")
    parser.add_argument("--only", choices=("decode", "prefill"))
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.bfloat16)
    parser.add_argument("--bandwidth", type=float, default=4.24e12, help="bytes per second")
    parser.add_argument("--flops", type=float, default=7.9e14, help="per second")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    print(
        f"{args.heads} heads, {args.kv_heads} key heads of {args.head_dim}, blocks of {args.block_size}, {args.dtype}"
    )
    decodes = SWEPT_DECODES if args.sweep else QUICK_DECODES if args.quick else DECODES
    prefills = SWEPT_PREFILLS if args.sweep else QUICK_PREFILLS if args.quick else PREFILLS
    cases = [(batch, context - 1, 1) for batch, context in decodes] if args.only != "prefill" else []
    cases += prefills if args.only != "decode" else ()
    num_replays = 5 if args.quick or args.sweep else 20
    for case in cases:
        work = make_work(args, *case)
        if args.sweep:
            sweep(args, work, num_replays)
            continue
        run = make_run(args, work)
        error = check(args, work, run())
        assert error < 0.02, f"{label(work)}: relative error {error:.2e}"
        seconds = seconds_per_layer(run, len(work.layers), num_replays)
        print(f"{label(work):<30}{describe(args, work, seconds)}   error {error:.0e}")


if __name__ == "__main__":
    main()
