"""Time that the host spends on an offline batch, with a device that takes none.

    python benchmarks/host_offline.py [--workload decode256 ...] [--json]

`LLM.generate` as users call it, with the small model's tokenizer and an executor that answers at once with random
tokens. A turn is what the host does from the result of one step to the result of the next: outputs, schedule, update.
It must be shorter than the device's step, or the device waits. `first` is the time until the first step is handed
over, `end` from the last result to the return. Of three runs the shortest counts.

Targets hold for an idle machine on which one turn of an empty Python loop takes 20 ns. On a slower or a loaded one
they are compared with the time times 20 ns over what that turn takes at the moment.
"""

import argparse
import gc
import json
import platform
import random
import statistics
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from quire.checkpoint.checkpoint import open_checkpoint
from quire.config.engine import EngineConfig
from quire.config.model import ModelConfig
from quire.engine.loop import EngineLoop
from quire.engine.port import EngineInfo
from quire.engine.stop import make_stop_check
from quire.entrypoints.launch import BuiltEngine
from quire.entrypoints.llm import LLM
from quire.frontend.input_processor import InputProcessor, Prompt
from quire.frontend.tokenizer import load_tokenizer
from quire.kvcache.manager import KVCacheManager
from quire.scheduler.scheduler import Scheduler
from quire.types.plan import StepPlan, StepResult
from quire.types.sampling import SamplingParams

NOMINAL_LOOP_NANOSECONDS = 20.0
MAX_MODEL_LEN = 4096
VOCAB_SIZE = 49_152


@dataclass(frozen=True)
class Workload:
    """Requests with random ids, lengths drawn uniformly between two bounds.

    Attributes:
        turn_target: Milliseconds for the median turn.
        first_target: Milliseconds until the first step is handed over.
    """

    num_requests: int
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    turn_target: float | None = None
    first_target: float | None = None

    def draw(self, rng: random.Random) -> tuple[list[Prompt], list[SamplingParams]]:
        """Prompts and parameters for `LLM.generate`."""
        prompts: list[Prompt] = [
            {"prompt_token_ids": [rng.randrange(100, 48_000) for _ in range(rng.randint(*self.prompt_tokens))]}
            for _ in range(self.num_requests)
        ]
        params = [
            SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=rng.randint(*self.output_tokens))
            for _ in range(self.num_requests)
        ]
        return prompts, params


WORKLOADS = {
    "mixed": Workload(256, (100, 1024), (100, 1024)),
    "decode32": Workload(32, (128, 128), (512, 512)),
    "single": Workload(1, (128, 128), (256, 256), turn_target=0.08),
    "decode256": Workload(256, (128, 128), (256, 256), turn_target=0.6),
    "decode1024": Workload(1024, (128, 128), (256, 256), turn_target=3.0),
    "prefill": Workload(64, (1024, 1024), (1, 1), first_target=5.0),
}


@dataclass
class InstantExecutor:
    """Implements `Executor`: draws random tokens, in no time that counts.

    Attributes:
        submits: When plans came, in seconds.
        waits: When results were asked for, and when they were given.
    """

    submits: list[float] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._plans: deque[StepPlan] = deque()
        self._tokens = random.Random(0).choices(range(VOCAB_SIZE), k=4096)

    def submit(self, plan: StepPlan) -> None:
        """Keeps the plan."""
        self.submits.append(time.perf_counter())
        self._plans.append(plan)

    def wait(self) -> StepResult:
        """Tokens for the oldest plan."""
        begin = time.perf_counter()
        plan = self._plans.popleft()
        first = plan.step % 2048
        result = StepResult(step=plan.step, token_ids=self._tokens[first : first + sum(plan.samples)])
        self.waits.append((begin, time.perf_counter()))
        return result

    def shutdown(self) -> None:
        """Nothing to end."""


@dataclass
class Stopwatch:
    """Seconds by phase, and those that the garbage collector took."""

    seconds: dict[str, float] = field(default_factory=dict)
    collections: list[float] = field(default_factory=list)

    def watch(self, owner: Any, method: str, phase: str) -> None:
        """Counts the time of an object's method."""
        inner = getattr(owner, method)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*arguments, **keywords)
            finally:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin

        setattr(owner, method, timed)

    def on_collection(self, phase: str, info: dict[str, int]) -> None:
        """For `gc.callbacks`."""
        if phase == "start":
            self._collection_began = time.perf_counter()
        else:
            self.collections.append(time.perf_counter() - self._collection_began)


@dataclass
class Row:
    """One run of a workload; all in milliseconds but the counts."""

    workload: str
    loop_nanoseconds: float
    num_steps: int
    first: float
    turn_p50: float
    turn_p99: float
    turn_max: float
    end: float
    total: float
    phases: dict[str, float]
    num_collections: int
    longest_collection: float

    def misses(self) -> list[str]:
        """The targets that were missed, as texts."""
        workload, scale = WORKLOADS[self.workload], NOMINAL_LOOP_NANOSECONDS / self.loop_nanoseconds
        pairs = {"turn_p50": workload.turn_target, "first": workload.first_target}
        return [
            f"{self.workload}: {name} {scale * getattr(self, name):.3f} ms, target {target:g}"
            for name, target in pairs.items()
            if target is not None and scale * getattr(self, name) > target
        ]


