"""OpenTelemetry traces: per request one span, with a span for each time that its generations spent.

    POST /v1/chat/completions ────────────────────────────────
        queue ───  prefill ─────  decode ────────────────────

Spans are made when a request has ended, from the times that were noted anyway: running requests cost nothing. A
thread of OpenTelemetry's sends them from a bounded queue; what does not fit is dropped, and a collector that does
not answer delays nobody. The library is imported only where it is asked for.
"""

import logging
import os
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from quire import __version__
from quire.entrypoints.http.served_request import ServedRequest, totals_of
from quire.errors import ConfigError
from quire.frontend.processor import RequestState

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

logger = logging.getLogger("quire.tracing")

EXPORT_TIMEOUT_SECONDS = 5
CLOSE_TIMEOUT_MILLISECONDS = 3000
MAX_QUEUED_SPANS = 4096
MAX_TRACED_GENERATIONS = 16
"""Of a request with many prompts, so many have spans of their own."""


class RequestTracing:
    """Makes the spans of every request that has ended.

    Args:
        exporter: Where the spans go.
        service_name: What the traces call this server.
    """

    def __init__(self, exporter: "SpanExporter", *, service_name: str = "quire") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": service_name, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._processor = BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUED_SPANS)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("quire", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def on_request(self, served: ServedRequest) -> None:
        """Makes the spans of a request and leaves them to the thread that sends them."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        headers = Headers(scope=served.scope)
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        span = self._tracer.start_span(
            f"{served.method} {served.route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=request_attributes(served),
            start_time=served.begin_unix_nanoseconds,
        )
        context = set_span_in_context(span)
        for state in served.generations[:MAX_TRACED_GENERATIONS]:
            self._trace_generation(served, state, context)
        if served.failed:
            _mark_failed(span, served)
        span.end(served.unix_nanoseconds(served.end))

    def close(self) -> None:
        """Sends what waits, for a few seconds at most. Blocks."""
        self._processor.force_flush(CLOSE_TIMEOUT_MILLISECONDS)
        self._provider.shutdown()

    def _trace_generation(self, served: ServedRequest, state: RequestState, context: "Context") -> None:
        """One span per phase, as far as the generation came; the one in which it failed says so."""
        phases = phases_of(state, served.end)
        for number, (name, begin, end) in enumerate(phases):
            span = self._tracer.start_span(
                name,
                context=context,
                attributes={"gen_ai.response.id": served.answer_id, "quire.generation": state.request.request_id},
                start_time=served.unix_nanoseconds(begin),
            )
            if state.error and number == len(phases) - 1:
                _mark_error(span, state.error)
            span.end(served.unix_nanoseconds(end))


def phases_of(state: RequestState, now: float) -> list[tuple[str, float, float]]:
    """Name, begin and end of the phases that a generation has come through or was in when it ended."""
    times = state.metrics
    begin, end = times.arrival_time, times.finished_time or now
    if times.queue_seconds is None:
        return [("queue", begin, end)]
    scheduled = min(begin + times.queue_seconds, end)
    phases = [("queue", begin, scheduled)]
    if times.first_token_time is None:
        return [*phases, ("prefill", scheduled, end)]
    return [*phases, ("prefill", scheduled, times.first_token_time), ("decode", times.first_token_time, end)]


def request_attributes(served: ServedRequest) -> dict[str, Any]:
    """The attributes of a request's span, named by the conventions for HTTP and for generative AI."""
    attributes: dict[str, Any] = {
        "http.request.method": served.method,
        "http.route": served.route,
        "http.response.status_code": served.final_status,
        "quire.request_id": served.request_id,
        "quire.key_name": served.key_name,
        "quire.client_left": served.client_left,
    }
    if not served.generations:
        return attributes
    totals, sampling = totals_of(served), served.generations[0].request.sampling
    attributes |= {
        "gen_ai.operation.name": "text_completion" if served.route == "/v1/completions" else "chat",
        "gen_ai.provider.name": "quire",
        "gen_ai.request.model": served.model,
        "gen_ai.response.model": served.model,
        "gen_ai.response.id": served.answer_id,
        "gen_ai.response.finish_reasons": totals.finish_reasons,
        "gen_ai.request.choice.count": sampling.n,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.usage.input_tokens": totals.num_prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": totals.num_cached_tokens,
        "gen_ai.usage.output_tokens": totals.num_output_tokens,
        "quire.preemptions": totals.num_preemptions,
    }
    optional = {
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.latency.time_in_queue": totals.queue_seconds,
        "gen_ai.latency.time_to_first_token": totals.first_token_seconds,
    }
    return attributes | {name: value for name, value in optional.items() if value is not None}


def _mark_failed(span: "Span", served: ServedRequest) -> None:
    kind = type(served.error).__name__ if served.error is not None else str(served.final_status)
    span.set_attribute("error.type", kind)
    _mark_error(span, served.error_text or f"status {served.final_status}")


def _mark_error(span: "Span", text: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, text[:300]))


def start_tracing(endpoint: str) -> RequestTracing:
    """Traces that go to a collector, over HTTP as protobuf.

    Args:
        endpoint: Its URL; without a path, the usual one is added.

    Raises:
        ConfigError: It is no such URL, or the extra `otel` is not installed.
    """
    scheme, separator, rest = endpoint.partition("://")
    if scheme not in ("http", "https") or not separator or not rest.partition("/")[0]:
        raise ConfigError(
            f"otlp_traces_endpoint must be a URL of http or https, got {endpoint[:200]!r}",
            hint="such as http://localhost:4318/v1/traces",
            param="otlp_traces_endpoint",
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigError(
            f"traces need OpenTelemetry, which is not installed: {error}",
            hint="pip install 'quire[otel]'",
            param="otlp_traces_endpoint",
        ) from error
    if not rest.partition("/")[2]:
        endpoint = f"{scheme}://{rest.rstrip('/')}/v1/traces"
    logger.info("traces go to %s", endpoint)
    name = os.environ.get("OTEL_SERVICE_NAME", "quire")
    return RequestTracing(OTLPSpanExporter(endpoint, timeout=EXPORT_TIMEOUT_SECONDS), service_name=name)
