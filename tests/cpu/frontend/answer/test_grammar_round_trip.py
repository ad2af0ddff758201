"""Whatever a grammar lets a model write is read as calls whose arguments have the schemas' shape."""

import json
from dataclasses import replace
from typing import Any

import pytest

from quire.frontend.answer.events import ParsedAnswer, collect
from quire.frontend.answer.formats import ToolFormat, tool_format, tool_format_names
from quire.frontend.answer.grammar import answer_grammar
from quire.frontend.answer.parser import AnswerParser
from quire.frontend.answer.syntax import AnswerSyntax
from quire.frontend.answer.tools import ToolChoice

from .conftest import TOOLS, SmallVocabulary, small_vocabulary

FORMATS: dict[ToolFormat, str] = {}
for _name in tool_format_names():
    FORMATS.setdefault(replace(tool_format(_name), name=""), _name)
NAMES = list(FORMATS.values())

TYPES: dict[str, type | tuple[type, ...]] = {
    "city": str,
    "days": int,
    "unit": str,
    "tags": list,
    "exact": bool,
    "note": (str, type(None)),
}


def _vocabulary(format: ToolFormat, *, with_tokens: bool) -> SmallVocabulary:
    markers = [text for text in format.markers if text[0] in "<[" and text[-1] in ">]"] if with_tokens else []
    return small_vocabulary("<think>", "</think>", *sorted(markers))


def _syntax(format: ToolFormat, vocabulary: SmallVocabulary, **options: Any) -> AnswerSyntax:
    return AnswerSyntax(tool_format=format, tools=TOOLS, added_tokens=vocabulary.added_tokens, **options)


def _parse(syntax: AnswerSyntax, text: str) -> ParsedAnswer:
    parser = AnswerParser(syntax)
    return collect([*parser.feed(text), *parser.finish()])


def _check_calls(parsed: ParsedAnswer, text: str) -> None:
    for call in parsed.tool_calls:
        arguments = json.loads(call.arguments)
        if call.name == "now":
            assert arguments == {}, text
            continue
        assert call.name == "get_weather", text
        assert {"city", "days"} <= arguments.keys() <= TYPES.keys(), text
        for key, value in arguments.items():
            assert isinstance(value, TYPES[key]), (text, key, value)
        assert arguments.get("unit", "kelvin") in ("celsius", "kelvin"), text


def _goals(format: ToolFormat) -> list[str]:
    ends = [getattr(format.call, "value_end", ""), format.call_end, format.section_end, '"', '"}', "}", ")", "]"]
    starts = [(*format.section_begin, *format.call_begin, "{")[0]]
    return [text for text in [*ends * 2, *starts] if text]


@pytest.mark.parametrize("name", NAMES)
def test_required_calls_are_read_back(name: str) -> None:
    format = tool_format(name)
    num_read = 0
    for seed in range(2):
        vocabulary = _vocabulary(format, with_tokens=seed % 2 == 1)
        syntax = _syntax(format, vocabulary)
        grammar = answer_grammar(syntax, ToolChoice("required"), parallel_tool_calls=seed == 0)
        assert grammar is not None
        text = vocabulary.walk(grammar, _goals(format), seed)
        if text is None:
            continue
        parsed = _parse(syntax, text)
        assert parsed.tool_calls and parsed.content is None, text
        assert seed == 0 or len(parsed.tool_calls) == 1, text
        _check_calls(parsed, text)
        num_read += 1
    assert num_read


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_has_begun_is_constrained(name: str) -> None:
    format = tool_format(name)
    vocabulary = _vocabulary(format, with_tokens=True)
    syntax = _syntax(format, vocabulary)
    grammar = answer_grammar(syntax, ToolChoice("auto"), parallel_tool_calls=False)
    assert grammar is not None
    assert vocabulary.accepts(grammar, "Nothing to call.")
    opener = (*format.section_begin, *format.call_begin, "[" if format.is_bare else "")[0]
    forced = answer_grammar(syntax, ToolChoice("required"), parallel_tool_calls=False)
    assert forced is not None
    call = next(text for seed in range(9) if (text := vocabulary.walk(forced, _goals(format), seed)) is not None)
    before = "" if format.is_bare and not format.section_begin else "Let me look. "
    assert vocabulary.accepts(grammar, before + call)
    assert not vocabulary.accepts(grammar, before + opener + "anything else")
    parsed = _parse(syntax, before + call)
    assert len(parsed.tool_calls) == 1 and (parsed.content or "") == before.strip()
    _check_calls(parsed, call)
