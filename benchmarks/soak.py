"""Many streaming clients against a running server, with random departures and stop strings.

Every stream is compared with its non-streamed twin (same body, `stream` left out): text, finish reason, stop
reason and number of tokens must be equal, and what a client saw before it left must be how the twin begins. At the
end nothing may run or wait, and no block of the KV cache may be in use.

Seeds make twins equal only as far as the model's arithmetic does not depend on the batch: use `--dtype float32`.

    quire serve --dtype float32 &
    python benchmarks/soak.py --minutes 3
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
from prometheus_client.parser import text_string_to_metric_families

OPENINGS = (
    "Once upon a time",
    "The three most important things in a kitchen are",
    "Dear diary, today",
    "1, 1, 2, 3, 5, 8,",
    "def fibonacci(n):",
    "Die Hauptstadt von Frankreich ist",
    "Q: Why is the sky blue?\nA:",
    "A list of colours: red, green,",
)
STOPS = (None, ["\n"], [".", "!"], ["the", " a "], ["zebra crossing"])
SETTLE_SECONDS = 30.0


@dataclass(frozen=True)
class Answer:
    """What a client saw of one answer."""

    text: str
    finish_reason: str | None
    stop_reason: Any
    num_tokens: int


@dataclass
class Soak:
    """The state of a run."""

    client: httpx.AsyncClient
    jobs: list[dict[str, Any]]
    abort_share: float
    deadline: float
    twins: dict[int, asyncio.Task[Answer]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    async def run_client(self, number: int) -> None:
        """One client: one request after the other until the time is over."""
        choice = random.Random(number)
        while time.monotonic() < self.deadline and len(self.failures) < 10:
            index = choice.randrange(len(self.jobs))
            leave_after = choice.randrange(1, 12) if choice.random() < self.abort_share else None
            try:
                await self._run_job(index, leave_after)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                self.failures.append(f"job {index}: {type(error).__name__}: {error}")

    async def _run_job(self, index: int, leave_after: int | None) -> None:
        job = self.jobs[index]
        seen = await self._stream(job, leave_after)
        twin = await self._twin(index)
        self.counts["left" if seen.finish_reason is None else "finished"] += 1
        self.counts["tokens"] += seen.num_tokens
        if seen.finish_reason is None:
            if not twin.text.startswith(seen.text):
                self.failures.append(f"job {index}: the stream began {seen.text!r}, its twin is {twin.text!r}")
        elif seen != twin:
            self.failures.append(f"job {index}: the stream is {seen}, its twin {twin}")

    async def _twin(self, index: int) -> Answer:
        """The non-streamed answer to a job; asked for once."""
        if index not in self.twins:
            self.twins[index] = asyncio.create_task(self._whole(self.jobs[index]))
        return await self.twins[index]

    async def _whole(self, job: dict[str, Any]) -> Answer:
        reply = await self.client.post("/v1/completions", json=job)
        answer = reply.raise_for_status().json()
        choice = answer["choices"][0]
        return Answer(
            choice["text"], choice["finish_reason"], choice["stop_reason"], answer["usage"]["completion_tokens"]
        )

    async def _stream(self, job: dict[str, Any], leave_after: int | None) -> Answer:
        body = {**job, "stream": True, "stream_options": {"include_usage": True}}
        text, finish_reason, stop_reason, num_tokens, num_events = "", None, None, 0, 0
        async with self.client.stream("POST", "/v1/completions", json=body) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if not line or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise ValueError(event["error"]["message"])
                if event["usage"]:
                    num_tokens = event["usage"]["completion_tokens"]
                for choice in event["choices"]:
                    text += choice["text"]
                    finish_reason = choice["finish_reason"] or finish_reason
                    stop_reason = choice["stop_reason"] if choice["stop_reason"] is not None else stop_reason
                num_events += 1
                if leave_after is not None and num_events >= leave_after and finish_reason is None:
                    break
        return Answer(text, finish_reason, stop_reason, num_tokens)


def make_jobs(count: int, max_tokens: int) -> list[dict[str, Any]]:
    """Requests of all kinds: greedy and sampled, with and without stop strings, short and shared long prompts."""
    choice = random.Random(0)
    jobs = []
    for number in range(count):
        opening = choice.choice(OPENINGS)
        prompt = f"{opening} " * choice.choice((1, 1, 1, 12)) + opening
        job = {"prompt": prompt, "max_tokens": choice.randint(2, max_tokens), "seed": number}
        job["temperature"] = choice.choice((0.0, 0.7, 1.0))
        stop = choice.choice(STOPS)
        jobs.append(job | ({"stop": stop} if stop else {}))
    return jobs


async def read_metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """The server's unlabelled metrics by name."""
    text = (await client.get("/metrics")).raise_for_status().text
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


async def wait_until_settled(client: httpx.AsyncClient) -> dict[str, float]:
    """The metrics once nothing runs any more, or after `SETTLE_SECONDS`."""
    give_up = time.monotonic() + SETTLE_SECONDS
    while True:
        metrics = await read_metrics(client)
        names = ("quire:num_requests_running", "quire:num_requests_waiting", "quire:kv_cache_usage_perc")
        left = {name: metrics[name] for name in names if metrics[name]}
        if not left or time.monotonic() > give_up:
            return left
        await asyncio.sleep(0.2)


def memory_of(process_id: int | None) -> float:
    """Resident memory of a process and its children in MiB; 0 for None."""
    if process_id is None:
        return 0.0
    process = psutil.Process(process_id)
    family = [process, *process.children(recursive=True)]
    return float(sum(member.memory_info().rss for member in family)) / 2**20


async def soak(options: argparse.Namespace) -> int:
    """Runs the soak; returns the exit code."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=options.clients)
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    async with httpx.AsyncClient(base_url=options.url, timeout=None, limits=limits, headers=headers) as client:
        begin = time.monotonic()
        run = Soak(
            client,
            make_jobs(options.jobs, options.max_tokens),
            abort_share=options.abort_share,
            deadline=begin + options.minutes * 60,
        )
        clients = asyncio.gather(*[run.run_client(number) for number in range(options.clients)])
        warm = asyncio.create_task(_memory_after(options.pid, options.minutes * 60 / 3))
        await clients
        left = await wait_until_settled(client)
    seconds = time.monotonic() - begin
    at_third, at_end = await warm, memory_of(options.pid)
    print(
        f"{run.counts['finished']} streams equal to their twins, {run.counts['left']} left early, "
        f"{run.counts['tokens'] / seconds:.1f} tok/s in finished streams, {seconds:.0f} s"
    )
    if options.pid is not None:
        print(f"resident memory: {at_third:.0f} MiB after a third of the time, {at_end:.0f} MiB at the end")
    if left:
        run.failures.append(f"not zero at the end: {left}")
    if not run.counts["finished"]:
        run.failures.append("no stream finished")
    for failure in run.failures:
        print(f"FAILED {failure}")
    return 1 if run.failures else 0


async def _memory_after(process_id: int | None, seconds: float) -> float:
    await asyncio.sleep(seconds)
    return memory_of(process_id)


def main() -> int:
    """Reads the options and runs the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server, without /v1")
    parser.add_argument("--api-key", help="its key")
    parser.add_argument("--pid", type=int, help="its process, to watch the memory of it and its children")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=128, help="different requests")
    parser.add_argument("--max-tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--abort-share", type=float, default=0.3, help="share of the streams whose client leaves")
    return asyncio.run(soak(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
