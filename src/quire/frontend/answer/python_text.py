"""Python literals as JSON text, from text that arrives in pieces."""

import math
import re

from quire.frontend.answer.argument_types import json_string, string_inside
from quire.frontend.answer.json_text import Sink
from quire.frontend.answer.reader import MarkerSet, Reading, TextReader

_WORD = re.compile(r"[\w.+\-]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_STRING_PREFIXES = {"", "r", "b", "u", "f", "R", "B", "U", "F", "rb", "br", "fr", "rf"}
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{0,2}|u[0-9a-fA-F]{0,4}|U[0-9a-fA-F]{0,8}|[0-7]{1,3}|[\s\S]|\Z)")
_ESCAPE_LENGTHS = {"x": 4, "u": 6, "U": 10, "": 2} | dict.fromkeys("01234567", 4)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "\n": "", "/": "/"}
_QUOTES = {quote: MarkerSet((quote, quote * 2, quote * 3)) for quote in "'\""}
_CLOSERS = {"[": "]", "(": ")", "{": "}"}


def read_word(reader: TextReader) -> Reading[str]:
    """Reads a name, a number or nothing."""
    parts: list[str] = []
    while True:
        found = _WORD.match(reader.text, reader.position)
        assert found is not None, "the pattern matches anything"
        parts.append(reader.take(found.end()))
        if reader.position < len(reader.text) or reader.final:
            return "".join(parts)
        yield


def scalar(word: str) -> str:
    """A number or a constant as JSON; a string for any other word."""
    if word in _WORDS or _NUMBER.fullmatch(word):
        return _WORDS.get(word, word)
    try:
        return str(int(word, 0))
    except ValueError:
        pass
    try:
        value = float(word)
    except ValueError:
        return json_string(word)
    return repr(value) if math.isfinite(value) else json_string(word)


def read_literal(reader: TextReader, sink: Sink) -> Reading[bool]:
    """Reads one literal into `sink`, as JSON. Returns whether it is complete; otherwise it is no literal."""
    closers: list[str] = []
    while True:
        character = yield from reader.peek_visible()
        if character in _CLOSERS:
            reader.take(reader.position + 1)
            closers.append(_CLOSERS[character])
            sink("{" if character == "{" else "[")
            if not (yield from _at_end(reader, closers)):
                continue
        elif not (yield from _read_atom(reader, sink)):
            return False
        following = yield from _leave(reader, sink, closers)
        if following is not None:
            return following


def _at_end(reader: TextReader, closers: list[str]) -> Reading[bool]:
    character = yield from reader.peek_visible()
    return bool(closers) and character == closers[-1]


def _leave(reader: TextReader, sink: Sink, closers: list[str]) -> Reading[bool | None]:
    """Reads what follows a value. True: all is complete; False: it is broken; None: another value comes."""
    while closers:
        character = yield from reader.peek_visible()
        if character == ":" and closers[-1] == "}":
            reader.take(reader.position + 1)
            sink(": ")
            return None
        if character == ",":
            reader.take(reader.position + 1)
            if not (yield from _at_end(reader, closers)):
                sink(", ")
                return None
        elif character != closers[-1]:
            return False
        reader.take(reader.position + 1)
        sink("}" if closers.pop() == "}" else "]")
    return True


def _read_atom(reader: TextReader, sink: Sink) -> Reading[bool]:
    word = yield from read_word(reader)
    character = yield from reader.peek()
    if character in _QUOTES and word in _STRING_PREFIXES:
        return (yield from _read_string(reader, sink, character, is_raw="r" in word.lower()))
    if word:
        sink(scalar(word))
    return bool(word)


def _read_string(reader: TextReader, sink: Sink, quote: str, *, is_raw: bool) -> Reading[bool]:
    opener = yield from reader.expect(_QUOTES[quote])
    assert opener is not None, "a quote comes next"
    sink('"')
    if len(opener) == 2:
        sink('"')
        return True
    ends = MarkerSet((opener, "\\"))
    while True:
        end, marker = ends.find(reader.text, reader.position, final=reader.final)
        if end > reader.position:
            sink(string_inside(reader.take(end)))
        if marker == opener:
            reader.take(end + len(opener))
            sink('"')
            return True
        if marker is not None:
            yield from _read_escape(reader, sink, is_raw=is_raw)
        elif reader.final:
            return False
        else:
            yield


def _read_escape(reader: TextReader, sink: Sink, *, is_raw: bool) -> Reading[None]:
    while True:
        found = _ESCAPE.match(reader.text, reader.position)
        assert found is not None, "a backslash comes next"
        text = found.group()
        complete = len(text) == _ESCAPE_LENGTHS.get(text[1:2], 2) or found.end() < len(reader.text)
        if complete or reader.final:
            break
        yield
    reader.take(found.end())
    sink(string_inside(text if is_raw else _unescape(text)))


def _unescape(text: str) -> str:
    kind, digits = text[1:2], text[2:]
    if kind in "xuU" and kind and len(text) == _ESCAPE_LENGTHS[kind] and int(digits, 16) <= 0x10FFFF:
        return chr(int(digits, 16))
    if kind and kind in "01234567":
        return chr(int(text[1:], 8))
    if kind in ("\\", "'", '"'):
        return kind + digits
    return _ESCAPED[kind] + digits if kind in _ESCAPED else text
