"""However an answer is cut into pieces, it is read in the same way; whatever it says, nothing raises."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.frontend.answer.events import (
    AnswerEvent,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    collect,
)
from quire.frontend.answer.formats import (
    ToolFormat,
    reasoning_format,
    reasoning_format_names,
    tool_format,
    tool_format_names,
)
from quire.frontend.answer.parser import AnswerParser
from quire.frontend.answer.syntax import AnswerSyntax
from quire.frontend.answer.tools import FunctionTool

FORMATS: dict[ToolFormat, str] = {}
for _name in tool_format_names():
    FORMATS.setdefault(replace(tool_format(_name), name=""), _name)
NAMES = list(FORMATS.values())
"""One name for each format: other names differ in nothing."""

TOOLS = (
    FunctionTool("f", parameters={"properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {}}}),
    FunctionTool("g"),
)
PIECES = [
    '{"name": "f", "arguments": {"a": "x"}}',
    '{"arguments": {"b": [1, {"c": "}"}]}, "name": "g"}',
    '{"name": "f", "parameters": "{\\"a\\": 1}"}',
    '{"name": "f", "arguments": {"a": "\\u00e9\\\\\\"',
    '{"name": "nobody", "arguments": {}}',
    '{"other": 1}',
    '[f(a="x", b=1), g()]',
    "f(a='\\x41\\u00e9\\'', b=-0x1F, c=[None, {'k': (1, 2.5,)}, True])",
    'f("""a"b""", 2)',
    "g(",
    "functions.f:7",
    "f",
    "g\n",
    "a",
    "string",
    '"a"',
    '"b" string="false"',
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    '"',
    "'",
    "\\",
    ",",
    ":",
    ";",
    "=",
    ">",
    "</",
    "```",
    "\n",
    " ",
    "\r\n",
    "true",
    "12",
    "1e5",
    "null",
    "é",
    "𝄞",
    "日本",
    "\ud800",
    "Here is",
    "text",
]


def _texts(name: str, reasoning: str) -> st.SearchStrategy[str]:
    format, thoughts = tool_format(name), reasoning_format(reasoning)
    fixed = [text for text in (*format.texts, format.list_begin, format.separator, format.list_end) if text]
    markers = sorted(format.markers | thoughts.markers) + fixed
    openers = list(format.openers) or [""]
    whole = st.sampled_from(markers + openers * 2)
    part = st.builds(lambda marker, length: marker[:length], whole, st.integers(1, 20))
    return st.lists(st.one_of(whole, st.sampled_from(PIECES), part, whole), max_size=14).map("".join)


def _read(syntax: AnswerSyntax, pieces: list[str]) -> list[AnswerEvent]:
    parser = AnswerParser(syntax, id_prefix="call-")
    events = [event for piece in pieces for event in parser.feed(piece, 1)]
    return events + parser.finish()


def _merged(events: list[AnswerEvent]) -> list[AnswerEvent]:
    """The events with texts of one part joined."""
    merged: list[AnswerEvent] = []
    for event in events:
        last = merged[-1] if merged else None
        match last, event:
            case (ContentText(before), ContentText(text)):
                merged[-1] = ContentText(before + text)
            case (ReasoningText(before), ReasoningText(text)):
                merged[-1] = ReasoningText(before + text)
            case (ToolCallArguments(index, before), ToolCallArguments(_, text)):
                merged[-1] = ToolCallArguments(index, before + text)
            case _:
                merged.append(event)
    return merged


def _check_order(events: list[AnswerEvent]) -> None:
    """Calls begin in order, one at a time, and all of them end."""
    num_begun, open_index = 0, None
    for event in events:
        match event:
            case ToolCallBegin(index, call_id, name):
                assert open_index is None and index == num_begun and call_id and name
                num_begun, open_index = num_begun + 1, index
            case ToolCallArguments(index, text):
                assert index == open_index and text
            case ToolCallEnd(index):
                assert index == open_index
                open_index = None
            case ContentText(text) | ReasoningText(text):
                assert text and open_index is None
    assert open_index is None


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_split_of_every_format(name: str, data: st.DataObject) -> None:
    reasoning = data.draw(st.sampled_from(reasoning_format_names()))
    text = data.draw(_texts(name, reasoning))
    syntax = AnswerSyntax(tool_format(name), reasoning_format(reasoning), TOOLS, data.draw(st.booleans()))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    whole = _read(syntax, [text])
    _check_order(whole)
    assert _merged(_read(syntax, list(text))) == _merged(whole)
    assert _merged(_read(syntax, [text[a:b] for a, b in itertools.pairwise(bounds)])) == _merged(whole)
    assert collect(_read(syntax, list(text))) == collect(whole)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_marker_is_shown(name: str, data: st.DataObject) -> None:
    reasoning = reasoning_format(data.draw(st.sampled_from(reasoning_format_names())))
    format = tool_format(name)
    text = data.draw(_texts(name, reasoning.name))
    parser = AnswerParser(AnswerSyntax(format, reasoning, TOOLS))
    # Single feeds show each stretch of text as one event, so that no marker is put together by what was between.
    for event in [*parser.feed(text), *parser.finish()]:
        if isinstance(event, ContentText):
            for marker in format.markers | reasoning.markers:
                assert marker not in event.text or marker[:1] not in "<["
