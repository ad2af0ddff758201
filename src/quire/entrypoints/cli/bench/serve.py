"""`quire bench serve`: drives a running server and reports latencies, throughput and failures."""

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from quire.entrypoints.cli.bench.arrivals import arrival_offsets
from quire.entrypoints.cli.bench.client import HttpClient, parse_address
from quire.entrypoints.cli.bench.datasets import BenchPrompt, TokenCounter, make_prompts
from quire.entrypoints.cli.bench.load import LoadResult, RequestMaker, run_load, send_one
from quire.entrypoints.cli.bench.metrics import RequestRecord, ServingMetrics, measure
from quire.entrypoints.cli.bench.options import (
    DatasetOptions,
    LoadOptions,
    ReportOptions,
    RequestSamplingOptions,
    TargetOptions,
)
from quire.entrypoints.cli.bench.report import (
    LoadShape,
    as_json,
    as_table,
    detailed_json,
    parse_goodput,
    parse_latencies,
    parse_pairs,
    parse_percentiles,
)
from quire.entrypoints.cli.bench.streamed_answer import error_text
from quire.entrypoints.cli.bench.tokenizer import load_token_counter
from quire.entrypoints.cli.command_line import Arguments, CommandLine, GeneralOptions
from quire.entrypoints.cli.machine import describe_machine
from quire.entrypoints.cli.server_environment import find_api_key
from quire.entrypoints.cli.terminal import EXIT_OUR_FAULT, configure_logging
from quire.errors import ConfigError, EngineProtocolError

READY_POLL_SECONDS = 0.5
NOTABLE_LATENESS_SECONDS = 0.05
COMPLETIONS_PATH = "/v1/completions"
CHAT_PATH = "/v1/chat/completions"

COMMAND = CommandLine(
    name="bench serve",
    summary="Measure a running server: send requests at a rate or with a number of clients, and report.",
    groups={
        "target": TargetOptions,
        "load": LoadOptions,
        "dataset": DatasetOptions,
        "sampling": RequestSamplingOptions,
        "report": ReportOptions,
        "general": GeneralOptions,
    },
    examples=(
        "quire bench serve --num-prompts 64 --max-concurrency 8 --input-len 256 --output-len 64 --ignore-eos",
        "quire bench serve --request-rate 4 --num-prompts 200 --goodput ttft:500 tpot:100 --save-result",
    ),
)


@dataclass(frozen=True, slots=True)
class ServeBenchmark:
    """Everything that `quire bench serve` was asked for."""

    target: TargetOptions
    load: LoadOptions
    dataset: DatasetOptions
    sampling: RequestSamplingOptions
    report: ReportOptions

    @property
    def shape(self) -> LoadShape:
        """How the load is made."""
        return LoadShape(self.load.request_rate, self.load.burstiness, self.load.max_concurrency)


@dataclass(frozen=True, slots=True)
class BenchmarkOutcome:
    """What came out.

    Attributes:
        model: The name that was sent.
        notes: What a reader of the numbers should know.
    """

    model: str
    metrics: ServingMetrics
    result: LoadResult
    notes: list[str]


def run(arguments: Arguments) -> int:
    """Measures, prints the table, and writes the result file if asked to.

    Returns:
        0, or 1 if no request succeeded.

    Raises:
        QuireError: An option is refused, or the server does not answer.
    """
    configure_logging(arguments.make(GeneralOptions).log_level)
    benchmark = ServeBenchmark(
        arguments.make(TargetOptions),
        arguments.make(LoadOptions),
        arguments.make(DatasetOptions),
        arguments.make(RequestSamplingOptions),
        arguments.make(ReportOptions),
    )
    path = _result_path(benchmark)
    parse_pairs("metadata", benchmark.report.metadata)
    latencies = parse_latencies(benchmark.report.percentile_metrics)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(run_benchmark(benchmark))
    print(as_table(outcome.metrics, benchmark.shape, latencies))
    for note in outcome.notes:
        print(f"note: {note}")
    if path is not None:
        path.write_text(json.dumps(result_file(benchmark, outcome)) + "\n", encoding="utf-8")
        print(f"wrote {path}")
    return 0 if outcome.metrics.completed else EXIT_OUR_FAULT


async def run_benchmark(benchmark: ServeBenchmark) -> BenchmarkOutcome:
    """Waits for the server, warms it up, and measures.

    Raises:
        ConfigError: An option is refused, or the server does not answer in time.
    """
    target, load = benchmark.target, benchmark.load
    limits = parse_goodput(benchmark.report.goodput)
    percentiles = parse_percentiles(benchmark.report.metric_percentiles)
    client = HttpClient(parse_address(_base_url(target)), _headers(target))
    try:
        served = await _wait_until_ready(client, target)
        model = target.served_model_name or target.model or served
        tokenizer = load_token_counter(target.tokenizer) if target.tokenizer else None
        rng = random.Random(load.seed)
        count = load.num_prompts + load.num_warmups
        prompts = make_prompts(benchmark.dataset, count, rng, as_text=target.is_chat, tokenizer=tokenizer)
        maker = RequestMaker(model, target.is_chat, benchmark.sampling, _extra_body(target))
        warmups, prompts = prompts[load.num_prompts :], prompts[: load.num_prompts]
        await _drive(client, benchmark, maker, warmups, [0.0] * len(warmups), show=False)
        offsets = arrival_offsets(len(prompts), load.request_rate, load.burstiness, rng)
        result = await _drive(client, benchmark, maker, prompts, offsets, show=not load.disable_tqdm)
    finally:
        client.close()
    notes = _count_missing_tokens(result.records, tokenizer)
    if result.lateness > NOTABLE_LATENESS_SECONDS:
        notes.append(f"this client sent requests up to {result.lateness * 1000:.0f} ms late: it lacked CPU time")
    metrics = measure(result.records, result.duration, percentiles=percentiles, limits=limits)
    return BenchmarkOutcome(model, metrics, result, notes)


