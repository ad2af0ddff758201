"""Deadlines: the field `timeout` and the header `X-Request-Timeout`."""

from typing import Any

import pytest

pytestmark = pytest.mark.anyio

COMPLETION = "/v1/completions"


@pytest.mark.parametrize("where", ["field", "header"])
async def test_a_request_that_takes_too_long_gets_a_408(serve: Any, where: str) -> None:
    async with serve() as server:
        server.port.may_step.clear()
        body: dict[str, Any] = {"prompt": "a"} | ({"timeout": 0.02} if where == "field" else {})
        headers = {"x-request-timeout": "0.02"} if where == "header" else {}
        response = await server.post(COMPLETION, body, headers=headers)
        server.port.may_step.set()
        await server.until(lambda: not server.port.loop.has_unfinished)
        assert server.engine.num_requests == 0
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (408, "TimeoutError", 408)
    assert response.headers["x-should-retry"] == "false"
    assert server.port.scheduler.statistics().cache.num_blocks_in_use == 0


async def test_a_stream_ends_with_an_error_event(serve: Any) -> None:
    async with serve() as server:
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "timeout": 60, "stream": True}
        exchange = server.exchange(COMPLETION, body)
        await server.until(lambda: len(exchange.sent) > 3)
        server.port.may_step.clear()
        # The timer that the others wait for: this one would be a race with the first tokens.
        (request_id,) = server.engine._deadlines
        server.engine._expire(request_id)
        await exchange.task
        assert server.engine.num_requests == 0
        server.port.may_step.set()
    events = exchange.events
    assert exchange.status == 200
    assert events[0]["choices"][0]["text"]
    assert (events[-1]["error"]["type"], events[-1]["error"]["code"]) == ("TimeoutError", 408)


async def test_a_chat_has_deadlines_too(serve: Any) -> None:
    async with serve() as server:
        server.port.may_step.clear()
        response = await server.chat(timeout=0.02)
        server.port.may_step.set()
    assert response.status_code == 408


async def test_who_is_served_in_time_notices_nothing(serve: Any) -> None:
    async with serve() as server:
        plain = await server.complete("a")
        timed = await server.complete("a", timeout=60)
        assert not server.engine._deadlines
    assert timed.json()["choices"] == plain.json()["choices"]


async def test_the_shorter_of_field_and_header_counts(serve: Any) -> None:
    async with serve() as server:
        server.port.may_step.clear()
        response = await server.post(COMPLETION, {"prompt": "a", "timeout": 60}, headers={"x-request-timeout": "0.02"})
        server.port.may_step.set()
    assert response.status_code == 408


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "", "86401", "1e9"])
async def test_odd_headers_are_refused(quiet: Any, value: str) -> None:
    response = await quiet.post(COMPLETION, {"prompt": "a"}, headers={"x-request-timeout": value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "X-Request-Timeout")


async def test_who_cannot_be_served_in_time_is_refused_before_the_stream(serve: Any) -> None:
    async with serve() as server:
        await server.complete("a" * 100, max_tokens=1)
        server.port.may_step.clear()
        waiting = [server.exchange(COMPLETION, {"prompt": "a" * 400, "max_tokens": 1}) for _ in range(50)]
        await server.until(lambda: len(server.port.requests) == 51)
        expected = server.engine._admission.expected_wait_seconds("", server.engine._clock())
        body = {"prompt": "a", "timeout": expected / 2, "stream": True}
        response = await server.post(COMPLETION, body)
        server.port.may_step.set()
        for exchange in waiting:
            await exchange.task
    assert response.status_code == 429
    assert "longer than the request may take" in response.json()["error"]["message"]
