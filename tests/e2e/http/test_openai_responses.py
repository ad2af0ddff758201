"""`/v1/responses` with the official client."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import Response, ResponseCompletedEvent, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

QUESTION = "Name three colours."
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Bern", "Oslo"]},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Step(BaseModel):
    """What the model is to fill in."""

    colour: Literal["red", "green", "blue"]
    is_warm: bool


@pytest.fixture
def ask(client: openai.OpenAI, server: Any) -> Iterator[Any]:
    def create(**fields: Any) -> Any:
        given = {"model": server.model, "input": QUESTION, "max_output_tokens": 12, "temperature": 0, **fields}
        return client.responses.create(**given)

    return create


def check_against_types(events: list[Any]) -> None:
    """Every event passes the client's own types, strictly."""
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(json.loads(event.model_dump_json(by_alias=True)))
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_whole_response(ask: Any, client: openai.OpenAI, server: Any) -> None:
    response = ask(instructions="Be brief.", metadata={"a": "b"})
    Response.model_validate(json.loads(response.model_dump_json(by_alias=True)))
    assert response.output_text
    assert response.status in ("completed", "incomplete")
    assert response.metadata == {"a": "b"}
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert 0 < response.usage.output_tokens <= 12
    counted = client.responses.input_tokens.count(model=server.model, input=QUESTION, instructions="Be brief.")
    assert counted.input_tokens == response.usage.input_tokens


def test_a_stream_equals_the_whole(ask: Any) -> None:
    whole = ask(include=["message.output_text.logprobs"], top_logprobs=2)
    events = list(ask(stream=True, include=["message.output_text.logprobs"], top_logprobs=2))
    check_against_types(events)
    last = events[-1].response
    assert events[-1].type == f"response.{whole.status}"
    assert last.output_text == whole.output_text
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == whole.output_text
    (part,) = whole.output[0].content
    assert len(part.logprobs) >= 3
    assert [entry.token for event in deltas for entry in event.logprobs] == [entry.token for entry in part.logprobs]
    assert {len(entry.top_logprobs) for entry in part.logprobs} == {2}


def test_the_stream_helper_gets_the_final_response(client: openai.OpenAI, server: Any) -> None:
    with client.responses.stream(
        model=server.model, input="Say hi.", temperature=0, extra_body={"stop": ["!", "."]}, max_output_tokens=200
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert isinstance(events[-1], ResponseCompletedEvent)
    assert final.status == "completed"
    assert final.output_text


def test_a_conversation_goes_on_from_a_kept_response(ask: Any, client: openai.OpenAI) -> None:
    first = ask()
    second = ask(input="And three more?", previous_response_id=first.id)
    by_hand = ask(
        input=[
            {"role": "user", "content": QUESTION},
            *(item.model_dump(exclude_none=True) for item in first.output),
            {"role": "user", "content": "And three more?"},
        ]
    )
    assert second.output_text == by_hand.output_text
    assert second.usage.input_tokens == by_hand.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(first.id) == first
    listed = client.responses.input_items.list(second.id, order="asc", limit=2)
    assert len(list(listed)) == 3
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    assert ask(input="More!", previous_response_id=second.id).output_text


def test_parse_fills_a_pydantic_model(client: openai.OpenAI, server: Any) -> None:
    response = client.responses.parse(
        model=server.model, input="Give me a colour.", text_format=Step, temperature=0, max_output_tokens=200
    )
    assert response.status == "completed"
    assert isinstance(response.output_parsed, Step)


def test_a_json_object(ask: Any) -> None:
    response = ask(text={"format": {"type": "json_object"}}, max_output_tokens=100, extra_body={"seed": 1})
    assert response.output_text.lstrip().startswith("{")
    if response.status == "completed":
        assert isinstance(json.loads(response.output_text), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_function_is_called_and_its_output_sent_back(ask: Any, choice: Any) -> None:
    first = ask(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, max_output_tokens=200)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (first.status, call.name, call.status) == ("completed", "get_weather", "completed")
    arguments = json.loads(call.arguments)
    assert arguments["city"] in ("Bern", "Oslo") and arguments["unit"] in ("celsius", "fahrenheit")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 20 degrees"}
    second = ask(input=[result], previous_response_id=first.id, tools=[WEATHER], tool_choice="none")
    assert second.output_text

    events = list(
        ask(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, max_output_tokens=200, stream=True)
    )
    check_against_types(events)
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments


def test_the_asynchronous_client(server: Any) -> None:
    async def talk() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            fields: Any = {"model": server.model, "input": QUESTION, "max_output_tokens": 8, "temperature": 0}
            whole = await client.responses.create(**fields)
            text = ""
            async for event in await client.responses.create(**fields, stream=True):
                if event.type == "response.output_text.delta":
                    text += event.delta
            return whole.output_text, text

    whole, streamed = asyncio.run(talk())
    assert whole == streamed != ""


def test_errors_are_those_that_the_client_knows(ask: Any) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        ask(background=True)
    assert (bad.value.param, bad.value.type) == ("background", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="text only"):
        ask(input=[{"role": "user", "content": [{"type": "input_image", "image_url": "https://x"}]}])
    with pytest.raises(openai.NotFoundError):
        ask(model="nobody")
    with pytest.raises(openai.NotFoundError):
        ask(previous_response_id="resp_0")
