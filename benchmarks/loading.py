"""How long the small model takes from its file into memory, and what a value of each quantised format costs.

Usage: python benchmarks/loading.py
"""

import statistics
import sys
import time
from collections.abc import Callable

import gguf
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from quire.checkpoint.checkpoint import Checkpoint, open_checkpoint, small_model_path
from quire.checkpoint.gguf_file import GGUFFile
from quire.checkpoint.gguf_metadata import gguf_vocabulary
from quire.config.model import ModelConfig
from quire.models.loading.dequantize import Dequantizer
from quire.models.loading.load import fill_parameters
from quire.models.registry import create_model

HEADER_BUDGET_SECONDS = 0.3
FILL_BUDGET_SECONDS = 0.8
NUM_RUNS = 5
NUM_VALUES = 2**22

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def median_seconds(work: Callable[[], object]) -> float:
    """Of a few runs, after one that warms the page cache."""
    times = []
    for _ in range(NUM_RUNS + 1):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def fill(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """All parameters into memory, dequantised, not packed."""
    model = create_model(checkpoint.architecture, dtype=dtype)
    for _ in fill_parameters(model, checkpoint, progress=False, device=torch.device("cpu"), seed=0):
        pass


def print_formats() -> None:
    """Nanoseconds per value, ours and the gguf package's, on zeros."""
    print(f"{'format':8} {'ours ns':>8} {'gguf ns':>8}")
    with Dequantizer() as dequantizer:
        for name in TYPES:
            values, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
            packed = torch.zeros(1024, NUM_VALUES // 1024 // values * num_bytes, dtype=torch.uint8)
            out = torch.zeros(1024, NUM_VALUES // 1024 // values * values)
            ours = median_seconds(lambda: dequantizer.write(packed, name, out))  # noqa: B023
            theirs = median_seconds(lambda: gguf.quants.dequantize(packed.numpy(), GGMLQuantizationType[name]))  # noqa: B023
            print(f"{name:8} {ours / out.numel() * 1e9:8.2f} {theirs / out.numel() * 1e9:8.2f}")


def main() -> int:
    """Prints the times; fails where one is over its budget."""
    path = small_model_path()
    header = median_seconds(lambda: GGUFFile(path))
    vocabulary = median_seconds(lambda: gguf_vocabulary(GGUFFile(path))) - header
    whole = median_seconds(lambda: open_checkpoint(ModelConfig(model=str(path))))
    print(f"header          {header * 1000:7.1f} ms (budget {HEADER_BUDGET_SECONDS * 1000:.0f} ms)")
    print(f"vocabulary      {vocabulary * 1000:7.1f} ms")
    print(f"open_checkpoint {whole * 1000:7.1f} ms")
    checkpoint = open_checkpoint(ModelConfig(model=str(path)))
    fills = {}
    for dtype in (torch.float32, torch.bfloat16):
        fills[dtype] = median_seconds(lambda: fill(checkpoint, dtype))  # noqa: B023
        print(f"weights into place as {dtype}: {fills[dtype]:.2f} s (budget {FILL_BUDGET_SECONDS} s)")
    print(f"{torch.get_num_threads()} threads")
    print_formats()
    return 0 if header <= HEADER_BUDGET_SECONDS and max(fills.values()) <= FILL_BUDGET_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
