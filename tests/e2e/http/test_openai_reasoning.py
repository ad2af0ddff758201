"""A server whose model reasons and may call tools by itself. The small model does so by imitation: earlier answers
of the conversation show it how."""

import json
from typing import Any

import openai
import pytest

OPTIONS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "deepseek_r1")
QUESTION: Any = [
    turn
    for number in (2, 3, 5, 11, 13)
    for turn in (
        {"role": "user", "content": f"Is {number} a prime number?"},
        {"role": "assistant", "content": "It has no divisors.</think>Yes, it is."},
    )
] + [{"role": "user", "content": "Is 7 a prime number?"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "check",
        "parameters": {"type": "object", "properties": {"number": {"enum": [5, 7]}}, "required": ["number"]},
    },
}


@pytest.fixture(scope="module")
def ask(start_server: Any) -> Any:
    with (
        start_server(*OPTIONS) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):

        def create(**fields: Any) -> Any:
            defaults = {"model": server.model, "messages": QUESTION, "max_tokens": 60, "temperature": 0}
            return client.chat.completions.create(**{**defaults, **fields})

        yield create


def test_reasoning_is_told_apart(ask: Any) -> None:
    answer = ask()
    message = answer.choices[0].message
    assert message.reasoning and message.content
    assert "think>" not in message.reasoning + message.content
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens


def test_a_budget_needs_an_end_that_is_one_token(ask: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(extra_body={"thinking_token_budget": 5})
    assert caught.value.param == "thinking_token_budget"


@pytest.mark.parametrize(
    "fields",
    [{}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "required"}, {"extra_body": {"include_reasoning": False}}],
    ids=["text", "auto", "required", "hidden"],
)
def test_a_stream_adds_up_to_the_whole(ask: Any, fields: dict[str, Any]) -> None:
    whole = ask(**fields).choices[0]
    said: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    finish_reason = None
    for chunk in ask(**fields, stream=True):
        choice = chunk.choices[0]
        said["content"] += choice.delta.content or ""
        said["reasoning"] += getattr(choice.delta, "reasoning", None) or ""
        for call in choice.delta.tool_calls or []:
            if call.id is not None:
                said["calls"].append([call.function.name, ""])
            said["calls"][call.index][1] += call.function.arguments or ""
        finish_reason = choice.finish_reason
    message = whole.message
    assert said["content"] == (message.content or "")
    assert said["reasoning"] == (getattr(message, "reasoning", None) or "")
    assert said["calls"] == [[call.function.name, call.function.arguments] for call in message.tool_calls or []]
    assert finish_reason == whole.finish_reason
    if "tool_choice" in fields:
        assert message.tool_calls


def test_a_format_holds_for_what_follows_the_reasoning(ask: Any) -> None:
    schema = {"type": "object", "properties": {"prime": {"type": "boolean"}}, "required": ["prime"]}
    message = (
        ask(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": schema | {"additionalProperties": False}},
            }
        )
        .choices[0]
        .message
    )
    assert message.reasoning
    assert isinstance(json.loads(message.content)["prime"], bool)


def test_a_named_call_after_the_reasoning(ask: Any) -> None:
    choice = ask(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "check"}}).choices[0]
    assert choice.message.reasoning
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments)["number"] in (5, 7)
    assert choice.finish_reason == "stop"
