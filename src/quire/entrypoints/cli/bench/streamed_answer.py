"""One answer of an OpenAI-compatible server: what its stream says, and when."""

from typing import Any

import msgspec

from quire.entrypoints.cli.bench.event_stream import EventStream
from quire.errors import EngineProtocolError


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


class StreamedAnswer:
    """Collects a stream. Give its `take` to the client.

    Attributes:
        choice_times: When each event with a choice arrived, by the client's clock.
        texts: The text of each such event.
    """

    def __init__(self) -> None:
        self.choice_times: list[float] = []
        self.texts: list[str] = []
        self.usage: _Usage | None = None
        self._stream = EventStream()
        self._raw = bytearray()
        self._error: str | None = None
        self._has_ended = False

    def take(self, body: bytes, now: float) -> None:
        """Takes a part of the body.

        Raises:
            EngineProtocolError: An event is not what the API defines.
        """
        if not self.choice_times:
            self._raw += body
        for data in self._stream.feed(body):
            if data == b"[DONE]":
                self._has_ended = True
            else:
                self._take_event(data, now)

    def failure(self, status: int) -> str | None:
        """Why the answer counts as failed, None if it does not. Ask when the response is complete."""
        if status != 200:
            return f"HTTP {status}: {error_text(bytes(self._raw))}"
        if self._error is not None:
            return f"the stream ended with an error: {self._error}"
        if not self.choice_times:
            return "the stream held no choice"
        return None if self._has_ended else "the stream ended before the answer was finished"

    def _take_event(self, data: bytes, now: float) -> None:
        try:
            event = _decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise EngineProtocolError(f"an event of the stream does not parse: {error}") from error
        if event.error is not None:
            self._error = error_text(data)
        if event.usage is not None:
            self.usage = event.usage
        if event.choices:
            self.choice_times.append(now)
            self.texts.append("".join(_text_of(choice) for choice in event.choices))
            self._has_ended |= any(choice.finish_reason for choice in event.choices)


def error_text(body: bytes) -> str:
    """The message in an error body, or the beginning of whatever it is."""
    try:
        content = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return body[:200].decode("utf-8", "replace") or "no message"
    error = content.get("error", content) if isinstance(content, dict) else content
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:200]


def _text_of(choice: _Choice) -> str:
    if choice.delta is not None:
        return choice.delta.content or ""
    return choice.text or ""