def build() -> tuple[LLM, InstantExecutor, Scheduler]:
    """An `LLM` around an executor without a model."""
    tokenizer = load_tokenizer(open_checkpoint(ModelConfig()).tokenizer)
    cache = KVCacheManager(num_blocks=1 << 17, enable_prefix_caching=False)
    scheduler = Scheduler(
        cache=cache,
        max_num_seqs=1024,
        max_num_batched_tokens=16_384,
        max_model_len=MAX_MODEL_LEN,
        check_stop=make_stop_check(MAX_MODEL_LEN),
    )
    info = EngineInfo(
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=1024,
        max_num_batched_tokens=16_384,
        scheduling_policy="fcfs",
        num_blocks=cache.num_blocks,
        block_size=cache.block_size,
        vocab_size=VOCAB_SIZE,
        dtype="float32",
        device="cpu",
        memory={},
        start_seconds={},
    )
    executor = InstantExecutor()
    engine = BuiltEngine(EngineLoop(scheduler, executor, time.monotonic), executor, info)
    inputs = InputProcessor(tokenizer, max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB_SIZE)
    gc.collect()
    gc.freeze()
    return LLM.from_parts(EngineConfig(), engine, inputs), executor, scheduler


def loop_nanoseconds() -> float:
    """What one turn of an empty loop takes now."""
    count = 300_000
    begin = time.perf_counter()
    for _ in range(count):
        pass
    return 1e9 * (time.perf_counter() - begin) / count


def measure(name: str, llm: LLM, executor: InstantExecutor, stopwatch: Stopwatch) -> Row:
    """Runs a workload three times and reports the shortest."""
    rng = random.Random(0)
    rows = [measure_once(name, *WORKLOADS[name].draw(rng), llm, executor, stopwatch) for _ in range(3)]
    return min(rows, key=lambda row: row.total)


def measure_once(
    name: str,
    prompts: list[Prompt],
    params: list[SamplingParams],
    llm: LLM,
    executor: InstantExecutor,
    stopwatch: Stopwatch,
) -> Row:
    """Runs a workload."""
    executor.submits.clear()
    executor.waits.clear()
    stopwatch.seconds.clear()
    stopwatch.collections.clear()
    loop_time = loop_nanoseconds()
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    end = time.perf_counter()
    loop_time = (loop_time + loop_nanoseconds()) / 2
    assert all(output.outputs[0].text for output in outputs)
    waits = executor.waits
    turns = sorted(1e3 * (later[0] - earlier[1]) for earlier, later in pairwise(waits)) or [0.0]
    num_steps = len(waits)
    return Row(
        workload=name,
        loop_nanoseconds=loop_time,
        num_steps=num_steps,
        first=1e3 * (executor.submits[0] - begin),
        turn_p50=statistics.median(turns),
        turn_p99=turns[int(0.99 * len(turns))],
        turn_max=turns[-1],
        end=1e3 * (end - waits[-1][1]),
        total=1e3 * (end - begin - sum(after - before for before, after in waits)),
        phases={phase: 1e3 * seconds / num_steps for phase, seconds in stopwatch.seconds.items()},
        num_collections=len(stopwatch.collections),
        longest_collection=1e3 * max(stopwatch.collections, default=0.0),
    )


def show(row: Row) -> None:
    """Prints a row in two lines."""
    print(
        f"{row.workload:<11} {row.loop_nanoseconds:7.0f} {row.num_steps:6} {row.first:9.2f} {row.turn_p50:9.3f} "
        f"{row.turn_p99:9.3f} {row.turn_max:9.3f} {row.end:9.2f} {row.total:9.1f} {row.num_collections:6} "
        f"{row.longest_collection:9.2f}"
    )
    print("            per step: " + ", ".join(f"{phase} {value:.3f}" for phase, value in row.phases.items()))


def main() -> int:
    """Prints the table; 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="default is all")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    llm, executor, scheduler = build()
    stopwatch = Stopwatch()
    gc.callbacks.append(stopwatch.on_collection)
    for owner, method in ((scheduler, "schedule"), (scheduler, "update"), (scheduler, "statistics")):
        stopwatch.watch(owner, method, method)
    stopwatch.watch(llm._engine.loop, "step", "whole step")
    stopwatch.watch(llm._output, "apply", "outputs")
    stopwatch.watch(llm._input, "process", "input")
    rows = [measure(name, llm, executor, stopwatch) for name in arguments.workload]
    missed = [text for row in rows for text in row.misses()]
    if arguments.json:
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        print(json.dumps({**machine, "rows": [asdict(row) for row in rows]}))
        return bool(missed)
    print(
        f"{'workload':<11} {'loop ns':>7} {'steps':>6} {'first ms':>9} {'turn p50':>9} {'turn p99':>9} {'turn max':>9} "
        f"{'end ms':>9} {'total ms':>9} {'gc':>6} {'worst gc':>9}"
    )
    for row in rows:
        show(row)
    print("missed:\n  " + "\n  ".join(missed) if missed else "all targets met")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
