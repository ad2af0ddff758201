"""Prometheus metrics. Names and meanings are vLLM's, with the prefix `quire:`.

Counters and gauges of the engine are read from its last report when they are asked for, so that a step costs
nothing here. Histograms are filled when a request ends.
"""

from collections.abc import Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.engine.port import EngineInfo
from quire.types.deltas import FinishReason
from quire.types.outputs import RequestMetrics, RequestOutput
from quire.types.request import GenerationRequest
from quire.types.stats import CacheStats, EngineStats

FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_GAP_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    *(5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
PHASE_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
SAMPLES_BUCKETS = (1, 2, 5, 10, 20)
STEP_TOKENS_BUCKETS = tuple(2**exponent for exponent in range(15))

_NO_STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0.0, CacheStats())


def size_buckets(largest: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 ... up to `largest`."""
    sizes = [digit * 10**power for power in range(len(str(largest))) for digit in (1, 2, 5)]
    return [size for size in sizes if size <= largest] or [1]


class ServerMetrics:
    """Watches the engine and the requests; answers `/metrics` and the periodic log line."""

    def __init__(self, model_name: str, info: EngineInfo) -> None:
        self.stats = _NO_STATS
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._registry.register(_EngineCollector(self, info))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        sizes = size_buckets(info.max_model_len)
        self._time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "Arrival to first token.", FIRST_TOKEN_BUCKETS
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Gap between the tokens of a sample.", TOKEN_GAP_BUCKETS
        )
        self._time_per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean gap per request.", TOKEN_GAP_BUCKETS
        )
        self._end_to_end = self._histogram("e2e_request_latency_seconds", "Arrival to end.", PHASE_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to first scheduling.", PHASE_BUCKETS)
        self._prefill = self._histogram(
            "request_prefill_time_seconds", "First scheduling to first token.", PHASE_BUCKETS
        )
        self._decode = self._histogram("request_decode_time_seconds", "First token to end.", PHASE_BUCKETS)
        self._inference = self._histogram("request_inference_time_seconds", "First scheduling to end.", PHASE_BUCKETS)
        self._prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens per request.", sizes)
        self._output_tokens = self._histogram("request_generation_tokens", "Tokens produced per request.", sizes)
        self._max_tokens = self._histogram("request_params_max_tokens", "The max_tokens of requests.", sizes)
        self._num_samples = self._histogram("request_params_n", "The n of requests.", SAMPLES_BUCKETS)
        self._step_tokens = self._histogram("iteration_tokens_total", "Tokens per step.", STEP_TOKENS_BUCKETS)
        finished = Counter(
            "quire:request_success",
            "Requests that ended, by reason.",
            ("model_name", "engine", "finished_reason"),
            registry=self._registry,
        )
        self._finished = {reason: finished.labels(model_name, "0", reason.value) for reason in FinishReason}

    def on_stats(self, stats: EngineStats) -> None:
        """Keeps the engine's last report."""
        if stats.step > self.stats.step:
            self._step_tokens.observe(stats.num_step_tokens)
        self.stats = stats

    def on_tokens(self, num_tokens: int, seconds: float, first: bool) -> None:
        """Counts the time from the arrival to a sample's `first` tokens, later the mean time per token since its last.

        Tokens of requests that are not streamed come in batches; each of them counts once, as if it had come alone.
        """
        if first:
            self._time_to_first_token.observe(seconds)
            return
        for _ in range(num_tokens):
            self._inter_token.observe(seconds / num_tokens)

    def on_finished(self, output: RequestOutput, request: GenerationRequest) -> None:
        """Counts a request that has ended; `output` holds all that it produced."""
        for answer in output.outputs:
            if answer.finish_reason is not None:
                self._finished[answer.finish_reason].inc()
        self._prompt_tokens.observe(len(output.prompt_token_ids))
        num_tokens = [len(answer.token_ids) for answer in output.outputs]
        self._output_tokens.observe(sum(num_tokens))
        self._num_samples.observe(request.sampling.n)
        if request.sampling.max_tokens is not None:
            self._max_tokens.observe(request.sampling.max_tokens)
        if output.metrics is not None:
            self._observe_phases(output.metrics, max(num_tokens, default=0))

    def _observe_phases(self, times: RequestMetrics, num_tokens: int) -> None:
        end = times.finished_time
        if times.queue_seconds is not None:
            self._queue.observe(times.queue_seconds)
        if end is not None:
            self._end_to_end.observe(end - times.arrival_time)
        if times.first_token_time is None:
            return
        scheduled = times.arrival_time + (times.queue_seconds or 0.0)
        self._prefill.observe(max(0.0, times.first_token_time - scheduled))
        if end is not None:
            self._decode.observe(end - times.first_token_time)
            self._inference.observe(max(0.0, end - scheduled))
        if num_tokens > 1 and times.last_token_time is not None:
            self._time_per_token.observe((times.last_token_time - times.first_token_time) / (num_tokens - 1))

    def exposition(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

    @property
    def labels(self) -> dict[str, str]:
        """What tells this engine's metrics from another's."""
        return {"model_name": self._model_name, "engine": "0"}

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(
            f"quire:{name}", text, ("model_name", "engine"), buckets=tuple(buckets), registry=self._registry
        )
        return histogram.labels(self._model_name, "0")


class _EngineCollector(Collector):
    """Turns the engine's last report into metrics at the moment of asking."""

    def __init__(self, metrics: ServerMetrics, info: EngineInfo) -> None:
        self._metrics = metrics
        self._info = info

    def collect(self) -> Iterator[Metric]:
        stats = self._metrics.stats
        cache = stats.cache
        yield self._gauge("num_requests_running", "Sequences that run.", stats.num_running)
        yield self._gauge("num_requests_waiting", "Sequences that wait.", stats.num_waiting)
        yield self._gauge("kv_cache_usage_perc", "Blocks of the KV cache in use, 0 to 1.", cache.usage)
        yield self._gauge("kv_cache_waste_perc", "Allocated KV slots that hold nothing, 0 to 1.", cache.waste)
        yield self._gauge("kv_cache_cached_blocks", "Blocks found by content.", cache.num_cached_blocks)
        yield self._counter("prompt_tokens", "Prompt tokens, computed or cached.", stats.num_prompt_tokens)
        yield self._counter("generation_tokens", "Tokens produced.", stats.num_generated_tokens)
        yield self._counter("prompt_tokens_cached", "Prompt tokens from the cache.", cache.num_hit_tokens)
        yield self._counter("prefix_cache_queries", "Tokens looked up.", cache.num_queried_tokens)
        yield self._counter("prefix_cache_hits", "Tokens found.", cache.num_hit_tokens)
        yield self._counter("prefix_cache_evicted_blocks", "Cached blocks given up.", cache.num_evicted_blocks)
        yield self._counter("num_preemptions", "Sequences put back for want of blocks.", stats.num_preemptions)
        yield self._counter("engine_steps", "Steps of the engine.", stats.step)
        yield self._misses(cache)
        yield self._cache_config()

    def _misses(self, cache: CacheStats) -> Metric:
        labels = self._metrics.labels
        family = CounterMetricFamily(
            "quire:prefix_cache_misses", "Lookups that ended early, by reason.", labels=(*labels, "reason")
        )
        reasons = {
            "no_match": cache.num_missed_no_match,
            "under_one_block": cache.num_missed_under_one_block,
            "evicted": cache.num_missed_evicted,
            "other_salt": cache.num_missed_other_salt,
            "other_adapter": cache.num_missed_other_adapter,
        }
        for reason, count in reasons.items():
            family.add_metric((*labels.values(), reason), count)
        return family

    def _cache_config(self) -> Metric:
        labels = self._metrics.labels | {
            "block_size": str(self._info.block_size),
            "num_gpu_blocks": str(self._info.num_blocks),
        }
        family = GaugeMetricFamily("quire:cache_config_info", "Size of the KV cache.", labels=tuple(labels))
        family.add_metric(tuple(labels.values()), 1)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        labels = self._metrics.labels
        family = GaugeMetricFamily(f"quire:{name}", text, labels=tuple(labels))
        family.add_metric(tuple(labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        labels = self._metrics.labels
        family = CounterMetricFamily(f"quire:{name}", text, labels=tuple(labels))
        family.add_metric(tuple(labels.values()), value)
        return family
