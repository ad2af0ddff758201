"""POST /v1/responses over a fake model: shapes, statuses, and the responses that are kept."""

import json
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

QUESTION = {"input": "Hello", "seed": 3, "max_output_tokens": 8}
USER = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}


def parse(content: bytes) -> list[dict[str, Any]]:
    """The events of a stream; checks their names, their numbers, and that nothing follows them."""
    frames = content.decode().split("\n\n")
    assert frames[-1] == ""
    events = []
    for number, frame in enumerate(frames[:-1]):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        events.append(event)
    return events


async def ask(server: Any, **fields: Any) -> dict[str, Any]:
    reply = await server.post("/v1/responses", {**QUESTION, **fields})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


async def test_a_whole_response(quiet: Any) -> None:
    answer = await ask(quiet, metadata={"a": "b"}, instructions="Be brief.", user="u", temperature=0.5)
    assert answer["object"] == "response"
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "incomplete")
    assert len(item["content"][0]["text"]) == 8
    assert answer["usage"]["output_tokens"] == 8
    assert answer["usage"]["total_tokens"] == answer["usage"]["input_tokens"] + 8
    assert answer["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}
    echoed = {name: answer[name] for name in ("metadata", "instructions", "user", "temperature", "max_output_tokens")}
    assert echoed == {
        "metadata": {"a": "b"},
        "instructions": "Be brief.",
        "user": "u",
        "temperature": 0.5,
        "max_output_tokens": 8,
    }


async def test_counted_tokens_are_those_that_are_charged(quiet: Any) -> None:
    answer = await ask(quiet, instructions="Be brief.")
    counted = await quiet.post("/v1/responses/input_tokens", {"input": "Hello", "instructions": "Be brief."})
    assert counted.json() == {"input_tokens": answer["usage"]["input_tokens"], "object": "response.input_tokens"}


async def test_a_natural_end_completes_the_response(quiet: Any) -> None:
    free = text_of(await ask(quiet))
    answer = await ask(quiet, stop=[free[3:5]])
    assert (answer["status"], answer["incomplete_details"]) == ("completed", None)
    assert answer["completed_at"] >= answer["created_at"]
    assert text_of(answer) == free[:3]


async def test_a_stream_tells_the_same_as_the_whole(quiet: Any) -> None:
    whole = await ask(quiet, top_logprobs=2)
    reply = await quiet.post("/v1/responses", {**QUESTION, "top_logprobs": 2, "stream": True})
    events = parse(reply.content)
    assert [event["type"] for event in events if not event["type"].endswith("delta")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    last = events[-1]["response"]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == text_of(last) == text_of(whole)
    logprobs = [entry for event in deltas for entry in event["logprobs"]]
    assert logprobs == whole["output"][0]["content"][0]["logprobs"]
    assert [len(entry["bytes"]) for entry in logprobs] == [1] * 8
    assert {**last["usage"], "input_tokens_details": None} == {**whole["usage"], "input_tokens_details": None}


async def test_a_conversation_goes_on_from_a_response(quiet: Any) -> None:
    first = await ask(quiet)
    second = await ask(quiet, input="And now?", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    answer = {"type": "message", "role": "assistant", "content": first["output"][0]["content"]}
    by_hand = await ask(quiet, input=[USER, answer, {"role": "user", "content": "And now?"}])
    assert text_of(second) == text_of(by_hand)
    assert second["usage"]["input_tokens"] == by_hand["usage"]["input_tokens"]
    third = await ask(quiet, input=[{"type": "item_reference", "id": first["output"][0]["id"]}, USER])
    assert third["usage"]["input_tokens"] < by_hand["usage"]["input_tokens"] + 10

    page = (await quiet.client.get(f"/v1/responses/{second['id']}/input_items?order=asc&limit=2")).json()
    assert [item["role"] for item in page["data"]] == ["user", "assistant"]
    assert page["has_more"] is True
    rest = await quiet.client.get(f"/v1/responses/{second['id']}/input_items?order=asc&after={page['last_id']}")
    assert [item["content"][0]["text"] for item in rest.json()["data"]] == ["And now?"]


async def test_a_kept_response_is_read_and_dropped(quiet: Any) -> None:
    answer = await ask(quiet)
    path = f"/v1/responses/{answer['id']}"
    assert (await quiet.client.get(path)).json() == answer
    assert (await quiet.client.get(path + "?stream=true")).status_code == 400
    assert (await quiet.post(path + "/cancel", {})).status_code == 400
    assert (await quiet.client.delete(path)).json() == {"id": answer["id"], "object": "response", "deleted": True}
    for reply in (
        await quiet.client.get(path),
        await quiet.client.delete(path),
        await quiet.post(path + "/cancel", {}),
    ):
        assert reply.status_code == 404
        assert reply.json()["error"]["type"] == "invalid_request_error"
    missing = await quiet.post("/v1/responses", {**QUESTION, "previous_response_id": answer["id"]})
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "previous_response_id")


async def test_a_streamed_response_is_kept_as_well(quiet: Any) -> None:
    events = parse((await quiet.post("/v1/responses", {**QUESTION, "stream": True})).content)
    last = events[-1]["response"]
    assert (await quiet.client.get(f"/v1/responses/{last['id']}")).json() == last


async def test_what_is_not_to_be_kept_is_not(quiet: Any, serve: Any) -> None:
    answer = await ask(quiet, store=False)
    assert answer["store"] is False
    assert (await quiet.client.get(f"/v1/responses/{answer['id']}")).status_code == 404
    async with serve(max_stored_responses=0) as server:
        answer = await ask(server)
        assert answer["store"] is False
        assert (await server.client.get(f"/v1/responses/{answer['id']}")).status_code == 404


async def test_responses_of_another_key_are_not_found(serve: Any) -> None:
    async with serve(api_key=("one", "two")) as server:
        mine, other = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        answer = (await server.post("/v1/responses", QUESTION, headers=mine)).json()
        path = f"/v1/responses/{answer['id']}"
        assert (await server.client.get(path, headers=mine)).status_code == 200
        body = {**QUESTION, "previous_response_id": answer["id"]}
        assert (await server.post("/v1/responses", body, headers=other)).status_code == 404
        item = {"type": "item_reference", "id": answer["output"][0]["id"]}
        assert (await server.post("/v1/responses", {**QUESTION, "input": [item]}, headers=other)).status_code == 400
        for reply in (
            await server.client.get(path, headers=other),
            await server.client.get(path + "/input_items", headers=other),
            await server.client.delete(path, headers=other),
        ):
            assert reply.status_code == 404
        assert (await server.client.get(path)).status_code == 401
        assert (await server.client.get(path, headers=mine)).status_code == 200


async def test_truncation_leaves_out_the_oldest_turns(quiet: Any) -> None:
    turns = [{"role": "user", "content": f"{index} " + "x" * 98} for index in range(9)]
    body = {**QUESTION, "input": turns, "instructions": "Stay."}
    refused = await quiet.post("/v1/responses", body)
    assert refused.status_code == 400
    assert "tokens" in refused.json()["error"]["message"]
    answer = await ask(quiet, **body, truncation="auto")
    assert 350 < answer["usage"]["input_tokens"] <= 504
    assert answer["truncation"] == "auto"
    prompt = "".join(chr(token + 32) for token in quiet.port.requests[-1].prompt_token_ids if token < 95)
    assert "Stay." in prompt and "8 xx" in prompt and "0 xx" not in prompt
    alone = await quiet.post("/v1/responses", {**QUESTION, "input": "x" * 600, "truncation": "auto"})
    assert alone.status_code == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].name"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 100_000}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_json": {}}, "guided_json"),
        ({"tool_choise": "none"}, "tool_choise"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {"k" * 65: "v"}}, None),
        ({"truncation": "some"}, "truncation"),
        ({"n": 2}, "n"),
    ],
)
async def test_refusals_name_the_field(quiet: Any, fields: dict[str, Any], param: str | None) -> None:
    reply = await quiet.post("/v1/responses", {**QUESTION, **fields})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param or (param is None and error["param"].startswith("metadata"))


