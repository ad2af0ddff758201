"""Fields that are not built are refused; fields that ask for nothing pass."""

import json
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "function": {"name": "f"}}

REFUSED = [
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("guided_json", {}),
    ("guided_choice", ["a"]),
    ("guided_decoding_backend", "outlines"),
    ("json_schema", {}),
    ("max_new_tokens", 5),
    ("stop_sequences", ["a"]),
    ("use_beam_search", True),
    ("logits_processors", ["f"]),
    ("modalities", ["audio"]),
    ("audio", {"voice": "x"}),
    ("chat_template", "{{ messages }}"),
    ("verbosity", "low"),
    ("prompt_embeds", "AAAA"),
    ("kv_transfer_params", {"a": 1}),
    ("logprob_token_ids", [1]),
    ("prompt", "x"),
    ("thinking_token_budget", 5),
]

MISSPELT = [
    ("respose_format", "response_format"),
    ("responseFormat", "response_format"),
    ("response-format", "response_format"),
    ("structured_output", "structured_outputs"),
    ("tool", "tools"),
    ("toolChoice", "tool_choice"),
    ("max_token", "max_tokens"),
    ("temprature", "temperature"),
]

HARMLESS = {
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "structured_outputs": None,
    "guided_json": None,
    "use_beam_search": False,
    "modalities": ["text"],
    "store": True,
    "echo": False,
    "user": "u",
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "a_field_of_tomorrow": {"x": [1]},
    "reasoning_effort": "high",
    "thinking_token_budget": -1,
    "include_reasoning": True,
    "documents": [{"text": "x"}],
}


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=lambda value: json.dumps(value)[:40])
async def test_refused(quiet: Any, field: str, value: Any) -> None:
    response = await quiet.chat(**{field: value})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert "hint:" in error["message"]


@pytest.mark.parametrize(("field", "meant"), MISSPELT)
async def test_misspelt(quiet: Any, field: str, meant: str) -> None:
    error = (await quiet.chat(**{field: "x"})).json()["error"]
    assert (error["code"], error["param"]) == (400, field)
    assert f"did you mean {meant}?" in error["message"]


async def test_too_many_unknown_fields(quiet: Any) -> None:
    assert (await quiet.chat(**{f"field_{index}": 1 for index in range(300)})).status_code == 400


async def test_harmless(serve: Any) -> None:
    async with serve() as server:
        plain = (await server.chat()).json()
        response = await server.chat(**HARMLESS)
    assert response.status_code == 200
    assert response.json()["choices"] == plain["choices"]
