"""Hostile bodies against a running server: wrong types, huge numbers, deep nesting, broken JSON and Unicode, hostile
schemas, expressions, grammars, tools and template variables, on every POST route.

No answer may be a 5xx, take longer than the limit, or have no error envelope; between them good requests are served.
With --pid, the memory of the server's processes may not grow by more than the bound in the second half. (The engine
keeps the last 128 grammars that it compiled, and so grows until it has met as many.)

    quire serve --max-model-len 256 &
    python benchmarks/hostile_bodies.py --pid $! [--requests 10000] [--seed 0]
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from hostile_corpus import HostileRequest, hostile_request

GOOD_EVERY = 100
GOOD_BODY = {"messages": [{"role": "user", "content": "Name a bird."}], "max_tokens": 3}
NUM_SAMPLES = 10
SETTLE_SECONDS = 60.0
MAX_FAILURES = 20


@dataclass
class Fuzz:
    """The state of a run."""

    client: httpx.AsyncClient
    limit_seconds: float
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    num_done: int = 0
    memory: list[dict[str, float]] = field(default_factory=list)

    async def send(self, request: HostileRequest) -> None:
        """Sends a hostile request and judges the answer."""
        begin = time.monotonic()
        problem = None
        try:
            async with asyncio.timeout(self.limit_seconds):
                reply = await self.client.post(request.path, content=request.body, headers=request.headers)
            problem = _problem_of(reply)
            self.statuses[str(reply.status_code)] += 1
        except TimeoutError:
            problem = f"no answer within {self.limit_seconds:g} s"
        except httpx.HTTPError as error:
            problem = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - begin
        self.slowest = max(self.slowest, (seconds, f"{request.kind} {request.path} {request.body[:200]!r}"))
        self.num_done += 1
        if problem is not None:
            self.failures.append(f"{request.kind} {request.path}: {problem[:500]}\n    {request.body[:1000]!r}")

    async def send_good(self) -> None:
        """Sends a good request, which must be served."""
        reply = await self.client.post("/v1/chat/completions", json=GOOD_BODY, timeout=self.limit_seconds)
        if reply.status_code != 200 or not reply.json()["usage"]["completion_tokens"]:
            self.failures.append(f"a good request got {reply.status_code}: {reply.text[:500]}")


def _problem_of(reply: httpx.Response) -> str | None:
    """What is wrong with an answer."""
    if reply.status_code >= 500:
        return f"{reply.status_code}: {reply.text[:500]}"
    if reply.headers.get("content-type", "").startswith("text/event-stream"):
        events = [line[6:] for line in reply.text.split("\n") if line.startswith("data: ") and line != "data: [DONE]"]
        errors = [event for event in map(json.loads, events) if "error" in event]
        return next((f"in a stream: {event}" for event in errors if event["error"].get("code", 500) >= 500), None)
    answer = reply.json()
    if reply.status_code >= 400 and not answer["error"]["message"]:
        return f"{reply.status_code} without a message"
    return None


def memory_by_process(process_id: int) -> dict[str, float]:
    """Resident memory in MiB of a process and its children, by kind; those that compile grammars come and go."""
    process = psutil.Process(process_id)
    sizes = {"http": process.memory_info().rss / 2**20}
    for child in process.children(recursive=True):
        try:
            name, rss = "".join(child.cmdline()), child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        kind = "engine" if "engine" in name or "spawn_main" in name else "grammars"
        sizes[kind] = sizes.get(kind, 0.0) + rss / 2**20
    return sizes


async def _settle(client: httpx.AsyncClient) -> dict[str, float]:
    """What still runs, waits or holds memory when nothing should."""
    give_up = time.monotonic() + SETTLE_SECONDS
    while True:
        text = (await client.get("/metrics")).raise_for_status().text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        names = ("quire:num_requests_running", "quire:num_requests_waiting", "quire:kv_cache_usage_perc")
        left = {name: float(value) for name, value in lines if name.startswith(names) and float(value)}
        if load := (await client.get("/load")).json()["server_load"]:
            left["server_load"] = load
        if not left or time.monotonic() > give_up:
            return left
        await asyncio.sleep(0.2)


async def fuzz(options: argparse.Namespace) -> int:
    """Runs the fuzz; returns the exit code."""
    choice = random.Random(options.seed)
    requests = (hostile_request(choice) for _ in range(options.requests))
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    begin = time.monotonic()
    async with httpx.AsyncClient(base_url=options.url, timeout=options.limit_seconds, headers=headers) as client:
        run = Fuzz(client, options.limit_seconds)

        async def work() -> None:
            for request in requests:
                await run.send(request)
                if run.num_done % GOOD_EVERY == 0:
                    await run.send_good()
                if options.pid and run.num_done * NUM_SAMPLES >= len(run.memory) * options.requests:
                    run.memory.append(memory_by_process(options.pid))
                if len(run.failures) >= MAX_FAILURES:
                    return

        await asyncio.gather(*[work() for _ in range(options.clients)])
        left = await _settle(client)
        await run.send_good()
    if left:
        run.failures.append(f"not zero at the end: {left}")
    if options.pid:
        run.memory.append(memory_by_process(options.pid))
        run.failures += _report_memory(run.memory, options.max_growth_mib)
    _report(run, time.monotonic() - begin)
    return 1 if run.failures else 0


def _report_memory(samples: list[dict[str, float]], max_growth_mib: float) -> list[str]:
    failures = []
    for kind in ("http", "engine"):
        sizes = [sample.get(kind, 0.0) for sample in samples]
        grown = sizes[-1] - sizes[len(sizes) // 2]
        print(f"MiB of {kind}: {' '.join(f'{size:.0f}' for size in sizes)} ({grown:+.0f} in the second half)")
        if grown > max_growth_mib:
            failures.append(f"{kind} grew by {grown:.0f} MiB")
    return failures


def _report(run: Fuzz, seconds: float) -> None:
    counts: Any = sorted(run.statuses.items())
    print(
        f"{run.num_done} hostile bodies in {seconds:.0f} s: " + ", ".join(f"{count} x {name}" for name, count in counts)
    )
    print(f"slowest: {run.slowest[0]:.1f} s, {run.slowest[1]}")
    for failure in run.failures:
        print(f"FAILED {failure}")


def main() -> int:
    """Reads the options and runs the fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server, without /v1")
    parser.add_argument("--api-key", help="its key")
    parser.add_argument("--pid", type=int, help="its process, to watch the memory of it and its children")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-seconds", type=float, default=90.0, help="for one answer")
    parser.add_argument("--max-growth-mib", type=float, default=192.0, help="of one process in the second half")
    return asyncio.run(fuzz(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
