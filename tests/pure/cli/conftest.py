"""A small OpenAI-compatible server, written to the wire by hand, that answers and fails on command."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


def event(**values: Any) -> bytes:
    return b"data: " + json.dumps(values).encode() + b"\n\n"


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def plain(status: str, body: bytes, extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
MODELS = json.dumps({"data": [{"id": "fake-model"}]}).encode()
Answer = Callable[["FakeServer", dict[str, Any], asyncio.StreamWriter], Any]


async def answer_well(server: "FakeServer", body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """Streams one chunk per token, then the usage."""
    is_chat = "messages" in body
    writer.write(STREAM_HEAD)
    for number in range(body["max_tokens"]):
        reason = "length" if number == body["max_tokens"] - 1 else None
        text = {"delta": {"content": "x"}} if is_chat else {"text": "x"}
        writer.write(chunked(event(choices=[{"index": 0, "finish_reason": reason, **text}])))
        await writer.drain()
        await asyncio.sleep(0)
    usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}
    if server.reports_usage:
        writer.write(chunked(event(choices=[], usage=usage)))
    writer.write(chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")


@dataclass
class FakeServer:
    """Answers the n-th request with `answers[n]`, the rest well.

    Attributes:
        bodies: What was asked, in the order of arrival.
        peak: Most requests that were open at the same time.
        num_connections: Connections that were made.
    """

    answers: dict[int, Answer] = field(default_factory=dict)
    reports_usage: bool = True
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    peak: int = 0
    num_connections: int = 0
    _open: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while not writer.is_closing():
                await self._handle_one(reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _handle_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        if head.startswith("GET /v1/models"):
            writer.write(plain("200 OK", MODELS))
            return
        length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        number = len(self.bodies)
        self.bodies.append(body)
        self._open += 1
        self.peak = max(self.peak, self._open)
        try:
            await self.answers.get(number, answer_well)(self, body, writer)
        finally:
            self._open -= 1


@asynccontextmanager
async def serving(fake: FakeServer) -> AsyncIterator[FakeServer]:
    server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()


@pytest.fixture
def fake_server() -> Callable[..., FakeServer]:
    """Makes a server that does not listen yet; pass it to `serve_fake`."""
    return FakeServer


@pytest.fixture
def serve_fake() -> Callable[[FakeServer], Any]:
    """Lets a fake server listen for the length of an async block."""
    return serving


@pytest.fixture
def wire() -> Any:
    """The pieces of which an answer on the wire is made."""

    class Wire:
        stream_head = STREAM_HEAD
        event = staticmethod(event)
        chunked = staticmethod(chunked)
        plain = staticmethod(plain)
        answer_well = staticmethod(answer_well)

    return Wire
