"""A server under closed loops of streaming clients: starts `quire serve`, measures, and ends it.

    python benchmarks/gpu_online.py MODEL_FOLDER [--concurrency 1 32 100 256] [--results FILE]

Requests go to the completions endpoint: random token ids, 512 in and 128 out by default, end-of-sequence ignored. The
weights are random unless --load-format says otherwise. The load generator is that of `quire bench serve`, in this
process. `--url` measures a server that runs already. `first` is the first request that a fresh server gets, beside the
median of the steady ones at concurrency 1.

Whether this client can keep up is measured with `--self-test RATE`: a server that only writes events, in another
process, sends that many a second over 256 streams; the client's share of a core is printed.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from gpu_report import append_rows, print_table, running_server
from quire.entrypoints.cli.bench.client import HttpClient, parse_address
from quire.entrypoints.cli.bench.datasets import BenchPrompt
from quire.entrypoints.cli.bench.load import LoadResult, run_load, send_one
from quire.entrypoints.cli.bench.metrics import RequestRecord, measure

REQUESTS = {1: 10, 32: 160, 100: 400, 256: 768}
TIMEOUT_SECONDS = 600.0
PATH = "/v1/completions"


class Load:
    """Makes requests and sends them.

    Args:
        client: To the server.
        model: The name it serves.
        lengths: Tokens of a prompt and of an answer.
    """

    def __init__(self, client: HttpClient, model: str, lengths: tuple[int, int], vocab: int) -> None:
        self._client = client
        self._model = model
        self._lengths = lengths
        self._vocab = vocab
        self._random = random.Random(0)

    async def run(self, count: int, concurrency: int) -> LoadResult:
        """Sends `count` requests, `concurrency` of them open at any time."""
        prompt_tokens, answer_tokens = self._lengths
        prompts = [
            BenchPrompt([self._random.randrange(100, self._vocab) for _ in range(prompt_tokens)], prompt_tokens,
                        answer_tokens)
            for _ in range(count)
        ]  # fmt: skip
        bodies = [self._client.build_request("POST", PATH, self._body(prompt)) for prompt in prompts]

        async def send(number: int, start: float) -> RequestRecord:
            return await send_one(self._client, bodies[number], prompts[number], start, timeout_seconds=TIMEOUT_SECONDS)

        return await run_load(send, [0.0] * count, concurrency)

    def _body(self, prompt: BenchPrompt) -> bytes:
        values = {
            "model": self._model,
            "prompt": prompt.prompt,
            "max_tokens": prompt.max_tokens,
            "ignore_eos": True,
            "temperature": 0.6,
            "stream": True,
            "stream_options": {"include_usage": True},
            # An event for each token: those of random weights are often parts of a character, which has no text yet.
            "return_token_ids": True,
        }
        return json.dumps(values, separators=(",", ":")).encode()


def summarise(result: LoadResult, concurrency: int) -> dict[str, Any]:
    """One row of the table; times in milliseconds."""
    metrics = measure(result.records, result.duration, percentiles=(50, 99))
    ttft, tpot, itl = (metrics.latencies[name] for name in ("ttft", "tpot", "itl"))
    return {
        "concurrency": concurrency,
        "requests": metrics.completed,
        "failed": metrics.failed,
        "failures": metrics.failures or None,
        "seconds": metrics.duration,
        "out_tok_s": metrics.output_throughput,
        "ttft_mean": 1e3 * ttft.mean,
        "ttft_p50": 1e3 * ttft.median,
        "ttft_p99": 1e3 * ttft.percentiles[99],
        "tpot_mean": 1e3 * tpot.mean,
        "itl_p50": 1e3 * itl.median,
        "itl_p99": 1e3 * itl.percentiles[99],
    }


async def measure_server(url: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The first request, then each concurrency."""
    client = HttpClient(parse_address(url), {})
    body = bytearray()
    await client.send(client.build_request("GET", "/v1/models"), lambda part, _: body.extend(part))
    load = Load(client, json.loads(body)["data"][0]["id"], (options.input_len, options.output_len), options.vocab)
    (first,) = (await load.run(1, 1)).records
    rows: list[dict[str, Any]] = []
    if first.error is not None:
        raise SystemExit(f"the first request failed: {first.error}")
    for concurrency in options.concurrency:
        count = options.requests or REQUESTS.get(concurrency, 4 * concurrency)
        cpu, begin = time.process_time(), time.perf_counter()
        result = await load.run(count, concurrency)
        row = summarise(result, concurrency)
        row["client_cpu"] = (time.process_time() - cpu) / (time.perf_counter() - begin)
        if concurrency == 1:
            steady = statistics.median(record.e2el for record in result.records if record.error is None)
            row |= {
                "first_ms": 1e3 * first.e2el,
                "first_ttft": 1e3 * first.ttft,
                "first_over_steady": first.e2el / steady,
            }
        rows.append(row)
        print(row, flush=True)
    client.close()
    return rows


