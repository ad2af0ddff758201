"""The input of `/v1/responses` and the messages of `/v1/messages`, on their way to the chat template."""

from typing import Any

import pytest

from quire.entrypoints.http.anthropic import messages as anthropic_messages
from quire.entrypoints.http.anthropic.body import AnthropicToolChoice, MessageParam
from quire.entrypoints.http.anthropic.body import read_tool_choice as read_anthropic_choice
from quire.entrypoints.http.responses.input import read_input, resolve_references, template_messages, with_ids
from quire.entrypoints.http.responses.tools import read_tool_choice
from quire.entrypoints.http.responses.trimming import without_oldest
from quire.errors import InvalidRequestError
from quire.frontend.answer.tools import FunctionTool, ToolChoice

TOOLS = (FunctionTool("weather"), FunctionTool("time"))
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Bern"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
TEMPLATE_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}


def test_a_conversation_of_all_kinds_of_items() -> None:
    items = read_input(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {**CALL, "id": "fc_1", "status": "completed"},
            RESULT,
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
        ]
    )
    assert template_messages(items, "You help.") == [
        {"role": "system", "content": "You help.\n\nBe brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "Hm.",
            "reasoning_content": "Hm.",
            "tool_calls": [TEMPLATE_CALL],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ]


def test_a_text_is_the_message_of_a_user() -> None:
    (item,) = with_ids(read_input("Hello"), "7")
    assert item["id"] == "msg_7-in0"
    assert template_messages([item], None) == [{"role": "user", "content": "Hello"}]


def test_input_without_a_message_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no message"):
        template_messages(read_input([{"type": "reasoning", "summary": []}]), None)


def test_several_calls_are_one_turn_and_those_cut_short_are_left_out() -> None:
    second = {**CALL, "call_id": "c2"}
    broken = {**CALL, "call_id": "c3", "arguments": '{"ci', "status": "incomplete"}
    messages = template_messages(read_input([CALL, second, broken, RESULT]), None)
    assert [message["role"] for message in messages] == ["assistant", "tool"]
    assert [call["id"] for call in messages[0]["tool_calls"]] == ["c1", "c2"]


def test_references_are_resolved() -> None:
    items = read_input([{"type": "item_reference", "id": "fc_9"}, RESULT])
    resolved = resolve_references(items, {"fc_9": CALL})
    assert template_messages(resolved, None)[0]["tool_calls"] == [TEMPLATE_CALL]
    with pytest.raises(InvalidRequestError, match="no item 'fc_9'") as raised:
        resolve_references(items, {})
    assert raised.value.param == "input[0].id"


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], "input"),
        (7, "input"),
        ([7], "input[0]"),
        ([{"type": "web_search_call"}], "input[0].type"),
        ([{"content": "hi"}], "input[0].type"),
        ([{"role": "tool", "content": "hi"}], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ([{**CALL, "arguments": "{"}], "input[0].arguments"),
        ([{**CALL, "name": 7}], "input[0].name"),
        ([{**CALL, "id": ""}], "input[0].id"),
        ([{**RESULT, "output": 7}], "input[0].output"),
        ([{"type": "reasoning", "content": "x"}], "input[0].content"),
        ([{"type": "item_reference"}], "input[0].id"),
    ],
)
def test_malformed_input_is_refused_with_its_path(value: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read_input(value)
    assert raised.value.param == param


def test_an_output_needs_its_call() -> None:
    with pytest.raises(InvalidRequestError, match="no function_call with the call_id 'c1'"):
        template_messages(read_input([RESULT]), None)


@pytest.mark.parametrize(
    ("value", "names", "choice"),
    [
        (None, ("weather", "time"), ToolChoice("auto")),
        ("none", ("weather", "time"), ToolChoice("none")),
        ("required", ("weather", "time"), ToolChoice("required")),
        ({"type": "function", "name": "time"}, ("weather", "time"), ToolChoice("named", "time")),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
            ("time",),
            ToolChoice("required"),
        ),
    ],
)
def test_tool_choices_of_responses(value: Any, names: tuple[str, ...], choice: ToolChoice) -> None:
    tools, read = read_tool_choice(value, TOOLS)
    assert (tuple(tool.name for tool in tools), read) == (names, choice)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("any", "tool_choice"),
        ({"type": "web_search"}, "tool_choice"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "function", "name": "date"}, "tool_choice.name"),
        ({"type": "allowed_tools", "mode": "none", "tools": []}, "tool_choice.mode"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.tools"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "date"}]}, "tool_choice.tools[0].name"),
    ],
)
def test_malformed_tool_choices_are_refused(value: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read_tool_choice(value, TOOLS)
    assert raised.value.param == param


def test_without_tools_only_auto_and_none_pass() -> None:
    assert read_tool_choice("auto", ())[1] == read_tool_choice(None, ())[1] == ToolChoice("none")
    with pytest.raises(InvalidRequestError, match="needs tools"):
        read_tool_choice("required", ())


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice("auto")),
        ({"type": "auto"}, ToolChoice("auto")),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "tool", "name": "time"}, ToolChoice("named", "time")),
    ],
)
def test_tool_choices_of_messages(choice: dict[str, str] | None, expected: ToolChoice) -> None:
    given = None if choice is None else AnthropicToolChoice.model_validate(choice)
    assert read_anthropic_choice(given, TOOLS) == expected


