"""The fields of a chat about tools: what the model may call, and whether it must."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from quire.errors import InvalidRequestError, ParameterError
from quire.frontend.answer.tools import FunctionTool, ToolChoice
from quire.types.structured_outputs import nesting_depth

MAX_TOOLS = 512
MAX_TOOL_SCHEMA_DEPTH = 48
MAX_TOOLS_CHARACTERS = 196_608
"""Of all tools together, as JSON: they become part of the prompt and of one grammar."""

TOOL_NAME_PATTERN = r"^[a-zA-Z0-9_.-]{1,128}$"

_CHOICES = ("none", "auto", "required")
_CHOICE_RULE = (
    'one of "none", "auto", "required", or {"type": "function", "function": {"name": ...}} with the name of a tool'
)


class FunctionDefinition(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    name: Annotated[str, Field(pattern=TOOL_NAME_PATTERN)]
    description: Annotated[str, Field(max_length=65_536)] | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments.")
    strict: bool | None = Field(None, description="Arguments always follow the schema; accepted for compatibility.")


class ToolDefinition(BaseModel):
    """A tool; functions are the only kind."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    type: Literal["function"]
    function: FunctionDefinition


Tools = Annotated[list[ToolDefinition], Field(min_length=1, max_length=MAX_TOOLS)]

ToolChoiceValue = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": [*_CHOICES]},
                {
                    "type": "object",
                    "required": ["type", "function"],
                    "properties": {
                        "type": {"const": "function"},
                        "function": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string", "pattern": TOOL_NAME_PATTERN}},
                        },
                    },
                },
                {"type": "null"},
            ]
        }
    ),
]


def function_tools(definitions: Sequence[ToolDefinition] | None) -> tuple[FunctionTool, ...]:
    """The tools of a request.

    Raises:
        InvalidRequestError: A name twice, or schemas that are too large or too deep.
    """
    functions = [definition.function for definition in definitions or ()]
    tools = tuple(
        FunctionTool(function.name, function.description, function.parameters or {}, bool(function.strict))
        for function in functions
    )
    check_tools(tools, [f"tools[{index}].function" for index in range(len(tools))])
    return tools


def check_tools(tools: Sequence[FunctionTool], paths: Sequence[str]) -> None:
    """Checks tools together; their names and number have been checked.

    Args:
        tools: All tools of a request.
        paths: Where each stands in the request.

    Raises:
        InvalidRequestError: A name twice, or schemas that are too large or too deep.
    """
    seen: set[str] = set()
    num_characters = 0
    for tool, path in zip(tools, paths, strict=True):
        if tool.name in seen:
            raise InvalidRequestError(f"two tools have the name {tool.name!r}", param=f"{path}.name")
        seen.add(tool.name)
        if nesting_depth(tool.parameters, MAX_TOOL_SCHEMA_DEPTH) > MAX_TOOL_SCHEMA_DEPTH:
            raise InvalidRequestError(
                f"{path}.parameters must not be nested deeper than {MAX_TOOL_SCHEMA_DEPTH} levels",
                param=f"{path}.parameters",
            )
        num_characters += len(tool.name) + len(tool.description or "") + len(json.dumps(dict(tool.parameters)))
    if num_characters > MAX_TOOLS_CHARACTERS:
        raise InvalidRequestError(
            f"the tools have {num_characters} characters together, more than {MAX_TOOLS_CHARACTERS}",
            hint="offer fewer tools, or shorten their descriptions",
            param="tools",
        )


def read_tool_choice(value: Any, tools: Sequence[FunctionTool]) -> ToolChoice:
    """What the request says about calling tools; left out, the model decides where there are tools.

    Raises:
        InvalidRequestError: It is malformed, names no tool, or there are no tools.
    """
    if value is None:
        return ToolChoice("auto" if tools else "none")
    if value == "none":
        return ToolChoice("none")
    choice = ToolChoice(value) if value in ("auto", "required") else ToolChoice("named", _named_function(value))
    if not tools:
        raise InvalidRequestError("tool_choice needs tools", hint="send tools, or leave it out", param="tool_choice")
    return choice if choice.name is None else named_choice(choice.name, tools, "tool_choice.function.name")


def named_choice(name: str, tools: Sequence[FunctionTool], path: str) -> ToolChoice:
    """The choice of one tool.

    Raises:
        InvalidRequestError: It is not among the tools.
    """
    if all(tool.name != name for tool in tools):
        raise InvalidRequestError(f"tool_choice names {name[:128]!r}, which is none of the tools", param=path)
    return ToolChoice("named", name)


def _named_function(value: Any) -> str:
    function = value.get("function") if isinstance(value, Mapping) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ParameterError("tool_choice", _CHOICE_RULE, value)
    return name
