"""From counts to what Prometheus reads."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.entrypoints.http.metrics_counts import ServerCounts

PREFIX, VLLM_PREFIX = "quire:", "vllm:"

OUR_OWN = frozenset(
    {
        *("kv_cache_waste_perc", "kv_cache_cached_blocks", "prefix_cache_evicted_blocks", "prefix_cache_misses"),
        *("engine_steps", "step_execute_seconds", "key_requests", "key_prompt_tokens", "key_cached_tokens"),
        "key_generation_tokens",
    }
)
"""Metrics that vLLM does not have."""


class MetricsCollector(Collector):
    """Turns a server's counts into metrics at the moment of asking."""

    def __init__(self, counts: ServerCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """All but those of the process."""
        yield from self._gauges()
        yield from self._engine_counters()
        yield from self._request_counters()
        yield from self._key_counters()
        for name, text, counts in self._counts.histograms:
            family = HistogramMetricFamily(PREFIX + name, text, labels=tuple(self._labels))
            family.add_metric(tuple(self._labels.values()), counts.cumulative(), counts.sum)
            yield family
        yield from self._http()

    @property
    def _labels(self) -> dict[str, str]:
        return {"model_name": self._counts.model_name, "engine": "0"}

    def _gauges(self) -> Iterator[Metric]:
        stats, info = self._counts.stats, self._counts.info
        cache = stats.cache
        yield self._gauge("num_requests_running", "Sequences that run.", stats.num_running)
        yield self._gauge("num_requests_waiting", "Sequences that wait.", stats.num_waiting)
        family = GaugeMetricFamily(
            f"{PREFIX}num_requests_waiting_by_reason",
            "Sequences that wait: for room, or for a sibling that computes their prompt.",
            labels=(*self._labels, "reason"),
        )
        for reason, count in (("capacity", stats.num_waiting - stats.num_deferred), ("deferred", stats.num_deferred)):
            family.add_metric((*self._labels.values(), reason), count)
        yield family
        yield self._gauge("kv_cache_usage_perc", "Blocks of the KV cache in use, 0 to 1.", cache.usage)
        yield self._gauge("kv_cache_waste_perc", "Allocated KV slots that hold nothing, 0 to 1.", cache.waste)
        yield self._gauge("kv_cache_cached_blocks", "Blocks found by content.", cache.num_cached_blocks)
        yield self._gauge("step_execute_seconds", "Time of the last step on the device.", stats.execute_seconds)
        settings = self._labels | {
            "block_size": str(info.block_size),
            "num_gpu_blocks": str(info.num_blocks),
            "enable_prefix_caching": str(info.enable_prefix_caching),
        }
        config = GaugeMetricFamily(f"{PREFIX}cache_config_info", "Size of the KV cache.", labels=tuple(settings))
        config.add_metric(tuple(settings.values()), 1)
        yield config

    def _engine_counters(self) -> Iterator[Metric]:
        stats = self._counts.stats
        cache, num_cached = stats.cache, stats.num_cached_prompt_tokens
        sources = {"local_compute": stats.num_prompt_tokens - num_cached, "local_cache_hit": num_cached}
        misses = {
            "no_match": cache.num_missed_no_match,
            "under_one_block": cache.num_missed_under_one_block,
            "evicted": cache.num_missed_evicted,
            "other_salt": cache.num_missed_other_salt,
            "other_adapter": cache.num_missed_other_adapter,
        }
        yield self._counter("prompt_tokens", "Prompt tokens, computed or cached.", stats.num_prompt_tokens)
        yield self._counter("prompt_tokens_by_source", "Prompt tokens by origin.", sources, "source")
        yield self._counter("prompt_tokens_cached", "Prompt tokens from the cache.", num_cached)
        yield self._counter("generation_tokens", "Tokens produced.", stats.num_generated_tokens)
        yield self._counter("prefix_cache_queries", "Tokens looked up.", cache.num_queried_tokens)
        yield self._counter("prefix_cache_hits", "Tokens found.", cache.num_hit_tokens)
        yield self._counter("prefix_cache_misses", "Lookups that ended early, by reason.", misses, "reason")
        yield self._counter("prefix_cache_evicted_blocks", "Cached blocks given up.", cache.num_evicted_blocks)
        yield self._counter("num_preemptions", "Sequences put back for want of blocks.", stats.num_preemptions)
        yield self._counter("engine_steps", "Steps of the engine.", stats.step)

    def _request_counters(self) -> Iterator[Metric]:
        counts = self._counts
        finished = {reason.value: count for reason, count in counts.finished.items()}
        yield self._counter("request_success", "Samples that ended, by reason.", finished, "finished_reason")
        yield self._counter("admission_rejections", "Requests refused, by reason.", counts.rejections, "reason")
        yield self._counter(
            "tool_call_parser_invocations", "Answers parsed for tool calls.", counts.tool_parser_runs, "parser"
        )

    def _key_counters(self) -> Iterator[Metric]:
        keys = self._counts.keys
        tables = {
            "key_requests": ("Requests by key.", {name: counts.num_requests for name, counts in keys.items()}),
            "key_prompt_tokens": (
                "Prompt tokens by key.",
                {name: counts.num_prompt_tokens for name, counts in keys.items()},
            ),
            "key_cached_tokens": (
                "Prompt tokens from the cache by key.",
                {name: counts.num_cached_tokens for name, counts in keys.items()},
            ),
            "key_generation_tokens": (
                "Tokens produced by key.",
                {name: counts.num_output_tokens for name, counts in keys.items()},
            ),
        }
        for name, (text, values) in tables.items():
            yield self._counter(name, text, values, "key_name")

    def _http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("http_requests", "HTTP requests.", labels=("handler", "method", "status"))
        for labels, count in self._counts.http_requests.items():
            requests.add_metric(labels, count)
        yield requests
        durations = HistogramMetricFamily(
            "http_request_duration_seconds", "Request to last byte of the answer.", labels=("handler", "method")
        )
        for pair, counts in self._counts.http_seconds.items():
            durations.add_metric(pair, counts.cumulative(), counts.sum)
        yield durations

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, values: float | Mapping[str, float], label: str = "") -> Metric:
        """A counter, or one per value of `label`."""
        further = (label,) if label else ()
        family = CounterMetricFamily(PREFIX + name, text, labels=(*self._labels, *further))
        rows: Iterable[tuple[tuple[str, ...], float]] = (
            (((key,), value) for key, value in values.items()) if isinstance(values, Mapping) else (((), values),)
        )
        for row, value in rows:
            family.add_metric((*self._labels.values(), *row), value)
        return family


class _VllmNames(Collector):
    """The metrics of a registry that vLLM has, under its names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            name = family.name.removeprefix(PREFIX)
            if name == family.name or name in OUR_OWN:
                continue
            family.name = VLLM_PREFIX + name
            family.samples = [
                sample._replace(name=VLLM_PREFIX + sample.name.removeprefix(PREFIX)) for sample in family.samples
            ]
            yield family


def expose(registry: CollectorRegistry, *, with_vllm_names: bool) -> bytes:
    """The metrics of `registry` in the text format of Prometheus; with `with_vllm_names` vLLM's names follow."""
    text: bytes = generate_latest(registry)
    if not with_vllm_names:
        return text
    names = CollectorRegistry()
    names.register(_VllmNames(registry))
    return text + generate_latest(names)
