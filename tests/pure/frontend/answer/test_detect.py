"""The formats of models, by what their templates say."""

import pytest

from quire.frontend.answer.detect import detect_formats

FRAGMENTS = [
    ('<tool_call>\\n{"name": <function-name>, "arguments": <args>}\\n</tool_call>', "hermes"),
    ("<tool_call>\\n<function=example_function_name>\\n<parameter=p>", "qwen3_coder"),
    ('{{- "<|python_tag|>" + tool_call.name }}', "llama3_json"),
    ("{{- '<|python_start|>' }}[{{ call }}]<|python_end|>", "llama4_pythonic"),
    ('{{- "[TOOL_CALLS]" }}', "mistral"),
    ("'<｜tool▁call▁begin｜>' + 'function' + '<｜tool▁sep｜>' + name + '\\n' + '```json'", "deepseek_v3"),
    ("'<｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>' + arguments", "deepseek_v31"),
    ('<|tool_call|>[{"name": ...}]', "granite"),
    ("<|tool_calls_section_begin|><|tool_call_begin|>", "kimi_k2"),
    ("<tool_call>{function-name}\\n<arg_key>{arg-key-1}</arg_key>\\n<arg_value>", "glm45"),
    ("<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>", "glm47"),
    ('<minimax:tool_call>\\n<invoke name="tool-name">', "minimax_m2"),
    ("<seed:tool_call>\\n<function=name>", "seed_oss"),
    ('functools[{"name": ...}]', "phi4_mini"),
    ("<｜DSML｜function_calls>", "deepseek_v32"),
    ("<function_calls></function_calls>", "olmo3"),
    ('<tool_calls>[{"name": ...}]</tool_calls>', "hunyuan_a13b"),
    ("{% for message in messages %}{{ '<|im_start|>' + message['role'] }}{% endfor %}", None),
]


@pytest.mark.parametrize(("template", "name"), FRAGMENTS)
def test_the_tool_format_shows_in_the_template(template: str, name: str | None) -> None:
    assert detect_formats(template)[0] == name


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<think>\\n\\n</think>\\n\\n' }}", "qwen3"),
        ("[THINK] your thoughts [/THINK]", "mistral"),
        ("Respond ... 'Here is my thought process:' ... 'Here is my response:'", "granite"),
        ("<seed:think></seed:think>", "seed_oss"),
        ("<minimax:tool_call>{% if '</think>' in content %}", "minimax_m2"),
        ("no thoughts", None),
    ],
)
def test_the_reasoning_format_shows_in_the_template(template: str, name: str | None) -> None:
    assert detect_formats(template)[1] == name


def test_a_model_without_a_template_has_no_formats() -> None:
    assert detect_formats(None) == detect_formats("") == (None, None)
