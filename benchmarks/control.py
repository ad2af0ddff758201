"""Time that the host spends on scheduling, per step.

    python benchmarks/control.py [--steps 400] [--json]

Sequences decode steadily, each in its own blocks, so that one in sixteen takes a new block in every step and one
in sixteen completes one, which enters the prefix index. The loop is the engine's: `schedule` for the next step
comes before `update` of the last, and `statistics` is called after it, as the engine does. Prints the median, p90
and worst time in milliseconds and fails if a median misses its target.
"""

import argparse
import gc
import json
import platform
import random
import statistics
import sys
import time
from dataclasses import dataclass, field

from quire.engine.stop import make_stop_check
from quire.kvcache.manager import KVCacheManager
from quire.scheduler.scheduler import Scheduler
from quire.testing.traces import make_request, random_prompt
from quire.types.plan import StepPlan, StepResult

TARGET_MILLISECONDS = {64: 0.25, 256: 1.0, 1024: 4.0}
MAX_MODEL_LEN = 1 << 20


@dataclass
class Samples:
    """Milliseconds per step."""

    schedule: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    statistics: list[float] = field(default_factory=list)

    @property
    def both(self) -> list[float]:
        """Of `schedule` and `update` together, which the targets are about."""
        return [first + second for first, second in zip(self.schedule, self.update, strict=True)]


def start_decoding(num_sequences: int, num_steps: int) -> tuple[Scheduler, StepPlan]:
    """A scheduler whose sequences have all computed their prompts, with one step in flight."""
    rng = random.Random(0)
    prompts = [random_prompt(rng, rng.randrange(64, 80)) for _ in range(num_sequences)]
    cache = KVCacheManager(num_blocks=num_sequences * (80 + num_steps + 80) // 16 + num_sequences)
    scheduler = Scheduler(
        cache=cache,
        max_num_seqs=num_sequences,
        max_num_batched_tokens=max(8192, 128 * num_sequences),
        max_model_len=MAX_MODEL_LEN,
        check_stop=make_stop_check(MAX_MODEL_LEN),
    )
    for number, prompt in enumerate(prompts):
        scheduler.add(make_request(str(number), prompt, max_tokens=num_steps + 100, eos_token_ids=(2,)))
    plan = scheduler.schedule(0.0)
    assert plan is not None and len(plan.slots) == num_sequences
    return scheduler, plan


def measure(num_sequences: int, num_steps: int) -> Samples:
    """Times `num_steps` steps of the steady state."""
    scheduler, plan = start_decoding(num_sequences, num_steps)
    samples = Samples()
    for step in range(num_steps + 20):
        result = StepResult(step=plan.step, token_ids=[100 + step] * sum(plan.samples))
        before = time.perf_counter()
        next_plan = scheduler.schedule(0.0)
        scheduled = time.perf_counter()
        deltas = scheduler.update(plan, result)
        updated = time.perf_counter()
        scheduler.statistics()
        end = time.perf_counter()
        assert next_plan is not None and len(deltas) == num_sequences
        plan = next_plan
        if step >= 20:
            samples.schedule.append(1e3 * (scheduled - before))
            samples.update.append(1e3 * (updated - scheduled))
            samples.statistics.append(1e3 * (end - updated))
    return samples


def summary(values: list[float]) -> dict[str, float]:
    """Median, p90 and worst."""
    ordered = sorted(values)
    return {"p50": statistics.median(ordered), "p90": ordered[int(0.9 * len(ordered))], "max": ordered[-1]}


def main() -> int:
    """Prints the table; 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="measured steps per size")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    rows = []
    for num_sequences, target in TARGET_MILLISECONDS.items():
        gc.collect()
        samples = measure(num_sequences, arguments.steps)
        for name in ("schedule", "update", "both", "statistics"):
            row = {"running": num_sequences, "part": name, **summary(getattr(samples, name))}
            rows.append({**row, "target": target if name == "both" else None})
    missed = [row for row in rows if row["target"] is not None and row["p50"] > row["target"]]
    if arguments.json:
        print(json.dumps({"python": platform.python_version(), "machine": platform.machine(), "rows": rows}))
        return bool(missed)
    print(f"{'running':>8} {'part':<11} {'p50 ms':>8} {'p90 ms':>8} {'max ms':>8} {'target':>7}")
    for row in rows:
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        numbers = " ".join(f"{row[name]:8.3f}" for name in ("p50", "p90", "max"))
        print(f"{row['running']:>8} {row['part']:<11} {numbers} {target:>7}")
    print("missed" if missed else "all targets met")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
