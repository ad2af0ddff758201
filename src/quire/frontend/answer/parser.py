"""One streaming parser for every format.

Its rules, which hold for all formats:

- Text between the parts of an answer belongs to it; white space beside a marker belongs to the marker.
- A call is announced when its name is known. A function that is none of the given tools is still called, since the
  client decides; only formats that mark calls with nothing at all ask for the name of a tool.
- What follows a marker and is no call is content, without the marker. A call that breaks off, by length or by an
  error, keeps the arguments written so far.
- No marker is ever shown, wherever it stands.
"""

import hashlib
import uuid
from collections.abc import Callable

from quire.frontend.answer.calls import CallReader
from quire.frontend.answer.events import (
    AnswerEvent,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from quire.frontend.answer.formats import PythonCall, ToolFormat
from quire.frontend.answer.reader import MarkerSet, Reading, TextReader
from quire.frontend.answer.syntax import AnswerSyntax

_NEWLINES = "\r\n"
_SHORT_ID_CHARACTERS = 9


class AnswerParser:
    """Reads one answer, a piece of text at a time. Never raises, whatever the text.

    Args:
        id_prefix: What the ids of calls begin with, followed by the call's index; ids that the model writes itself
            win. None draws a random one.

    Attributes:
        num_reasoning_tokens: Tokens fed so far that belong to the reasoning. Where a piece of several tokens holds
            its end, they are divided by the lengths of the texts: feed single tokens for an exact number.
    """

    def __init__(self, syntax: AnswerSyntax, *, id_prefix: str | None = None) -> None:
        self.num_reasoning_tokens = 0
        self._events = _Events(syntax.tool_format, id_prefix)
        self._reading = _Reading(syntax, self._events)
        self._steps = self._reading.run()
        next(self._steps, None)

    def feed(self, text: str, num_tokens: int = 0) -> list[AnswerEvent]:
        """Adds text of that many tokens; returns what is certain now."""
        reading = self._reading
        was_reasoning, before = reading.is_reasoning, reading.num_reasoning_characters
        reading.reader.feed(text)
        next(self._steps, None)
        if was_reasoning and reading.is_reasoning:
            self.num_reasoning_tokens += num_tokens
        elif num_tokens > 1 and reading.num_reasoning_characters > before:
            share = (reading.num_reasoning_characters - before) / len(text)
            self.num_reasoning_tokens += round(num_tokens * min(share, 1.0))
        return self._events.take()

    def finish(self) -> list[AnswerEvent]:
        """The answer has ended: returns the rest. Nothing may be fed afterwards."""
        self._reading.reader.final = True
        next(self._steps, None)
        return self._events.take()


class _Events:
    """Collects events; texts of the same part that follow each other become one."""

    def __init__(self, format: ToolFormat | None, id_prefix: str | None) -> None:
        self.num_calls = 0
        self._short_ids = format is not None and format.short_ids
        self._has_numbers = format is not None and getattr(format.call, "has_numbers", False)
        self._prefix = f"chatcmpl-tool-{uuid.uuid4().hex}" if id_prefix is None else id_prefix
        self._events: list[AnswerEvent] = []
        self._texts: list[str] = []
        self._kind: type[ContentText] | type[ReasoningText] | type[ToolCallArguments] = ContentText

    def take(self) -> list[AnswerEvent]:
        """What has come since the last time."""
        self.flush()
        events, self._events = self._events, []
        return events

    def content(self, text: str) -> None:
        """More content."""
        self._add(ContentText, text)

    def reasoning(self, text: str) -> None:
        """More reasoning."""
        self._add(ReasoningText, text)

    def begin(self, name: str, written_id: str | None) -> None:
        """A call begins."""
        self.flush()
        call_id = self._call_id(name) if written_id is None else written_id
        self._events.append(ToolCallBegin(self.num_calls, call_id, name))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """More of the call's arguments."""
        self._add(ToolCallArguments, text)

    def end(self) -> None:
        """It is over."""
        self.flush()
        self._events.append(ToolCallEnd(self.num_calls - 1))

    def _call_id(self, name: str) -> str:
        if self._has_numbers:
            return f"functions.{name}:{self.num_calls}"
        call_id = f"{self._prefix}{self.num_calls}"
        if not self._short_ids:
            return call_id
        return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:_SHORT_ID_CHARACTERS]

    def _add(self, kind: type[ContentText] | type[ReasoningText] | type[ToolCallArguments], text: str) -> None:
        if kind is not self._kind:
            self.flush()
            self._kind = kind
        if text:
            self._texts.append(text)

    def flush(self) -> None:
        """Ends a stretch of text: what follows is an event of its own."""
        if not self._texts:
            return
        text, self._texts = "".join(self._texts), []
        if self._kind is ToolCallArguments:
            self._events.append(ToolCallArguments(self.num_calls - 1, text))
        else:
            self._events.append(ReasoningText(text) if self._kind is ReasoningText else ContentText(text))


