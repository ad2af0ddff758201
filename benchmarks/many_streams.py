"""Many streams at once against a running server: each must complete, or be refused with 429 before it begins.

    quire serve &
    python benchmarks/many_streams.py [--streams 256] [--max-tokens 32]

Prints how many completed, were refused and failed, the tokens per second and the times to the first token; fails if
a stream fails, or if afterwards a request is still under way.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx

SETTLE_SECONDS = 30.0


@dataclass
class Result:
    """What became of the streams."""

    outcomes: Counter[str] = field(default_factory=Counter)
    first_token_seconds: list[float] = field(default_factory=list)
    num_tokens: int = 0


async def run_stream(client: httpx.AsyncClient, number: int, max_tokens: int, result: Result) -> None:
    """One stream, to its end."""
    body = {"prompt": f"Story number {number}:", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    begin, num_tokens, ended = time.monotonic(), 0, False
    try:
        async with client.stream("POST", "/v1/completions", json={**body, "return_token_ids": True}) as reply:
            if reply.status_code != 200:
                result.outcomes["refused" if reply.status_code == 429 else f"status {reply.status_code}"] += 1
                return
            async for line in reply.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line:
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        break
                    if not num_tokens:
                        result.first_token_seconds.append(time.monotonic() - begin)
                    num_tokens += len(event["choices"][0].get("token_ids") or [])
    except httpx.HTTPError as error:
        result.outcomes[type(error).__name__] += 1
        return
    result.num_tokens += num_tokens
    result.outcomes["completed" if ended and num_tokens == max_tokens else "incomplete"] += 1


async def settle(client: httpx.AsyncClient) -> int:
    """Requests that are still under way when they should not be."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        load = (await client.get("/load")).raise_for_status().json()["server_load"]
        if not load:
            break
        await asyncio.sleep(0.1)
    return int(load)


async def measure(options: argparse.Namespace) -> int:
    """Runs the streams; returns the exit code."""
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    result = Result()
    async with httpx.AsyncClient(base_url=options.url, timeout=None, limits=limits, headers=headers) as client:
        begin = time.monotonic()
        streams = (run_stream(client, number, options.max_tokens, result) for number in range(options.streams))
        await asyncio.gather(*streams)
        seconds = time.monotonic() - begin
        left = await settle(client)
    firsts = sorted(result.first_token_seconds)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(result.outcomes.items())))
    print(f"{result.num_tokens / seconds:.1f} tok/s, {seconds:.1f} s")
    if firsts:
        print(f"first token: p50 {firsts[len(firsts) // 2]:.2f} s, p99 {firsts[int(0.99 * (len(firsts) - 1))]:.2f} s")
    if left:
        print(f"FAILED {left} requests are still under way")
    return int(bool(left) or set(result.outcomes) - {"completed", "refused"} != set())


def main() -> int:
    """Reads the options and runs the streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server, without /v1")
    parser.add_argument("--api-key", help="its key")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=32)
    return asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
