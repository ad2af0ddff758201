"""uvicorn's HTTP protocol with a bound on headers and trailers, which neither uvicorn nor its parser has."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quire.entrypoints.http.errors import envelope

MAX_HEAD_BYTES = 64 * 1024


class _HeadTooLargeError(Exception):
    """Raised inside the parser's callbacks, which ends the parsing."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Ends a connection that sends more than `MAX_HEAD_BYTES` of anything that is not a body."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._num_header_bytes = 0
        self._num_bytes_since_progress = 0

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, which keeps an unfinished header for itself until it has all of it."""
        self._num_bytes_since_progress += len(data)
        super().data_received(data)
        if self._num_bytes_since_progress > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(b"431 Request Header Fields Too Large", 431, "the headers are too large")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._num_header_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header or trailer."""
        self._num_header_bytes += len(name) + len(value)
        if self._num_header_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLargeError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The parser has seen the whole head."""
        self._num_bytes_since_progress = 0
        if len(self.url) > MAX_HEAD_BYTES:
            raise _HeadTooLargeError
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._num_bytes_since_progress = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser has seen the whole request."""
        self._num_bytes_since_progress = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser refused."""
        if self._num_header_bytes > MAX_HEAD_BYTES or len(self.url) > MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large", 431, "the headers are too large")
        else:
            self._refuse(b"400 Bad Request", 400, "the request is not valid HTTP")

    def _refuse(self, status_line: bytes, status: int, message: str) -> None:
        body = envelope(status, message)
        head = (
            b"HTTP/1.1 " + status_line + b"\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(head + body)
        self.transport.close()
