"""Where the time of a decode step goes on the CPU, with the small real model.

    python benchmarks/worker.py [--batch 1 16 32] [--prompt 128] [--steps 60] [--dtype auto] [--temperature 0] [--json]

Plans are made by hand, so nothing but the worker is measured. Each part is the median over the steps, in
milliseconds: `assemble` is all of the worker's own work (plan to arrays, tokens to result), `forward` the model
up to the last hidden states, `logits` the output projection, `sample` the sampler. Prefill is one step.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from quire.checkpoint.checkpoint import open_checkpoint
from quire.config.engine import EngineConfig
from quire.types.ids import BlockId, SequenceId, SlotIndex
from quire.types.plan import NewSequence, StepPlan
from quire.types.sampling import SamplingParams
from quire.worker import model_runner
from quire.worker.cpu_executor import CpuExecutor
from quire.worker.step_model import StepModel

BLOCK_SIZE = 16


class Stopwatch:
    """Stands in for a `StepModel` and times its two halves; `timed` wraps any function."""

    def __init__(self, model: StepModel) -> None:
        self.seconds: dict[str, float] = {}
        self.run = self.timed("forward", model.run)
        self.compute_logits = self.timed("logits", model.compute_logits)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            return result

        return call


def make_plans(batch: int, prompt: int, steps: int, params: SamplingParams) -> list[StepPlan]:
    """A prefill of all sequences in one step, then decode steps."""
    per_sequence = -(-(prompt + steps) // BLOCK_SIZE)
    plan = StepPlan(step=1)
    for slot in range(batch):
        plan.new_sequences.append(
            NewSequence(
                sequence_id=SequenceId(slot + 1),
                slot=SlotIndex(slot),
                token_ids=[(slot * 7919 + index * 31) % 40_000 + 10 for index in range(prompt)],
                num_prompt_tokens=prompt,
                num_computed_tokens=0,
                block_ids=[BlockId(slot * per_sequence + index) for index in range(per_sequence)],
                sampling=params,
                seed=slot,
                sample_index=0,
            )
        )
    slots = [SlotIndex(slot) for slot in range(batch)]
    ids = [SequenceId(slot + 1) for slot in range(batch)]
    plan.slots, plan.sequence_ids, plan.num_tokens, plan.samples = slots, ids, [prompt] * batch, [True] * batch
    later = [
        StepPlan(step=step, slots=slots, sequence_ids=ids, num_tokens=[1] * batch, samples=[True] * batch)
        for step in range(2, steps + 1)
    ]
    return [plan, *later, StepPlan(step=steps + 1, released_slots=slots)]


def measure(runner: model_runner.ModelRunner, watch: Stopwatch, plans: list[StepPlan]) -> dict[str, float]:
    """Milliseconds of the first step, and per decode step and part."""
    parts: dict[str, list[float]] = {}
    first = 0.0
    for index, plan in enumerate(plans[:-1]):
        watch.seconds = {}
        started = time.perf_counter()
        runner.execute(plan)
        total = time.perf_counter() - started
        if index == 0:
            first = total
        else:
            watch.seconds["assemble"] = total - sum(watch.seconds.values())
            watch.seconds["total"] = total
            for name, seconds in watch.seconds.items():
                parts.setdefault(name, []).append(seconds)
    runner.execute(plans[-1])
    return {"prefill": first * 1e3, **{name: statistics.median(values) * 1e3 for name, values in parts.items()}}


def main() -> None:
    """Runs and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = EngineConfig.from_options(
        model=options.model,
        dtype=options.dtype,
        threads=options.threads,
        max_model_len=options.prompt + options.steps + BLOCK_SIZE,
        max_num_seqs=max(options.batch),
        max_num_batched_tokens=max(options.batch) * options.prompt,
        block_size=BLOCK_SIZE,
        use_tqdm_on_load=False,
    )
    executor = CpuExecutor(config, open_checkpoint(config.model))
    runner = executor._runner
    watch = Stopwatch(runner._model)
    runner._model = watch
    runner._draw = watch.timed("sample", runner._draw)
    params = SamplingParams(temperature=options.temperature, top_p=options.top_p, max_tokens=None)

    def run(batch: int) -> dict[str, float]:
        plans = make_plans(batch, options.prompt, options.steps, params)
        with torch.inference_mode():
            return measure(runner, watch, plans)

    rows = {batch: executor._thread.submit(run, batch).result() for batch in options.batch}
    executor.shutdown()
    if options.json:
        print(json.dumps({"dtype": executor.dtype, "start_seconds": executor.start_seconds, "milliseconds": rows}))
        return
    print(f"{executor.dtype}, start {executor.start_seconds}\n{executor.memory.table()}")
    names = ("prefill", "total", "forward", "logits", "sample", "assemble")
    print("batch " + "".join(f"{name:>10}" for name in names) + "   tok/s")
    for batch, row in rows.items():
        print(f"{batch:5d} " + "".join(f"{row[name]:10.3f}" for name in names) + f"{batch / row['total'] * 1e3:8.0f}")


if __name__ == "__main__":
    main()