def messages_of(*turns: tuple[str, Any], system: Any = None) -> list[dict[str, Any]]:
    return anthropic_messages.template_messages(
        system, [MessageParam.model_validate({"role": role, "content": content}) for role, content in turns]
    )


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


USE = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bern"}}


def test_messages_of_all_kinds_of_blocks() -> None:
    document = {"type": "document", "title": "Map", "source": {"type": "text", "media_type": "text/plain", "data": "N"}}
    answer = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, text("Let me see."), USE]
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [text("sunny")]}
    assert messages_of(
        ("user", "Weather?"),
        ("user", [document]),
        ("assistant", [{"type": "redacted_thinking", "data": "x"}, *answer]),
        ("user", [result, text("So?")]),
        system=[text("x-anthropic-billing-header: cc_version=1"), text("You help.")],
    ) == [
        {"role": "system", "content": [text("You help.")]},
        {"role": "user", "content": [text("Weather?"), text("Map\nN")]},
        {
            "role": "assistant",
            "content": [text("Let me see.")],
            "reasoning": "Hm.",
            "reasoning_content": "Hm.",
            "tool_calls": [TEMPLATE_CALL],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
        {"role": "user", "content": [text("So?")]},
    ]


def test_a_failed_tool_says_so() -> None:
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "no such city", "is_error": True}
    assert messages_of(("assistant", [USE]), ("user", [result]))[1]["content"] == "Error: no such city"


def test_an_answer_that_has_begun_is_continued() -> None:
    assert anthropic_messages.continues_answer(messages_of(("user", "Go"), ("assistant", "It is")))
    assert not anthropic_messages.continues_answer(messages_of(("assistant", "It is"), ("user", "Go")))
    with pytest.raises(InvalidRequestError, match="calls tools"):
        anthropic_messages.continues_answer(messages_of(("user", "Go"), ("assistant", [USE])))


@pytest.mark.parametrize(
    ("role", "content", "param"),
    [
        ("user", 7, "messages[0].content"),
        ("user", [], "messages"),
        ("user", ["hi"], "messages[0].content[0].type"),
        ("user", [{"type": "image", "source": {}}], "messages[0].content[0].type"),
        ("user", [USE], "messages[0].content[0].type"),
        ("user", [{"type": "text"}], "messages[0].content[0].text"),
        ("user", [{"type": "document", "source": {"type": "url"}}], "messages[0].content[0].source.type"),
        ("user", [{"type": "tool_result", "tool_use_id": "c1"}], "messages[0].content[0].tool_use_id"),
        ("assistant", [{**USE, "input": "{}"}], "messages[0].content[0].input"),
        ("assistant", [{"type": "thinking"}], "messages[0].content[0].thinking"),
    ],
)
def test_malformed_blocks_are_refused_with_their_path(role: str, content: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        messages_of((role, content))
    assert raised.value.param == param


def test_trimming_keeps_the_system_message_the_last_one_and_whole_calls() -> None:
    roles = ["system", "user", "assistant", "tool", "user"]
    messages = [{"role": role, "content": str(index)} for index, role in enumerate(roles)]
    kept = [[message["content"] for message in without_oldest(messages, number)] for number in range(1, 6)]
    assert kept == [["0", "2", "3", "4"], ["0", "4"], ["0", "4"], ["0", "4"], ["0", "4"]]
