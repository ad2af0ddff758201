"""An application built with langchain-openai."""

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

QUESTION = "Name three colours."


class Colour(BaseModel):
    """A colour."""

    name: Literal["red", "green", "blue"]
    is_warm: bool


@tool
def get_weather(city: Literal["Bern", "Oslo"]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def make_chat(request: Any, server: Any) -> Any:
    def make(max_completion_tokens: int = 8, **fields: Any) -> ChatOpenAI:
        return ChatOpenAI(
            model=server.model,
            base_url=f"{server.url}/v1",
            api_key=SecretStr("none"),
            temperature=0,
            max_completion_tokens=max_completion_tokens,
            max_retries=0,
            use_responses_api=request.param,
            **fields,
        )

    return make


@pytest.fixture
def chat(make_chat: Any) -> Iterator[ChatOpenAI]:
    with httpx.Client() as connections:
        yield make_chat(http_client=connections)


@pytest.fixture
def long_chat(make_chat: Any) -> Iterator[ChatOpenAI]:
    with httpx.Client() as connections:
        yield make_chat(100, http_client=connections)


def test_chat(chat: ChatOpenAI) -> None:
    answer = chat.invoke([("system", "Be brief."), ("user", QUESTION)])
    assert answer.text
    assert answer.usage_metadata is not None
    assert 0 < answer.usage_metadata["output_tokens"] <= 8


def test_stream_equals_the_whole_answer(chat: ChatOpenAI) -> None:
    total: AIMessageChunk | None = None
    for chunk in chat.stream(QUESTION):
        assert isinstance(chunk, AIMessageChunk)
        total = chunk if total is None else total + chunk
    assert total is not None
    assert total.text == chat.invoke(QUESTION).text != ""


def test_asynchronous_batch(make_chat: Any) -> None:
    async def ask() -> list[Any]:
        async with httpx.AsyncClient() as connections:
            answers: list[Any] = await make_chat(http_async_client=connections).abatch(["Say hello.", QUESTION])
            return answers

    assert all(answer.text for answer in asyncio.run(ask()))


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(long_chat: ChatOpenAI, method: Literal["json_schema", "function_calling"]) -> None:
    colour = long_chat.with_structured_output(Colour, method=method).invoke("Give me a colour.")
    assert isinstance(colour, Colour)


def test_tools(chat: ChatOpenAI, long_chat: ChatOpenAI) -> None:
    question = ("user", "What is the weather?")
    call = long_chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False).invoke([question])
    (wanted,) = call.tool_calls
    assert wanted["name"] == "get_weather"
    result = get_weather.invoke(wanted)
    assert isinstance(result, ToolMessage)
    answer = chat.invoke([question, call, result])
    assert answer.text
