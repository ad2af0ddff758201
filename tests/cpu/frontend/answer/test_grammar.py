"""What the grammar of an answer allows, on a small vocabulary."""

import json

import pytest

from quire.errors import InvalidRequestError
from quire.frontend.answer.formats import PLAIN_JSON, reasoning_format, tool_format
from quire.frontend.answer.grammar import answer_grammar
from quire.frontend.answer.syntax import AnswerSyntax, answer_syntax
from quire.frontend.answer.tools import FunctionTool, ToolChoice
from quire.types.structured_outputs import StructuredOutputsParams

from .conftest import TOOLS, SmallVocabulary

NOW_CALL = '[{"name": "now", "arguments": {}}]'
WEATHER_CALL = '[{"name": "get_weather", "arguments": {"city": "x", "days": 1}}]'
REQUIRED = ToolChoice("required")
AUTO = ToolChoice("auto")
NONE = ToolChoice("none")


def reasoning(vocabulary: SmallVocabulary, *, starts: bool = True) -> AnswerSyntax:
    """A syntax with reasoning alone."""
    return AnswerSyntax(
        reasoning_format=reasoning_format("qwen3"), starts_in_reasoning=starts, added_tokens=vocabulary.added_tokens
    )


def test_a_model_without_a_format_can_be_made_to_call(plain_vocabulary: SmallVocabulary) -> None:
    syntax = answer_syntax(
        tool_format=None, reasoning_format=None, tools=TOOLS, prompt="", added_tokens={}, calls_are_forced=True
    )
    assert syntax.tool_format is PLAIN_JSON
    grammar = answer_grammar(syntax, REQUIRED)
    assert grammar is not None
    assert plain_vocabulary.accepts(grammar, NOW_CALL)
    assert plain_vocabulary.accepts(grammar, WEATHER_CALL)
    assert not plain_vocabulary.accepts(grammar, "Hello.")
    assert not plain_vocabulary.accepts(grammar, NOW_CALL.replace("now", "never"))
    assert not plain_vocabulary.accepts(grammar, WEATHER_CALL.replace('"days": 1', '"days": "1"'))


def test_a_named_function_is_called_once_and_no_other(plain_vocabulary: SmallVocabulary) -> None:
    syntax = AnswerSyntax(tool_format=PLAIN_JSON, tools=TOOLS)
    grammar = answer_grammar(syntax, ToolChoice("named", "now"))
    assert grammar is not None
    assert plain_vocabulary.accepts(grammar, NOW_CALL)
    assert not plain_vocabulary.accepts(grammar, WEATHER_CALL)
    assert not plain_vocabulary.accepts(grammar, f"{NOW_CALL[:-1]}, {NOW_CALL[1:]}")
    with pytest.raises(InvalidRequestError, match="get_weather"):
        answer_grammar(syntax, ToolChoice("named", "never"))


@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_calls_can_be_forbidden(plain_vocabulary: SmallVocabulary, parallel: bool) -> None:
    grammar = answer_grammar(AnswerSyntax(tool_format=PLAIN_JSON, tools=TOOLS), REQUIRED, parallel_tool_calls=parallel)
    assert grammar is not None
    assert plain_vocabulary.accepts(grammar, f"{NOW_CALL[:-1]}, {NOW_CALL[1:]}") is parallel


def test_references_inside_a_tools_schema_are_followed(plain_vocabulary: SmallVocabulary) -> None:
    grammar = answer_grammar(AnswerSyntax(tool_format=PLAIN_JSON, tools=TOOLS), REQUIRED)
    assert grammar is not None
    call = WEATHER_CALL.replace('"days": 1', '"days": 1, "tags": ["wind"]')
    assert plain_vocabulary.accepts(grammar, call)
    assert not plain_vocabulary.accepts(grammar, call.replace("wind", "fire"))


def test_free_text_stays_free_until_a_call_begins(plain_vocabulary: SmallVocabulary) -> None:
    grammar = answer_grammar(AnswerSyntax(tool_format=tool_format("hermes"), tools=TOOLS), AUTO)
    assert grammar is not None
    assert plain_vocabulary.accepts(grammar, 'Any {"text" <tool_ at all')
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert plain_vocabulary.accepts(grammar, f"Wait.\n{call}\n{call}")
    assert not plain_vocabulary.accepts(grammar, f"Wait.\n{call}\n<tool_call>\nnow")


