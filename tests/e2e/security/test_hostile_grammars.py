"""Schemas, expressions and grammars made to hurt: a 400 within seconds, and nobody else notices."""

import time
from typing import Any

import httpx
import pytest

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
SECONDS = 60.0
"""Generous: the guard's own limits are a small part of it."""


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a", "b"]}
    return schema


HOSTILE: dict[str, dict[str, Any]] = {
    "a regex that does not parse": {"structured_outputs": {"regex": "(((("}},
    "a regex that looks back": {"structured_outputs": {"regex": r"(a+)\1"}},
    "a grammar that does not parse": {"structured_outputs": {"grammar": "start: ((("}},
    "a grammar without a start": {"structured_outputs": {"grammar": 'a: "b"'}},
    "a grammar that calls itself": {"structured_outputs": {"grammar": "start: start start"}},
    "a schema that refers to itself": {"structured_outputs": {"json": {"$ref": "#"}}},
    "a schema that refers to elsewhere": {"structured_outputs": {"json": {"$ref": "http://169.254.169.254/latest"}}},
    "a schema that refers to a file": {"structured_outputs": {"json": {"$ref": "file:///etc/passwd"}}},
    "a choice of too many": {"structured_outputs": {"choice": ["x" * 100 + str(n) for n in range(200_000)]}},
    "a deep schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": nested(14)}}},
}


HEAVY: dict[str, dict[str, Any]] = {
    "a regex that counts high": {"structured_outputs": {"regex": "(?:a{1,1000}){1,1000}(?:b{1,1000}){1,1000}"}},
    "a regex with many ways": {"structured_outputs": {"regex": "(a|aa|aaa|aaaa)*(a|aa|aaa|aaaa)*(a|aa|aaa|aaaa)*c"}},
    "a schema with long strings": {"structured_outputs": {"json": {"type": "string", "maxLength": 100_000}}},
}
"""Nothing is wrong with these: they are refused, or served in time."""


@pytest.mark.parametrize("name", [*HOSTILE, *HEAVY])
def test_it_is_refused_and_the_next_request_is_served(server: Any, name: str) -> None:
    begin = time.monotonic()
    response = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT | (HOSTILE | HEAVY)[name], timeout=2 * SECONDS)
    assert time.monotonic() - begin < SECONDS
    assert response.status_code == 400 or (name in HEAVY and response.status_code == 200), response.text
    if response.status_code == 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "root:" not in response.text
    good = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=SECONDS)
    assert good.status_code == 200
    server.wait_until_idle()
