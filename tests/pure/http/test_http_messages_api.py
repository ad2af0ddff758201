"""POST /v1/messages over a fake model: shapes, statuses and errors."""

import json
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

PATH = "/v1/messages"
QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "seed": 3, "max_tokens": 8}


def parse(content: bytes) -> list[dict[str, Any]]:
    events = []
    for frame in content.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


async def ask(server: Any, **fields: Any) -> dict[str, Any]:
    reply = await server.post(PATH, {**QUESTION, **fields})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def test_a_whole_message(quiet: Any) -> None:
    answer = await ask(quiet)
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", "fake")
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("max_tokens", None)
    assert [block["type"] for block in answer["content"]] == ["text"]
    assert len(answer["content"][0]["text"]) == answer["usage"]["output_tokens"] == 8


async def test_stop_sequences(quiet: Any) -> None:
    free = (await ask(quiet))["content"][0]["text"]
    answer = await ask(quiet, stop_sequences=["~~~", free[3:5]])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", free[3:5])
    assert answer["content"] == [{"type": "text", "text": free[:3]}]


async def test_input_tokens_are_those_that_were_not_cached(quiet: Any) -> None:
    question = "How many of these tokens have been seen before? " * 3
    usages = [(await ask(quiet, messages=[{"role": "user", "content": question}]))["usage"] for _ in range(2)]
    assert usages[0]["cache_read_input_tokens"] <= 16
    assert usages[1]["cache_read_input_tokens"] > 100
    totals = [usage["input_tokens"] + usage["cache_read_input_tokens"] for usage in usages]
    body = {"messages": [{"role": "user", "content": question}]}
    counted = (await quiet.post(PATH + "/count_tokens", body)).json()
    assert counted == {"input_tokens": totals[0]}
    assert totals[0] == totals[1]


async def test_a_stream_tells_the_same_as_the_whole(quiet: Any) -> None:
    whole = await ask(quiet)
    events = parse((await quiet.post(PATH, {**QUESTION, "stream": True})).content)
    assert [event["type"] for event in events if event["type"] != "content_block_delta"] == [
        *("message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop")
    ]
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(deltas) == whole["content"][0]["text"]
    assert events[0]["message"]["content"] == []
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 8


async def test_the_begin_of_an_answer_is_continued(quiet: Any) -> None:
    turns = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "It is"}]
    await ask(quiet, messages=turns, system="Be brief.")
    prompt = "".join(chr(token + 32) for token in quiet.port.requests[-1].prompt_token_ids if token < 95)
    assert prompt.endswith("It is")
    assert "systemBe brief." in prompt.replace("\n", "")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens must be at most"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "text only"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop": ["x"]}, "use stop_sequences"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tool_choice": {"type": "any"}}, "tool_choice needs tools"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "below max_tokens=8"),
        ({"thinking": {"type": "disabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"temperature": 3}, "temperature"),
    ],
)
async def test_refusals_are_in_this_api_s_shape(quiet: Any, fields: dict[str, Any], word: str) -> None:
    reply = await quiet.post(PATH, {**QUESTION, **fields})
    assert reply.status_code == 400, reply.text
    body = reply.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert word in body["error"]["message"]
    assert body["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]


async def test_statuses_and_types_of_errors(quiet: Any, serve: Any) -> None:
    async def error_of(reply: Any) -> tuple[int, str]:
        assert reply.json()["type"] == "error"
        return reply.status_code, reply.json()["error"]["type"]

    assert await error_of(await quiet.post(PATH, {**QUESTION, "model": "x"})) == (404, "not_found_error")
    assert await error_of(await quiet.post(PATH + "/batches", {})) == (404, "not_found_error")
    assert await error_of(await quiet.client.get(PATH)) == (405, "invalid_request_error")
    assert await error_of(await quiet.client.post(PATH, headers={"X-Request-Id": "a b"})) == (
        400,
        "invalid_request_error",
    )
    async with serve(api_key=("one",), max_body_bytes=200) as server:
        assert await error_of(await server.post(PATH, QUESTION)) == (401, "authentication_error")
        key = {"x-api-key": "one"}
        assert (await server.post(PATH, QUESTION, headers=key)).status_code == 200
        long = {**QUESTION, "system": "x" * 200}
        assert await error_of(await server.post(PATH, long, headers=key)) == (413, "request_too_large")
    async with serve(max_num_queued_reqs=1) as server:
        server.port.may_step.clear()
        waiting = server.exchange(PATH, {**QUESTION, "stream": True})
        await server.until(lambda: len(server.port.requests) == 1)
        refused = await server.post(PATH, QUESTION)
        assert await error_of(refused) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        server.port.die()
        await waiting.task
        (event,) = parse(waiting.content)
        assert (event["type"], event["error"]["type"]) == ("error", "overloaded_error")
        assert await error_of(await server.post(PATH, QUESTION)) == (503, "overloaded_error")


async def test_thinking_is_a_block_of_its_own_or_left_out(quiet: Any, serve: Any) -> None:
    budget = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1025}
    refused = await quiet.post(PATH, {**QUESTION, **budget})
    assert refused.status_code == 400
    async with serve(reasoning_parser="deepseek_r1") as server:
        whole = await ask(server)
        (block,) = whole["content"]
        assert (block["type"], len(block["thinking"]), len(block["signature"])) == ("thinking", 8, 64)
        assert whole["usage"]["output_tokens_details"] == {"thinking_tokens": 8}
        events = parse((await server.post(PATH, {**QUESTION, "stream": True})).content)
        kinds = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
        assert kinds[-1] == "signature_delta"
        assert set(kinds[:-1]) == {"thinking_delta"}
        turns = [*QUESTION["messages"], {"role": "assistant", "content": whole["content"]}, *QUESTION["messages"]]
        await ask(server, messages=turns)
        hidden = await ask(server, thinking={"type": "adaptive", "display": "omitted"})
        assert (hidden["content"], hidden["usage"]["output_tokens"]) == ([], 8)
