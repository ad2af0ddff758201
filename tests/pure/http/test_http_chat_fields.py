"""Fields of a chat beside its text: tools, formats, the prompt's shape, reasoning."""

import json
from typing import Any

import pytest

from quire.config.server import ServerConfig
from quire.errors import ConfigError

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"a": schema}
    return schema


def _with_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


BAD_FIELDS = [
    ({"tools": []}, "tools"),
    ({"tools": [TOOL] * 513}, "tools"),
    ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [_named("")]}, "tools[0].function.name"),
    ({"tools": [_named("a b")]}, "tools[0].function.name"),
    ({"tools": [_named("a" * 129)]}, "tools[0].function.name"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
    ({"tools": [_with_schema(_schema(60))]}, "tools[0].function.parameters"),
    ({"tools": [_with_schema({"a": "x" * 200_000})]}, "tools"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": _named("f")}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": _named("g")}, "tool_choice.function.name"),
    ({"tools": [TOOL]}, "tool_choice"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    ({"response_format": _format(_schema(70))}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, "response_format.type"),
    ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs.regex"),
    ({"structured_outputs": {"rexeg": "a"}}, "structured_outputs.rexeg"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": 512}, "truncate_prompt_tokens"),
    ({"truncation_side": "middle"}, "truncation_side"),
    ({"stream_interval": 0}, "stream_interval"),
    ({"spaces_between_special_tokens": False}, "spaces_between_special_tokens"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS, ids=lambda value: json.dumps(value)[:60])
async def test_bad_field(quiet: Any, fields: dict[str, Any], param: str) -> None:
    response = await quiet.chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error["message"]


async def test_auto_needs_the_servers_consent(quiet: Any) -> None:
    message = (await quiet.chat(tools=[TOOL], tool_choice="auto")).json()["error"]["message"]
    assert "hint: start it with --enable-auto-tool-choice --tool-call-parser" in message


async def test_tools_and_results_reach_the_template(serve: Any) -> None:
    template = (
        "{{ tools | length if tools else 0 }}{% for m in messages %}"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.city }}{% endif %}"
        "{{ m.reasoning_content or '' }}{{ m.content }}{{ m.tool_call_id or '' }}{% endfor %}{{ reasoning_effort }}"
    )
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "cold", "tool_call_id": "c1"},
    ]
    fields = {
        "messages": messages,
        "tools": [TOOL],
        "tool_choice": "none",
        "chat_template": template,
        "reasoning_effort": "low",
        "max_tokens": 1,
        "return_prompt_text": True,
    }
    async with serve(trust_request_chat_template=True) as server:
        answer = (await server.post("/v1/chat/completions", fields)).json()
    async with serve(trust_request_chat_template=True, exclude_tools_when_tool_choice_none=True) as server:
        without = (await server.post("/v1/chat/completions", fields)).json()
    assert answer["prompt_text"] == "1QOslohmcoldc1low"
    assert without["prompt_text"] == "0QOslohmcoldc1low"


async def test_tools_are_described_where_the_template_does_not_look_at_them(quiet: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]
    fields = {"tools": [TOOL], "tool_choice": "none", "max_tokens": 1, "return_prompt_text": True}
    with_system = (await quiet.chat(messages=messages, **fields)).json()["prompt_text"]
    without = (await quiet.chat(messages=messages[1:], **fields)).json()["prompt_text"]
    described = '"name": "f", "parameters": {"type": "object"'
    assert with_system.startswith("<|im_start|>system\nBe brief.\n\nYou can call") and described in with_system
    assert without.startswith("<|im_start|>system\nYou can call") and described in without


async def test_truncated_prompts(serve: Any) -> None:
    async with serve() as server:
        whole = (await server.chat(return_token_ids=True)).json()["prompt_token_ids"]
        left = (await server.chat(return_token_ids=True, truncate_prompt_tokens=5)).json()["prompt_token_ids"]
        fields = {"return_token_ids": True, "truncate_prompt_tokens": 2, "truncation_side": "right"}
        right = (await server.chat(**fields)).json()["prompt_token_ids"]
        long = (await server.chat("x" * 600, max_tokens=12, truncate_prompt_tokens=-1)).json()["usage"]
        text = (await server.complete("abcdef", truncate_prompt_tokens=3, echo=True, max_tokens=0)).json()
    assert (left, right) == (whole[-5:], whole[:2])
    assert (long["prompt_tokens"], long["completion_tokens"]) == (500, 12)
    assert text["choices"][0]["text"] == "def"


