"""What one key notices of another that floods the server with ten times its fair share.

The quiet key asks for a fifth of what the server can do; the loud one for half of it, which is its fair share, and
then for ten times that. Arrivals are independent (Poisson). Reported is the time to the first token of the quiet key,
with the ratio of its 95th percentiles; with `--one-key-too` also where one key is used for both, which is served in
order of arrival.

    quire serve --api-key loud --api-key quiet --max-num-seqs 16 &
    python benchmarks/fair_share.py --seconds 120

The client shares the machine with the server, so it is the light one of `quire bench`: a client library would take half
a core for the flood, and what that costs the model's threads would be counted as the server's.

Exit code 1 where the ratio with two keys is above 1.5.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from quire.entrypoints.cli.bench.client import HttpClient, parse_address

WORDS = ("river", "stone", "cloud", "seven", "little", "yellow", "garden", "window", "under", "after", "music")
MAX_RATIO = 1.5


@dataclass
class Load:
    """The requests of one key in one phase."""

    key: str
    per_second: float
    ttft_seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    num_sent: int = 0


class Benchmark:
    """Clients of one server."""

    def __init__(self, url: str, seconds: float, max_tokens: int, seed: int) -> None:
        self._address = parse_address(url)
        self._clients: dict[str, HttpClient] = {}
        self._seconds = seconds
        self._max_tokens = max_tokens
        self._random = random.Random(seed)

    async def request(self, load: Load) -> None:
        """One streamed request."""
        prompt = " ".join(self._random.choices(WORDS, k=self._random.randint(20, 80)))
        body = {"prompt": prompt, "max_tokens": self._max_tokens, "ignore_eos": True, "stream": True}
        client = self._client(load.key)
        arrivals: list[float] = []
        was_refused = False
        load.num_sent += 1
        begin = time.perf_counter()
        try:
            request = client.build_request("POST", "/v1/completions", json.dumps(body).encode())
            response = await client.send(request, lambda _, now: arrivals.append(now))
            load.statuses[response.status] += 1
            was_refused = response.status != 200
        finally:
            # Also of one that is cancelled while its answer streams.
            if arrivals and not was_refused:
                load.ttft_seconds.append(arrivals[0] - begin)

    def _client(self, key: str) -> HttpClient:
        if key not in self._clients:
            self._clients[key] = HttpClient(self._address, {"Authorization": f"Bearer {key}"})
        return self._clients[key]

    async def capacity(self, key: str, num_clients: int) -> float:
        """Requests per second with as many clients as there is room for."""
        load = Load(key, 0.0)
        end = time.perf_counter() + self._seconds

        async def client() -> int:
            count = 0
            while time.perf_counter() < end:
                await self.request(load)
                count += 1
            return count

        begin = time.perf_counter()
        counts = await asyncio.gather(*(client() for _ in range(num_clients)))
        return sum(counts) / (time.perf_counter() - begin)

    async def phase(self, *loads: Load) -> None:
        """Sends several loads at once; what is left of them at the end is cancelled."""
        tasks: set[asyncio.Task[None]] = set()

        async def arrivals(load: Load) -> None:
            end = time.perf_counter() + self._seconds
            moment = time.perf_counter()
            while (moment := moment + self._random.expovariate(load.per_second)) < end:
                await asyncio.sleep(max(0.0, moment - time.perf_counter()))
                tasks.add(asyncio.create_task(self.request(load)))

        await asyncio.gather(*map(arrivals, loads))
        quiet = loads[-1]
        deadline = time.perf_counter() + 2 * self._seconds
        while quiet.num_sent > sum(quiet.statuses.values()) and time.perf_counter() < deadline:
            await asyncio.wait(tasks, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(1.0)


def percentile(values: list[float], share: float) -> float:
    """A value that `share` of all do not exceed; infinite without values."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.inf


async def measure(arguments: argparse.Namespace) -> bool:
    """Runs all phases and prints a table."""
    benchmark = Benchmark(arguments.url, arguments.seconds, arguments.max_tokens, arguments.seed)
    capacity = await benchmark.capacity(arguments.loud, arguments.clients)
    print(f"capacity: {capacity:.2f} requests/s with {arguments.clients} clients")
    print("| keys | loud asks for | quiet: requests | p50 TTFT | p95 TTFT | loud: answered, refused |")
    print("|---|---|---|---|---|---|")
    ratios = {}
    cases = {"two": arguments.quiet, "one": arguments.loud} if arguments.one_key_too else {"two": arguments.quiet}
    for keys, quiet_key in cases.items():
        p95 = []
        for factor in (0.5, 5.0):
            quiet, loud = Load(quiet_key, 0.2 * capacity), Load(arguments.loud, factor * capacity)
            await benchmark.phase(loud, quiet)
            p95.append(percentile(quiet.ttft_seconds, 0.95))
            print(
                f"| {keys} | {factor:g} x capacity | {len(quiet.ttft_seconds)} "
                f"| {statistics.median(quiet.ttft_seconds or [math.inf]) * 1000:.0f} ms | {p95[-1] * 1000:.0f} ms "
                f"| {loud.statuses[200]}, {loud.statuses[429]} |",
                flush=True,
            )
        ratios[keys] = p95[1] / p95[0]
    print(
        "p95 of the quiet key, flooded / fair, by keys: "
        + ", ".join(f"{keys} {ratio:.2f}" for keys, ratio in ratios.items())
    )
    return ratios["two"] <= MAX_RATIO


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--loud", default="loud", help="key that floods")
    parser.add_argument("--quiet", default="quiet", help="key that is measured")
    parser.add_argument("--clients", type=int, default=32, help="for measuring the capacity; twice --max-num-seqs")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each phase")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--one-key-too", action="store_true", help="also measure the flood with one key for both")
    parser.add_argument("--seed", type=int, default=0)
    return 0 if asyncio.run(measure(parser.parse_args())) else 1


if __name__ == "__main__":
    sys.exit(main())