async def _drive(
    client: HttpClient,
    benchmark: ServeBenchmark,
    maker: RequestMaker,
    prompts: Sequence[BenchPrompt],
    offsets: Sequence[float],
    *,
    show: bool,
) -> LoadResult:
    endpoint = benchmark.target.endpoint or (CHAT_PATH if benchmark.target.is_chat else COMPLETIONS_PATH)
    requests = [client.build_request("POST", endpoint, maker.body(prompt)) for prompt in prompts]
    timeout = benchmark.target.request_timeout

    async def send(number: int, start: float) -> RequestRecord:
        return await send_one(client, requests[number], prompts[number], start, timeout_seconds=timeout)

    with tqdm(total=len(requests), disable=None if show else True, file=sys.stderr, dynamic_ncols=True) as progress:
        return await run_load(send, offsets, benchmark.load.max_concurrency, lambda: _advance(progress))


def _advance(progress: Any) -> None:
    progress.update(1)


def _base_url(target: TargetOptions) -> str:
    if target.base_url is not None:
        return target.base_url
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"http://{host}:{target.port}"


def _headers(target: TargetOptions) -> dict[str, str]:
    key = find_api_key(target.api_key)
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    return authorization | parse_pairs("header", target.header)


def _extra_body(target: TargetOptions) -> dict[str, Any]:
    if target.extra_body is None:
        return {}
    try:
        extra = json.loads(target.extra_body)
    except ValueError as error:
        raise ConfigError(f"extra_body is not JSON: {error}", param="extra_body") from error
    if not isinstance(extra, dict):
        raise ConfigError(f"extra_body must be a JSON object, got {target.extra_body!r}", param="extra_body")
    return extra


async def _wait_until_ready(client: HttpClient, target: TargetOptions) -> str:
    """Asks for the list of models until there is an answer; returns the first name, "" where none is known."""
    deadline = time.perf_counter() + target.ready_check_timeout_sec
    while True:
        try:
            return await _first_model(client, target)
        except (OSError, EngineProtocolError) as error:
            if time.perf_counter() >= deadline:
                raise ConfigError(
                    f"no server answers at {_base_url(target)}: {error}",
                    hint="start one with `quire serve`, or name another with --base-url",
                ) from error
        await asyncio.sleep(READY_POLL_SECONDS)


async def _first_model(client: HttpClient, target: TargetOptions) -> str:
    body = bytearray()
    response = await client.send(client.build_request("GET", "/v1/models"), lambda part, _: body.extend(part))
    if response.status == 401:
        raise ConfigError(f"the server answered 401: {error_text(bytes(body))}", hint="give --api-key", param="api_key")
    try:
        names = [model["id"] for model in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        names = []
    if not names and target.model is None and target.served_model_name is None:
        raise ConfigError("the server lists no model", hint="name one with --model", param="model")
    return str(names[0]) if names else ""


def _count_missing_tokens(records: Sequence[RequestRecord], tokenizer: TokenCounter | None) -> list[str]:
    """Fills in the output tokens of answers whose server did not count them. Modifies the records."""
    missing = [record for record in records if record.error is None and not record.num_output_tokens]
    for record in missing:
        record.num_output_tokens = len(tokenizer.encode(record.text)) if tokenizer else len(record.choice_times)
    if not missing:
        return []
    how = "counted from their text" if tokenizer else "taken as one per chunk; --tokenizer counts them"
    return [f"the server reported no usage for {len(missing)} answers; their tokens are {how}"]


def result_file(benchmark: ServeBenchmark, outcome: BenchmarkOutcome) -> dict[str, Any]:
    """What is written with --save-result: the outcome, and how, when and where it came about."""
    report = benchmark.report
    content: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["quire", *sys.argv[1:]],
        "client": describe_machine(),
        "backend": benchmark.target.backend,
        "model_id": outcome.model,
        "num_prompts": benchmark.load.num_prompts,
        "dataset_name": benchmark.dataset.dataset_name,
        "notes": outcome.notes,
        **parse_pairs("metadata", report.metadata),
        **as_json(outcome.metrics, benchmark.shape, parse_latencies(report.percentile_metrics)),
    }
    return content | dict(detailed_json(outcome.result.records)) if report.save_detailed else content


def _result_path(benchmark: ServeBenchmark) -> Path | None:
    """Where the result goes; checked before the run, so that no measurement is lost for want of a folder."""
    report = benchmark.report
    if not (report.save_result or report.save_detailed or report.result_filename):
        return None
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    default = f"{benchmark.target.backend}-{benchmark.load.request_rate:g}qps-{moment}.json"
    path = Path(report.result_dir) / (report.result_filename or default)
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {path}: its folder does not exist", param="result_dir")
    return path
