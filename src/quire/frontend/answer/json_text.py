"""Reading JSON values from text that arrives in pieces, without building them."""

import json
import re
from collections.abc import Callable
from typing import Any

from quire.frontend.answer.reader import Reading, TextReader

Sink = Callable[[str], object]
"""Gets the text of a value, piece by piece."""

_STRUCTURE = re.compile(r"[^ \t\r\n0-9A-Za-z,:.+\-]")
"""What is more than a number, a word, a comma or a colon."""
_NOT_SCALAR = re.compile(r"[^0-9A-Za-z.+\-]")
_QUOTE = re.compile(r'["\\]')
_CLOSERS = {"{": "}", "[": "]"}


def read_value(reader: TextReader, sink: Sink) -> Reading[bool]:
    """Reads one value, as it is written, into `sink`. Returns whether it is complete.

    One that breaks off is read up to the character that cannot be in it. White space before it must have been read.
    """
    character = yield from reader.peek()
    if character == '"':
        return (yield from read_string(reader, sink))
    if character in _CLOSERS:
        return (yield from _read_container(reader, sink))
    return (yield from _read_scalar(reader, sink))


def read_string(reader: TextReader, sink: Sink) -> Reading[bool]:
    """The same for a string; a quote must come next."""
    sink(reader.take(reader.position + 1))
    while True:
        found = _QUOTE.search(reader.text, reader.position)
        end = found.start() if found else len(reader.text)
        if end > reader.position:
            sink(reader.take(end))
        if found is None or (found.group() == "\\" and end + 1 == len(reader.text)):
            if reader.final:
                return False
            yield
        elif found.group() == '"':
            sink(reader.take(end + 1))
            return True
        else:
            sink(reader.take(end + 2))


def read_text(reader: TextReader) -> Reading[str | None]:
    """Reads a string; returns the text that it stands for, None for one that is broken."""
    parts: list[str] = []
    complete = yield from read_string(reader, parts.append)
    return decode_string("".join(parts)) if complete else None


def decode_string(text: str) -> str | None:
    """The text that a JSON string stands for, with U+FFFD for half a surrogate pair; None for a broken one."""
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else None


def parse_value(text: str) -> tuple[bool, Any]:
    """Whether `text` is JSON, and its value."""
    try:
        return True, json.loads(text)
    except (ValueError, RecursionError):
        return False, None


def _read_container(reader: TextReader, sink: Sink) -> Reading[bool]:
    closers: list[str] = []
    while True:
        found = _STRUCTURE.search(reader.text, reader.position)
        end = found.start() if found else len(reader.text)
        if end > reader.position:
            sink(reader.take(end))
        if found is None:
            if reader.final:
                return False
            yield
            continue
        character = found.group()
        if character == '"':
            if not (yield from read_string(reader, sink)):
                return False
        elif character in _CLOSERS:
            closers.append(_CLOSERS[character])
            sink(reader.take(end + 1))
        elif character == closers[-1]:
            closers.pop()
            sink(reader.take(end + 1))
            if not closers:
                return True
        else:
            return False


def _read_scalar(reader: TextReader, sink: Sink) -> Reading[bool]:
    some = False
    while True:
        found = _NOT_SCALAR.search(reader.text, reader.position)
        end = found.start() if found else len(reader.text)
        if end > reader.position:
            sink(reader.take(end))
            some = True
        if found is not None:
            return some
        if reader.final:
            return False
        yield
