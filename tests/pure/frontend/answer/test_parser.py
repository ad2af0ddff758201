"""What users of each format see: content, calls and reasoning."""

import json
import time

import pytest

from quire.errors import ConfigError
from quire.frontend.answer.events import ParsedAnswer, ToolCallArguments, ToolCallBegin, collect
from quire.frontend.answer.formats import reasoning_format, tool_format
from quire.frontend.answer.parser import AnswerParser
from quire.frontend.answer.syntax import AnswerSyntax, answer_syntax
from quire.frontend.answer.tools import FunctionTool

WEATHER = FunctionTool(
    "get_weather",
    parameters={
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "tags": {"type": "array"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        }
    },
)
PARIS = {"city": "Paris", "days": 2}
ANSWERS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</tool_call>",
    "llama3_json": '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}',
    "pythonic": '[get_weather(city="Paris", days=2)]',
    "llama4_pythonic": "<|python_start|>[get_weather(city='Paris', days=2)]<|python_end|>",
    "olmo3": '<function_calls>\nget_weather(city="Paris", days=2)\n</function_calls>',
    "lfm2": '<|tool_call_start|>[get_weather(city="Paris", days=2)]<|tool_call_end|>',
    "mistral": '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 2}',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Paris", "days": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
    '{"city": "Paris", "days": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek_v32": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
    'string="true">Paris</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}]',
    "granite-20b-fc": '<function_call> {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}',
    "phi4_mini": 'functools[{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}]',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:3<|tool_call_argument_begin|>"
    '{"city": "Paris", "days": 2}<|tool_call_end|><|tool_calls_section_end|>',
    "glm45": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>2</arg_value>\n</tool_call>",
    "glm47": "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key>"
    "<arg_value>2</arg_value></tool_call>",
    "jamba": '<tool_calls>[\n  {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n]</tool_calls>',
    "internlm": '<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}'
    "<|action_end|>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
    "seed_oss": "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n"
    "<parameter=days>2</parameter>\n</function>\n</seed:tool_call>",
    "step3": "<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="
    '"get_weather"><steptml:parameter name="city">Paris</steptml:parameter><steptml:parameter name="days">2'
    "</steptml:parameter></steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>",
}
MARKED = [name for name in ANSWERS if not tool_format(name).is_bare or tool_format(name).section_begin]


def read(text: str, tools: str | None = None, reasoning: str | None = None, *, starts: bool = False) -> ParsedAnswer:
    """What an answer says, read one character at a time."""
    syntax = AnswerSyntax(
        tool_format(tools) if tools else None,
        reasoning_format(reasoning) if reasoning else None,
        (WEATHER, FunctionTool("now")),
        starts,
    )
    parser = AnswerParser(syntax, id_prefix="call-")
    events = [event for character in text for event in parser.feed(character)]
    return collect([*events, *parser.finish()])


@pytest.mark.parametrize("name", ANSWERS)
def test_a_call_alone_has_no_content(name: str) -> None:
    answer = read(ANSWERS[name], name)
    assert answer.content is None
    assert [(call.name, json.loads(call.arguments)) for call in answer.tool_calls] == [("get_weather", PARIS)]


@pytest.mark.parametrize("name", MARKED)
def test_content_before_a_call_loses_the_white_space_beside_it(name: str) -> None:
    answer = read(f"Let me look.\n\n{ANSWERS[name]}\n", name)
    assert answer.content == "Let me look."
    assert len(answer.tool_calls) == 1


@pytest.mark.parametrize("name", ANSWERS)
def test_two_calls_have_ids_of_their_own(name: str) -> None:
    separator = "; " if name == "llama3_json" else ", " if name == "pythonic" else "\n"
    text = ANSWERS[name] + separator + ANSWERS[name].removeprefix("<|python_tag|>")
    if name == "pythonic":
        text = text.replace("], [", ", ")
    calls = read(text.replace("weather:3", "weather:0", 1), name).tool_calls
    assert len(calls) == 2
    assert calls[0].call_id != calls[1].call_id


