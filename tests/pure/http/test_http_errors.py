"""Every reply that is not a success has the envelope, the right status and the path of the field at fault."""

import json
import logging
from typing import Any

import pytest

from quire.entrypoints.http.errors import envelope

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"


def _chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}], **fields}


def _turns(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


def _calls(arguments: str) -> list[dict[str, Any]]:
    return [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]


BAD_CHATS = [
    ({}, "messages"),
    (_turns(), "messages"),
    ({"messages": "x"}, "messages"),
    (_turns({"role": "user", "content": "x"}, {"content": "x"}), "messages[1].role"),
    (_turns({"role": 5, "content": "x"}), "messages[0].role"),
    (_turns({"role": "user"}), "messages[0].content"),
    (_turns({"role": "user", "content": 5}), "messages[0].content"),
    (_turns({"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}), "messages[0].content[0].type"),
    (_turns({"role": "user", "content": [{"type": ["text"]}]}), "messages[0].content[0].type"),
    (_turns({"role": "user", "content": [{}] * 1025}), "messages[0].content"),
    (_turns({"role": "function", "content": "x"}), "messages[0].role"),
    (_turns({"role": "tool"}), "messages[0].content"),
    (_turns({"role": "tool", "content": "x", "tool_call_id": 5}), "messages[0].tool_call_id"),
    (_turns({"role": "assistant", "tool_calls": [{}]}), "messages[0].tool_calls[0].function.name"),
    (_turns({"role": "assistant", "tool_calls": _calls("{")}), "messages[0].tool_calls[0].function.arguments"),
    (_turns({"role": "assistant", "tool_calls": _calls("[" * 9999)}), "messages[0].tool_calls[0].function.arguments"),
    (_turns({"role": "assistant", "function_call": {"name": "f"}}), "messages[0].function_call"),
    (_chat(temperature=3), "temperature"),
    (_chat(temperature="hot"), "temperature"),
    (_chat(top_p=0), "top_p"),
    (_chat(top_k=-2), "top_k"),
    (_chat(min_p=1.5), "min_p"),
    (_chat(n=0), "n"),
    (_chat(n=129), "n"),
    (_chat(n=2, temperature=0), "n"),
    (_chat(n=True), "n"),
    (_chat(max_tokens=0), "max_tokens"),
    (_chat(max_tokens=513), "max_tokens"),
    (_chat(max_completion_tokens=513), "max_completion_tokens"),
    (_chat(max_completion_tokens=0), "max_completion_tokens"),
    (_chat(max_completion_tokens=1, max_tokens=2), "max_completion_tokens"),
    (_chat(min_tokens=9, max_tokens=8), "min_tokens"),
    (_chat(seed=2**63), "seed"),
    (_chat(presence_penalty=2.5), "presence_penalty"),
    (_chat(frequency_penalty=-2.5), "frequency_penalty"),
    (_chat(repetition_penalty=0), "repetition_penalty"),
    (_chat(stop=""), "stop[0]"),
    (_chat(stop=5), "stop"),
    (_chat(stop=["a", 5]), "stop[1]"),
    (_chat(stop=["a"] * 65), "stop"),
    (_chat(stop_token_ids=[-1]), "stop_token_ids[0]"),
    (_chat(stop_token_ids=[10**6]), "stop_token_ids"),
    (_chat(logit_bias={"x": 1}), "logit_bias.x"),
    (_chat(logit_bias={"1000000": 1}), "logit_bias"),
    (_chat(logit_bias=[1]), "logit_bias"),
    (_chat(allowed_token_ids=[]), "allowed_token_ids"),
    (_chat(bad_words=[""]), "bad_words[0]"),
    (_chat(top_logprobs=2), "top_logprobs"),
    (_chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    (_chat(logprobs=3), "logprobs"),
    (_chat(prompt_logprobs=1, stream=True), "prompt_logprobs"),
    (_chat(best_of=2, stream=True), "best_of"),
    (_chat(stream="yes"), "stream"),
    (_chat(stream_options={"include_usage": True}), "stream_options"),
    (_chat(stream=True, stream_options={"include_usage": 1}), "stream_options.include_usage"),
    (_chat(cache_salt="a/b"), "cache_salt"),
    (_chat(add_generation_prompt=True, continue_final_message=True), "continue_final_message"),
    (_chat(chat_template_kwargs={"messages": []}), "chat_template_kwargs"),
    (_chat(chat_template_kwargs=[]), "chat_template_kwargs"),
    (_chat(priority=2**40), "priority"),
]


@pytest.mark.parametrize(("body", "param"), BAD_CHATS, ids=lambda value: json.dumps(value)[:60])
async def test_bad_chat(quiet: Any, body: dict[str, Any], param: str) -> None:
    response = await quiet.post(CHAT, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (400, 400, "BadRequestError")
    assert error["param"] == param
    assert error["message"]
    assert not quiet.port.loop.has_unfinished


BAD_COMPLETIONS = [
    ({}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt[1]"),
    ({"prompt": ["a", 5]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [[1], [-1]]}, "prompt[1][0]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [10**6]}, "prompt"),
    ({"prompt": ["a"] * 1025}, "prompt"),
    ({"prompt": ["a"] * 64, "n": 65}, "n"),
    ({"prompt": "a" * 512}, "prompt"),
    ({"prompt": ["a", "a" * 600]}, "prompt[1]"),
    ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ({"prompt": "a", "logprobs": True}, "logprobs"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "best_of": 1, "n": 2}, "best_of"),
    ({"prompt": "a", "echo": True, "logprobs": 1, "stream": True}, "logprobs"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
]


@pytest.mark.parametrize(("body", "param"), BAD_COMPLETIONS, ids=lambda value: json.dumps(value)[:60])
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_completion_is_refused_before_any_stream(
    quiet: Any, body: dict[str, Any], param: str, stream: bool
) -> None:
    response = await quiet.post(COMPLETION, {"stream": stream, **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert quiet.engine.num_requests == 0
    await quiet.until(lambda: not quiet.port.loop.has_unfinished)


async def test_prompt_that_is_too_long_tells_the_numbers(serve: Any) -> None:
    async with serve() as server:
        error = (await server.complete("a" * 600)).json()["error"]
    assert "600" in error["message"]
    assert "512" in error["message"]


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"", {}, 400),
        (b"[]", {}, 400),
        (b'{"prompt": "\\ud800"}', {}, 400),
        (b'{"prompt": "a", "temperature": NaN}', {}, 400),
        (b'{"prompt": "a", "seed": 1' + b"0" * 4400 + b"}", {}, 400),
        (b'{"prompt":' + b"[" * 2000 + b"]" * 2000 + b"}", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b'{"prompt": "a"}', {"content-type": "text/plain"}, 400),
        (b'{"prompt": "a"}', {"content-type": "multipart/form-data; boundary=x"}, 400),
        (b'{"prompt": "a"}', {"content-encoding": "gzip"}, 400),
        (b'{"prompt": "' + b"a" * 1001 + b'"}', {}, 413),
        (b'{"prompt": "a"}', {"x-request-id": "no spaces"}, 400),
        (b'{"prompt": "a"}', {"x-request-id": "x" * 129}, 400),
    ],
)
async def test_bad_bodies_and_headers(serve: Any, content: bytes, headers: dict[str, str], status: int) -> None:
    async with serve(max_body_bytes=1000 if status == 413 else 10_000) as server:
        headers = {"content-type": "application/json", **headers}
        response = await server.client.post(COMPLETION, content=content, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, status)
    assert set(error) == {"message", "type", "param", "code"}


async def test_body_without_a_length_is_bounded_too(serve: Any) -> None:
    async def pieces() -> Any:
        for _ in range(100):
            yield b" " * 100

    async with serve(max_body_bytes=1000) as server:
        headers = {"content-type": "application/json"}
        response = await server.client.post(COMPLETION, content=pieces(), headers=headers)
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "NotFoundError"),
        ("GET", "/v1/models/", 404, "NotFoundError"),
        ("GET", "/v1/completions", 405, "MethodNotAllowedError"),
        ("POST", "/v1/models", 405, "MethodNotAllowedError"),
        ("OPTIONS", "/v1/completions", 405, "MethodNotAllowedError"),
    ],
)
async def test_wrong_path_and_method(serve: Any, method: str, path: str, status: int, kind: str) -> None:
    async with serve() as server:
        response = await server.client.request(method, path)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (status, status, kind)


async def test_unknown_model(serve: Any) -> None:
    async with serve() as server:
        response = await server.chat(model="other")
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (404, "NotFoundError", "model")
    assert "'fake'" in error["message"]


async def test_full_queue_says_when_to_try_again(serve: Any) -> None:
    async with serve(max_num_queued_reqs=1) as server:
        server.port.may_step.clear()
        first = server.exchange(COMPLETION, {"prompt": "a"})
        await server.until(lambda: bool(server.port.requests))
        response = await server.complete()
        server.port.may_step.set()
        await first.task
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert first.status == 200


async def test_unexpected_error_leaks_nothing_but_its_id(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as server:
        monkeypatch.setattr(server.engine, "submit", lambda *_, **__: 1 / 0)
        response = await server.complete()
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (500, "InternalServerError")
    assert response.headers["x-request-id"] in error["message"]
    assert "division" not in error["message"]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
async def test_failure_in_the_engine(serve: Any, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with serve() as server:
        server.port.executor.failing_steps[3] = "the step failed at /opt/quire/worker.py, object 0x7f0011223344"
        response = await server.complete(stream=stream)
        alive = await server.complete()
    assert alive.status_code == 200
    error = server.events(response)[-1]["error"] if stream else response.json()["error"]
    assert response.status_code == (200 if stream else 500)
    assert (error["code"], error["type"]) == (500, "InternalServerError")
    assert "the step failed" in error["message"]
    assert "worker.py" not in error["message"]
    assert "0x7f" not in error["message"]
    assert "/opt/quire/worker.py" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
async def test_death_of_the_engine(serve: Any, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with serve() as server:
        exchange = server.exchange(COMPLETION, {"prompt": "a", "max_tokens": 400, "stream": stream})
        await server.until(lambda: server.port.executor.num_steps > 5)
        server.port.die()
        await exchange.task
        refused = await server.complete()
        health = await server.client.get("/health")
    error = exchange.events[-1]["error"] if stream else json.loads(exchange.content)["error"]
    assert (error["code"], error["type"]) == (503, "ServiceUnavailableError")
    assert (refused.status_code, health.status_code) == (503, 503)


async def test_request_id_comes_back_and_is_the_tail_of_the_answers_id(serve: Any) -> None:
    async with serve() as server:
        headers = {"x-request-id": "mine-1"}
        response = await server.post(COMPLETION, {"prompt": "a", "request_id": "other"}, headers=headers)
        from_body = await server.post(COMPLETION, {"prompt": "a", "request_id": "other"})
        twins = [server.exchange(COMPLETION, {"prompt": "a", "request_id": "twin"}) for _ in range(2)]
        for twin in twins:
            await twin.task
    assert response.headers["x-request-id"] == "mine-1"
    assert response.json()["id"] == "cmpl-mine-1"
    assert from_body.json()["id"] == "cmpl-other"
    assert [twin.status for twin in twins] == [200, 200]


def test_an_envelope_can_hold_any_text() -> None:
    error = json.loads(envelope(400, "half a pair: \ud800", "a\udfff"))["error"]
    assert error == {"message": "half a pair: ?", "type": "BadRequestError", "param": "a?", "code": 400}
