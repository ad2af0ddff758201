"""Offline throughput with random weights: five kinds of work, the same random requests in every run.

    python benchmarks/gpu_offline.py MODEL_FOLDER [--work mixed single ...] [--engine JSON] [--results FILE]

MODEL_FOLDER holds config.json and a tokenizer; there are no weights. `mixed` runs once, the others twice, the better
counts. Another engine with a vLLM-style `LLM` can be measured with --module.
"""

import argparse
import importlib
import random
import time
from typing import Any

from gpu_report import append_rows, engine_options, print_table

WORK: dict[str, tuple[int, int, int, int, int]] = {
    "mixed": (256, 100, 1024, 100, 1024),
    "decode32": (32, 128, 128, 512, 512),
    "single": (1, 128, 128, 256, 256),
    "decode256": (256, 128, 128, 256, 256),
    "prefill": (64, 1024, 1024, 1, 1),
}
"""Number of requests; bounds of the prompts' lengths; bounds of the answers'."""


class Requests:
    """Draws the work, one piece after the other."""

    def __init__(self, module: Any) -> None:
        self._params = module.SamplingParams
        self._random = random.Random(0)

    def draw(self, count: int, low_in: int, high_in: int, low_out: int, high_out: int) -> tuple[list[Any], list[Any]]:
        numbers = self._random
        prompts = [
            {"prompt_token_ids": [numbers.randrange(100, 48_000) for _ in range(numbers.randint(low_in, high_in))]}
            for _ in range(count)
        ]
        params = [
            self._params(temperature=0.6, ignore_eos=True, max_tokens=numbers.randint(low_out, high_out))
            for _ in range(count)
        ]
        return prompts, params


def measure(llm: Any, prompts: list[Any], params: list[Any]) -> dict[str, Any]:
    """Runs one piece of work."""
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    num_in = sum(len(prompt["prompt_token_ids"]) for prompt in prompts)
    num_out = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert num_out == sum(param.max_tokens for param in params)
    return {"seconds": seconds, "out_tok_s": num_out / seconds, "in_tok_s": num_in / seconds}


def main() -> None:
    """Prints one row per kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--module", default="quire")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--requests", type=int, default=256, help="of the mixed work")
    parser.add_argument("--engine", help="more options of LLM, a JSON object")
    parser.add_argument("--results", help="file that the raw rows are added to")
    options = parser.parse_args()
    begin = time.perf_counter()
    module = importlib.import_module(options.module)
    engine_class = module.LLM
    imported = time.perf_counter()
    llm = engine_class(
        **{
            "model": options.model,
            "load_format": "dummy",
            "max_model_len": 4096,
            "gpu_memory_utilization": 0.9,
            "enable_prefix_caching": False,
            **engine_options(options.engine),
        }
    )
    constructed = time.perf_counter()
    requests = Requests(module)
    llm.generate(*requests.draw(8, 16, 16, 8, 8), use_tqdm=False)
    start = {"import_s": imported - begin, "init_s": constructed - imported, "first_s": time.perf_counter() - begin}
    rows = [{"model": options.model, "engine": options.engine, "work": "start", **start}]
    for name in WORK:
        sizes = (options.requests, *WORK[name][1:]) if name == "mixed" else WORK[name]
        pieces = [requests.draw(*sizes) for _ in range(1 if name == "mixed" else 2)]
        if name in options.work:
            best = min((measure(llm, *piece) for piece in pieces), key=lambda row: row["seconds"])
            rows.append({"model": options.model, "engine": options.engine, "work": name, **best})
            print(rows[-1], flush=True)
    append_rows(options.results, rows)
    print({name: round(seconds, 2) for name, seconds in start.items()})
    print_table(rows[1:], ("work", "seconds", "out_tok_s", "in_tok_s"))


if __name__ == "__main__":
    main()
