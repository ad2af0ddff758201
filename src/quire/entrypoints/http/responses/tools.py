"""The tools of `/v1/responses`, and whether one must be called."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import WithJsonSchema

from quire.entrypoints.http.tool_fields import (
    MAX_TOOLS,
    TOOL_NAME_PATTERN,
    FunctionDefinition,
    check_tools,
    named_choice,
)
from quire.errors import InvalidRequestError, ParameterError
from quire.frontend.answer.tools import FunctionTool, ToolChoice

_NO_SERVER_TOOLS = "no tools run on this server: describe functions in tools, and call them in your application"


class ResponsesTool(FunctionDefinition):
    """A function that the model may call."""

    type: Literal["function"]


_NAMED = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {"type": {"const": "function"}, "name": {"type": "string", "pattern": TOOL_NAME_PATTERN}},
}
ResponsesToolChoice = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                _NAMED,
                {
                    "type": "object",
                    "required": ["type", "mode", "tools"],
                    "properties": {
                        "type": {"const": "allowed_tools"},
                        "mode": {"enum": ["auto", "required"]},
                        "tools": {"type": "array", "minItems": 1, "maxItems": MAX_TOOLS, "items": _NAMED},
                    },
                },
                {"type": "null"},
            ]
        }
    ),
]


def function_tools(definitions: Sequence[ResponsesTool] | None) -> tuple[FunctionTool, ...]:
    """The tools of a request.

    Raises:
        InvalidRequestError: A name twice, or schemas that are too large or too deep.
    """
    tools = tuple(
        FunctionTool(tool.name, tool.description, tool.parameters or {}, tool.strict is not False)
        for tool in definitions or ()
    )
    check_tools(tools, [f"tools[{index}]" for index in range(len(tools))])
    return tools


def read_tool_choice(
    value: Any, tools: tuple[FunctionTool, ...], *, path: str = "tool_choice"
) -> tuple[tuple[FunctionTool, ...], ToolChoice]:
    """The tools that may be called, and whether one must be; left out, the model decides where there are tools.

    Raises:
        InvalidRequestError: It is malformed, names no tool, or there are no tools.
    """
    if value is None:
        return tools, ToolChoice("auto" if tools else "none")
    if value == "none":
        return tools, ToolChoice("none")
    kind = value.get("type") if isinstance(value, Mapping) else None
    if value not in ("auto", "required") and kind not in ("function", "allowed_tools"):
        rule = '"none", "auto", "required", {"type": "function", "name": ...} or a choice of allowed_tools'
        raise ParameterError(path, rule, value, hint=_NO_SERVER_TOOLS if kind else None)
    if not tools:
        if value == "auto":
            return tools, ToolChoice("none")
        raise InvalidRequestError("tool_choice needs tools", hint="send tools, or leave it out", param=path)
    if kind == "function":
        return tools, named_choice(_name(value, path), tools, f"{path}.name")
    if kind == "allowed_tools":
        return _allowed_tools(value, tools, path)
    return tools, ToolChoice(value)


def _allowed_tools(
    value: Mapping[str, Any], tools: tuple[FunctionTool, ...], path: str
) -> tuple[tuple[FunctionTool, ...], ToolChoice]:
    mode, listed = value.get("mode"), value.get("tools")
    if mode not in ("auto", "required"):
        raise ParameterError(f"{path}.mode", '"auto" or "required"', mode)
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_TOOLS:
        raise ParameterError(f"{path}.tools", f"a list of 1 to {MAX_TOOLS} tools", listed)
    names = set()
    for index, entry in enumerate(listed):
        where = f"{path}.tools[{index}]"
        names.add(named_choice(_name(entry, where), tools, f"{where}.name").name)
    return tuple(tool for tool in tools if tool.name in names), ToolChoice(mode)


def _name(holder: Any, path: str) -> str:
    name = holder.get("name") if isinstance(holder, Mapping) else None
    if not isinstance(name, str):
        raise ParameterError(f"{path}.name", "the name of a tool", name)
    return name
