"""Reading calls in any of the shapes that a format describes."""

import re
from collections.abc import Mapping
from typing import Protocol

from quire.frontend.answer.argument_types import (
    STRING,
    argument_name,
    argument_types,
    json_string,
    json_value,
    string_inside,
)
from quire.frontend.answer.formats import JsonCall, NamedCall, PythonCall, TaggedCall, ToolFormat
from quire.frontend.answer.json_text import Sink, decode_string, read_text, read_value
from quire.frontend.answer.python_text import read_literal, read_word, scalar
from quire.frontend.answer.reader import MarkerSet, Reading, TextReader
from quire.frontend.answer.tools import FunctionTool

MAX_NAME_CHARACTERS = 512
"""Of a function's or an argument's name; what is longer is none."""

_NAME = re.compile(r"""[^\s<>{}\[\]()"'`]+""")
_KEY = re.compile(r"""\s*(["']?)(.*?)\1(?:\s+string\s*=\s*"(true|false)")?\s*""", re.DOTALL)
_QUOTES = "\"' \t\r\n"
_AFTER_OBJECT = " \t\r\n}],;"
_BETWEEN = " \t\r\n,;"


class CallSink(Protocol):
    """Where calls go."""

    def begin(self, name: str, written_id: str | None) -> None:
        """A call's name is known."""

    def arguments(self, text: str) -> None:
        """More of its arguments, as JSON text."""

    def end(self) -> None:
        """It is over."""


