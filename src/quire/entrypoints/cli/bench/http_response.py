"""Reads an HTTP/1.1 response from bytes as they arrive. No I/O.

Only what a load generator needs: one response at a time, bodies that are chunked, of known length, or until the
connection closes.
"""

import enum

from quire.errors import EngineProtocolError

MAX_HEAD_BYTES = 64 * 1024
MAX_CHUNK_LINE_BYTES = 1024


@enum.unique
class _State(enum.Enum):
    HEAD = enum.auto()
    LENGTH = enum.auto()
    CHUNK_SIZE = enum.auto()
    CHUNK = enum.auto()
    TRAILER = enum.auto()
    UNTIL_CLOSE = enum.auto()
    COMPLETE = enum.auto()


class HttpResponse:
    """One response in the making.

    Attributes:
        status: The status code; 0 until the head has arrived.
        headers: By lower-case name.
        has_begun: Whether any byte has arrived.
    """

    def __init__(self) -> None:
        self.status = 0
        self.has_begun = False
        self.headers: dict[str, str] = {}
        self._state = _State.HEAD
        self._buffer = bytearray()
        self._remaining = 0

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has arrived."""
        return self._state is _State.COMPLETE

    @property
    def keeps_connection(self) -> bool:
        """Whether the connection can carry another request, once this response is complete."""
        return self.is_complete and self.headers.get("connection", "").lower() != "close"

    def feed(self, data: bytes) -> bytes:
        """Takes bytes from the connection and returns the part of the body that they completed.

        Raises:
            EngineProtocolError: They are not an HTTP/1.1 response.
        """
        self.has_begun = True
        self._buffer += data
        body = bytearray()
        while self._advance(body):
            pass
        return bytes(body)

    def close(self) -> None:
        """The connection has ended.

        Raises:
            EngineProtocolError: The response was not complete.
        """
        if self._state is _State.UNTIL_CLOSE:
            self._state = _State.COMPLETE
        if not self.is_complete:
            raise EngineProtocolError("the connection was closed before the answer was complete")

    def _advance(self, body: bytearray) -> bool:
        """Makes one step; false when more bytes are needed."""
        if self._state is _State.HEAD:
            return self._read_head()
        if self._state in (_State.LENGTH, _State.CHUNK):
            return self._read_counted(body)
        if self._state is _State.CHUNK_SIZE:
            return self._read_chunk_size()
        if self._state is _State.TRAILER:
            return self._read_trailer()
        if self._state is _State.UNTIL_CLOSE:
            body += self._buffer
            self._buffer.clear()
        return False

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise EngineProtocolError(f"the head of the answer exceeds {MAX_HEAD_BYTES} bytes")
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        parts = lines[0].split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise EngineProtocolError(f"not an HTTP answer: {lines[0][:100]!r}")
        pairs = (line.partition(":") for line in lines[1:])
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self.status = int(parts[1])
        if 100 <= self.status < 200:
            return True
        self._state = self._state_of_body()
        return True

    def _state_of_body(self) -> _State:
        if self.status in (204, 304):
            return _State.COMPLETE
        if self.headers.get("transfer-encoding", "").lower().endswith("chunked"):
            return _State.CHUNK_SIZE
        length = self.headers.get("content-length")
        if length is None:
            return _State.UNTIL_CLOSE
        if not length.isdigit():
            raise EngineProtocolError(f"content-length is {length[:50]!r}")
        self._remaining = int(length)
        return _State.LENGTH if self._remaining else _State.COMPLETE

    def _read_counted(self, body: bytearray) -> bool:
        taken = self._buffer[: self._remaining]
        body += taken
        del self._buffer[: len(taken)]
        self._remaining -= len(taken)
        if self._remaining:
            return False
        if self._state is _State.LENGTH:
            self._state = _State.COMPLETE
            return False
        if len(self._buffer) < 2:
            return False
        del self._buffer[:2]
        self._state = _State.CHUNK_SIZE
        return True

    def _read_chunk_size(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > MAX_CHUNK_LINE_BYTES:
                raise EngineProtocolError("the size of a chunk does not end")
            return False
        digits = bytes(self._buffer[:end]).partition(b";")[0].strip()
        del self._buffer[: end + 2]
        try:
            self._remaining = int(digits, 16)
        except ValueError:
            raise EngineProtocolError(f"the size of a chunk is {digits[:50]!r}") from None
        self._state = _State.CHUNK if self._remaining else _State.TRAILER
        return True

    def _read_trailer(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        del self._buffer[: end + 2]
        if end == 0:
            self._state = _State.COMPLETE
        return end != 0
