"""A real server, seen as its operator sees it: log, metrics and traces; and many streams at once."""

import asyncio
import json
from collections import Counter
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

NUM_STREAMS = 256


def test_what_an_operator_sees(start_server: Any, collector: Any) -> None:
    asyncio.run(_see_what_an_operator_sees(start_server, collector))


async def _see_what_an_operator_sees(start_server: Any, collector: Any) -> None:
    options = ("--otlp-traces-endpoint", collector.url, "--enable-log-requests", "--log-prompts")
    key = {"Authorization": "Bearer secret-one"}
    body = {"messages": [{"role": "user", "content": "Say\nhello"}], "max_tokens": 6, "temperature": 0}
    with start_server(
        *options, "--log-format", "json", "--enable-vllm-metric-names", "--api-key", "secret-one"
    ) as server:
        path = f"{server.url}/v1/chat/completions"
        async with httpx.AsyncClient(headers=key, timeout=120) as client:
            first = await client.post(path, json=body, headers={"X-Request-Id": "first"})
            async with client.stream("POST", path, json={**body, "stream": True, "max_tokens": 900}) as reply:
                await anext(reply.aiter_lines())
            refused = await client.post(path, json={**body, "max_tokens": -1})
            unknown = await client.post(path, json=body, headers={"Authorization": "Bearer wrong"})
            while (await client.get(f"{server.url}/load")).json() != {"server_load": 0}:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
            text = (await client.get(f"{server.url}/metrics")).text
        server.terminate()
        server.process.wait(60)
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [answer.status_code for answer in (first, refused, unknown)] == [200, 400, 401]
    _check_log([line for line in lines if line["logger"] == "quire.requests"], first.json()["usage"])
    assert "secret-one" not in json.dumps(lines)
    _check_metrics(text)
    _check_traces(collector, first.json()["usage"])


def _check_log(lines: list[dict[str, Any]], usage: dict[str, Any]) -> None:
    assert Counter(line["status"] for line in lines) == Counter({200: 2, 400: 1, 401: 1})
    (first,) = [line for line in lines if line["request_id"] == "first"]
    assert (first["prompt_tokens"], first["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert "Say\nhello" in first["prompt"]
    (left,) = [line for line in lines if line.get("client_left")]
    assert left["finish_reasons"] == ["abort"]


def _check_metrics(text: str) -> None:
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counts = {tuple(sorted(sample.labels.items())): sample.value for sample in families["http_requests"].samples}
    name = ("handler", "/v1/chat/completions"), ("method", "POST")
    assert counts[(*name, ("status", "200"))] == 2
    assert counts[(*name, ("status", "401"))] == 1
    for metric in ("time_to_first_token_seconds", "generation_tokens", "num_requests_running"):
        ours, theirs = families[f"quire:{metric}"], families[f"vllm:{metric}"]
        assert [sample.value for sample in ours.samples] == [sample.value for sample in theirs.samples]


def _check_traces(collector: Any, usage: dict[str, Any]) -> None:
    roots = [span for span in collector.spans if span.name == "POST /v1/chat/completions"]
    assert len(roots) == 4
    named = [{pair.key: pair.value for pair in span.attributes} for span in roots]
    (first,) = [names for names in named if names["quire.request_id"].string_value == "first"]
    assert first["gen_ai.usage.input_tokens"].int_value == usage["prompt_tokens"]
    assert first["gen_ai.usage.output_tokens"].int_value == usage["completion_tokens"]
    assert sorted(names["http.response.status_code"].int_value for names in named) == [200, 200, 400, 401]
    phases = Counter(span.name for span in collector.spans if span.parent_span_id)
    assert phases == Counter({"queue": 2, "prefill": 2, "decode": 2})


def test_many_streams_complete_or_are_refused(server: Any) -> None:
    asyncio.run(_run_many_streams(server))
    server.wait_until_idle()


async def _run_many_streams(server: Any) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 3, "ignore_eos": True, "stream": True}
    limits = httpx.Limits(max_connections=NUM_STREAMS)

    async def stream(client: httpx.AsyncClient) -> int:
        async with client.stream("POST", f"{server.url}/v1/completions", json=body) as reply:
            content = await reply.aread()
            if reply.status_code == 200:
                assert content.endswith(b"data: [DONE]\n\n")
                assert b'"finish_reason":"length"' in content and b'"error"' not in content
            return reply.status_code

    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        statuses = Counter(await asyncio.gather(*[stream(client) for _ in range(NUM_STREAMS)]))
    assert statuses[200] and statuses[200] + statuses[429] == NUM_STREAMS, statuses