class CallReader:
    """Reads calls of one format.

    What turns out not to be a call stays in the reader's record: `read` keeps one until the name of a call is known
    and begins another behind every call.

    Args:
        format: How calls are written.
        tools: By name.
    """

    def __init__(
        self, reader: TextReader, format: ToolFormat, tools: Mapping[str, FunctionTool], sink: CallSink
    ) -> None:
        self._reader = reader
        self._format = format
        self._tools = tools
        self._sink = sink
        self._marked = True
        self._tool: FunctionTool | None = None
        call = format.call
        if isinstance(call, TaggedCall):
            self._tags = _TagSets(format, call)
        elif isinstance(call, NamedCall):
            ends = [call.after_name.strip(), call.id_marker, "{", *format.markers]
            self._name_ends = MarkerSet(end for end in ends if end)
            self._before_name = MarkerSet([call.before_name] if call.before_name else [])
            self._after_arguments = MarkerSet([call.after_arguments.strip()] if call.after_arguments else [])

    def read(self, *, marked: bool) -> Reading[None]:
        """Reads calls as long as they come.

        Args:
            marked: A marker stands before them, which makes even a call of an unknown function one.
        """
        self._marked = marked
        self._reader.start_record()
        character = yield from self._reader.peek_visible()
        match self._format.call:
            case NamedCall() as call if character not in "[{" or not character:
                yield from self._read_named(call)
            case TaggedCall() as call:
                yield from self._read_tagged(call)
            case PythonCall():
                yield from self._read_python()
            case JsonCall() as call:
                yield from self._read_json(call)
            case _:
                yield from self._read_json(JsonCall())

    def _begin(self, name: str, written_id: str | None = None) -> bool:
        """Announces a call, unless it is none."""
        if not self._marked and name not in self._tools:
            return False
        if not name or len(name) > MAX_NAME_CHARACTERS:
            return False
        self._reader.record = None
        self._tool = self._tools.get(name)
        self._sink.begin(name, written_id)
        return True

    def _end(self) -> None:
        self._sink.end()
        self._reader.start_record()

    def _read_json(self, shape: JsonCall) -> Reading[None]:
        reader = self._reader
        if (yield from reader.peek_visible()) == "[":
            reader.take(reader.position + 1)
        while (yield from reader.peek_visible()) == "{":
            call = _JsonObject(shape)
            yield from self._read_object(call)
            if not call.announced:
                return
            if not call.has_arguments and call.complete:
                self._sink.arguments("{}")
            self._sink.end()
            yield from reader.skip(_AFTER_OBJECT)
            reader.start_record()

    def _read_object(self, call: "_JsonObject") -> Reading[None]:
        """Reads an object up to its end, or to where it is no call."""
        reader = self._reader
        reader.take(reader.position + 1)
        while True:
            yield from reader.skip(_BETWEEN)
            character = yield from reader.peek()
            if character == "}":
                reader.take(reader.position + 1)
                call.complete = True
                return
            key = (yield from read_text(reader)) if character == '"' else None
            if key is None or (yield from reader.peek_visible()) != ":":
                return
            reader.take(reader.position + 1)
            character = yield from reader.peek_visible()
            if not (yield from self._read_member(call, key, is_text=character == '"')):
                return

    def _read_member(self, call: "_JsonObject", key: str, *, is_text: bool) -> Reading[bool]:
        """Reads the value of a key. False where the object cannot go on."""
        if key in call.shape.name_keys and is_text and not call.announced:
            name = yield from read_text(self._reader)
            if name is None or not self._begin(name):
                return False
            call.announced = True
            for text in call.early_arguments:
                self._sink.arguments(text)
            return True
        if key not in call.shape.arguments_keys or call.has_arguments:
            return (yield from read_value(self._reader, _ignore))
        call.has_arguments = True
        sink = self._sink.arguments if call.announced else call.early_arguments.append
        if not is_text:
            character = yield from self._reader.peek()
            if character not in "[{" or not character:
                sink("{}")
                sink = _ignore
            return (yield from read_value(self._reader, sink))
        # Arguments as a string that holds JSON: the string's text is shown once it is whole.
        parts: list[str] = []
        complete = yield from read_value(self._reader, parts.append)
        sink(decode_string("".join(parts)) or "{}" if complete else "")
        return complete

    def _read_named(self, shape: NamedCall) -> Reading[None]:
        reader = self._reader
        yield from reader.expect(self._before_name)
        text, marker = yield from reader.until(self._name_ends, MAX_NAME_CHARACTERS)
        name, written_id = text.strip(), None
        if marker is not None and marker == shape.id_marker:
            reader.take(reader.position + len(marker))
            written_id, marker = yield from reader.until(self._name_ends, MAX_NAME_CHARACTERS)
            written_id = written_id.strip() or None
        if marker is None or not _NAME.fullmatch(name):
            return
        if shape.has_numbers:
            name, written_id = _split_number(name)
        if not self._begin(name, written_id):
            return
        if marker == shape.after_name.strip():
            reader.take(reader.position + len(marker))
            marker = yield from self._next_is_object()
        if marker == "{":
            yield from read_value(reader, self._sink.arguments)
            yield from reader.peek_visible()
            yield from reader.expect(self._after_arguments)
        else:
            self._sink.arguments("{}" if marker else "")
        self._end()

    def _next_is_object(self) -> Reading[str]:
        """ "{" for an object, "" at the end of the text, otherwise something else."""
        return (yield from self._reader.peek_visible())

    def _read_tagged(self, shape: TaggedCall) -> Reading[None]:
        reader, tags = self._reader, self._tags
        yield from reader.expect(tags.before_name)
        text, marker = yield from reader.until(tags.name_ends, MAX_NAME_CHARACTERS)
        name = text.strip(_QUOTES)
        if marker is None or not _NAME.fullmatch(name) or not self._begin(name):
            return
        if marker in tags.after_name:
            reader.take(reader.position + len(marker))
        if (yield from reader.peek_visible()) == "{":
            yield from read_value(reader, self._sink.arguments)
            yield from reader.peek_visible()
        else:
            yield from self._read_tagged_arguments(shape)
        self._end()

    def _read_tagged_arguments(self, shape: TaggedCall) -> Reading[None]:
        reader, opener = self._reader, "{"
        while True:
            yield from reader.peek_visible()
            if (yield from reader.expect(self._tags.argument_begin)) is None:
                break
            text, marker = yield from reader.until(self._tags.key_ends, MAX_NAME_CHARACTERS)
            if marker is None:
                return
            if marker not in self._tags.key_end:
                continue
            reader.take(reader.position + len(marker))
            found = _KEY.fullmatch(text)
            key, is_string = (found[2], found[3]) if found else (text.strip(), None)
            self._sink.arguments(f"{opener}{json_string(key)}: ")
            opener = ", "
            for tag in self._tags.value_begin:
                yield from reader.peek_visible()
                yield from reader.expect(tag)
            types = argument_types(self._tool, key)
            if is_string is not None:
                types = STRING if is_string == "true" else types - STRING
            if not (yield from self._read_tagged_value(types, shape.padding)):
                return
        if not (reader.final and reader.position == len(reader.text)):
            self._sink.arguments("{}" if opener == "{" else "}")

    def _read_tagged_value(self, types: frozenset[str], padding: str) -> Reading[bool]:
        if types == STRING:
            complete = yield from self._read_string_value(padding)
        else:
            parts: list[str] = []
            complete = yield from self._read_value_text(padding, parts.append)
            if complete:
                self._sink.arguments(json_value("".join(parts), types))
        if complete:
            yield from self._reader.expect(self._tags.value_end)
        return complete

    def _read_string_value(self, padding: str) -> Reading[bool]:
        self._sink.arguments('"')
        complete = yield from self._read_value_text(padding, lambda text: self._sink.arguments(string_inside(text)))
        if complete:
            self._sink.arguments('"')
        return complete

    def _read_value_text(self, padding: str, sink: Sink) -> Reading[bool]:
        """Reads a value up to a tag, without one padding at either end. Returns whether a tag ends it."""
        reader, held, is_first = self._reader, "", bool(padding)
        while True:
            end, marker = self._tags.value_ends.find(reader.text, reader.position, final=reader.final)
            text = held + reader.take(end)
            if is_first and text:
                text, is_first = text.removeprefix(padding), False
            held = padding if padding and text.endswith(padding) else ""
            text = text[: len(text) - len(held)]
            if text:
                sink(text)
            if marker is not None or reader.final:
                return marker is not None
            yield

    def _read_python(self) -> Reading[None]:
        reader = self._reader
        in_list = (yield from reader.peek_visible()) == "["
        if not in_list and not self._marked:
            return
        if in_list:
            reader.take(reader.position + 1)
        while True:
            yield from reader.peek_visible()
            name = yield from read_word(reader)
            if not name or (yield from reader.peek_visible()) != "(" or not self._begin(name):
                return
            reader.take(reader.position + 1)
            if not (yield from self._read_python_arguments()):
                self._end()
                return
            self._sink.end()
            yield from reader.skip(_BETWEEN)
            if in_list and (yield from reader.peek()) == "]":
                reader.take(reader.position + 1)
                in_list = False
                if not self._marked:
                    reader.start_record()
                    return
                yield from reader.skip(_BETWEEN)
            reader.start_record()

    def _read_python_arguments(self) -> Reading[bool]:
        """Reads them with the closing parenthesis. Returns whether all was well."""
        reader, opener, position = self._reader, "{", 0
        while True:
            character = yield from reader.peek_visible()
            if character == ")":
                reader.take(reader.position + 1)
                self._sink.arguments("{}" if opener == "{" else "}")
                return True
            if character == ",":
                reader.take(reader.position + 1)
                continue
            word = (yield from read_word(reader)) if character not in "\"'" else ""
            named = bool(word) and (yield from reader.peek_visible()) == "="
            if named:
                reader.take(reader.position + 1)
                yield from reader.peek_visible()
            key = word if named else argument_name(self._tool, position)
            self._sink.arguments(f"{opener}{json_string(key)}: ")
            opener, position = ", ", position + 1
            if word and not named:
                self._sink.arguments(scalar(word))
            elif not (yield from read_literal(reader, self._sink.arguments)):
                return False
            if (yield from reader.peek_visible()) not in (",", ")"):
                return False


