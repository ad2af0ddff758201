"""Which formats a model uses, from its chat template."""

from quire.frontend.answer.formats import ReasoningFormat

_TOOL_MARKERS = (
    ("<｜DSML｜tool_calls>", "deepseek_v4"),
    ("<｜DSML｜", "deepseek_v32"),
    ("<｜tool_calls_begin｜>", "step3"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<seed:tool_call>", "seed_oss"),
    ("<longcat_tool_call>", "longcat"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|action_start|><|plugin|>", "internlm"),
    ("<|tool_call_start|>", "lfm2"),
    ("<|python_start|>", "llama4_pythonic"),
    ("<|python_tag|>", "llama3_json"),
    ("functools[", "phi4_mini"),
    ("<function_calls>", "olmo3"),
    ("<|tool_call|>", "granite"),
    ("<function_call>", "granite-20b-fc"),
    ("<function=", "qwen3_coder"),
    ("<tool_calls>", "hunyuan_a13b"),
)
"""The first marker that stands in a template decides."""

_REASONING_MARKERS = (
    ("<seed:think>", "seed_oss"),
    ("[THINK]", "mistral"),
    ("Here is my thought process:", "granite"),
)


def detect_formats(chat_template: str | None) -> tuple[str | None, str | None]:
    """Names of the tool and the reasoning format whose markers stand in a template; None where there is none."""
    if not chat_template:
        return None, None
    tools = _detect_tools(chat_template)
    return tools, _detect_reasoning(chat_template, tools)


def starts_in_reasoning(format: ReasoningFormat | None, prompt: str) -> bool:
    """Whether the answer to a rendered prompt begins inside the reasoning.

    True where the prompt ends with the marker that begins it (the template wrote it), and for formats whose models
    begin to think without any marker, unless the prompt ends with a closed, empty reasoning.
    """
    if format is None:
        return False
    # Only the end is read: the prompt may be long.
    tail = prompt[-_MAX_TAIL_CHARACTERS:].rstrip()
    if tail.endswith(format.begin):
        return True
    return format.begins_unmarked and not tail.endswith(format.end)


_MAX_TAIL_CHARACTERS = 256


def _detect_tools(template: str) -> str | None:
    for marker, name in _TOOL_MARKERS:
        if marker in template:
            return name
    if "<｜tool▁call▁begin｜>" in template:
        return "deepseek_v3" if "```json" in template else "deepseek_v31"
    if "<arg_key>" in template:
        return "glm45" if "\n<arg_key>" in template.replace("\\n", "\n") else "glm47"
    return "hermes" if "<tool_call>" in template else None


def _detect_reasoning(template: str, tools: str | None) -> str | None:
    for marker, name in _REASONING_MARKERS:
        if marker in template:
            return name
    if "</think>" not in template:
        return None
    if "<answer>" in template and tools == "hunyuan_a13b":
        return "hunyuan_a13b"
    by_tools = {
        "minimax_m2": "minimax_m2",
        "kimi_k2": "kimi_k2",
        "glm45": "glm45",
        "glm47": "glm45",
        "step3": "step3",
        "deepseek_v3": "deepseek_v3",
        "deepseek_v31": "deepseek_v3",
        "deepseek_v32": "deepseek_v3",
        "deepseek_v4": "deepseek_v3",
    }
    return by_tools.get(tools or "", "qwen3")