async def test_echo_repeats_the_last_message(serve: Any) -> None:
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "Because"}]
    body = {"messages": messages, "echo": True, "continue_final_message": True, "seed": 1, "max_tokens": 4}
    async with serve() as server:
        whole = (await server.post("/v1/chat/completions", body)).json()
        events = server.events(await server.post("/v1/chat/completions", {**body, "stream": True}))
    text = whole["choices"][0]["message"]["content"]
    assert text.startswith("Because") and len(text) == 11
    deltas = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert (deltas[:2], "".join(deltas)) == (["", "Because"], text)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_stream_interval_gathers_tokens(serve: Any, path: str) -> None:
    body = {"messages": [{"role": "user", "content": "Q"}], "prompt": "Q", "seed": 1, "max_tokens": 11, "logprobs": 1}
    body.pop("prompt" if "chat" in path else "messages")
    if "chat" in path:
        body["logprobs"] = True
    async with serve(stream_interval=2) as server:
        whole = (await server.post(path, body)).json()["choices"][0]
        options = {"stream": True, "stream_interval": 4, "return_token_ids": True}
        events = server.events(await server.post(path, body | options))
    choices = [event["choices"][0] for event in events]
    counts = [len(choice.get("token_ids") or []) for choice in choices]
    assert sum(counts) == 11
    assert all(count >= 4 for count in counts[2:-1])
    texts = [choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices]
    assert "".join(texts) == (whole["message"]["content"] if "message" in whole else whole["text"])


async def test_reasoning_is_told_apart(serve: Any, script: Any) -> None:
    thought, said = "Well, 2.", "Two."
    async with serve(reasoning_parser="deepseek_r1") as server:
        script(server, f"{thought}</think>{said}")
        fields: dict[str, Any] = {"max_tokens": 20, "return_token_ids": True, "logprobs": True}
        whole = (await server.chat(**fields)).json()
        hidden = (await server.chat(**fields, include_reasoning=False)).json()
        events = server.events(await server.chat(**fields, stream=True, stream_options={"include_usage": True}))
        quiet = server.events(await server.chat(**fields, stream=True, include_reasoning=False))
    choice = whole["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": said, "reasoning": thought}
    num_reasoning = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert len(thought) <= num_reasoning <= len(thought + "</think>")
    shown = hidden["choices"][0]
    assert shown["message"] == {"role": "assistant", "content": said}
    assert shown["token_ids"] == choice["token_ids"][num_reasoning:]
    assert shown["logprobs"]["content"] == choice["logprobs"]["content"][num_reasoning:]
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == thought
    assert "".join(delta.get("content", "") for delta in deltas) == said
    assert events[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": num_reasoning}
    assert not any("reasoning" in event["choices"][0]["delta"] for event in quiet)
    assert [i for event in quiet for i in event["choices"][0].get("token_ids", [])] == shown["token_ids"]


async def test_whole_numbers_may_be_written_as_javascript_does(quiet: Any) -> None:
    answer = (await quiet.chat(max_tokens=3.0, n=1.0, top_k=5.0, seed=1.0)).json()
    assert answer["usage"]["completion_tokens"] == 3
    assert (await quiet.chat(max_tokens=3.5)).json()["error"]["param"] == "max_tokens"


async def test_the_servers_own_template_variables(serve: Any) -> None:
    fields = {"max_tokens": 1, "return_prompt_text": True}
    async with serve(default_chat_template_kwargs='{"shout": "HO"}') as server:
        default = (await server.chat(**fields)).json()["prompt_text"]
        own = (await server.chat(**fields, chat_template_kwargs={"shout": "HA"})).json()["prompt_text"]
    assert ("HO" in default, "HA" in own, "HO" in own) == (True, True, False)
    for broken in ("{", "[]"):
        with pytest.raises(ConfigError, match="must be a JSON object"):
            ServerConfig(default_chat_template_kwargs=broken)
