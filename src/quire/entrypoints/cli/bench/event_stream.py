"""Reads a stream of server-sent events from bytes as they arrive. No I/O."""


class EventStream:
    """Cuts a body into events. Line breaks may be of any kind and fall anywhere."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._skip_line_feed = False

    def feed(self, body: bytes) -> list[bytes]:
        """Takes a part of the body and returns the data of the events that it completed."""
        if self._skip_line_feed and body.startswith(b"\n"):
            body = body[1:]
        if body:
            self._skip_line_feed = body.endswith(b"\r")
        events: list[bytes] = []
        self._line += body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = bytes(self._line).split(b"\n")
        self._line = bytearray(rest)
        for line in lines:
            self._take(line, events)
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        elif line.startswith(b"data:"):
            self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
