"""Traces, up to a collector that takes them over HTTP."""

import builtins
import logging
import threading
import time
from typing import Any

import pytest

from quire.entrypoints.http.served_request import ServedRequest
from quire.entrypoints.http.tracing import MAX_QUEUED_SPANS, MAX_TRACED_GENERATIONS, RequestTracing, start_tracing
from quire.errors import ConfigError, OverloadedError
from quire.frontend.processor import RequestState
from quire.types.deltas import FinishReason, SequenceDelta
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest
from quire.types.sampling import SamplingParams

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def attributes(span: Any) -> dict[str, Any]:
    values = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        values[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return values


def seconds(span: Any) -> float:
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


class Route:
    path = "/v1/chat/completions"


def make_served(*states: RequestState, headers: tuple[tuple[bytes, bytes], ...] = (), **fields: Any) -> ServedRequest:
    """A request that began at 100 s and ended at 110 s."""
    scope = {"type": "http", "method": "POST", "route": Route(), "state": {"key_name": "alice"}, "headers": headers}
    served = ServedRequest(scope, "my-id", begin=100.0, begin_unix_nanoseconds=10**18, end=110.0, **fields)
    served.generations.extend(states)
    served.model, served.answer_id = "small", "chatcmpl-my-id"
    return served


def make_state(number: int = 0) -> RequestState:
    """A generation that arrived at 101 s."""
    params = SamplingParams(max_tokens=8, seed=1, temperature=0.5, top_p=0.9, detokenize=False)
    name = RequestId(f"generation-{number}")
    request = GenerationRequest(request_id=name, prompt_token_ids=[1, 2, 3], sampling=params, arrival_time=101.0)
    return RequestState(request, None, params, None)  # type: ignore[arg-type]


def finish(state: RequestState) -> RequestState:
    """Scheduled at 103 s, two tokens at 105 and 109 s."""
    request_id = state.request.request_id
    state.apply(SequenceDelta(request_id, 0, [7], num_cached_tokens=2, queue_seconds=2.0), 105.0)
    state.apply(SequenceDelta(request_id, 0, [8], finish_reason=FinishReason.LENGTH), 109.0)
    return state


def export(collector: Any, *requests: ServedRequest) -> dict[str, Any]:
    tracing = start_tracing(collector.url)
    for served in requests:
        tracing.on_request(served)
    tracing.close()
    return {span.name: span for span in collector.spans}


def test_a_request_has_a_span_with_its_phases(collector: Any) -> None:
    spans = export(collector, make_served(finish(make_state()), status=200))
    assert collector.paths == ["/v1/traces"] and collector.services == {"quire"}
    root = spans["POST /v1/chat/completions"]
    assert (root.start_time_unix_nano, seconds(root), root.status.code) == (10**18, 10.0, 0)
    assert root.kind == 2
    found = attributes(root)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "small",
        "gen_ai.response.id": "chatcmpl-my-id",
        "gen_ai.request.max_tokens": 8,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.latency.time_in_queue": 2.0,
        "gen_ai.latency.time_to_first_token": 5.0,
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
        "quire.request_id": "my-id",
        "quire.key_name": "alice",
    }
    assert {name: found[name] for name in expected} == expected
    phases = {name: seconds(spans[name]) for name in ("queue", "prefill", "decode")}
    assert phases == pytest.approx({"queue": 2.0, "prefill": 2.0, "decode": 4.0})
    assert {spans[name].parent_span_id for name in phases} == {root.span_id}
    assert spans["queue"].start_time_unix_nano == 10**18 + 10**9
    assert spans["queue"].end_time_unix_nano == spans["prefill"].start_time_unix_nano


def test_the_trace_of_the_client_goes_on(collector: Any) -> None:
    headers = ((b"traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01".encode()), (b"tracestate", b"vendor=1"))
    root = export(collector, make_served(status=200, headers=headers))["POST /v1/chat/completions"]
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.trace_state) == (TRACE_ID, PARENT_ID, "vendor=1")


def test_a_client_that_does_not_sample_is_not_traced_and_a_bad_header_begins_a_trace(collector: Any) -> None:
    unsampled = ((b"traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00".encode()),)
    bad = ((b"traceparent", b"00-zz\xff-1"),)
    export(collector, make_served(status=200, headers=unsampled), make_served(status=204, headers=bad))
    (root,) = collector.spans
    assert root.trace_id.hex() != TRACE_ID and not root.parent_span_id
    assert attributes(root)["http.response.status_code"] == 204


def test_refused_failed_and_aborted_requests_are_traced(collector: Any) -> None:
    refused = make_served(status=429, error=OverloadedError("too many", retry_after_seconds=1.0))
    failing = make_state(1)
    failing.apply(SequenceDelta(failing.request.request_id, 0, queue_seconds=2.0, num_cached_tokens=0), 104.0)
    failing.fail("the model could not compute this answer", 106.0)
    failed = make_served(failing, status=500)
    waiting = make_state(2)
    waiting.end(FinishReason.ABORT, 108.0)
    aborted = make_served(waiting, client_left=True)
    export(collector, refused, failed, aborted)
    roots = [span for span in collector.spans if span.name.startswith("POST")]
    assert [(root.status.code, root.status.message) for root in roots] == [
        (2, "too many"),
        (2, "the model could not compute this answer"),
        (2, "status 499"),
    ]
    assert attributes(roots[0])["error.type"] == "OverloadedError"
    assert attributes(roots[2])["quire.client_left"] is True
    children = [(span.name, seconds(span), span.status.code) for span in collector.spans if span.parent_span_id]
    assert children == [("queue", 2.0, 0), ("prefill", 3.0, 2), ("queue", 7.0, 0)]


def test_many_prompts_have_bounded_spans(collector: Any) -> None:
    states = [finish(make_state(number)) for number in range(MAX_TRACED_GENERATIONS + 3)]
    export(collector, make_served(*states, status=200))
    assert len(collector.spans) == 1 + 3 * MAX_TRACED_GENERATIONS


def test_a_collector_that_does_not_answer_delays_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    released = threading.Event()

    class Stuck:
        def export(self, spans: Any) -> Any:
            from opentelemetry.sdk.trace.export import SpanExportResult

            released.wait(30)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            pass

        def force_flush(self, timeout_millis: int = 0) -> bool:
            return True

    tracing = RequestTracing(Stuck())  # type: ignore[arg-type]
    served = make_served(finish(make_state()), status=200)
    begin = time.monotonic()
    for _ in range(MAX_QUEUED_SPANS // 3):
        tracing.on_request(served)
    assert time.monotonic() - begin < 20
    released.set()
    tracing.close()


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://host/v1", "http://", "http:///v1/traces"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="otlp_traces_endpoint must be a URL"):
        start_tracing(endpoint)


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_opentelemetry(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_opentelemetry)
    with pytest.raises(ConfigError) as caught:
        start_tracing("http://localhost:4318")
    assert caught.value.hint == "pip install 'quire[otel]'"
    assert caught.value.param == "otlp_traces_endpoint"
