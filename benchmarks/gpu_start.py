"""Time to start, by phase: with nothing cached, and with kernels cached from the run before. Random weights.

    python benchmarks/gpu_start.py MODEL_FOLDER [--runs 2] [--results FILE]

Each start is a process of its own. The first has empty caches of Triton, of quire and of the CUDA driver; what the
file system has cached of torch's libraries is left alone, so call it twice where the first call on a machine also
reads them from disk. `covered` is the part of the constructor's wall time that its phases explain. `first` is a batch
of 8 requests with 16 tokens in and 8 out, right after the constructor; `again` the same once more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpu_report import append_rows, print_table

CHILD = """
import json, sys, time
begin = time.perf_counter()
import quire
engine_class, params_class = quire.LLM, quire.SamplingParams
imported = time.perf_counter()

def main():
    llm = engine_class(**json.loads(sys.argv[1]))
    constructed = time.perf_counter()
    params = params_class(temperature=0.6, ignore_eos=True, max_tokens=8)
    moments = [constructed]
    for turn in range(2):
        starts = [100 + 16 * turn + 31 * row for row in range(8)]
        prompts = [{"prompt_token_ids": list(range(start, start + 16))} for start in starts]
        llm.generate(prompts, params, use_tqdm=False)
        moments.append(time.perf_counter())
    print("ROW " + json.dumps({
        "import_s": imported - begin, "init_s": constructed - imported, "first_s": moments[1] - moments[0],
        "again_s": moments[2] - moments[1], "phases": dict(llm.start_seconds),
    }), flush=True)
    llm.shutdown()

main()
"""


def start(options: dict[str, Any], caches: Path) -> dict[str, Any]:
    """One start in a process of its own."""
    places = {"TRITON_CACHE_DIR": "triton", "QUIRE_CACHE": "quire", "CUDA_CACHE_PATH": "cuda"}
    environment = {**os.environ, **{name: str(caches / folder) for name, folder in places.items()}}
    command = [sys.executable, "-c", CHILD, json.dumps(options)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if done.returncode or not lines:
        raise SystemExit(f"the start failed with {done.returncode}:\n{done.stdout[-2000:]}")
    row: dict[str, Any] = json.loads(lines[-1][4:])
    row["covered"] = sum(row["phases"].values()) / row["init_s"]
    return row


def main() -> None:
    """Starts the engine several times and prints the phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=2, help="cached starts after the one with nothing cached")
    parser.add_argument("--engine", help="more options of LLM, a JSON object")
    parser.add_argument("--results", help="file that the raw rows are added to")
    options = parser.parse_args()
    defaults = {"model": options.model, "load_format": "dummy", "max_model_len": 4096, "use_tqdm_on_load": False}
    defaults |= {"gpu_memory_utilization": 0.9, "enable_prefix_caching": False}
    engine = {**defaults, **(json.loads(options.engine) if options.engine else {})}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.runs + 1):
            row = start(engine, Path(folder))
            rows.append({"model": options.model, "caches": "empty" if number == 0 else "filled", **row})
            phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["phases"].items())
            print(f"{rows[-1]['caches']}: {phases}", flush=True)
    append_rows(options.results, rows)
    print_table(rows, ("caches", "import_s", "init_s", "covered", "first_s", "again_s"))


if __name__ == "__main__":
    main()
