"""Every number and every size that a client sends has a bound, which is tried at its edge and one beyond."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from quire.entrypoints.http.connection import MAX_HEAD_BYTES
from quire.entrypoints.http.prompts import MAX_ANSWERS, MAX_PROMPTS
from quire.entrypoints.http.protocol import MAX_MESSAGES, MAX_PARTS, MAX_TEMPLATE_VARIABLES
from quire.types.sampling import (
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_SAMPLES,
    MAX_STOP_STRING_LENGTH,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)

pytestmark = pytest.mark.anyio

GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 1},
    "/v1/responses/input_tokens": {"input": "a"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "a"}]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}
NUMBERS = {"integer", "number"}


@pytest.fixture(scope="module")
async def schema(quiet: Any) -> Any:
    return (await quiet.client.get("/openapi.json")).json()


def resolved(schema: Any, part: Any) -> Any:
    while "$ref" in part:
        part = schema["components"]["schemas"][part["$ref"].rsplit("/", 1)[1]]
    return part


def body_of(schema: Any, path: str) -> Any:
    return resolved(schema, schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"])


def kinds(schema: Any, part: Any) -> Iterator[dict[str, Any]]:
    """The alternatives of a field."""
    part = resolved(schema, part)
    alternatives = part.get("anyOf") or part.get("oneOf")
    if alternatives is None:
        yield part
        return
    for alternative in alternatives:
        yield from kinds(schema, alternative)


def numbers(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The numeric fields of a body."""
    for name, part in body_of(schema, path)["properties"].items():
        for kind in kinds(schema, part):
            if kind.get("type") in NUMBERS:
                yield name, kind


def edges(kind: dict[str, Any]) -> tuple[float, float, float, float]:
    """One below, the smallest, the largest, one above."""
    step: float = 1 if kind["type"] == "integer" else 1e-3
    low = kind["minimum"] if "minimum" in kind else kind["exclusiveMinimum"] + step
    high = kind["maximum"] if "maximum" in kind else kind["exclusiveMaximum"] - step
    below = kind["minimum"] - step if "minimum" in kind else kind["exclusiveMinimum"]
    return below, low, high, high + step


async def test_every_route_with_a_body_is_covered(schema: Any) -> None:
    posts = {path for path, methods in schema["paths"].items() if "requestBody" in methods.get("post", {})}
    assert posts == set(GOOD)


async def test_every_number_has_a_smallest_and_a_largest_value(schema: Any) -> None:
    open_ended = [
        f"{path} {name}"
        for path in GOOD
        for name, kind in numbers(schema, path)
        if not ({"minimum", "exclusiveMinimum"} & set(kind) and {"maximum", "exclusiveMaximum"} & set(kind))
    ]
    assert open_ended == []


@pytest.mark.parametrize("path", GOOD)
async def test_numeric_fields_at_their_edges(quiet: Any, schema: Any, path: str) -> None:
    tried = 0
    for name, kind in numbers(schema, path):
        below, low, high, above = edges(kind)
        for value, is_in_range in ((below, False), (low, True), (high, True), (above, False)):
            response = await quiet.post(path, GOOD[path] | {name: value})
            assert response.status_code in ((200, 400, 408) if is_in_range else (400,)), (name, value, response.text)
            tried += 1
        for odd in (2**63, -(2**63), 1e308, 10**400):
            if low <= odd <= high:
                continue
            response = await quiet.client.post(
                path, content=json.dumps(GOOD[path] | {name: odd}), headers={"content-type": "application/json"}
            )
            assert response.status_code == 400, (name, odd)
        for text in ("NaN", "Infinity", "-Infinity", '"1"', "true", "[1]", "{}"):
            content = json.dumps(GOOD[path])[:-1] + f', "{name}": {text}}}'
            response = await quiet.client.post(path, content=content, headers={"content-type": "application/json"})
            assert response.status_code == 400, (name, text, response.text)
    assert tried or path in ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
    assert quiet.engine.num_requests == 0
    assert (await quiet.post(path, GOOD[path])).status_code == 200


LISTS: list[tuple[str, int, Any]] = [
    ("prompt", MAX_PROMPTS, lambda count: ["a"] * count),
    ("stop", MAX_STOP_STRINGS, lambda count: ["~~"] * count),
    ("stop", MAX_STOP_STRING_LENGTH, lambda count: ["~" * count]),
    ("stop_token_ids", MAX_STOP_TOKEN_IDS, lambda count: [1] * count),
    ("bad_words", MAX_BAD_WORDS, lambda count: ["~"] * count),
    ("logit_bias", MAX_LOGIT_BIAS, lambda count: {str(number): 1 for number in range(count)}),
    ("n", MAX_SAMPLES, lambda count: count),
    ("logprobs", 20, lambda count: count),
    ("prompt_logprobs", 20, lambda count: count),
]