def test_ids_follow_what_templates_accept() -> None:
    assert read(ANSWERS["kimi_k2"], "kimi_k2").tool_calls[0].call_id == "functions.get_weather:3"
    assert len(read(ANSWERS["mistral"], "mistral").tool_calls[0].call_id) == 9
    assert read(ANSWERS["hermes"], "hermes").tool_calls[0].call_id == "call-0"


def test_a_call_is_announced_before_its_arguments() -> None:
    parser = AnswerParser(AnswerSyntax(tool_format("hermes")))
    events = parser.feed('<tool_call>{"name": "f", "arguments": {"a"')
    assert [type(event) for event in events] == [ToolCallBegin, ToolCallArguments]


def test_arguments_that_come_before_the_name_wait_for_it() -> None:
    answer = read('<tool_call>{"arguments": {"a": "}"}, "name": "f"}</tool_call>', "hermes")
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("f", '{"a": "}"}')]


def test_arguments_given_as_text_are_unpacked() -> None:
    answer = read('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "hermes")
    assert answer.tool_calls[0].arguments == '{"a": 1}'


@pytest.mark.parametrize("text", ['{"name": "f"}', '{"name": "f", "arguments": null}'])
def test_missing_arguments_are_an_empty_object(text: str) -> None:
    assert read(f"<tool_call>{text}</tool_call>", "hermes").tool_calls[0].arguments == "{}"


def test_a_brace_too_many_is_dropped() -> None:
    answer = read('<tool_call>{"name": "f", "arguments": {}}}\n</tool_call>', "hermes")
    assert (answer.content, len(answer.tool_calls)) == (None, 1)


def test_a_call_cut_by_length_keeps_its_arguments() -> None:
    answer = read('<tool_call>{"name": "f", "arguments": {"city": "Par', "hermes")
    assert answer.tool_calls[0].arguments == '{"city": "Par'


def test_what_never_became_a_call_is_content_without_the_marker() -> None:
    answer = read('<tool_call>{"x": 1}</tool_call>', "hermes")
    assert (answer.content, answer.tool_calls) == ('{"x": 1}', [])


def test_a_marked_call_of_an_unknown_function_is_a_call_and_a_bare_one_is_not() -> None:
    call = '{"name": "nobody", "parameters": {}}'
    assert read(f"<|python_tag|>{call}", "llama3_json").tool_calls[0].name == "nobody"
    assert read(call, "llama3_json").content == call
    assert read("[1, 2]", "pythonic").content == "[1, 2]"


def test_mistral_writes_lists_too() -> None:
    text = '[TOOL_CALLS] [{"name": "now", "arguments": {}}, {"name": "get_weather", "arguments": {"city": "x"}}]'
    assert [call.name for call in read(text, "mistral").tool_calls] == ["now", "get_weather"]


def test_tagged_values_have_the_types_of_the_schema() -> None:
    text = (
        "<tool_call><function=get_weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3.0\n</parameter>\n"
        "<parameter=tags>\n['a']\n</parameter>\n<parameter=note>\nnull\n</parameter>\n<parameter=new>\n{\"k\": [1]}\n"
        "</parameter>\n</function></tool_call>"
    )
    assert json.loads(read(text, "qwen3_coder").tool_calls[0].arguments) == {
        "city": "12",
        "days": 3,
        "tags": "['a']",
        "note": None,
        "new": {"k": [1]},
    }


def test_tagged_strings_keep_all_but_one_newline_at_either_end() -> None:
    text = "<function=get_weather><parameter=city>\n\n a\n\n</parameter></function>"
    assert json.loads(read(text, "qwen3_coder").tool_calls[0].arguments) == {"city": "\n a\n"}


def test_python_literals_become_json() -> None:
    text = r"""[get_weather("Pa\x72is\n", tags=[None, True, 0x10, 1_000, .5, (1,), {'k': 'it\'s'}, word])]"""
    assert json.loads(read(text, "pythonic").tool_calls[0].arguments) == {
        "city": "Paris\n",
        "tags": [None, True, 16, 1000, 0.5, [1], {"k": "it's"}, "word"],
    }


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3", "glm45", "kimi_k2", "minimax_m2"])
def test_reasoning_and_content_lose_the_newlines_between_them(name: str) -> None:
    answer = read("<think>\nWell.\n</think>\n\n  Yes.\n", reasoning=name)
    assert (answer.reasoning, answer.content) == ("Well.", "  Yes.\n")


def test_reasoning_that_the_template_began() -> None:
    answer = read("Well.</think>Yes.", reasoning="qwen3", starts=True)
    assert (answer.reasoning, answer.content) == ("Well.", "Yes.")


def test_other_marks_of_reasoning() -> None:
    granite = read("Here is my thought process: a\n\nHere is my response: b", reasoning="granite")
    assert (granite.reasoning, granite.content) == ("a", "b")
    mistral = read("[THINK]a[/THINK]b", reasoning="mistral")
    assert (mistral.reasoning, mistral.content) == ("a", "b")
    hunyuan = read("<think>\na\n</think>\n<answer>\nb\n</answer>", reasoning="hunyuan_a13b")
    assert (hunyuan.reasoning, hunyuan.content) == ("a", "b")


def test_a_call_in_the_reasoning_is_reasoning_except_where_it_ends_it() -> None:
    text = f"Hm. {ANSWERS['kimi_k2']}"
    assert len(read(text, "kimi_k2", "kimi_k2", starts=True).tool_calls) == 1
    answer = read(f"Hm. {ANSWERS['hermes']}</think>x", "hermes", "qwen3", starts=True)
    assert (answer.tool_calls, answer.content) == ([], "x")


@pytest.mark.parametrize(("pieces", "expected"), [(["a", "b", "</think>", "c"], 2), (["ab</think>cdcd"], 3)])
def test_tokens_of_the_reasoning_are_counted(pieces: list[str], expected: int) -> None:
    parser = AnswerParser(AnswerSyntax(reasoning_format=reasoning_format("qwen3"), starts_in_reasoning=True))
    for piece in pieces:
        parser.feed(piece, 4 if len(pieces) == 1 else 1)
    parser.finish()
    assert parser.num_reasoning_tokens == expected


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        ("qwen3", "<|im_start|>assistant\n", False),
        ("qwen3", "<|im_start|>assistant\n<think>\n", True),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("deepseek_r1", "<｜Assistant｜>", True),
        ("deepseek_r1", "<｜Assistant｜><think>\n\n</think>", False),
    ],
)
def test_the_prompt_says_where_the_answer_begins(name: str, prompt: str, expected: bool) -> None:
    syntax = answer_syntax(
        tool_format=None, reasoning_format=reasoning_format(name), tools=(), prompt=prompt, added_tokens={}
    )
    assert syntax.starts_in_reasoning is expected


