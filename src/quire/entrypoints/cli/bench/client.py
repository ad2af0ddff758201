"""A light HTTP client for many streams on one event loop.

Bytes are stamped and parsed in the callback in which the event loop delivers them; no task wakes up per chunk, so the
client costs the measured server little of a shared machine.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from quire.entrypoints.cli.bench.http_response import HttpResponse
from quire.errors import ConfigError, EngineProtocolError

OnBody = Callable[[bytes, float], None]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens.

    Attributes:
        path: What stands before every endpoint's path; without a slash at its end.
    """

    host: str
    port: int
    secure: bool = False
    path: str = ""


def parse_address(url: str) -> Address:
    """Reads "http://host:port/path". A "/v1" at its end is dropped, because the endpoints' paths begin with it.

    Raises:
        ConfigError: It is not an HTTP URL.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise ConfigError(f"{url!r} is not an HTTP address", hint="for example http://127.0.0.1:8000", param="base_url")
    secure = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(parts.hostname, port or (443 if secure else 80), secure, path)


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as far as it has come. `finished` is set at its end, with an error if it broke.

    Attributes:
        on_body: Called with each part of the body and the time at which it arrived.
    """

    response: HttpResponse
    on_body: OnBody
    finished: asyncio.Future[None]

    def feed(self, data: bytes) -> None:
        """Takes bytes that have just arrived."""
        now = time.perf_counter()
        try:
            body = self.response.feed(data)
            if body:
                self.on_body(body, now)
        except EngineProtocolError as error:
            self.fail(error)
        if self.response.is_complete and not self.finished.done():
            self.finished.set_result(None)

    def fail(self, error: Exception) -> None:
        """Ends the exchange with an error, unless it has ended."""
        if not self.finished.done():
            self.finished.set_exception(error)


class _Connection(asyncio.Protocol):
    """One connection, for one exchange at a time."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self.is_open = True
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None or self.exchange.finished.done():
            self.abort()
        else:
            self.exchange.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        exchange = self.exchange
        if exchange is None or exchange.finished.done():
            return
        try:
            exchange.response.close()
        except EngineProtocolError as error:
            exchange.fail(exc or error)
        else:
            exchange.finished.set_result(None)

    def send(self, exchange: Exchange, request: bytes) -> None:
        assert self._transport is not None
        self.exchange = exchange
        self._transport.write(request)

    def abort(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()


class HttpClient:
    """Keeps connections to one server and sends requests over them.

    Args:
        address: The server.
        headers: Sent with every request.
    """

    def __init__(self, address: Address, headers: Mapping[str, str]) -> None:
        self.address = address
        self._headers = {"Host": _host_header(address), "Accept": "*/*", **headers}
        self._idle: list[_Connection] = []
        self._ssl = ssl.create_default_context() if address.secure else None

    def build_request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The bytes of a request; made ahead, so that sending costs nothing."""
        headers = dict(self._headers)
        if body:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = [f"{method} {self.address.path}{path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1") + body

    async def send(self, request: bytes, on_body: OnBody) -> HttpResponse:
        """Sends a request and waits for the end of its answer, whose body goes to `on_body` as it arrives.

        Raises:
            OSError: The server cannot be reached, or the connection broke.
            EngineProtocolError: The answer is not HTTP, or incomplete.
        """
        connection = self._reuse()
        if connection is not None:
            exchange = _new_exchange(on_body)
            try:
                return await self._exchange(connection, exchange, request)
            except (OSError, EngineProtocolError):
                # A server may close an idle connection at the moment that it is used again. It has not seen the
                # request then, so it is sent once more; after any byte of an answer it is not.
                if exchange.response.has_begun:
                    raise
        return await self._exchange(await self._connect(), _new_exchange(on_body), request)

    def close(self) -> None:
        """Closes the idle connections."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _exchange(self, connection: _Connection, exchange: Exchange, request: bytes) -> HttpResponse:
        connection.send(exchange, request)
        try:
            await exchange.finished
        except BaseException:
            connection.abort()
            raise
        if connection.is_open and exchange.response.keeps_connection:
            self._idle.append(connection)
        else:
            connection.abort()
        return exchange.response

    def _reuse(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self.address.host, self.address.port, ssl=self._ssl)
        return connection


def _new_exchange(on_body: OnBody) -> Exchange:
    return Exchange(HttpResponse(), on_body, asyncio.get_running_loop().create_future())


def _host_header(address: Address) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"
