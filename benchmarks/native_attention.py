"""Compiled paged attention: keys read per second in decode, GFLOP/s in prefill.

    python benchmarks/native_attention.py [--threads 1] [--isa avx512_bf16] [--extension FILE]

A decode counts each key head's keys once, a prefill the 4 * head_dim operations of each query head and key that it
sees. Caches are cold where they do not fit, as in a model: each run works on the next of several layers.
"""

import argparse
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

SHAPES = {"9/3 x 64": (9, 3, 64), "32/8 x 128": (32, 8, 128)}
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BLOCK_SIZE = 16
CACHE_BYTES = 256 << 20
SECONDS = 0.25


@dataclass(frozen=True)
class Line:
    shape: str
    cache_format: str
    kind: str
    batch: int
    context: int

    def __str__(self) -> str:
        return f"{self.shape:11} {self.cache_format:8} {self.kind:7} batch {self.batch:2} context {self.context:4}"


WORK = (("decode", 1, 256), ("decode", 1, 2048), ("decode", 32, 256), ("decode", 32, 2048))
WORK += (("prefill", 1, 512), ("prefill", 1, 2048))
LINES = [Line(shape, cache_format, *work) for shape in SHAPES for cache_format in FORMATS for work in WORK]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", help="instruction set, by default the best")
    parser.add_argument("--extension", type=Path, help="a built extension module, by default the installed one")
    parser.add_argument("--only", default="", help="part of the lines' names")
    options = parser.parse_args()
    extension = _load(options.extension)
    isa = options.isa or extension.instruction_sets()[0]
    pool = extension.ThreadPool(options.threads)
    print(f"{isa}, {options.threads} threads")
    for line in LINES:
        if options.only in str(line):
            print(f"{line}  {_measure(extension, pool, isa, line)}", flush=True)


def _load(path: Path | None) -> ModuleType:
    if path is None:
        from quire.kernels.native import _extension

        return _extension
    spec = importlib.util.spec_from_file_location("_extension", path)
    assert spec is not None and spec.loader is not None, f"{path} is no extension module"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _measure(extension: ModuleType, pool: Any, isa: str, line: Line) -> str:
    num_heads, num_kv_heads, head_dim = SHAPES[line.shape]
    batch, context = line.batch, line.context
    blocks = batch * -(-context // BLOCK_SIZE)
    cache_shape = (blocks, BLOCK_SIZE, num_kv_heads, head_dim)
    layer_bytes = 2 * blocks * BLOCK_SIZE * num_kv_heads * head_dim * FORMATS[line.cache_format].itemsize
    num_layers = max(1, min(64, CACHE_BYTES // layer_bytes))
    caches = [torch.randn(2, *cache_shape).to(FORMATS[line.cache_format]) for _ in range(num_layers)]
    programs = []
    for cache in caches:
        program = extension.StepProgram(pool, isa)
        query = program.input(num_heads * head_dim)
        out = program.attend(
            query,
            layer=0,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            sliding_window=0,
            soft_cap=0.0,
        )
        program.finish(out, True)
        program.set_cache_shape(line.cache_format, blocks, BLOCK_SIZE)
        program.add_cache(cache[0].data_ptr(), cache[1].data_ptr(), 0, 0)
        programs.append(program)
    tokens = 1 if line.kind == "decode" else context
    tables = torch.randperm(blocks, dtype=torch.int32).view(batch, -1)
    given = torch.randn(batch * tokens, num_heads * head_dim)
    result = torch.empty_like(given)
    arguments = (
        torch.zeros((batch, context), dtype=torch.int32),
        tables,
        torch.arange(batch),
        torch.full((batch,), context - tokens),
        torch.full((batch,), tokens),
        torch.zeros(0, dtype=torch.int64),
        result,
        given,
    )
    seconds = _seconds_of_a_run(programs, arguments)
    micros = f"{seconds * 1e6:9.1f} us"
    if line.kind == "decode":
        keys = batch * context * num_kv_heads
        return f"{micros}  {keys / seconds / 1e6:8.1f} Mkeys/s  {layer_bytes / seconds / 1e9:6.1f} GB/s"
    flops = 4 * head_dim * num_heads * batch * context * (context + 1) / 2
    return f"{micros}  {flops / seconds / 1e9:8.1f} GFLOP/s"


def _seconds_of_a_run(programs: list[Any], arguments: tuple[torch.Tensor, ...]) -> float:
    """The mean of a round over all layers, of the best round."""
    best, end = float("inf"), 0.0
    while not end or time.perf_counter() < end:
        start = time.perf_counter()
        for program in programs:
            program.run(*arguments)
        best = min(best, (time.perf_counter() - start) / len(programs))
        end = end or time.perf_counter() + SECONDS
    return best


if __name__ == "__main__":
    main()
