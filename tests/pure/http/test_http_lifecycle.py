"""Clients that leave, and a server that stops."""

import asyncio
import json
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

LONG = {"prompt": "Hello", "max_tokens": 400, "ignore_eos": True, "seed": 1}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("prompt", ["Hello", ["Hello", "World"]])
async def test_a_client_that_leaves_ends_its_request(serve: Any, stream: bool, n: int, prompt: Any) -> None:
    async with serve() as server:
        exchange = server.exchange("/v1/completions", {**LONG, "stream": stream, "n": n, "prompt": prompt})
        await server.until(lambda: server.port.executor.num_steps > 4)
        exchange.leave()
        await exchange.task
        assert server.engine.num_requests == 0
        await server.until(lambda: not server.port.loop.has_unfinished)
        stats = server.port.scheduler.statistics()
    assert stats.num_generated_tokens < 300
    assert stats.cache.num_blocks_in_use == 0
    assert exchange.status == (200 if stream else None)


async def test_a_client_that_leaves_the_queue_ends_its_request(serve: Any) -> None:
    async with serve() as server:
        server.port.may_step.clear()
        exchange = server.exchange("/v1/chat/completions", server.chat_body())
        await server.until(lambda: bool(server.port.requests))
        exchange.leave()
        await exchange.task
        server.port.may_step.set()
        await server.until(lambda: not server.port.loop.has_unfinished)
    assert server.port.executor.num_steps == 0


async def test_draining_finishes_what_runs_and_refuses_the_rest(serve: Any) -> None:
    async with serve() as server:
        activity = server.app.state.server.activity
        expected = (await server.post("/v1/completions", LONG)).json()["choices"][0]["text"]
        server.port.may_step.clear()
        running = [server.exchange("/v1/completions", {**LONG, "stream": stream}) for stream in (True, False)]
        await server.until(lambda: len(server.port.requests) == 3)
        refused: list[Any] = []

        async def probe() -> None:
            await server.until(lambda: activity.draining)
            paths = ("/health", "/ready", "/ping", "/metrics")
            refused.extend([await server.client.get(path) for path in paths])
            refused.append(await server.complete())
            server.port.may_step.set()

        await asyncio.gather(activity.drain(30.0), probe())
        for exchange in running:
            await exchange.task
    assert [response.status_code for response in refused] == [503, 503, 503, 200, 503]
    assert refused[-1].headers["connection"] == "close"
    assert refused[-1].headers["retry-after"] == "1"
    texts = [
        "".join(e["choices"][0]["text"] for e in running[0].events),
        json.loads(running[1].content)["choices"][0]["text"],
    ]
    assert texts == [expected, expected]


async def test_stragglers_get_a_final_event(serve: Any) -> None:
    async with serve() as server:
        activity = server.app.state.server.activity
        running = [server.exchange("/v1/completions", {**LONG, "stream": stream}) for stream in (True, False)]
        await server.until(lambda: server.port.executor.num_steps > 4)
        server.port.may_step.clear()
        await activity.drain(0.0)
        for exchange in running:
            await exchange.task
        server.port.may_step.set()
        await server.until(lambda: not server.port.loop.has_unfinished)
    streamed = running[0].events[-1]["error"]
    whole = json.loads(running[1].content)["error"]
    assert running[1].status == 503
    for error in (streamed, whole):
        assert (error["code"], error["type"]) == (503, "ServiceUnavailableError")
        assert "shutting down" in error["message"]
    assert len(running[0].events) > 1
