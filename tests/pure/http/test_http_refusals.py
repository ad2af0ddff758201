"""Fields that are not built are refused; fields that ask for nothing pass."""

import json
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "function": {"name": "f"}}

REFUSED = [
    ("tools", [TOOL]),
    ("tool_choice", "auto"),
    ("tool_choice", {"type": "function"}),
    ("functions", [{"name": "f"}]),
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("structured_outputs", {"regex": "a"}),
    ("guided_json", {}),
    ("guided_choice", ["a"]),
    ("use_beam_search", True),
    ("logits_processors", ["f"]),
    ("modalities", ["audio"]),
    ("audio", {"voice": "x"}),
    ("store", True),
    ("reasoning_effort", "high"),
    ("chat_template", "{{ messages }}"),
    ("documents", [{"text": "x"}]),
    ("truncate_prompt_tokens", 5),
    ("echo", True),
    ("verbosity", "low"),
    ("prompt_embeds", "AAAA"),
    ("kv_transfer_params", {"a": 1}),
    ("add_special_tokens", True),
]

HARMLESS = {
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "structured_outputs": None,
    "use_beam_search": False,
    "modalities": ["text"],
    "store": False,
    "echo": False,
    "user": "u",
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "a_field_of_tomorrow": {"x": [1]},
}


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=lambda value: json.dumps(value)[:40])
async def test_refused(quiet: Any, field: str, value: Any) -> None:
    response = await quiet.chat(**{field: value})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field)
    assert "hint:" in error["message"]


async def test_harmless(serve: Any) -> None:
    async with serve() as server:
        plain = (await server.chat()).json()
        response = await server.chat(**HARMLESS)
    assert response.status_code == 200
    assert response.json()["choices"] == plain["choices"]
