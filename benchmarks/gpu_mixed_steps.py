"""Where the mixed work of `gpu_offline.py` spends its time on a GPU: the device's time of all steps, by their rows.

    python benchmarks/gpu_mixed_steps.py MODEL_FOLDER

For each range of rows: steps, their device time, what reading keys and values and what reading the weights takes at the
bandwidth of the H200, and the rest. Steps with parts of prompts stand alone. Weights are random.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quire
from gpu_offline import WORK, Requests, measure
from quire.types.plan import StepPlan, StepResult
from quire.worker.cuda_runner import CudaModelRunner, LaunchedStep

BYTES_PER_SECOND = 4.24e12
ROWS_PER_RANGE = 32


@dataclass
class Timed:
    """One step."""

    num_rows: int
    num_tokens: int
    context_tokens: int
    device_seconds: float = 0.0


class Steps:
    """All steps of the runner, from now on."""

    def __init__(self) -> None:
        self.done: list[Timed] = []
        self._launched: dict[int, Timed] = {}
        launch, finish = CudaModelRunner.launch, CudaModelRunner.finish

        def timed_launch(runner: CudaModelRunner, plan: StepPlan) -> LaunchedStep:
            step = launch(runner, plan)
            rows = step.rows
            contexts = int((rows.starts + rows.num_tokens).sum())
            self._launched[id(step)] = Timed(len(rows.slots), int(rows.num_tokens.sum()), contexts)
            return step

        def timed_finish(runner: CudaModelRunner, step: LaunchedStep) -> StepResult:
            result = finish(runner, step)
            timed = self._launched.pop(id(step))
            timed.device_seconds = result.execute_seconds
            self.done.append(timed)
            return result

        runner_class: Any = CudaModelRunner
        runner_class.launch, runner_class.finish = timed_launch, timed_finish


def print_ranges(steps: list[Timed], key_bytes: int, weight_bytes: int) -> None:
    """A line for each range of rows; `key_bytes` are those of a token's keys and values in all layers."""
    ranges: dict[str, list[Timed]] = defaultdict(list)
    for step in steps:
        first = step.num_rows // ROWS_PER_RANGE * ROWS_PER_RANGE
        ranges["prompts" if step.num_tokens > step.num_rows else f"{first:>4} on"].append(step)
    print(f"{'rows':<10}{'steps':>7}{'device s':>10}{'keys s':>8}{'weights s':>11}{'rest s':>8}{'rest, ms each':>15}")
    for name in sorted(ranges):
        found = ranges[name]
        device = sum(step.device_seconds for step in found)
        keys = sum(step.context_tokens for step in found) * key_bytes / BYTES_PER_SECOND
        weights = len(found) * weight_bytes / BYTES_PER_SECOND
        rest = device - keys - weights
        print(
            f"{name:<10}{len(found):>7}{device:>10.3f}{keys:>8.3f}{weights:>11.3f}{rest:>8.3f}"
            f"{1e3 * rest / len(found):>15.3f}"
        )


def main() -> None:
    """Warms up as `gpu_offline.py` does, runs its mixed work and prints the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    options = parser.parse_args()
    llm = quire.LLM(
        model=str(options.model),
        load_format="dummy",
        max_model_len=4096,
        gpu_memory_utilization=0.9,
        enable_prefix_caching=False,
    )
    runner = llm._engine.loop._executor._runner  # type: ignore[attr-defined]
    keys = runner.kv_caches[0][0]
    key_bytes = 2 * len(runner.kv_caches) * keys.shape[2] * keys.shape[3] * keys.itemsize
    requests = Requests(quire)
    llm.generate(*requests.draw(8, 16, 16, 8, 8), use_tqdm=False)
    steps = Steps()
    row = measure(llm, *requests.draw(*WORK["mixed"]))
    device = sum(step.device_seconds for step in steps.done)
    print(f"{row['seconds']:.3f} s, {row['out_tok_s']:.0f} tok/s, {len(steps.done)} steps, device {device:.3f} s")
    print_ranges(steps.done, key_bytes, runner._model.num_weight_bytes())


if __name__ == "__main__":
    main()
