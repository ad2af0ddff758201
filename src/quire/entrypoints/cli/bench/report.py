"""The outcome of `quire bench serve` as a table and as JSON. Names are those of vLLM's benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.entrypoints.cli.bench.metrics import LATENCIES, RequestRecord, ServingMetrics
from quire.errors import ConfigError

WIDTH = 60
TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
LIMITED = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True)
class LoadShape:
    """How the load was made, for the report.

    Attributes:
        request_rate: Requests per second; infinity where they were sent as fast as allowed.
    """

    request_rate: float
    burstiness: float
    max_concurrency: int | None


def parse_latencies(text: str) -> list[str]:
    """The latencies to report: "ttft,itl".

    Raises:
        ConfigError: One of them does not exist.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in LATENCIES]
    if unknown or not names:
        raise ConfigError(
            f"percentile_metrics must name some of {', '.join(LATENCIES)}, got {text!r}", param="percentile_metrics"
        )
    return names


def parse_percentiles(text: str) -> list[float]:
    """The percentiles to report: "50,90,99.9".

    Raises:
        ConfigError: One is not a number from 0 to 100.
    """
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or not all(0.0 <= value <= 100.0 for value in values):
        raise ConfigError(f"metric_percentiles must be numbers from 0 to 100, got {text!r}", param="metric_percentiles")
    return sorted(set(values))


def parse_goodput(words: Sequence[str]) -> dict[str, float]:
    """Limits in seconds by latency, from words such as "ttft:200" (milliseconds).

    Raises:
        ConfigError: An unknown latency, or a limit that is not a number above 0.
    """
    limits = {}
    for word in words:
        name, _, text = word.partition(":")
        try:
            limit = float(text)
        except ValueError:
            limit = 0.0
        if name not in LIMITED or not limit > 0:
            raise ConfigError(
                f"goodput must be limits in ms for {', '.join(LIMITED)}, got {word!r}",
                hint="for example --goodput ttft:200 tpot:50",
                param="goodput",
            )
        limits[name] = limit / 1000
    return limits


def parse_pairs(name: str, words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words.

    Raises:
        ConfigError: A word without "=".
    """
    pairs = [word.partition("=") for word in words]
    bad = next((word for word, (key, equals, _) in zip(words, pairs, strict=True) if not (key and equals)), None)
    if bad is not None:
        raise ConfigError(f"{name} must be KEY=VALUE, got {bad!r}", param=name)
    return {key: value for key, _, value in pairs}


def as_table(metrics: ServingMetrics, load: LoadShape, latencies: Sequence[str]) -> str:
    """The printed report: counts and rates, then the spread of each latency in milliseconds, then the failures."""
    lines = [" Serving Benchmark Result ".center(WIDTH, "=")]
    lines += [_row(name, value) for name, value in _totals(metrics, load)]
    for name in latencies:
        lines.append(f" {TITLES[name]} ".center(WIDTH, "-"))
        lines += [_row(label, value * 1000) for label, value in _spread_rows(metrics, name)]
    if metrics.failures:
        lines.append(" Failures ".center(WIDTH, "-"))
        lines += [f"{count:>6} x {reason}" for reason, count in metrics.failures.items()]
    return "\n".join([*lines, "=" * WIDTH])


def _totals(metrics: ServingMetrics, load: LoadShape) -> list[tuple[str, float | int | None]]:
    rate = None if load.request_rate == float("inf") else load.request_rate
    rows: list[tuple[str, float | int | None]] = [
        ("Successful requests:", metrics.completed),
        ("Failed requests:", metrics.failed),
        ("Maximum request concurrency:", load.max_concurrency),
        ("Request rate configured (RPS):", rate),
        ("Benchmark duration (s):", metrics.duration),
        ("Total input tokens:", metrics.total_input_tokens),
        ("Total generated tokens:", metrics.total_output_tokens),
        ("Request throughput (req/s):", metrics.request_throughput),
        ("Request goodput (req/s):", metrics.goodput),
        ("Output token throughput (tok/s):", metrics.output_throughput),
        ("Peak output token throughput (tok/s):", metrics.peak_output_tokens),
        ("Peak concurrent requests:", metrics.peak_concurrency),
        ("Total token throughput (tok/s):", metrics.total_token_throughput),
    ]
    return [(name, value) for name, value in rows if value is not None]


def _spread_rows(metrics: ServingMetrics, name: str) -> list[tuple[str, float]]:
    spread, label = metrics.latencies[name], name.upper()
    rows = [(f"Mean {label} (ms):", spread.mean), (f"Median {label} (ms):", spread.median)]
    rows.append((f"Std {label} (ms):", spread.std))
    return rows + [(f"P{percentage:g} {label} (ms):", value) for percentage, value in spread.percentiles.items()]


def _row(name: str, value: float | int | None) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{name:<44}{shown:>16}"


def as_json(metrics: ServingMetrics, load: LoadShape, latencies: Sequence[str]) -> dict[str, Any]:
    """The totals and spreads under the keys that vLLM's result files use; latencies in milliseconds."""
    result: dict[str, Any] = {
        "duration": metrics.duration,
        "completed": metrics.completed,
        "failed": metrics.failed,
        "total_input_tokens": metrics.total_input_tokens,
        "total_output_tokens": metrics.total_output_tokens,
        "request_throughput": metrics.request_throughput,
        "request_goodput": metrics.goodput,
        "output_throughput": metrics.output_throughput,
        "total_token_throughput": metrics.total_token_throughput,
        "max_output_tokens_per_s": metrics.peak_output_tokens,
        "max_concurrent_requests": metrics.peak_concurrency,
        "rtfx": 0.0,
        "request_rate": load.request_rate if load.request_rate != float("inf") else "inf",
        "burstiness": load.burstiness,
        "max_concurrency": load.max_concurrency,
        "failures": metrics.failures,
    }
    for name in latencies:
        result |= _spread_json(metrics, name)
    return result


def _spread_json(metrics: ServingMetrics, name: str) -> dict[str, float]:
    spread = metrics.latencies[name]
    values = {"mean": spread.mean, "median": spread.median, "std": spread.std}
    values |= {f"p{percentage:g}": value for percentage, value in spread.percentiles.items()}
    return {f"{statistic}_{name}_ms": value * 1000 for statistic, value in values.items()}


def detailed_json(records: Sequence[RequestRecord]) -> Mapping[str, list[Any]]:
    """Every request's raw numbers in the order of the prompts; times in seconds. Empty text for no error."""
    return {
        "input_lens": [record.num_input_tokens for record in records],
        "output_lens": [record.num_output_tokens for record in records],
        "start_times": [record.sent_at for record in records],
        "ttfts": [record.ttft for record in records],
        "itls": [record.inter_token_latencies for record in records],
        "latencies": [record.e2el for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error or "" for record in records],
    }
