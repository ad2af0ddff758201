"""Where the time of a step goes on a GPU: kernels, gaps between them, and the host.

    python benchmarks/gpu_profile.py MODEL_FOLDER [--batch 1 32 256] [--work decode prefill] [--results FILE]

Each batch is first run to a steady decode and timed without a profiler, then with torch.profiler, which records the
kernels that CUDA graphs launch, too. `step` is wall time per step without the profiler; `busy` the time during which at
least one kernel or copy ran (of overlapping ones each moment counts once); `idle` is 1 - busy / step, and `idle traced`
the same within the trace, where the profiler's own cost widens gaps. The host's times are per step and overlap with the
device. `prefill` computes prompts of 1,024 tokens with one token out each, in steps of the largest size.

Weights are random. `--cprofile` prints the host's functions as well.
"""

import argparse
import cProfile
import io
import json
import pstats
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_report import Feeder, append_rows, engine_options, print_table
from quire import LLM
from quire.engine.collector import rare_collections

WARM_UP_STEPS = 8
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
CPU_CATEGORIES = ("cpu_op",)
"""What stands for kernels where there is no GPU: for a rehearsal."""


class Timed:
    """Stands in for an object and adds up the seconds of some of its methods."""

    def __init__(self, inner: Any, methods: tuple[str, ...], seconds: dict[str, float], prefix: str = "") -> None:
        self.__dict__.update(_inner=inner)
        for method in methods:
            self.__dict__[method] = self._wrap(getattr(inner, method), prefix + method, seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_inner"], name, value)

    @staticmethod
    def _wrap(function: Callable[..., Any], name: str, seconds: dict[str, float]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                seconds[name] += time.perf_counter() - begin

        return call


class Bench(Feeder):
    """An engine whose parts are timed.

    Attributes:
        seconds: Spent in each part since it was cleared.
    """

    def __init__(self, llm: LLM) -> None:
        super().__init__(llm)
        self.seconds: dict[str, float] = defaultdict(float)
        loop: Any = llm._engine.loop
        loop._executor = Timed(loop._executor, ("submit", "wait"), self.seconds)
        loop._scheduler = Timed(loop._scheduler, ("schedule", "update", "statistics"), self.seconds)
        inner: Any = llm
        inner._output = Timed(inner._output, ("apply",), self.seconds, "output ")


def synchronize() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_steps(bench: Bench, num_steps: int) -> dict[str, float]:
    """Wall milliseconds per step and of each part of the host."""
    synchronize()
    bench.seconds.clear()
    begin = time.perf_counter()
    for _ in range(num_steps):
        bench.step()
    synchronize()
    total = time.perf_counter() - begin
    parts = dict(bench.seconds)
    host = {name: 1e3 * seconds / num_steps for name, seconds in parts.items()}
    host["other host"] = 1e3 * (total - sum(parts.values())) / num_steps
    return {"step_ms": 1e3 * total / num_steps, **{f"{name}_ms": value for name, value in host.items()}}


def trace(run: Callable[[], None]) -> list[dict[str, Any]]:
    """Kernels and copies while `run` ran, in order of their start; times in microseconds."""
    activities = [ProfilerActivity.CUDA] if torch.cuda.is_available() else [ProfilerActivity.CPU]
    with profile(activities=activities) as recorded:
        run()
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    wanted = DEVICE_CATEGORIES if torch.cuda.is_available() else CPU_CATEGORIES
    found = [event for event in events if event.get("cat") in wanted and "dur" in event]
    return sorted(found, key=lambda event: event["ts"])


def busy_microseconds(events: list[dict[str, Any]]) -> float:
    """Time during which at least one of the events ran."""
    busy, end = 0.0, 0.0
    for event in events:
        start, stop = event["ts"], event["ts"] + event["dur"]
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy


def summarise(events: list[dict[str, Any]], num_steps: int, step_ms: float) -> dict[str, Any]:
    """Device times per step."""
    if not events:
        return {"busy_ms": None}
    busy_ms = busy_microseconds(events) / 1e3 / num_steps
    span_ms = (max(event["ts"] + event["dur"] for event in events) - events[0]["ts"]) / 1e3 / num_steps
    return {
        "busy_ms": busy_ms,
        "kernel_sum_ms": sum(event["dur"] for event in events) / 1e3 / num_steps,
        "idle": 1 - busy_ms / step_ms,
        "idle_traced": 1 - busy_ms / span_ms,
        "launches": len(events) / num_steps,
    }


def top_kernels(events: list[dict[str, Any]], num_steps: int, count: int) -> list[dict[str, Any]]:
    """The kernels that take most time."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        times[event["name"]].append(event["dur"])
    total = sum(event["dur"] for event in events) or 1.0
    rows: list[dict[str, Any]] = [
        {
            "us_per_step": sum(durations) / num_steps,
            "share": sum(durations) / total,
            "per_step": len(durations) / num_steps,
            "us_each": sum(durations) / len(durations),
            "kernel": name[:110],
        }
        for name, durations in times.items()
    ]
    return sorted(rows, key=lambda row: -row["us_per_step"])[:count]


def profile_decode(bench: Bench, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """A steady decode of `batch` sequences."""
    num_steps = options.steps
    ids = [bench.add(options.prompt, 3 * num_steps + 2 * WARM_UP_STEPS + 64) for _ in range(batch)]
    while True:
        stats = bench.step()
        if bench.is_idle:
            raise SystemExit(f"{batch} sequences do not run at once: raise max_num_seqs, or take a smaller batch")
        if stats.num_waiting == 0 and stats.num_running == batch == stats.num_step_tokens:
            break
    for _ in range(WARM_UP_STEPS):
        bench.step()
    row: dict[str, Any] = {"work": "decode", "batch": batch, **time_steps(bench, num_steps)}
    row["tok_s"] = 1e3 * batch / row["step_ms"]
    events = trace(lambda: run_steps(bench, num_steps))
    if options.cprofile:
        print(profile_host(lambda: run_steps(bench, num_steps)))
    bench.abandon(ids)
    return add_kernels(row, events, num_steps, options)


def profile_prefill(bench: Bench, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """`batch` prompts of 1,024 tokens; a step is one that the scheduler makes."""
    length = min(1024, bench.llm._engine.info.max_model_len - 2)

    def run() -> int:
        for _ in range(batch):
            bench.add(length, 1)
        num_steps = 0
        while not bench.is_idle:
            bench.step()
            num_steps += 1
        return num_steps

    run()
    synchronize()
    bench.seconds.clear()
    begin = time.perf_counter()
    num_steps = run()
    synchronize()
    total = time.perf_counter() - begin
    parts = {f"{name}_ms": 1e3 * seconds / num_steps for name, seconds in bench.seconds.items()}
    row = {"work": "prefill", "batch": batch, "step_ms": 1e3 * total / num_steps, **parts}
    row["tok_s"] = batch * length / total
    events = trace(lambda: void(run()))
    return add_kernels(row, events, num_steps, options)


def void(_: Any) -> None:
    """Drops a value."""


def run_steps(bench: Bench, num_steps: int) -> None:
    """Turns of the engine."""
    for _ in range(num_steps):
        bench.step()


def add_kernels(
    row: dict[str, Any], events: list[dict[str, Any]], num_steps: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Completes a row and prints what it is made of."""
    row |= summarise(events, num_steps, row["step_ms"])
    row["kernels"] = top_kernels(events, num_steps, options.top)
    print(f"\n{row['work']} {row['batch']}: {row['step_ms']:.3f} ms a step, {row['tok_s']:,.0f} tok/s")
    print("host ms: " + ", ".join(f"{key[:-3]} {row[key]:.3f}" for key in row if key.endswith("_ms") and key in HOST))
    print_table(row["kernels"], ("us_per_step", "share", "per_step", "us_each", "kernel"))
    return row


HOST = ("submit_ms", "wait_ms", "schedule_ms", "update_ms", "statistics_ms", "output apply_ms", "other host_ms")


def profile_host(run: Callable[[], None]) -> str:
    """The host's functions by their own time."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(25)
    return text.getvalue()


def main() -> None:
    """Profiles and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--work", nargs="+", choices=("decode", "prefill"), default=["decode"])
    parser.add_argument("--prefill-batch", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt before decoding")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--top", type=int, default=15, help="kernels to show")
    parser.add_argument("--cprofile", action="store_true")
    parser.add_argument("--engine", help="more options of LLM, a JSON object")
    parser.add_argument("--results", help="file that the raw rows are added to")
    options = parser.parse_args()
    defaults = {"load_format": "dummy", "max_model_len": 4096, "gpu_memory_utilization": 0.9}
    defaults |= {"enable_prefix_caching": False, "use_tqdm_on_load": False}
    llm = LLM(options.model, **{**defaults, **engine_options(options.engine)})
    bench = Bench(llm)
    rows = []
    with rare_collections():
        if "decode" in options.work:
            rows += [profile_decode(bench, batch, options) for batch in options.batch]
        if "prefill" in options.work:
            rows.append(profile_prefill(bench, options.prefill_batch, options))
    append_rows(options.results, [{"model": options.model, "engine": options.engine, **row} for row in rows])
    print()
    columns = ("work", "batch", "tok_s", "step_ms", "busy_ms", "kernel_sum_ms", "idle", "idle_traced", "launches",
               "schedule_ms", "submit_ms", "wait_ms", "update_ms", "output apply_ms", "other host_ms")  # fmt: skip
    print_table(rows, columns)
    llm.shutdown()


if __name__ == "__main__":
    main()
