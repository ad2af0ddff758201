"""Grammars of calls, from the descriptions that the parser reads them by."""

from collections.abc import Mapping, Sequence
from typing import Any

from quire.frontend.answer.argument_types import ANY_TYPE, STRING, argument_types
from quire.frontend.answer.formats import JsonCall, NamedCall, TaggedCall, ToolFormat
from quire.frontend.answer.lark import LarkRules, placed_schema
from quire.frontend.answer.tools import FunctionTool
from quire.frontend.structured_outputs import terminal

MAX_CALLS = 64
"""In one answer: what a model that does not know when to stop may write."""

_NOT_STRING = frozenset({"number", "boolean", "null", "array", "object"})
_PYTHON_WORDS = {"boolean": '("True" | "False")', "null": '"None"'}


def calls_rule(rules: LarkRules, format: ToolFormat, tools: Sequence[FunctionTool], *, is_single: bool) -> str:
    """The name of a rule for one or more calls with all that stands around them, from the list's beginning on.

    What stands before the first call (`section_begin`, `call_begin`) is left to the caller, since free text may end
    with it. With `is_single` there is one call and no more.
    """
    call = rules.fresh("call", f"{call_body(rules, format, tools)} {rules.fixed(format.call_end)}")
    begin = format.call_begin[0] if format.call_begin else ""
    more = "" if is_single else f"({rules.fixed(format.separator, begin)} {call}){{0,{MAX_CALLS - 1}}}"
    ending = rules.fixed(format.list_end, format.section_end)
    return rules.fresh("calls", f"{call} {more} {ending}")


def call_body(rules: LarkRules, format: ToolFormat, tools: Sequence[FunctionTool]) -> str:
    """The name of a rule for one call between `call_begin` and `call_end`."""
    shape = format.call
    if isinstance(shape, JsonCall):
        return rules.fresh("body", _json_body(rules, shape, tools))
    bodies = [_body(rules, format, tool) for tool in tools]
    return rules.fresh("body", " | ".join(bodies))


def _json_body(rules: LarkRules, shape: JsonCall, tools: Sequence[FunctionTool]) -> str:
    name, arguments = shape.name_keys[0], shape.arguments_keys[0]
    places = [f"tool{index}" for index in range(len(tools))]
    calls = [
        {
            "type": "object",
            "properties": {name: {"const": tool.name}, arguments: {"$ref": f"#/$defs/{place}"}},
            "required": [name, arguments],
            "additionalProperties": False,
        }
        for tool, place in zip(tools, places, strict=True)
    ]
    schemas = {
        place: placed_schema(tool.parameters, f"#/$defs/{place}") for tool, place in zip(tools, places, strict=True)
    }
    return rules.json({"anyOf": calls, "$defs": schemas})


def _body(rules: LarkRules, format: ToolFormat, tool: FunctionTool) -> str:
    match format.call:
        case NamedCall() as shape:
            return rules.fresh("named", _named_body(rules, shape, tool))
        case TaggedCall() as shape:
            return rules.fresh("tagged", _tagged_body(rules, format, shape, tool))
        case _:
            return rules.fresh("python", _python_body(rules, tool))


def _named_body(rules: LarkRules, shape: NamedCall, tool: FunctionTool) -> str:
    arguments = rules.json({"$ref": "#/$defs/tool", "$defs": {"tool": placed_schema(tool.parameters, "#/$defs/tool")}})
    if shape.has_numbers:
        name = f"{rules.fixed(f'functions.{tool.name}:')} /[0-9]{{1,4}}/"
    else:
        name = rules.fixed(shape.before_name, tool.name)
    return f"{name} {rules.fixed(shape.after_name)} {arguments} {rules.fixed(shape.after_arguments)}"