class _Prose:
    """Content or reasoning, without the white space beside markers."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._held: list[str] = []
        self._at_start = True
        self._is_fresh = True
        self.is_blank = True

    def add(self, text: str) -> None:
        """More of it."""
        if self._at_start:
            text = text.lstrip(_NEWLINES)
            self._at_start = not text
        visible = text.rstrip()
        if visible:
            self.is_blank = self._is_fresh = False
            self._show("".join(self._held) + visible)
            self._held.clear()
        if len(visible) < len(text):
            self._held.append(text[len(visible) :])

    def cut(self) -> None:
        """A marker stands here."""
        self._held.clear()
        self._at_start = self._is_fresh = True

    def resume(self) -> None:
        """More of it comes after something else: on a new line."""
        self.cut()
        if not self.is_blank:
            self._held.append("\n")

    def finish(self) -> None:
        """Nothing comes next."""
        if not self._is_fresh:
            self._show("".join(self._held))
        self._held.clear()


class _Reading:
    """Where a parser stands in an answer."""

    def __init__(self, syntax: AnswerSyntax, events: _Events) -> None:
        self.reader = TextReader()
        self.is_reasoning = syntax.starts_in_reasoning and syntax.reasoning_format is not None
        self.num_reasoning_characters = 0
        # Characters to come in which no call and no reasoning begins: they have been found to be no call.
        self._num_plain = 0
        self._events = events
        self._content = _Prose(events.content)
        self._reasoning = _Prose(events.reasoning)
        format, reasoning = syntax.tool_format, syntax.reasoning_format
        call_markers = format.markers if format else frozenset()
        thought_markers = reasoning.markers if reasoning else frozenset()
        ends_with_call = reasoning is not None and reasoning.ends_with_call
        self._openers = frozenset(format.openers if format else ())
        self._thought_begins = frozenset(reasoning.begin if reasoning else ())
        self._thought_ends = frozenset(reasoning.end if reasoning else ()) | (
            call_markers if ends_with_call else frozenset()
        )
        self._markers = MarkerSet(call_markers | thought_markers)
        self._reasoning_markers = MarkerSet(thought_markers | self._thought_ends)
        self._bare_starts = _bare_starts(format)
        tools = {tool.name: tool for tool in syntax.tools}
        self._calls = CallReader(self.reader, format, tools, events) if format else None

    def run(self) -> Reading[None]:
        """Reads the whole answer."""
        marker = (yield from self._read_reasoning()) if self.is_reasoning else None
        while True:
            if marker in self._thought_begins:
                marker = yield from self._read_reasoning()
                continue
            if marker in self._openers:
                yield from self._read_calls(marked=True)
            elif self._bare_starts and self._content.is_blank and not self._events.num_calls:
                yield from self._read_bare_calls()
            marker = yield from self._read_content()
            if marker is None:
                self._content.finish()
                return

    def _read_content(self) -> Reading[str | None]:
        """Reads up to a marker and past it; returns it, or None at the end of the text."""
        reader = self.reader
        while True:
            end, marker = self._markers.find(reader.text, reader.position, final=reader.final)
            is_plain = end - reader.position < self._num_plain
            self._num_plain = max(0, self._num_plain - (end - reader.position) - len(marker or ""))
            if end > reader.position:
                self._content.add(reader.take(end))
            if marker is not None:
                reader.take(end + len(marker))
                self._content.cut()
                self._events.flush()
                if not is_plain:
                    return marker
            elif reader.final:
                return None
            else:
                yield

    def _read_reasoning(self) -> Reading[str | None]:
        """Reads reasoning past the marker that ends it; returns that, or None at the end of the text."""
        reader = self.reader
        self.is_reasoning = True
        self._reasoning.resume()
        while True:
            end, marker = self._reasoning_markers.find(reader.text, reader.position, final=reader.final)
            self.num_reasoning_characters += end - reader.position
            if end > reader.position:
                self._reasoning.add(reader.take(end))
            if marker is not None:
                reader.take(end + len(marker))
                self.num_reasoning_characters += len(marker)
                self._reasoning.cut()
                if marker in self._thought_ends:
                    self.is_reasoning = False
                    return marker
            elif reader.final:
                return None
            else:
                yield

    def _read_calls(self, *, marked: bool) -> Reading[None]:
        assert self._calls is not None, "a tool format has markers"
        num_calls = self._events.num_calls
        yield from self._calls.read(marked=marked)
        self._num_plain = self.reader.unread_record()
        if self._events.num_calls > num_calls:
            self._content.cut()

    def _read_bare_calls(self) -> Reading[None]:
        self.reader.start_record()
        character = yield from self.reader.peek_visible()
        self._content.add(self.reader.stop_record())
        if character and character in self._bare_starts:
            yield from self._read_calls(marked=False)


def _bare_starts(format: ToolFormat | None) -> str:
    """What a call without a marker begins with."""
    if format is None or not format.is_bare:
        return ""
    return "[" if isinstance(format.call, PythonCall) else "[{"