def test_an_optional_argument_may_be_left_out_in_python(plain_vocabulary: SmallVocabulary) -> None:
    tool = FunctionTool("f", parameters={"properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}})
    grammar = answer_grammar(AnswerSyntax(tool_format=tool_format("pythonic"), tools=(tool,)), REQUIRED)
    assert grammar is not None
    for arguments in ("", "a=1", "b=True", "a=1, b=False"):
        assert plain_vocabulary.accepts(grammar, f"[f({arguments})]"), arguments
    for arguments in ("b=True, a=1", ", b=True", "a=1,", "a='x'"):
        assert not plain_vocabulary.accepts(grammar, f"[f({arguments})]"), arguments


def test_reasoning_goes_before_forced_calls(plain_vocabulary: SmallVocabulary) -> None:
    for starts in (True, False):
        syntax = AnswerSyntax(PLAIN_JSON, reasoning_format("qwen3"), TOOLS, starts, plain_vocabulary.added_tokens)
        grammar = answer_grammar(syntax, REQUIRED)
        assert grammar is not None
        begin = "" if starts else "<think>"
        assert plain_vocabulary.accepts(grammar, f"{begin}Any [ text.</think>\n\n{NOW_CALL}")
        assert plain_vocabulary.accepts(grammar, NOW_CALL) is not starts


def test_structured_output_begins_behind_the_reasoning(plain_vocabulary: SmallVocabulary) -> None:
    syntax = reasoning(plain_vocabulary)
    forms = {
        '{"a": 1}': StructuredOutputsParams(json={"type": "object", "properties": {"a": {"type": "integer"}}}),
        "ab": StructuredOutputsParams(regex="[ab]+"),
        "yes": StructuredOutputsParams(choice=["yes", "no"]),
        "x1": StructuredOutputsParams(grammar='start: "x" /[0-9]/'),
    }
    for text, structured in forms.items():
        grammar = answer_grammar(syntax, NONE, structured=structured)
        assert grammar is not None
        assert plain_vocabulary.accepts(grammar, f"so</think>\n\n{text}"), text
        assert not plain_vocabulary.accepts(grammar, f"so</think>\n\n{text}!"), text


def test_structured_output_and_calls_may_both_be_wanted(plain_vocabulary: SmallVocabulary) -> None:
    structured = StructuredOutputsParams(choice=["yes", "no"])
    syntax = AnswerSyntax(tool_format=tool_format("hermes"), tools=TOOLS)
    grammar = answer_grammar(syntax, AUTO, structured=structured)
    assert grammar is not None
    assert plain_vocabulary.accepts(grammar, "yes")
    assert plain_vocabulary.accepts(grammar, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not plain_vocabulary.accepts(grammar, "maybe")


@pytest.mark.parametrize("budget", [0, 3])
def test_a_thinking_budget_forces_the_end_of_the_reasoning(plain_vocabulary: SmallVocabulary, budget: int) -> None:
    grammar = answer_grammar(reasoning(plain_vocabulary), NONE, thinking_token_budget=budget)
    assert grammar is not None
    matcher = plain_vocabulary.matcher(grammar)
    for _ in range(budget):
        assert matcher.consume_token(plain_vocabulary.ids("a")[0])
    assert plain_vocabulary.allowed(matcher) == [plain_vocabulary.added_tokens["</think>"]]
    assert plain_vocabulary.accepts(grammar, f"{'a' * budget}</think>Then anything.")


def test_a_budget_needs_an_end_that_is_one_token() -> None:
    syntax = AnswerSyntax(reasoning_format=reasoning_format("granite"), starts_in_reasoning=True)
    with pytest.raises(InvalidRequestError, match="one token"):
        answer_grammar(syntax, NONE, thinking_token_budget=5)


def test_a_free_answer_has_no_grammar(plain_vocabulary: SmallVocabulary) -> None:
    assert answer_grammar(reasoning(plain_vocabulary), NONE) is None
    assert answer_grammar(reasoning(plain_vocabulary), NONE, thinking_token_budget=-1) is None
    assert answer_grammar(AnswerSyntax(), AUTO) is None


def test_without_reasoning_structured_output_is_left_as_it_is() -> None:
    grammar = answer_grammar(AnswerSyntax(), NONE, structured=StructuredOutputsParams(json={"type": "object"}))
    assert grammar is not None
    assert "json_schema" in json.loads(grammar)["grammars"][0]