def _tagged_body(rules: LarkRules, format: ToolFormat, shape: TaggedCall, tool: FunctionTool) -> str:
    quote = shape.quote
    arguments = [
        f"({argument})" + ("" if key in _required(tool) else "?")
        for key in _properties(tool)
        for argument in [" | ".join(_tagged_argument(rules, format, shape, tool, key))]
    ]
    head = rules.fixed(shape.before_name, f"{quote}{tool.name}{quote}{shape.after_name}")
    return " ".join([head, *arguments])


def _tagged_argument(
    rules: LarkRules, format: ToolFormat, shape: TaggedCall, tool: FunctionTool, key: str
) -> list[str]:
    """The ways to write an argument: as text, as JSON or as either."""
    types = argument_types(tool, key)
    schema = _properties(tool)[key]
    ways = []
    if types & STRING or not types:
        choices = schema.get("enum") if isinstance(schema, Mapping) and types == STRING else None
        if isinstance(choices, list):
            value = f"({' | '.join(terminal(str(choice)) for choice in choices)}) {rules.fixed(shape.value_end)}"
        else:
            ends = [shape.value_end.strip(), shape.argument_begin, *format.boundaries]
            value = rules.text_without(ends, shape.value_end)
        ways.append(f"{_argument_head(rules, shape, key, is_string=True)} {value}")
    if types != STRING and (types or shape.attribute):
        others = types - STRING or _NOT_STRING
        value = rules.json(_argument_schema(tool, key, others if others != types else ANY_TYPE))
        ways.append(f"{_argument_head(rules, shape, key, is_string=False)} {value} {rules.fixed(shape.value_end)}")
    return ways


def _argument_head(rules: LarkRules, shape: TaggedCall, key: str, *, is_string: bool) -> str:
    attribute = shape.attribute.format("true" if is_string else "false")
    return rules.fixed(f"{shape.argument_begin}{shape.quote}{key}{shape.quote}{attribute}{shape.value_begin}")


def _argument_schema(tool: FunctionTool, key: str, types: frozenset[str] = ANY_TYPE) -> dict[str, Any]:
    """The schema of one argument; of those types only, where some are given."""
    place = {"$ref": f"#/$defs/tool/properties/{_escaped(key)}"}
    schemas = {"$defs": {"tool": placed_schema(tool.parameters, "#/$defs/tool")}}
    return {"allOf": [place, {"type": sorted(types)}], **schemas} if types else {**place, **schemas}


def _python_body(rules: LarkRules, tool: FunctionTool) -> str:
    """`name(a=1, b=2)`, with the arguments in the schema's order; those that are not required may be left out."""
    required = _required(tool)
    following = ""
    firsts: list[str] = []
    may_be_empty = True
    # From the last argument to the first: what may come behind another argument, and what may come first.
    for key in reversed(list(_properties(tool))):
        argument = rules.fresh("argument", f"{terminal(f'{key}=')} {_python_value(rules, tool, key)}")
        first = f"{argument} {following}"
        firsts = [first] if key in required else [first, *firsts]
        may_be_empty = may_be_empty and key not in required
        optional = "" if key in required else "?"
        following = rules.fresh("following", f'(", " {argument}){optional} {following}')
    inside = f"({' | '.join(firsts)}){'?' if may_be_empty else ''}" if firsts else ""
    return f"{terminal(f'{tool.name}(')} {inside} {terminal(')')}"


def _python_value(rules: LarkRules, tool: FunctionTool, key: str) -> str:
    types = argument_types(tool, key)
    words = [_PYTHON_WORDS[each] for each in sorted(types) if each in _PYTHON_WORDS]
    if types and types <= _PYTHON_WORDS.keys():
        return f"({' | '.join(words)})"
    return f"({' | '.join([rules.json(_argument_schema(tool, key)), *words])})"


def _properties(tool: FunctionTool) -> Mapping[str, Any]:
    properties = tool.parameters.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _required(tool: FunctionTool) -> Sequence[str]:
    required = tool.parameters.get("required")
    return required if isinstance(required, list) else []


def _escaped(key: str) -> str:
    """A key as a part of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")
