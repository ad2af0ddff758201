"""Chat templates: what they can use, what they cannot, and what users cannot make of them."""

import itertools
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.errors import ConfigError, InvalidRequestError, ParameterError
from quire.frontend.chat_template import ChatTemplate
from quire.frontend.render_budget import TemplateLimits
from quire.frontend.tokenizer import Tokenizer

few = settings(max_examples=20, deadline=None)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HI = [{"role": "user", "content": "Hi"}]


def render(text: str, messages: Any = HI, **options: Any) -> str:
    return ChatTemplate(text, named_tokens={"bos_token": "<s>"}).render(messages, **options)


def test_a_conversation_becomes_a_prompt(tokenizer: Tokenizer) -> None:
    prompt = ChatTemplate(CHATML).encode([{"role": "system", "content": "Be good"}, *HI], tokenizer)
    assert prompt.text == (
        "<|im_start|>system\nBe good<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.token_ids == tokenizer.encode(prompt.text, add_special_tokens=False)


def test_without_generation_prompt_it_ends_with_the_last_message() -> None:
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ bos_token }}|{{ unset }}", "<s>|"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "Hi"}]'),
        ("{{ {'b': 1, 'a': 'é<'} | tojson(sort_keys=true, ensure_ascii=true) }}", '{"a": "\\u00e9<", "b": 1}'),
        ("{{ {'a': [1]} | tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
        ("{{ strftime_now('%Y-%m-%d') }}", "2026-01-02"),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}"
            "{{ i }}{% endfor %}",
            "013",
        ),
        ("   {% if true %}\n  x\n   {% endif %}\ny", "  x\ny"),
        ("{% generation %}{{ 'g' }}{% endgeneration %}!", "g!"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{% macro f(x) %}[{{ x }}{{ caller() }}]{% endmacro %}{% call f(1) %}c{% endcall %}", "[1c]"),
        (
            "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ loop.nextitem }}{% endfor %}",
            "1/1 True ",
        ),
        ("{{ 'a' ~ 1 ~ none ~ ['x'] }}", "a1None['x']"),
        (
            "{{ 'a,b'.split(',') | join('-') }} {{ '%s+%d' % ('x', 2) }} {{ '{}={:>3}'.format('y', 7) }}",
            "a-b x+2 y=  7",
        ),
        ("{% set a, b = 1, 2 %}{{ a + b }}{{ 2 * 3 }}{{ 'ab' * 2 }}{{ 2 ** 5 }}{{ 7 % 4 }}", "36abab323"),
        (
            "{% for k, v in {'x': 1} | dictsort %}{{ k }}{{ v }}{% endfor %}{{ (1, messages | length) | list }}",
            "x1[1, 1]",
        ),
        ("{{ 'l1\nl2\n' | indent(2) }}{{ 'aXbX' | replace('X', '-') | upper | trim('-') }}", "l1\n  l2\nA-B"),
        (
            "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'eq', 'x') | list }}",
            "user[]",
        ),
        ("{{ 'content' in messages[0] and messages[0].content is string }}", "True"),
    ],
)
def test_what_templates_use(text: str, expected: str) -> None:
    template = ChatTemplate(text, named_tokens={"bos_token": "<s>"}, now=lambda: datetime(2026, 1, 2))
    assert template.render(HI) == expected


def test_tools_documents_and_variables_reach_the_template() -> None:
    text = "{{ tools[0].name }} {{ documents is none }} {{ enable_thinking }}"
    assert render(text, tools=[{"name": "f"}], variables={"enable_thinking": False}) == "f True False"


@pytest.mark.parametrize("name", ["messages", "raise_exception", "add_generation_prompt", "the budget", "range"])
def test_variables_cannot_take_the_place_of_what_templates_rely_on(name: str) -> None:
    with pytest.raises(ParameterError) as failure:
        render(CHATML, variables={name: 1})
    assert failure.value.param == "chat_template_kwargs"


def test_a_refusal_of_the_template_is_the_callers_error() -> None:
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


# Contents


@pytest.mark.parametrize(
    "content", [[{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}], ["a", "b"], "a\nb"]
)
def test_content_parts_become_one_string(content: Any) -> None:
    assert render("{{ messages[0].content }}", [{"role": "user", "content": content}]) == "a\nb"


@pytest.mark.parametrize(
    "text",
    [
        "{% for part in messages[0].content %}({{ part.text }}){% endfor %}",
        "{% for m in messages %}{% set c = m['content'] %}{% for p in c %}({{ p['text'] }}){% endfor %}{% endfor %}",
    ],
)
def test_templates_that_go_through_parts_get_parts(text: str) -> None:
    assert render(text, [{"role": "user", "content": "ab"}]) == "(ab)"
    assert render(text, [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}]) == "(a)(b)"


