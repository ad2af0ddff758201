"""How long `quire --help` takes, and what the load generator costs per streamed token.

Usage: python benchmarks/command_line.py
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time

from quire.entrypoints.cli.bench.client import Exchange
from quire.entrypoints.cli.bench.http_response import HttpResponse
from quire.entrypoints.cli.bench.streamed_answer import StreamedAnswer

HELP_BUDGET_MILLISECONDS = 300
NUM_STARTS = 11
NUM_EVENTS = 20_000


def measure_help() -> float:
    """Median milliseconds of `quire --help` as a process, after one that warms the page cache."""
    command = [sys.executable, "-m", "quire", "--help"]
    times = []
    for _ in range(NUM_STARTS + 1):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:]) * 1000


async def measure_client() -> float:
    """Microseconds of CPU per event of a stream, each in a chunk and a read of its own."""
    choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None}
    event = {"id": "cmpl-0123456789", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    chunk = f"{len(data):x}\r\n".encode() + data + b"\r\n"
    answer = StreamedAnswer()
    exchange = Exchange(HttpResponse(), answer.take, asyncio.get_running_loop().create_future())
    exchange.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    begin = time.process_time()
    for _ in range(NUM_EVENTS):
        exchange.feed(chunk)
    elapsed = time.process_time() - begin
    assert len(answer.choice_times) == NUM_EVENTS
    return elapsed / NUM_EVENTS * 1e6


def main() -> int:
    """Prints both; fails where the help is too slow."""
    milliseconds = measure_help()
    print(f"quire --help: {milliseconds:.0f} ms (budget {HELP_BUDGET_MILLISECONDS} ms)")
    print(f"load generator: {asyncio.run(measure_client()):.1f} us of CPU per streamed event")
    return 0 if milliseconds <= HELP_BUDGET_MILLISECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
