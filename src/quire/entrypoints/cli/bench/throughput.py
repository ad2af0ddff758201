"""`quire bench throughput`: the engine on a batch of prompts, in this process."""

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire.config.option import option
from quire.entrypoints.cli.bench.datasets import BenchPrompt, make_prompts
from quire.entrypoints.cli.bench.options import DatasetOptions
from quire.entrypoints.cli.command_line import ENGINE_GROUPS, Arguments, CommandLine, GeneralOptions
from quire.entrypoints.cli.machine import describe_machine
from quire.entrypoints.cli.terminal import configure_logging
from quire.errors import ConfigError
from quire.types.sampling import SamplingParams

if TYPE_CHECKING:
    from quire.entrypoints.llm import LLM

WARMUP_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputOptions:
    """How much is run, and where the result goes."""

    num_prompts: int = option(1000, human_integer=True, basic=True, help="Prompts in the batch.")
    n: int = option(1, help="Answers per prompt; above 1 they are drawn with temperature 1.")
    backend: str = option("quire", choices=("quire", "vllm"), help="Names this engine; kept for scripts.")
    output_json: str | None = option(None, basic=True, help="File for the result.")
    disable_tqdm: bool = option(False, help="Show no progress bar.")

    def __post_init__(self) -> None:
        for name in ("num_prompts", "n"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}", param=name)


COMMAND = CommandLine(
    name="bench throughput",
    summary="Run a batch of prompts through the engine and report tokens per second. Answers keep their full length.",
    groups={"batch": ThroughputOptions, "dataset": DatasetOptions, **ENGINE_GROUPS, "general": GeneralOptions},
    bare_word="model",
    examples=("quire bench throughput --num-prompts 32 --input-len 128 --output-len 64",),
)


def run(arguments: Arguments) -> int:
    """Loads the model, runs the batch once and prints the rates.

    Raises:
        QuireError: An option is refused, or the model cannot be loaded.
    """
    configure_logging(arguments.make(GeneralOptions).log_level)
    options, dataset = arguments.make(ThroughputOptions), arguments.make(DatasetOptions)
    config = arguments.make_engine_config()
    check_output(options.output_json)
    from quire.entrypoints.llm import LLM

    llm = LLM(**({"use_tqdm_on_load": False} | arguments.engine_options()))
    try:
        tokenizer = llm.get_tokenizer()
        rng = random.Random(config.model.seed)
        prompts = make_prompts(dataset, options.num_prompts, rng, as_text=False, tokenizer=tokenizer)
        result = measure_throughput(llm, prompts, samples=options.n, show=not options.disable_tqdm)
    finally:
        llm.shutdown()
    print(
        f"Throughput: {result['requests_per_second']:.2f} requests/s, "
        f"{result['tokens_per_second']:.2f} total tokens/s, "
        f"{result['output_tokens_per_second']:.2f} output tokens/s"
    )
    print(
        f"{result['num_requests']} requests, {result['total_input_tokens']} tokens in, "
        f"{result['total_output_tokens']} tokens out, {result['elapsed_time']:.2f} s"
    )
    write_result(options.output_json, result)
    return 0


def measure_throughput(llm: "LLM", prompts: list[BenchPrompt], *, samples: int, show: bool) -> dict[str, Any]:
    """Runs the batch after a few tokens of warm-up. Rates are per second of the whole batch."""
    temperature = 1.0 if samples > 1 else 0.0
    params = [
        SamplingParams(n=samples, temperature=temperature, max_tokens=prompt.max_tokens, ignore_eos=True)
        for prompt in prompts
    ]
    warm_up(llm)
    begin = time.perf_counter()
    outputs = llm.generate([prompt.prompt for prompt in prompts], params, use_tqdm=show)
    elapsed = time.perf_counter() - begin
    num_input = sum(len(output.prompt_token_ids) for output in outputs)
    num_output = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
    return {
        "elapsed_time": elapsed,
        "num_requests": len(prompts),
        "total_num_tokens": num_input + num_output,
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "requests_per_second": len(prompts) / elapsed,
        "tokens_per_second": (num_input + num_output) / elapsed,
        "output_tokens_per_second": num_output / elapsed,
    }


def warm_up(llm: "LLM") -> None:
    """Runs a few tokens, so that first-use costs are paid."""
    params = SamplingParams(temperature=0.0, max_tokens=WARMUP_TOKENS, ignore_eos=True)
    llm.generate([list(range(1, WARMUP_TOKENS + 1))], params, use_tqdm=False)


def check_output(path: str | None) -> None:
    """Notices before anything runs that the result has nowhere to go.

    Raises:
        ConfigError: The folder does not exist.
    """
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"cannot write {path}: its folder does not exist", param="output_json")


def write_result(path: str | None, result: dict[str, Any]) -> None:
    """Writes the result with a description of the machine."""
    if path is not None:
        Path(path).write_text(json.dumps(result | {"machine": describe_machine()}) + "\n", encoding="utf-8")