class _TagSets:
    """The tags of a format, for looking for them."""

    def __init__(self, format: ToolFormat, call: TaggedCall) -> None:
        after_name = call.after_name.strip() or call.after_name[:1]
        key_end, *value_begin = call.value_begin.split()
        argument = call.argument_begin
        around = [*format.boundaries, argument]
        self.before_name = MarkerSet([call.before_name] if call.before_name else [])
        self.after_name = MarkerSet([after_name] if after_name else [])
        self.name_ends = MarkerSet([*self.after_name.markers, *format.markers, argument])
        self.argument_begin = MarkerSet([argument])
        self.key_end = MarkerSet([key_end])
        self.key_ends = MarkerSet([key_end, *around])
        self.value_begin = [MarkerSet([tag]) for tag in value_begin]
        self.value_end = MarkerSet([call.value_end.strip()])
        self.value_ends = MarkerSet([call.value_end.strip(), *around])


class _JsonObject:
    """What is known of a call that is a JSON object."""

    def __init__(self, shape: JsonCall) -> None:
        self.shape = shape
        self.announced = False
        self.has_arguments = False
        self.complete = False
        self.early_arguments: list[str] = []


def _split_number(text: str) -> tuple[str, str | None]:
    """The name in `functions.NAME:NUMBER`, and the id that this is."""
    name, colon, number = text.removeprefix("functions.").rpartition(":")
    return (name, text) if colon and number.isdigit() else (text.removeprefix("functions."), None)


def _ignore(text: str) -> None:
    """For what nobody wants."""
