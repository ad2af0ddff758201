"""Tools and formats with the official client: what comes back is what was asked for, whole or streamed."""

import asyncio
import json
from enum import StrEnum
from typing import Annotated, Any

import openai
import pytest
from pydantic import BaseModel, Field

QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris? Use Celsius."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]},
    },
}
NAMED: Any = {"type": "function", "function": {"name": "get_time"}}


def _check_weather(arguments: str) -> None:
    value = json.loads(arguments)
    assert set(value) == {"city", "unit"}
    assert value["unit"] in ("celsius", "fahrenheit")


@pytest.fixture
def ask(client: openai.OpenAI, server: Any) -> Any:
    def create(**fields: Any) -> Any:
        defaults = {"model": server.model, "messages": QUESTION, "max_tokens": 120, "temperature": 0, "seed": 1}
        return client.chat.completions.create(**{**defaults, **fields})

    return create


def test_a_required_call(ask: Any) -> None:
    answer = ask(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.type, call.function.name) == ("tool_calls", "function", "get_weather")
    assert call.id
    _check_weather(call.function.arguments)


def test_a_named_call_finishes_as_any_answer_does(ask: Any) -> None:
    (choice,) = ask(tools=[WEATHER, TIME], tool_choice=NAMED).choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("stop", "get_time")
    assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_streamed_calls_add_up_to_the_whole(ask: Any, choice: Any) -> None:
    fields = {"tools": [WEATHER, TIME], "tool_choice": choice}
    whole = ask(**fields).choices[0]
    calls: dict[int, list[str]] = {}
    finish_reasons = []
    for chunk in ask(**fields, stream=True):
        finish_reasons.append(chunk.choices[0].finish_reason)
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.id is not None:
                assert delta.type == "function"
                calls[delta.index] = [delta.function.name, ""]
            calls[delta.index][1] += delta.function.arguments or ""
    expected = [[call.function.name, call.function.arguments] for call in whole.message.tool_calls]
    assert list(calls.values()) == expected
    assert finish_reasons[-1] == whole.finish_reason
    assert set(finish_reasons[:-1]) == {None}


def test_the_result_of_a_call_goes_back(ask: Any) -> None:
    (choice,) = ask(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False).choices
    (call,) = choice.message.tool_calls
    messages = [*QUESTION, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}]
    answer = ask(messages=messages, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None


def test_no_calls_with_none(ask: Any) -> None:
    (choice,) = ask(tools=[WEATHER], tool_choice="none", max_tokens=8).choices
    assert choice.message.tool_calls is None
    assert choice.message.content


def test_auto_is_refused_where_the_server_does_not_allow_it(ask: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(tools=[WEATHER])
    assert caught.value.param == "tool_choice"
    assert "--enable-auto-tool-choice" in caught.value.message


def test_hostile_parameters_are_the_callers_fault(ask: Any) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "pattern": 5, "allOf": 3}}}
    with pytest.raises(openai.BadRequestError):
        ask(tools=[bad], tool_choice="required")


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Car(BaseModel):
    colour: Colour
    doors: Annotated[int, Field(ge=0, le=9)]


def test_parse_into_a_model(client: openai.OpenAI, server: Any) -> None:
    answer = client.chat.completions.parse(
        model=server.model,
        messages=[{"role": "user", "content": "Describe a red car with 4 doors as JSON."}],
        response_format=Car,
        max_tokens=60,
        temperature=0,
    )
    car = answer.choices[0].message.parsed
    assert isinstance(car, Car)
    tool = openai.pydantic_function_tool(Car, name="car")
    called = client.chat.completions.parse(
        model=server.model,
        messages=QUESTION,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
        temperature=0,
    )
    calls = called.choices[0].message.tool_calls
    assert calls and isinstance(calls[0].function.parsed_arguments, Car)


def test_stream_helper_with_a_model(client: openai.OpenAI, server: Any) -> None:
    with client.chat.completions.stream(
        model=server.model,
        messages=[{"role": "user", "content": "A blue car."}],
        response_format=Car,
        max_tokens=60,
        temperature=0,
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Car)


def test_structured_outputs_of_every_kind(ask: Any) -> None:
    def text(**structured: Any) -> str:
        answer = ask(extra_body={"structured_outputs": structured}, max_tokens=60)
        assert answer.choices[0].finish_reason == "stop"
        return str(answer.choices[0].message.content)

    assert text(choice=["yes", "no"]) in ("yes", "no")
    number = text(regex="[0-9]{3}-[0-9]{2}")
    assert (len(number), number[3]) == (6, "-")
    assert json.loads(text(json={"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}))
    assert text(grammar='start: "a" ("b" | "d") "c"') in ("abc", "adc")
    objects = ask(response_format={"type": "json_object"}, max_tokens=200, n=2, temperature=1)
    for choice in objects.choices:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


def test_structured_completions_with_logprobs(client: openai.OpenAI, server: Any) -> None:
    answer = client.completions.create(
        model=server.model,
        prompt="The answer is",
        logprobs=1,
        max_tokens=10,
        extra_body={"structured_outputs": {"choice": [" maybe", " perhaps"]}},
    )
    (choice,) = answer.choices
    assert choice.text in (" maybe", " perhaps")
    assert choice.logprobs is not None and choice.logprobs.tokens is not None


def test_many_at_once_with_the_asynchronous_client(server: Any) -> None:
    fields: Any = {"messages": QUESTION, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 120}

    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            requests = [client.chat.completions.create(model=server.model, seed=seed, **fields) for seed in range(4)]
            return list(await asyncio.gather(*requests))

    for answer in asyncio.run(ask_all()):
        choice = answer.choices[0]
        if choice.finish_reason != "length":
            for call in choice.message.tool_calls:
                _check_weather(call.function.arguments)
