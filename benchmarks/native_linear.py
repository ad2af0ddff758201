"""Products of the compiled kernels: GOP/s of every instruction set that this machine has.

Usage: python benchmarks/native_linear.py [--rows 1 8 32 512] [--shapes 576x1536 4096x4096] [--formats Q4_1 ...]
    [--threads N] [--instruction-sets NAME ...] [--seconds 0.06]
Columns: 2 * rows * K * N operations by the fastest of the calls that `--seconds` allow (three at least), and how often
faster the first set is than the second. The rounding of x is part of a product; its copy into the program and that of
the result out of it as well.
"""

import argparse
import sys
import time
from typing import cast

import numpy as np
import torch

from quire.kernels.linear import PackedWeight
from quire.kernels.linear.native import pack
from quire.kernels.native import NativeCpu, instruction_sets
from quire.kernels.native.recording import Recorded, Recording
from quire.worker.threads import num_usable_cpus


class Product:
    """x @ weight.T as a program of one instruction, recorded once."""

    def __init__(self, native: NativeCpu, weight: PackedWeight) -> None:
        recording = Recording(native)
        rows = cast(Recorded, recording.input(weight.in_features, is_of_tokens=True))
        recording.finish(recording.linear(rows, weight, None, None, False, None))
        self._program = recording.program
        self._shape = weight.in_features, weight.out_features

    def giga_operations(self, num_rows: int, seconds: float) -> float:
        """GOP/s of the fastest call."""
        num_in, num_out = self._shape
        x = np.random.default_rng(0).standard_normal((num_rows, num_in), np.float32)
        out = np.empty((num_rows, num_out), np.float32)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            started = time.perf_counter()
            self._program.run_rows(x, out)
            times.append(time.perf_counter() - started)
        return 2e-9 * num_rows * num_in * num_out / min(times)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 512])
    parser.add_argument("--shapes", nargs="+", default=["576x1536", "4096x4096"], metavar="KxN")
    parser.add_argument("--formats", nargs="+", default=["Q4_1", "int8", "bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=num_usable_cpus())
    parser.add_argument("--instruction-sets", nargs="+", default=None)
    parser.add_argument("--seconds", type=float, default=0.06)
    options = parser.parse_args()
    names = options.instruction_sets or [name for name in instruction_sets() if name != "portable"]
    if not names:
        sys.exit("no kernels to measure: the package was built without a compiler, or this machine has no vectors")
    natives = [cast(NativeCpu, NativeCpu.create(options.threads, name)) for name in names]
    print(f"GOP/s, {options.threads} threads")
    print(f"{'':28}" + "".join(f"{name:>13}" for name in names) + ("    1st/2nd" if len(names) > 1 else ""))
    for shape in options.shapes:
        num_in, num_out = map(int, shape.split("x"))
        floats = torch.randn(num_out, num_in) / num_in**0.5
        for weight_format in options.formats:
            # A weight is packed once: its layout is the same for every instruction set.
            weight = pack(natives[0], floats, weight_format)
            products = [Product(native, weight) for native in natives]
            for num_rows in options.rows:
                figures = [product.giga_operations(num_rows, options.seconds) for product in products]
                ratio = f"{figures[0] / figures[1]:11.2f}" if len(figures) > 1 else ""
                label = f"{weight_format} {shape}, {num_rows} rows"
                print(f"{label:28}" + "".join(f"{figure:13.1f}" for figure in figures) + ratio, flush=True)


if __name__ == "__main__":
    main()