def run_async(coroutine: Any) -> Any:
    """Runs a coroutine on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def trivial_server(port: Any, rate: float) -> None:
    """Answers every POST with a stream of events at `rate` over all streams; for the self-test."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
                request = json.loads(await reader.readexactly(length))
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for number in range(request["max_tokens"]):
                    await asyncio.sleep(256 / rate)
                    reason = b'"length"' if number == request["max_tokens"] - 1 else b"null"
                    write_chunk(writer, EVENT % reason)
                write_chunk(writer, USAGE % (512, request["max_tokens"]))
                write_chunk(writer, b"data: [DONE]\n\n")
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=2**20)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    run_async(serve())


EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1766000000,'
    b'"model":"llama8b","choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":%s,"stop_reason":null}],'
    b'"usage":null}\n\n'
)
USAGE = (
    b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1766000000,'
    b'"model":"llama8b","choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n'
)


def write_chunk(writer: asyncio.StreamWriter, event: bytes) -> None:
    """One chunk of a chunked body."""
    writer.write(b"%x\r\n%s\r\n" % (len(event), event))


def self_test(rate: float, options: argparse.Namespace) -> None:
    """Prints what the client costs at a rate of events."""
    port = multiprocessing.get_context("spawn").Value("i", 0)
    server = multiprocessing.get_context("spawn").Process(target=trivial_server, args=(port, rate), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.05)

    async def drive() -> tuple[LoadResult, float]:
        client = HttpClient(parse_address(f"http://127.0.0.1:{port.value}"), {})
        load = Load(client, "llama8b", (options.input_len, options.output_len), options.vocab)
        await load.run(256, 256)
        cpu = time.process_time()
        result = await load.run(512, 256)
        return result, time.process_time() - cpu

    result, cpu = run_async(drive())
    server.terminate()
    num_tokens = 512 * options.output_len
    row = summarise(result, 256)
    print(
        f"{row['out_tok_s']:.0f} events/s arrived of {rate:.0f}; "
        f"{1e6 * cpu / num_tokens:.1f} us of this client per event, "
        f"{cpu / result.duration:.0%} of a core"
    )


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder with config.json and a tokenizer")
    parser.add_argument("--url", help="a running server instead")
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(REQUESTS))
    parser.add_argument("--requests", type=int, help="per concurrency; default depends on it")
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=48_000, help="token ids are drawn from 100 up to this")
    parser.add_argument("--load-format", default="dummy")
    parser.add_argument("--log", help="file for the server's log")
    parser.add_argument("--serve", default="", help='more flags of `quire serve`, one word: "--dtype bfloat16"')
    parser.add_argument("--results", help="file that the raw rows are added to")
    parser.add_argument("--self-test", type=float, metavar="RATE")
    options = parser.parse_args()
    if options.self_test:
        self_test(options.self_test, options)
        return
    ready = None
    if options.url:
        rows = run_async(measure_server(options.url, options))
    else:
        flags = [options.model, "--load-format", options.load_format, *options.serve.split()]
        log = Path(options.log or Path(tempfile.gettempdir()) / "quire-serve.log")
        with running_server(flags, log) as (url, ready):
            print(f"ready after {ready:.1f} s", flush=True)
            rows = run_async(measure_server(url, options))
    facts = {"model": options.model, "input_len": options.input_len, "output_len": options.output_len}
    facts |= {"serve": options.serve, "ready_s": ready}
    append_rows(options.results, [{**facts, **row} for row in rows])
    columns = ("concurrency", "requests", "failed", "out_tok_s", "ttft_mean", "ttft_p50", "ttft_p99", "tpot_mean",
               "itl_p50", "itl_p99", "client_cpu")  # fmt: skip
    print_table(rows, columns)
    for row in rows:
        if "first_ms" in row:
            print(f"first request {row['first_ms']:.0f} ms, {row['first_over_steady']:.3f} x a steady one; "
                  f"its TTFT {row['first_ttft']:.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
