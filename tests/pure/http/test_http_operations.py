"""What operators read: models, version, metrics, the log line."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire import __version__
from quire.entrypoints.http.metrics_histogram import size_buckets
from quire.entrypoints.http.stats_log import describe_interval, log_stats
from quire.types.stats import CacheStats, EngineStats

pytestmark = pytest.mark.anyio


async def test_models(serve: Any) -> None:
    async with serve() as server:
        listed = (await server.client.get("/v1/models")).json()
        one = (await server.client.get("/v1/models/alias")).json()
        missing = await server.client.get("/v1/models/org/other")
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["fake", "alias"]
    assert listed["data"][1] == one
    assert (one["object"], one["owned_by"], one["root"], one["max_model_len"]) == ("model", "quire", "fake", 512)
    assert missing.status_code == 404


async def test_probes_and_version(serve: Any) -> None:
    async with serve() as server:
        probes = [await server.client.get(path) for path in ("/health", "/ready", "/ping")]
        probes.append(await server.client.post("/ping"))
        version = await server.client.get("/version")
    assert [(probe.status_code, probe.content) for probe in probes] == [(200, b"")] * 4
    assert version.json() == {"version": __version__}


async def _samples(server: Any) -> dict[tuple[str, ...], float]:
    text = (await server.client.get("/metrics")).text
    return {
        (
            sample.name,
            *(value for name, value in sorted(sample.labels.items()) if name not in ("model_name", "engine")),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_count_what_happened(serve: Any) -> None:
    async with serve() as server:
        await server.complete("x" * 64, max_tokens=5)
        await server.complete("x" * 64, max_tokens=5)
        text = (await server.complete("y", max_tokens=9)).json()["choices"][0]["text"]
        await server.complete("y", max_tokens=9, stop=text[4:6], n=2, temperature=0.9)
        await server.until(lambda: not server.port.loop.has_unfinished)
        await server.until(lambda: server.metrics.stats.num_running == 0)
        samples = await _samples(server)
        text = (await server.client.get("/metrics")).text
    assert samples["quire:request_success_total", "length"] >= 3
    assert samples["quire:request_success_total", "stop"] >= 1
    assert samples["quire:request_success_total", "length"] + samples["quire:request_success_total", "stop"] == 5
    assert samples["quire:num_requests_running",] == samples["quire:num_requests_waiting",] == 0
    assert samples["quire:kv_cache_usage_perc",] == 0
    assert samples["quire:prefix_cache_hits_total",] >= 48
    assert samples["quire:prefix_cache_queries_total",] >= 128
    assert samples["quire:prefix_cache_misses_total", "under_one_block"] >= 1
    assert samples["quire:prompt_tokens_total",] >= 130
    assert samples["quire:generation_tokens_total",] >= 19
    assert samples["quire:num_preemptions_total",] == 0
    for name in ("e2e_request_latency_seconds", "request_queue_time_seconds", "request_prompt_tokens"):
        assert samples[f"quire:{name}_count",] == 4
    assert samples["quire:time_to_first_token_seconds_count",] == 5
    assert samples["quire:inter_token_latency_seconds_count",] >= 12
    assert samples["quire:request_generation_tokens_sum",] >= 19
    assert samples["quire:iteration_tokens_total_count",] > 0
    assert samples["quire:cache_config_info", "16", "True", "256"] == 1
    assert "process_resident_memory_bytes" in text
    assert "python_info" in text


async def test_tokens_that_come_together_count_each_with_its_share_of_the_time(serve: Any) -> None:
    async with serve() as server:
        server.metrics.on_tokens(4, 0.5, first=True)
        server.metrics.on_tokens(32, 0.64, first=False)
        server.metrics.on_tokens(1, 0.36, first=False)
        samples = await _samples(server)
    assert samples["quire:time_to_first_token_seconds_count",] == 1
    assert samples["quire:time_to_first_token_seconds_sum",] == 0.5
    assert samples["quire:inter_token_latency_seconds_count",] == 33
    assert samples["quire:inter_token_latency_seconds_sum",] == pytest.approx(1.0)
    assert samples["quire:inter_token_latency_seconds_bucket", "0.025"] == 32


async def test_aborted_requests_are_counted(serve: Any) -> None:
    async with serve() as server:
        exchange = server.exchange("/v1/completions", {"prompt": "a", "max_tokens": 400})
        await server.until(lambda: server.metrics.stats.num_running == 1)
        running = (await _samples(server))["quire:num_requests_running",]
        exchange.leave()
        await exchange.task
        await server.until(lambda: server.metrics.stats.num_running == 0)
        samples = await _samples(server)
    assert (running, samples["quire:num_requests_running",]) == (1, 0)
    assert samples["quire:request_success_total", "abort"] == 1


def test_size_buckets() -> None:
    assert size_buckets(1) == [1]
    assert size_buckets(120) == [1, 2, 5, 10, 20, 50, 100]


BEFORE = EngineStats(10, 1, 0, 0, 100, 50, 0, 0.0, CacheStats(num_blocks=10))
CACHE = CacheStats(num_blocks=10, num_blocks_in_use=5, num_queried_tokens=200, num_hit_tokens=50)
NOW = EngineStats(20, 3, 4, 0, 300, 90, 0, 0.0, CACHE, num_cached_prompt_tokens=50)


def test_log_line_has_the_numbers() -> None:
    line = describe_interval(BEFORE, NOW, 2.0)
    assert line == (
        "prompt 75.0 tok/s, generation 20.0 tok/s, running 3, waiting 4, KV cache 50.0%, prefix cache hit rate 25.0%"
    )
    assert describe_interval(BEFORE, replace(NOW, num_preemptions=2), 2.0) == f"{line}, preempted 2"
    assert describe_interval(BEFORE, replace(NOW, num_deferred=1), 2.0) == f"{line}, deferred 1"


async def test_log_is_loud_only_while_there_is_work(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="quire.stats")
    reports = iter([BEFORE, NOW, *[replace(NOW, num_running=0, num_waiting=0)] * 100])
    task = asyncio.create_task(log_stats(lambda: next(reports), 0.001))
    while len(caplog.records) < 2:  # noqa: ASYNC110 (a log has no event)
        await asyncio.sleep(0)
    task.cancel()
    assert [record.levelno for record in caplog.records[:2]] == [logging.INFO, logging.DEBUG]
