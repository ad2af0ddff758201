"""`quire bench latency`: one batch after another, in this process."""

import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from quire.config.option import option
from quire.entrypoints.cli.bench.metrics import percentile
from quire.entrypoints.cli.bench.throughput import check_output, write_result
from quire.entrypoints.cli.command_line import ENGINE_GROUPS, Arguments, CommandLine, GeneralOptions
from quire.entrypoints.cli.terminal import configure_logging
from quire.errors import ConfigError
from quire.types.sampling import SamplingParams

if TYPE_CHECKING:
    from quire.entrypoints.llm import LLM

PERCENTAGES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOptions:
    """The batch, and how often it runs."""

    input_len: int = option(32, human_integer=True, basic=True, help="Tokens per prompt.")
    output_len: int = option(128, human_integer=True, basic=True, help="Tokens per answer.")
    batch_size: int = option(8, basic=True, help="Prompts that run together.")
    n: int = option(1, help="Answers per prompt; above 1 they are drawn with temperature 1.")
    num_iters_warmup: int = option(10, basic=True, help="Batches before the measurement.")
    num_iters: int = option(30, basic=True, help="Batches to measure.")
    output_json: str | None = option(None, basic=True, help="File for the result.")
    disable_tqdm: bool = option(False, help="Show no progress bar.")

    def __post_init__(self) -> None:
        for name in ("input_len", "output_len", "batch_size", "n", "num_iters"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}", param=name)
        if self.num_iters_warmup < 0:
            raise ConfigError(
                f"num_iters_warmup must be at least 0, got {self.num_iters_warmup}", param="num_iters_warmup"
            )


COMMAND = CommandLine(
    name="bench latency",
    summary="Run the same shape of batch again and again and report how long one takes.",
    groups={"batch": LatencyOptions, **ENGINE_GROUPS, "general": GeneralOptions},
    bare_word="model",
    examples=("quire bench latency --batch-size 1 --input-len 128 --output-len 64 --num-iters 5",),
)


def run(arguments: Arguments) -> int:
    """Loads the model, runs the batches and prints the spread of their times.

    Every batch has prompts of its own, so that the prefix cache does not shorten any.

    Raises:
        QuireError: An option is refused, or the model cannot be loaded.
    """
    configure_logging(arguments.make(GeneralOptions).log_level)
    options, config = arguments.make(LatencyOptions), arguments.make_engine_config()
    check_output(options.output_json)
    from quire.entrypoints.llm import LLM

    llm = LLM(**({"use_tqdm_on_load": False} | arguments.engine_options()))
    try:
        latencies = measure_latencies(llm, options, random.Random(config.model.seed))
    finally:
        llm.shutdown()
    result = summarise(latencies)
    print(f"Avg latency: {result['avg_latency']:.4f} s over {len(latencies)} batches of {options.batch_size}")
    for percentage, value in result["percentiles"].items():
        print(f"{percentage}% percentile latency: {value:.4f} s")
    write_result(options.output_json, result)
    return 0


def measure_latencies(llm: "LLM", options: LatencyOptions, rng: random.Random) -> list[float]:
    """Seconds of each measured batch."""
    temperature = 1.0 if options.n > 1 else 0.0
    params = SamplingParams(n=options.n, temperature=temperature, max_tokens=options.output_len, ignore_eos=True)
    vocab_size = llm.get_tokenizer().vocab_size
    total = options.num_iters_warmup + options.num_iters
    latencies = []
    for number in tqdm(range(total), disable=options.disable_tqdm or None, dynamic_ncols=True):
        prompts = [[rng.randrange(vocab_size) for _ in range(options.input_len)] for _ in range(options.batch_size)]
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        if number >= options.num_iters_warmup:
            latencies.append(time.perf_counter() - begin)
    return latencies


def summarise(latencies: list[float]) -> dict[str, Any]:
    """Mean, all values and percentiles, in seconds, under the names of vLLM's result file."""
    ordered = sorted(latencies)
    return {
        "avg_latency": statistics.fmean(latencies),
        "latencies": latencies,
        "percentiles": {str(percentage): percentile(ordered, percentage) for percentage in PERCENTAGES},
    }
