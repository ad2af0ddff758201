"""What the server has counted, as plain values."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from quire.engine.port import EngineInfo
from quire.entrypoints.http import metrics_histogram as buckets
from quire.entrypoints.http.metrics_histogram import BucketCounts
from quire.entrypoints.http.served_request import Totals
from quire.types.deltas import FinishReason
from quire.types.outputs import RequestMetrics, RequestOutput
from quire.types.request import GenerationRequest
from quire.types.stats import CacheStats, EngineStats

_NO_STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0.0, CacheStats())


class RequestHistograms:
    """The histograms over requests, tokens and steps.

    Args:
        max_model_len: Bounds the buckets of sizes in tokens.
    """

    def __init__(self, max_model_len: int) -> None:
        self._texts: dict[str, str] = {}
        self._counts: dict[str, BucketCounts] = {}
        sizes, phases = buckets.size_buckets(max_model_len), buckets.PHASE_BUCKETS
        add = self._add
        self.time_to_first_token = add(
            "time_to_first_token_seconds", "Arrival to first token.", buckets.FIRST_TOKEN_BUCKETS
        )
        self.inter_token = add(
            "inter_token_latency_seconds", "Gap between the tokens of a sample.", buckets.TOKEN_GAP_BUCKETS
        )
        self.time_per_token = add(
            "request_time_per_output_token_seconds", "Mean gap per request.", buckets.TOKEN_GAP_BUCKETS
        )
        self.end_to_end = add("e2e_request_latency_seconds", "Arrival to end.", phases)
        self.queue = add("request_queue_time_seconds", "Arrival to first scheduling.", phases)
        self.prefill = add("request_prefill_time_seconds", "First scheduling to first token.", phases)
        self.decode = add("request_decode_time_seconds", "First token to end.", phases)
        self.inference = add("request_inference_time_seconds", "First scheduling to end.", phases)
        self.prompt_tokens = add("request_prompt_tokens", "Prompt tokens per request.", sizes)
        self.computed_tokens = add(
            "request_prefill_kv_computed_tokens", "Prompt tokens per request that no cache had.", sizes
        )
        self.output_tokens = add("request_generation_tokens", "Tokens produced per request.", sizes)
        self.longest_sample = add(
            "request_max_num_generation_tokens", "Tokens of the longest sample of a request.", sizes
        )
        self.max_tokens = add("request_params_max_tokens", "The max_tokens of requests.", sizes)
        self.num_samples = add("request_params_n", "The n of requests.", buckets.SAMPLES_BUCKETS)
        self.preemptions = add(
            "request_num_preemptions", "How often a request was put back.", buckets.PREEMPTIONS_BUCKETS
        )
        self.step_tokens = add("iteration_tokens_total", "Tokens per step.", buckets.STEP_TOKENS_BUCKETS)

    def __iter__(self) -> Iterator[tuple[str, str, BucketCounts]]:
        return ((name, self._texts[name], counts) for name, counts in self._counts.items())

    def observe_request(self, output: RequestOutput, request: GenerationRequest) -> None:
        """Adds a request that has ended; `output` holds all that it produced."""
        num_prompt_tokens = len(output.prompt_token_ids)
        self.prompt_tokens.observe(num_prompt_tokens)
        if output.num_cached_tokens is not None:
            self.computed_tokens.observe(num_prompt_tokens - output.num_cached_tokens)
        num_tokens = [len(answer.token_ids) for answer in output.outputs]
        self.output_tokens.observe(sum(num_tokens))
        self.longest_sample.observe(max(num_tokens, default=0))
        self.num_samples.observe(request.sampling.n)
        if request.sampling.max_tokens is not None:
            self.max_tokens.observe(request.sampling.max_tokens)
        if output.metrics is not None:
            self.preemptions.observe(output.metrics.num_preemptions)
            self._observe_phases(output.metrics, max(num_tokens, default=0))

    def _observe_phases(self, times: RequestMetrics, num_tokens: int) -> None:
        end = times.finished_time
        if times.queue_seconds is not None:
            self.queue.observe(times.queue_seconds)
        if end is not None:
            self.end_to_end.observe(end - times.arrival_time)
        if times.first_token_time is None:
            return
        scheduled = times.arrival_time + (times.queue_seconds or 0.0)
        self.prefill.observe(max(0.0, times.first_token_time - scheduled))
        if end is not None:
            self.decode.observe(end - times.first_token_time)
            self.inference.observe(max(0.0, end - scheduled))
        if num_tokens > 1 and times.last_token_time is not None:
            self.time_per_token.observe((times.last_token_time - times.first_token_time) / (num_tokens - 1))

    def _add(self, name: str, text: str, bounds: Sequence[float]) -> BucketCounts:
        self._texts[name] = text
        counts = self._counts[name] = BucketCounts(bounds)
        return counts


@dataclass(slots=True)
class KeyCounts:
    """What came with one key, or without any."""

    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0

    def add(self, totals: Totals) -> None:
        """Counts one more request."""
        self.num_requests += 1
        self.num_prompt_tokens += totals.num_prompt_tokens
        self.num_cached_tokens += totals.num_cached_tokens
        self.num_output_tokens += totals.num_output_tokens


@dataclass(slots=True)
class ServerCounts:
    """Everything that `/metrics` shows of one server.

    Attributes:
        stats: The engine's last report.
        finished: Samples that have ended, by reason.
        http_requests: Requests by route, method and status.
        http_seconds: Their durations by route and method.
        rejections: Requests that were refused for want of room or right, by reason.
        keys: By name of the key; the empty name stands for requests without one.
        tool_parser_runs: Answers that were parsed for tool calls, by format.
    """

    model_name: str
    info: EngineInfo
    histograms: RequestHistograms
    stats: EngineStats = _NO_STATS
    finished: Counter[FinishReason] = field(default_factory=lambda: Counter(dict.fromkeys(FinishReason, 0)))
    http_requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    http_seconds: dict[tuple[str, str], BucketCounts] = field(default_factory=dict)
    rejections: Counter[str] = field(default_factory=Counter)
    keys: dict[str, KeyCounts] = field(default_factory=dict)
    tool_parser_runs: Counter[str] = field(default_factory=Counter)
