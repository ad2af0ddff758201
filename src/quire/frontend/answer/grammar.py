"""Grammars of whole answers: reasoning, content and calls, as a request wants them."""

import json
from collections.abc import Sequence
from dataclasses import replace

from quire.errors import InvalidRequestError
from quire.frontend.answer.call_grammar import calls_rule
from quire.frontend.answer.formats import PythonCall, ToolFormat
from quire.frontend.answer.lark import TEXT, LarkRules
from quire.frontend.answer.syntax import AnswerSyntax
from quire.frontend.answer.tools import FunctionTool, ToolChoice
from quire.frontend.structured_outputs import lower
from quire.types.structured_outputs import StructuredOutputsParams

_STRUCTURED = "structured"
_NEWLINES = r"/\n{0,2}/"


def answer_grammar(
    syntax: AnswerSyntax,
    tool_choice: ToolChoice,
    *,
    parallel_tool_calls: bool = True,
    structured: StructuredOutputsParams | None = None,
    thinking_token_budget: int | None = None,
) -> str | None:
    """The grammar of an answer, for `StructuredOutputsParams(grammar=...)`; None where the answer is free.

    With tool_choice "required" or "named" the answer is calls and nothing else. With "auto" it is free (or follows
    `structured`) until a call begins; from there on the call's name and arguments follow the tools. Reasoning goes
    before either where the model reasons.

    Args:
        syntax: How the answer will be read.
        tool_choice: Whether the model must call a tool.
        parallel_tool_calls: False allows one call in an answer.
        structured: What the content must look like.
        thinking_token_budget: Tokens of reasoning after which it is made to end; None or -1 for no limit.

    Raises:
        InvalidRequestError: The named tool is not among the tools, or the end of the model's reasoning is not one
            token, so that it cannot be forced.
    """
    budget = None if thinking_token_budget is None or thinking_token_budget < 0 else thinking_token_budget
    tools = _chosen_tools(syntax, tool_choice)
    format = syntax.tool_format if tools else None
    reasons = syntax.reasoning_format is not None
    if format is None and not reasons:
        return None if structured is None else lower(structured, frozenset(syntax.added_tokens))
    if format is None and structured is None and budget is None:
        return None
    rules = LarkRules(syntax.added_tokens)
    side_grammars: list[dict[str, object]] = []
    is_forced = tool_choice.kind in ("required", "named")
    content = "" if is_forced or structured is None else _structured_rule(rules, structured, syntax, side_grammars)
    is_single = not parallel_tool_calls or tool_choice.kind == "named"
    if format is None:
        answer = f"{_NEWLINES} {content}" if content else rules.fresh("content", TEXT)
    elif is_forced:
        answer = f"{_NEWLINES} {_forced_calls(rules, format, tools, is_single=is_single)}"
    else:
        answer = _free_calls(rules, format, tools, content, is_single=is_single)
    rules.rule("start", f"{_reasoning(rules, syntax, budget)} {answer}")
    if not side_grammars:
        return rules.text()
    return json.dumps({"grammars": [{"name": "answer", "lark_grammar": rules.text()}, *side_grammars]})


def _chosen_tools(syntax: AnswerSyntax, tool_choice: ToolChoice) -> tuple[FunctionTool, ...]:
    if tool_choice.kind == "none":
        return ()
    if tool_choice.kind != "named":
        return syntax.tools
    named = tuple(tool for tool in syntax.tools if tool.name == tool_choice.name)
    if not named:
        known = ", ".join(tool.name for tool in syntax.tools)
        raise InvalidRequestError(
            f"tool_choice names {tool_choice.name!r}, which is none of the tools ({known})", param="tool_choice"
        )
    return named


def _reasoning(rules: LarkRules, syntax: AnswerSyntax, budget: int | None) -> str:
    format = syntax.reasoning_format
    if format is None:
        return ""
    if budget is None:
        thoughts = " | ".join(rules.up_to(end, "thought") for end in format.end)
    elif not rules.is_token(format.end[0]):
        raise InvalidRequestError(
            f"thinking_token_budget needs a model for which {format.end[0]!r} is one token",
            param="thinking_token_budget",
        )
    elif budget == 0:
        thoughts = rules.fixed(format.end[0])
    else:
        thoughts = rules.up_to(format.end[0], "thought", f"[max_tokens={budget}]")
    if syntax.starts_in_reasoning:
        return f"({thoughts})"
    return f"({rules.fixed(format.begin[0])} ({thoughts}))?"


def _structured_rule(
    rules: LarkRules,
    structured: StructuredOutputsParams,
    syntax: AnswerSyntax,
    side_grammars: list[dict[str, object]],
) -> str:
    """The name of a rule for content that has a form. Modifies `side_grammars`."""
    lowered = lower(structured, frozenset(syntax.added_tokens))
    if not lowered.lstrip().startswith("{"):
        side_grammars.append({"name": _STRUCTURED, "lark_grammar": lowered})
        return rules.fresh("content", f"@{_STRUCTURED}")
    grammars = json.loads(lowered)["grammars"]
    if len(grammars) == 1 and "json_schema" in grammars[0]:
        return rules.fresh("content", f"%json {json.dumps(grammars[0]['json_schema'])}")
    grammars[0]["name"] = _STRUCTURED
    side_grammars += grammars
    return rules.fresh("content", f"@{_STRUCTURED}")


def _forced_calls(rules: LarkRules, format: ToolFormat, tools: Sequence[FunctionTool], *, is_single: bool) -> str:
    beginnings = [*format.section_begin[:1], format.list_begin, *format.call_begin[:1]]
    return f"{rules.fixed(*beginnings)} {calls_rule(rules, format, tools, is_single=is_single)}"


def _free_calls(
    rules: LarkRules, format: ToolFormat, tools: Sequence[FunctionTool], content: str, *, is_single: bool
) -> str:
    """Content in which a call may begin. With `content` there is nothing before the calls."""
    ways = []
    for marker, rest in _triggers(format):
        calls = calls_rule(rules, rest, tools, is_single=is_single)
        inside = [rest.list_begin, *rest.call_begin[:1]] if marker not in rest.call_begin else [rest.list_begin]
        visible = marker.strip()
        head = rules.fixed(visible) if content else rules.up_to(visible, "head")
        layout = marker[marker.index(visible) + len(visible) :]
        ways.append(f"{head} {rules.fixed(layout, *inside)} {calls} {_NEWLINES}")
    free = content
    if format.is_bare:
        bare = replace(format, section_end="")
        calls = calls_rule(rules, bare, tools, is_single=is_single)
        ways.append(f"{_NEWLINES} {rules.fixed(format.list_begin)} {calls}")
        starts = r"\[" if isinstance(format.call, PythonCall) else r"\[{"
        free = content or f"/\\s*[^\\s{starts}](?s:.*)/ | /\\s*/"
    elif not content:
        free = TEXT
    return f"({' | '.join([free, *ways])})"


def _triggers(format: ToolFormat) -> list[tuple[str, ToolFormat]]:
    """The markers with which calls may begin in free text, each with the format of what follows it."""
    triggers = [(marker, format) for marker in (format.section_begin or format.call_begin)]
    if format.section_begin and format.call_begin:
        triggers.append((format.call_begin[0], replace(format, section_end="")))
    return triggers
