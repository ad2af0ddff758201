"""One very long prompt: time, rate and memory, beside a short one.

    python benchmarks/gpu_long_context.py MODEL_FOLDER [--length 131000] [--results FILE]

The model needs positions for it: Llama-3.1's config has them. Weights are random. `prefill` is the time to the first
token, `tpot` the mean time of the tokens behind it, `peak_gib` the most that torch's tensors took, KV cache and weights
included, and `used_gib` what is in use of the card.
"""

import argparse
import time
from typing import Any

import torch

from gpu_report import Feeder, append_rows, engine_options, print_table
from quire import LLM


def measure(llm: LLM, length: int, num_tokens: int) -> dict[str, Any]:
    """One prompt alone."""
    feeder = Feeder(llm)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    feeder.add(length, num_tokens)
    previous = begin
    first = None
    num_steps = 0
    while not feeder.is_idle:
        stats = feeder.step()
        num_steps += 1
        if first is None and stats.num_step_tokens == 1:
            # The step before this one, the first that decodes, produced the first token.
            first = previous
        previous = time.perf_counter()
    end = previous
    (output,) = feeder.finished
    assert output.error is None and len(output.outputs[0].token_ids) == num_tokens, output.error
    first = first or end
    free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
    return {
        "length": length,
        "steps": num_steps,
        "prefill_s": first - begin,
        "prefill_tok_s": length / (first - begin),
        "tpot_ms": 1e3 * (end - first) / max(1, num_tokens - 1),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        "used_gib": (total - free) / 2**30,
    }


def main() -> None:
    """Measures a short and the long prompt and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--length", type=int, default=131_000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--engine", help="more options of LLM, a JSON object")
    parser.add_argument("--results", help="file that the raw rows are added to")
    options = parser.parse_args()
    defaults = {"load_format": "dummy", "max_model_len": options.length + options.tokens, "use_tqdm_on_load": False}
    defaults |= {"gpu_memory_utilization": 0.9, "enable_prefix_caching": False}
    llm = LLM(options.model, **{**defaults, **engine_options(options.engine)})
    measure(llm, min(2048, options.length), 16)
    lengths = sorted({min(2048, options.length), min(16_384, options.length), options.length})
    rows = [{"model": options.model, **measure(llm, length, options.tokens)} for length in lengths]
    append_rows(options.results, rows)
    print_table(rows, ("length", "steps", "prefill_s", "prefill_tok_s", "tpot_ms", "peak_gib", "used_gib"))
    llm.shutdown()


if __name__ == "__main__":
    main()
