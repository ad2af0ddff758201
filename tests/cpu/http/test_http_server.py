"""The server on a real socket: start, streams, odd bytes, signals."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from quire.config.server import ServerConfig
from quire.entrypoints.http.connection import MAX_HEAD_BYTES
from quire.entrypoints.http.server import bind, greeting, warn_if_open
from quire.errors import ConfigError

pytestmark = pytest.mark.anyio

LONG = {"prompt": "Hello", "max_tokens": 400, "ignore_eos": True, "seed": 1, "stream": True}


@pytest.fixture(scope="module")
async def shared(run_server: Any) -> AsyncIterator[Any]:
    async with run_server() as running:
        yield running


async def test_a_client_gets_its_stream_over_tcp(shared: Any) -> None:
    assert f"quire serves fake at {shared.url}" in shared.greeting
    assert f"curl {shared.url}/v1/chat/completions" in shared.greeting
    async with httpx.AsyncClient() as client:
        response = await client.post(f"{shared.url}/v1/completions", json=LONG)
    whole = await shared.harness.complete("Hello", max_tokens=400, ignore_eos=True, seed=1)
    events = shared.harness.events(response)
    assert "".join(event["choices"][0]["text"] for event in events) == whole.json()["choices"][0]["text"]
    assert response.headers["transfer-encoding"] == "chunked"
    assert "server" not in response.headers


async def test_a_closed_connection_ends_the_request(shared: Any) -> None:
    port = shared.harness.port
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", f"{shared.url}/v1/completions", json=LONG) as response,
    ):
        await anext(response.aiter_raw())
        port.may_step.clear()
    await shared.harness.until(lambda: shared.harness.engine.num_requests == 0)
    port.may_step.set()
    await shared.harness.until(lambda: not port.loop.has_unfinished)
    assert port.scheduler.statistics().cache.num_blocks_in_use == 0


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /health HTTP/1.1\r\nx: " + b"a" * (MAX_HEAD_BYTES + 1), b"431"),
        (b"GET /health HTTP/1.1\r\n" + b"x: a\r\n" * MAX_HEAD_BYTES, b"431"),
        (b"GET /" + b"a" * (2 * MAX_HEAD_BYTES), b"431"),
        (b"GET /" + b"a" * (2 * MAX_HEAD_BYTES) + b" HTTP/1.1\r\n\r\n", b"431"),
        (
            b"POST /v1/models HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
            + b"x: a\r\n" * MAX_HEAD_BYTES,
            b"405",
        ),
        (b"\x16\x03\x01\x00\x00", b"400"),
        (b"GET / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
    ],
    ids=["one header", "many headers", "endless path", "long path", "trailers", "tls", "smuggling"],
)
async def test_odd_bytes(shared: Any, request_bytes: bytes, status: bytes) -> None:
    reply = await shared.exchange(request_bytes)
    if reply or len(request_bytes) < MAX_HEAD_BYTES:
        head, _, body = reply.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        assert b'{"error":' in body


async def test_a_large_body_passes_under_the_bound_for_heads(shared: Any) -> None:
    async with httpx.AsyncClient() as client:
        response = await client.post(f"{shared.url}/v1/completions", json={"prompt": "a" * (3 * MAX_HEAD_BYTES // 2)})
    assert response.json()["error"]["param"] == "prompt"


async def test_a_port_in_use_is_told(shared: Any) -> None:
    with pytest.raises(ConfigError, match="cannot bind 127") as caught:
        bind(ServerConfig(port=shared.address[1]))
    assert caught.value.hint is not None


def test_greeting_names_the_key_and_a_reachable_address() -> None:
    server = ServerConfig(host="0.0.0.0", port=0, api_key=("k",))
    with bind(server) as listener:
        text = greeting(listener, server, "org/model")
        port = listener.getsockname()[1]
    assert f"quire serves org/model at http://0.0.0.0:{port}" in text
    assert f"curl http://127.0.0.1:{port}/" in text
    assert "$QUIRE_API_KEY" in text


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "example.org"}, True),
        ({"host": "0.0.0.0", "api_key": ("k",)}, False),
        ({"host": "127.0.0.1"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0", "uds": "s"}, False),
    ],
)
def test_warning_of_an_open_server(settings: Any, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    warn_if_open(ServerConfig(**settings))
    assert ("without a key" in caplog.text) == warned