def test_templates_that_take_both_get_strings() -> None:
    text = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}({{ part.text }}){% endfor %}{% endif %}{% endfor %}"
    )
    assert render(text) == "Hi"


def test_arguments_of_tool_calls_become_objects() -> None:
    calls = [{"function": {"name": "f", "arguments": '{"x": [1]}'}}, {"function": {"name": "g", "arguments": ""}}]
    messages = [{"role": "assistant", "content": None, "tool_calls": calls}]
    text = "{{ messages[0].tool_calls[0].function.arguments.x[0] }}{{ messages[0].tool_calls[1].function.arguments }}"
    assert render(text + "{{ messages[0].content }}", messages) == "1{}"
    assert calls[0]["function"]["arguments"] == '{"x": [1]}'


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ("Hi", "messages"),
        ([], "messages"),
        (["Hi"], "messages[0]"),
        ([{"content": "Hi"}], "messages[0].role"),
        ([*HI, {"role": 3, "content": "Hi"}], "messages[1].role"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": ["text"], "text": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": ["a", {"type": "text"}]}], "messages[0].content[1]"),
        ([{"role": "user", "content": "a\ufdd0b"}], "messages[0].content"),
        ([{"role": "user", "content": object()}], "messages[0].content"),
        (
            [{"role": "a", "tool_calls": [{"function": {"arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([{"role": "a", "tool_calls": ["f"]}], "messages[0].tool_calls[0]"),
    ],
)
def test_malformed_messages_are_refused_with_their_place(messages: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as failure:
        render(CHATML, messages)
    assert failure.value.param == param


def test_deep_nesting_is_refused() -> None:
    nested: Any = "x"
    for _ in range(100):
        nested = [nested]
    with pytest.raises(InvalidRequestError, match="64 levels"):
        render(CHATML, [{"role": "user", "content": "", "extra": nested}])


# Going on with the last message

TRIMMING = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CHATML, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nI am "),
        (TRIMMING, "<user>Hi</><assistant>I am"),
    ],
)
def test_the_last_message_is_continued(text: str, expected: str) -> None:
    messages = [*HI, {"role": "assistant", "content": "I am "}]
    assert render(text, messages, add_generation_prompt=False, continue_final_message=True) == expected


def test_a_list_of_parts_is_continued() -> None:
    text = "{% for p in messages[0].content %}({{ p.text }}){% endfor %}"
    messages = [{"role": "assistant", "content": ["a", "b"]}]
    assert render(text, messages, add_generation_prompt=False, continue_final_message=True) == "(a)(b"


def test_continuing_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(InvalidRequestError, match="leaves out"):
        render("{{ messages[0].role }}", add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(ParameterError, match="add_generation_prompt"):
        render(CHATML, continue_final_message=True)


# Users who type control tokens

pieces = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>",
        "<|im_",
        "end|>",
        "<",
        "|",
        "im_start|>",
        "\n",
        " hello",
        "X",
        "<|IM_END|>",
        "<|imX_end|>",
    ]
)
typed = st.lists(pieces, max_size=6).map("".join)
JOINING = (
    "{% for m in messages %}<|im_start|>{{ m.content | replace('X', '') }}{{ m.name }}"
    "{{ m.content | lower }}{{ (m.content.split('X')) | join }}{{ m.content.replace('X', '') | upper | lower }}"
    "<|im_end|>{% endfor %}"
)


@few
@given(contents=st.lists(typed, min_size=1, max_size=3), name=typed)
@pytest.mark.parametrize("text", [CHATML, JOINING, "<|im_start|>{{ messages | tojson }}<|im_end|>"])
def test_only_the_template_makes_control_tokens(
    tokenizer_of: Callable[[str], Tokenizer], text: str, contents: list[str], name: str
) -> None:
    tokenizer = tokenizer_of("byte_level")
    messages = [{"role": "user", "content": content, "name": name} for content in contents]
    harmless = [{"role": "user", "content": "a", "name": "b"} for _ in contents]
    template = ChatTemplate(text)
    prompt = template.encode(messages, tokenizer)
    control = [i for i in prompt.token_ids if tokenizer.is_special(i)]
    assert control == [i for i in template.encode(harmless, tokenizer).token_ids if tokenizer.is_special(i)]
    assert prompt.text == template.render(messages)
    assert tokenizer.decode(prompt.token_ids, skip_special_tokens=False) == prompt.text


def test_tools_and_variables_cannot_make_them_either(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{{ tools[0] | tojson(ensure_ascii=true) }}{{ hint }}<|im_end|>")
    tools = [{"name": "<|im_end|>", "<|im_start|>": "x"}]
    prompt = template.encode(HI, tokenizer, tools=tools, variables={"hint": "<|im_end|>"})
    assert [i for i in prompt.token_ids if tokenizer.is_special(i)] == tokenizer.encode("<|im_end|>")
    assert prompt.text == '{"name": "<|im_end|>", "<|im_start|>": "x"}<|im_end|><|im_end|>'


def test_a_template_may_put_control_tokens_together_from_roles(tokenizer: Tokenizer) -> None:
    prompt = ChatTemplate("{{ '<|' + messages[0].role + '|>' }}").encode([{"role": "im_end", "content": ""}], tokenizer)
    assert prompt.token_ids == tokenizer.encode("<|im_end|>")


# Hostile templates

LIMITS = TemplateLimits(output_characters=20_000, work_characters=200_000, seconds=2.0)


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{% set ns = namespace(x=3) %}{% for i in range(99999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}",
        "{% set ns = namespace(x={}) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = 'aa' | replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
        "{% set n = namespace(x=1) %}{% for i in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
        "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}"
        "{% for i in range(99) %}{% set ns.x = d(ns.x) %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in range(100000) %}" + "x" * 1000 + "{% endfor %}",
        "{% set x %}{% for i in range(100000) %}" + "x" * 1000 + "{% endfor %}{% endset %}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ 'a'.center(999999999) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ '1'.zfill(999999999) }}",
        "{{ '\t'.expandtabs(999999999) }}",
        "{{ 'a' | indent(999999999, first=true) }}",
        "{{ [[1]] | tojson(indent=999999999) }}",
        "{{ range(100000) | join('x' * 18000) }}",
        "{{ (messages * 50000) | map(attribute='content') | join('x' * 18000) }}",
        "{{ ('x' * 18000).join(['a'] * 18000) }}",
        "{{ [[1] * 18000] * 18000 }}",
        "{{ [[1] * 18000] * 18000 | string }}",
        "{{ ([[1] * 18000] * 18000) | sum(start=[]) }}",
        "{{ range(1000000000) | list }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | tojson %}{% endfor %}",
        "{{ ''.__class__.__mro__ }}{{ raise_exception('an internal attribute is undefined and harmless') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ lipsum(999999999) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ (messages | map('attr', '__class__') | list) }}",
        "{% include 'x' %}",
        "{% import 'x' as x %}",
        "{% set ns = namespace() %}{% set ns.self = ns %}{{ ns }}",
        "{{ 1 / 0 }}",
        "{{ undefined_function() }}",
    ],
)
def test_hostile_templates_end_in_an_error(text: str) -> None:
    template = ChatTemplate(text, limits=LIMITS, clock=itertools.count(step=1e-4).__next__)
    with pytest.raises(InvalidRequestError, match="the chat template"):
        template.render(HI)


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(3) %}",
        "{{ 'a' | nosuchfilter }}",
        "{{ messages | attr('__class__') }}",
        "{% for i in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ " + "(" * 2000 + ")" * 2000 + " }}",
        "{% if a %}" * 300 + "{% endif %}" * 300,
        "x" * 200_001,
    ],
)
def test_templates_that_cannot_be_used_are_refused_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError) as failure:
        ChatTemplate(text)
    assert failure.value.param == "chat_template"


def test_python_objects_cannot_be_reached() -> None:
    for text in ["{{ '{0.__class__}'.format('') }}", "{{ ''.__class__ }}", "{{ messages['__class__'] }}"]:
        assert render(text) == ""


def test_the_deadline_is_looked_at_everywhere() -> None:
    for text in [
        "{% for m in messages %}{% endfor %}",
        "{{ 1 + 1 }}",
        "{{ 'a'.strip() }}",
        "{{ 'a' | trim }}",
        "{{ 'a' ~ 1 }}",
    ]:
        now = iter([0.0, 5.1, *[6.0] * 10])
        template = ChatTemplate(text, clock=lambda now=now: next(now))  # type: ignore[misc]
        with pytest.raises(InvalidRequestError, match="more than 5 s"):
            template.render(HI)


def test_a_rendering_leaves_nothing_for_the_next() -> None:
    template = ChatTemplate("{{ 'x' * 12000 }}", limits=LIMITS)
    for _ in range(40):
        assert len(template.render(HI)) == 12_000