def test_only_markers_are_shown_among_the_special_tokens() -> None:
    syntax = answer_syntax(
        tool_format=tool_format("mistral"),
        reasoning_format=None,
        tools=(WEATHER,),
        prompt="",
        added_tokens={"[TOOL_CALLS]": 5, "[ARGS]": 6, "</s>": 2},
    )
    assert syntax.shown_special_tokens == {"[TOOL_CALLS]", "[ARGS]"}


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="hermes"):
        tool_format("hermess")
    with pytest.raises(ConfigError, match="deepseek_r1"):
        reasoning_format("x")


@pytest.mark.parametrize("unit", ['<tool_call>{"x": "', "<tool_call>", '<tool_call>{"a":[[['])
def test_time_grows_with_the_text_only(unit: str) -> None:
    """CVE-2025-48887: a tool parser that took quadratic time. Ten times the text may take thirty times as long here,
    where quadratic time would be a hundred times."""

    def seconds(count: int) -> float:
        parser = AnswerParser(AnswerSyntax(tool_format("hermes"), reasoning_format("qwen3"), (WEATHER,)))
        begin = time.process_time()
        parser.feed(unit * count)
        parser.finish()
        return time.process_time() - begin

    assert seconds(2000) < 30 * max(min(seconds(200) for _ in range(3)), 1e-4)