@pytest.mark.parametrize(("field", "bound", "make"), LISTS, ids=lambda value: "" if callable(value) else str(value))
async def test_lists_at_their_bound(quiet: Any, field: str, bound: int, make: Any) -> None:
    good = GOOD["/v1/completions"]
    beyond = await quiet.post("/v1/completions", good | {field: make(bound + 1)})
    assert beyond.status_code == 400
    assert (beyond.json()["error"]["param"] or "").startswith(field)
    within = await quiet.post("/v1/completions", good | {field: make(bound)})
    # A bias for more tokens than the small vocabulary has is refused, further down.
    assert within.status_code == 200 or "vocabulary" in within.text, within.text


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": [{"role": "user", "content": "a"}] * (MAX_MESSAGES + 1)}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * (MAX_PARTS + 1)}]}, "messages[0]"),
        ({"chat_template_kwargs": {f"v{number}": 1 for number in range(MAX_TEMPLATE_VARIABLES + 1)}}, "chat_template"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 10_000}, "tools"),
        ({"model": "m" * 1025}, "model"),
        ({"cache_salt": "s" * 129}, "cache_salt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_parts_of_a_chat_are_bounded(quiet: Any, changes: dict[str, Any], param: str) -> None:
    response = await quiet.post("/v1/chat/completions", GOOD["/v1/chat/completions"] | changes)
    assert response.status_code == 400
    assert (response.json()["error"]["param"] or "").startswith(param)


async def test_prompts_times_samples_are_bounded(quiet: Any) -> None:
    count = MAX_ANSWERS // MAX_SAMPLES + 1
    response = await quiet.complete(["a"] * count, n=MAX_SAMPLES)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize("path", GOOD)
async def test_deeply_nested_bodies_are_refused(quiet: Any, path: str) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        nested = opening * 100_000 + "1" + closing * 100_000
        for content in (nested, json.dumps(GOOD[path])[:-1] + f', "metadata": {nested}}}'):
            response = await quiet.client.post(path, content=content, headers={"content-type": "application/json"})
            assert response.status_code == 400
            assert len(response.content) < 2000


@pytest.mark.parametrize("depth", [70, 10_000])
async def test_nested_schemas_are_refused_before_they_are_compiled(quiet: Any, depth: int) -> None:
    nested = '{"type": "object", "properties": {"a": ' * depth + "{}" + "}}" * depth
    for field in (
        '"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}',
        '"structured_outputs": {"json": SCHEMA}',
        '"tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]',
    ):
        content = json.dumps(GOOD["/v1/chat/completions"])[:-1] + ", " + field.replace("SCHEMA", nested) + "}"
        headers = {"content-type": "application/json"}
        response = await quiet.client.post("/v1/chat/completions", content=content, headers=headers)
        assert response.status_code == 400, field
        assert len(response.content) < 2000


@pytest.fixture(scope="module")
async def listening(run_server: Any) -> AsyncIterator[Any]:
    async with run_server(max_body_bytes=10_000) as running:
        yield running


async def test_headers_at_their_bound_over_a_socket(listening: Any) -> None:
    """The sum of names and values counts; one byte more than the bound ends the connection."""

    def request(num_bytes: int) -> bytes:
        fixed = len("host") + len("x") + len("connection") + len("close")
        value = b"a" * (num_bytes - fixed - len("big"))
        return b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\nbig: " + value + b"\r\n\r\n"

    assert (await listening.exchange(request(MAX_HEAD_BYTES - 1000))).startswith(b"HTTP/1.1 200")
    assert not (await listening.exchange(request(MAX_HEAD_BYTES + 1))).startswith(b"HTTP/1.1 200")


async def test_bodies_at_their_bound_over_a_socket(listening: Any) -> None:
    def request(num_bytes: int, *, chunked: bool) -> bytes:
        body = b'{"prompt": "a", "max_tokens": 1' + b" " * (num_bytes - 32) + b"}"
        assert len(body) == num_bytes
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        if chunked:
            return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % num_bytes + body + b"\r\n0\r\n\r\n"
        return head + b"content-length: %d\r\n\r\n" % num_bytes + body

    for chunked in (False, True):
        assert (await listening.exchange(request(10_000, chunked=chunked))).startswith(b"HTTP/1.1 200")
        assert (await listening.exchange(request(10_001, chunked=chunked))).startswith(b"HTTP/1.1 413")


async def test_compressed_bodies_are_not_unpacked(quiet: Any) -> None:
    for coding in ("gzip", "deflate", "br", "zstd", "gzip, identity"):
        headers = {"content-type": "application/json", "content-encoding": coding}
        response = await quiet.client.post("/v1/completions", content=b"{}", headers=headers)
        assert response.status_code == 400