async def test_unknown_models_and_keys_have_this_api_s_errors(quiet: Any, serve: Any) -> None:
    reply = await quiet.post("/v1/responses", {**QUESTION, "model": "other"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "invalid_request_error")
    async with serve(api_key=("one",)) as server:
        reply = await server.post("/v1/responses", QUESTION)
        assert (reply.status_code, reply.json()["error"]["type"]) == (401, "invalid_request_error")
        assert reply.headers["www-authenticate"] == "Bearer"


async def test_a_stream_that_fails_ends_with_response_failed(serve: Any) -> None:
    async with serve() as server:
        server.port.may_step.clear()
        exchange = server.exchange("/v1/responses", {**QUESTION, "stream": True})
        await server.until(lambda: exchange.content)
        server.port.die()
        await exchange.task
        events = parse(exchange.content)
        assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.failed"]
        failed = events[-1]["response"]
        assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
        assert (await server.client.get(f"/v1/responses/{failed['id']}")).status_code == 404


async def test_reasoning_is_an_item_of_its_own(serve: Any) -> None:
    async with serve(reasoning_parser="deepseek_r1") as server:
        whole = await ask(server, reasoning={"effort": "low", "summary": "auto"})
        (item,) = whole["output"]
        assert (item["type"], item["summary"], item["status"]) == ("reasoning", [], "incomplete")
        assert len(text_of(whole)) == 8
        assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 8}
        assert whole["reasoning"] == {"effort": "low", "summary": "auto"}
        events = parse((await server.post("/v1/responses", {**QUESTION, "stream": True})).content)
        deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_text.delta"]
        assert "".join(deltas) == text_of(whole)
        assert events[-1]["response"]["usage"]["output_tokens_details"] == {"reasoning_tokens": 8}
        again = await ask(server, input="And?", previous_response_id=whole["id"])
        assert again["status"] == "incomplete"
