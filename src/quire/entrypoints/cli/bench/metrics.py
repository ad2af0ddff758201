"""What a benchmark of a server measures, computed from what happened to each request. Times are in seconds."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

LATENCIES = ("ttft", "tpot", "itl", "e2el")


@dataclass(slots=True)
class RequestRecord:
    """What happened to one request. All times are seconds since the run began.

    Attributes:
        num_input_tokens: As the server counted them, otherwise as the dataset made them.
        num_output_tokens: As the server counted them, otherwise counted from the text.
        choice_times: When each chunk with a choice arrived, even one without text.
        error: Why it failed, None where it did not.
    """

    num_input_tokens: int
    sent_at: float
    finished_at: float = 0.0
    choice_times: list[float] = field(default_factory=list)
    num_output_tokens: int = 0
    text: str = ""
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Time to first token: from sending to the first chunk with a choice."""
        return self.choice_times[0] - self.sent_at if self.choice_times else 0.0

    @property
    def e2el(self) -> float:
        """End-to-end latency: from sending to the last chunk with a choice."""
        return self.choice_times[-1] - self.sent_at if self.choice_times else 0.0

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None for an answer of one token."""
        if self.num_output_tokens <= 1:
            return None
        return (self.e2el - self.ttft) / (self.num_output_tokens - 1)

    @property
    def inter_token_latencies(self) -> list[float]:
        """Gaps between consecutive chunks with a choice."""
        return [later - earlier for earlier, later in pairwise(self.choice_times)]


@dataclass(frozen=True, slots=True)
class Spread:
    """How values are distributed; zeros where there are none.

    Attributes:
        std: Standard deviation of the values themselves, not of a population that they stand for.
        percentiles: By percentage, linear between the neighbouring values.
    """

    mean: float
    median: float
    std: float
    percentiles: dict[float, float]


@dataclass(frozen=True, slots=True)
class ServingMetrics:
    """The outcome of a run. Rates are per second of the whole run, latencies in seconds.

    Attributes:
        goodput: Requests per second that met every limit; None without limits.
        latencies: Spread by name, over the requests that succeeded ("itl": over all their gaps).
        peak_output_tokens: Most output tokens in a one-second bucket.
        peak_concurrency: Most requests that were open at the same time.
        failures: Number of failed requests by reason, most frequent first.
    """

    duration: float
    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    goodput: float | None
    latencies: dict[str, Spread]
    peak_output_tokens: float
    peak_concurrency: int
    failures: dict[str, int]


def measure(
    records: Sequence[RequestRecord],
    duration: float,
    *,
    percentiles: Sequence[float],
    limits: Mapping[str, float] | None = None,
) -> ServingMetrics:
    """Computes the metrics of a run.

    Args:
        records: Every request that was sent, failed ones included.
        duration: Seconds from the first request until the last one was answered, above 0.
        percentiles: Which to compute, each from 0 to 100.
        limits: Seconds by latency ("ttft", "tpot", "e2el") that a request must keep to count for goodput.
    """
    done = [record for record in records if record.error is None]
    num_input = sum(record.num_input_tokens for record in done)
    num_output = sum(record.num_output_tokens for record in done)
    good = [record for record in done if meets(record, limits or {})]
    return ServingMetrics(
        duration=duration,
        completed=len(done),
        failed=len(records) - len(done),
        total_input_tokens=num_input,
        total_output_tokens=num_output,
        request_throughput=len(done) / duration,
        output_throughput=num_output / duration,
        total_token_throughput=(num_input + num_output) / duration,
        goodput=len(good) / duration if limits else None,
        latencies={name: spread(values, percentiles) for name, values in _latencies(done).items()},
        peak_output_tokens=peak_output_tokens(done),
        peak_concurrency=peak_concurrency(records),
        failures=dict(Counter(record.error for record in records if record.error is not None).most_common()),
    )


def meets(record: RequestRecord, limits: Mapping[str, float]) -> bool:
    """Whether a request kept every limit. An answer of one token has a TPOT of 0."""
    values = {"ttft": record.ttft, "tpot": record.tpot or 0.0, "e2el": record.e2el}
    return all(values[name] <= limit for name, limit in limits.items())


def spread(values: Sequence[float], percentiles: Iterable[float]) -> Spread:
    """Mean, median, standard deviation and percentiles of values in any order."""
    ordered = sorted(values)
    if not ordered:
        return Spread(0.0, 0.0, 0.0, dict.fromkeys(percentiles, 0.0))
    return Spread(
        mean=statistics.fmean(ordered),
        median=percentile(ordered, 50),
        std=statistics.pstdev(ordered),
        percentiles={wanted: percentile(ordered, wanted) for wanted in percentiles},
    )


def percentile(ordered: Sequence[float], percentage: float) -> float:
    """The value below which `percentage` percent of the values lie, linear between neighbours.

    Args:
        ordered: At least one value, in rising order.
        percentage: From 0 to 100.
    """
    position = (len(ordered) - 1) * percentage / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def peak_output_tokens(records: Iterable[RequestRecord]) -> float:
    """Most output tokens in a one-second bucket. A request's tokens are spread evenly over its chunks."""
    tokens_by_second: dict[int, float] = {}
    for record in records:
        chunks_by_second = Counter(math.floor(time) for time in record.choice_times)
        for second, num_chunks in chunks_by_second.items():
            share = record.num_output_tokens * num_chunks / len(record.choice_times)
            tokens_by_second[second] = tokens_by_second.get(second, 0.0) + share
    return max(tokens_by_second.values(), default=0.0)


def peak_concurrency(records: Iterable[RequestRecord]) -> int:
    """Most requests that were open at the same time; one that ends as another begins is not counted with it."""
    changes = [(record.sent_at, 1) for record in records] + [(record.finished_at, -1) for record in records]
    current = peak = 0
    for _, change in sorted(changes):
        current += change
        peak = max(peak, current)
    return peak


def _latencies(done: Sequence[RequestRecord]) -> dict[str, list[float]]:
    return {
        "ttft": [record.ttft for record in done],
        "tpot": [tpot for record in done if (tpot := record.tpot) is not None],
        "itl": [gap for record in done for gap in record.inter_token_latencies],
        "e2el": [record.e2el for record in done],
    }
