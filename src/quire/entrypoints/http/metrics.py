"""Counts what the engine and the server do. Names and meanings are vLLM's, with the prefix `quire:`.

Counters and gauges of the engine are read from its last report when they are asked for, so that a step costs
nothing here; what comes per token is one addition to a histogram. No label has a value that a client can choose:
routes are those that matched, keys are known by the names that the operator gave them.
"""

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from quire.engine.port import EngineInfo
from quire.entrypoints.http.errors import ServerStoppingError
from quire.entrypoints.http.metrics_counts import KeyCounts, RequestHistograms, ServerCounts
from quire.entrypoints.http.metrics_exposition import MetricsCollector, expose
from quire.entrypoints.http.metrics_histogram import HTTP_BUCKETS, BucketCounts
from quire.entrypoints.http.served_request import ServedRequest, totals_of
from quire.errors import OverloadedError
from quire.types.outputs import RequestOutput
from quire.types.request import GenerationRequest
from quire.types.stats import EngineStats

MAX_KEY_NAMES = 1000
OTHER_KEYS = "(other)"
"""Stands for the keys beyond the first `MAX_KEY_NAMES`."""


class ServerMetrics:
    """Watches the engine and the requests; answers `/metrics` and the periodic log line."""

    def __init__(self, model_name: str, info: EngineInfo) -> None:
        self._histograms = RequestHistograms(info.max_model_len)
        self._counts = ServerCounts(model_name, info, self._histograms)
        self._registry = CollectorRegistry()
        self._registry.register(MetricsCollector(self._counts))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    @property
    def stats(self) -> EngineStats:
        """The engine's last report."""
        return self._counts.stats

    def on_stats(self, stats: EngineStats) -> None:
        """Keeps the engine's last report."""
        if stats.step > self._counts.stats.step:
            self._histograms.step_tokens.observe(stats.num_step_tokens)
        self._counts.stats = stats

    def on_tokens(self, num_tokens: int, seconds: float, first: bool) -> None:
        """Counts the time from the arrival to a sample's `first` tokens, later the mean time per token since its last.

        Tokens of requests that are not streamed come in batches; each of them counts once, as if it had come alone.
        """
        if first:
            self._histograms.time_to_first_token.observe(seconds)
        else:
            self._histograms.inter_token.observe(seconds / num_tokens, num_tokens)

    def on_finished(self, output: RequestOutput, request: GenerationRequest) -> None:
        """Counts a request that has left the engine; `output` holds all that it produced."""
        for answer in output.outputs:
            if answer.finish_reason is not None:
                self._counts.finished[answer.finish_reason] += 1
        self._histograms.observe_request(output, request)

    def on_request(self, served: ServedRequest) -> None:
        """Counts an HTTP request that has ended."""
        route, method = served.route, served.method
        self._counts.http_requests[route, method, str(served.final_status)] += 1
        if (seconds := self._counts.http_seconds.get((route, method))) is None:
            seconds = self._counts.http_seconds[route, method] = BucketCounts(HTTP_BUCKETS)
        seconds.observe(served.end - served.begin)
        if isinstance(served.error, OverloadedError | ServerStoppingError):
            self._counts.rejections[rejection_reason(served.error)] += 1
        if served.tool_format:
            self._counts.tool_parser_runs[served.tool_format] += 1
        if served.key_name or served.generations:
            self._key_counts(served.key_name).add(totals_of(served))

    def _key_counts(self, name: str) -> KeyCounts:
        keys = self._counts.keys
        if name not in keys and len(keys) >= MAX_KEY_NAMES:
            name = OTHER_KEYS
        return keys.setdefault(name, KeyCounts())

    def exposition(self, *, with_vllm_names: bool = False) -> bytes:
        """All metrics in the text format of Prometheus; if wanted, those that vLLM has under its names as well."""
        return expose(self._registry, with_vllm_names=with_vllm_names)


def rejection_reason(error: OverloadedError | ServerStoppingError) -> str:
    """Why a request was refused, in one word of ours."""
    if isinstance(error, ServerStoppingError):
        return "stopping"
    return error.reason
