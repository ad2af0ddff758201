"""`/v1/messages` with Anthropic's official client."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

QUESTION: Any = [{"role": "user", "content": "Name three colours."}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


class Colour(BaseModel):
    """What the model is to fill in."""

    name: Literal["red", "green", "blue"]
    is_warm: bool


@pytest.fixture
def claude(server: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(claude: anthropic.Anthropic, server: Any) -> Any:
    def create(**fields: Any) -> Any:
        given = {"model": server.model, "messages": QUESTION, "max_tokens": 12, "extra_body": {"temperature": 0}}
        return claude.messages.create(**{**given, **fields})

    return create


def test_a_whole_message(ask: Any) -> None:
    message = ask(system="Be brief.")
    Message.model_validate(json.loads(message.model_dump_json()))
    (block,) = message.content
    assert (block.type, message.role) == ("text", "assistant")
    assert block.text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert 0 < message.usage.output_tokens <= 12


def test_stop_sequences(ask: Any) -> None:
    text = ask().content[0].text
    message = ask(stop_sequences=[text[4:6]])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", text[4:6])
    assert message.content[0].text == text[: text.index(text[4:6])]


def test_a_stream_equals_the_whole(ask: Any, claude: anthropic.Anthropic, server: Any) -> None:
    whole = ask()
    events = list(ask(stream=True))
    for event in events:
        TypeAdapter(RawMessageStreamEvent).validate_python(json.loads(event.model_dump_json()))
    assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
    with claude.messages.stream(
        model=server.model, messages=QUESTION, max_tokens=12, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_counted_tokens_are_those_that_are_charged(ask: Any, claude: anthropic.Anthropic, server: Any) -> None:
    usage = ask(system="You are kind.").usage
    counted = claude.messages.count_tokens(model=server.model, messages=QUESTION, system="You are kind.")
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_the_begin_of_an_answer_is_continued(ask: Any) -> None:
    turns = [*QUESTION, {"role": "assistant", "content": "1. Red\n2. Green\n3."}]
    assert ask(messages=turns).content[0].text


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_used_and_its_result_sent_back(
    ask: Any, claude: anthropic.Anthropic, server: Any, choice: Any
) -> None:
    choice = {**choice, "disable_parallel_tool_use": True}
    fields: Any = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 200}
    message = ask(**fields)
    (block,) = [block for block in message.content if block.type == "tool_use"]
    assert (message.stop_reason, block.name) == ("tool_use", "get_weather")
    assert block.input["city"] in ("Bern", "Oslo")
    assert type(block.input["days"]) is int
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
    turns = [*QUESTION, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    answer = ask(messages=turns, tools=[WEATHER], tool_choice={"type": "none"})
    assert answer.content[0].text

    with claude.messages.stream(
        model=server.model, messages=QUESTION, extra_body={"temperature": 0}, **fields
    ) as stream:
        final = stream.get_final_message()
    streamed = [block for block in final.content if block.type == "tool_use"]
    assert streamed[0].input == block.input


def test_parse_fills_a_pydantic_model(claude: anthropic.Anthropic, server: Any) -> None:
    message = claude.messages.parse(
        model=server.model, messages=QUESTION, max_tokens=200, output_format=Colour, extra_body={"temperature": 0}
    )
    assert message.stop_reason == "end_turn"
    assert isinstance(message.parsed_output, Colour)


def test_the_asynchronous_client(server: Any) -> None:
    async def talk() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            fields: Any = {"model": server.model, "messages": QUESTION, "max_tokens": 8, "extra_body": {"top_k": 1}}
            whole = await client.messages.create(**fields)
            async with client.messages.stream(**fields) as stream:
                text = "".join([piece async for piece in stream.text_stream])
            return whole.content[0].text, text

    whole, streamed = asyncio.run(talk())
    assert whole == streamed != ""


def test_errors_are_those_that_the_client_knows(ask: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="text only") as bad:
        ask(messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]}])
    assert bad.value.type == "invalid_request_error"
    assert bad.value.request_id
    with pytest.raises(anthropic.NotFoundError):
        ask(model="nobody")
    with pytest.raises(anthropic.BadRequestError, match="thinking"):
        ask(thinking={"type": "enabled", "budget_tokens": 1024})


def test_keys_of_either_kind_are_accepted(start_server: Any) -> None:
    with start_server("--api-key", "sesame") as keyed:

        def count(**key: str) -> int:
            with anthropic.Anthropic(base_url=keyed.url, max_retries=0, **key) as client:
                return client.messages.count_tokens(model=keyed.model, messages=QUESTION).input_tokens

        assert count(api_key="sesame") == count(auth_token="sesame") > 0
        with pytest.raises(anthropic.AuthenticationError) as raised:
            count(api_key="open")
        assert raised.value.type == "authentication_error"
