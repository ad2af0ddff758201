"""Tools as the model sees them: through its chat template, or in words where the template does not look at them."""

import json
from collections.abc import Sequence
from typing import Any

from quire.frontend.answer.tools import FunctionTool

_INTRODUCTION = "You can call these functions. Each is described by its name and the JSON schema of its arguments."


def template_tool(tool: FunctionTool) -> dict[str, Any]:
    """A tool in the shape that chat templates expect."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function | {"parameters": dict(tool.parameters)}}


def with_tools_described(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with the tools described at the end of the system message; without one, in one of their own."""
    lines = [_INTRODUCTION, *(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)]
    text = "\n".join(lines)
    first = messages[0] if messages else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": text}, *messages]
    content = first.get("content")
    joined: Any = (
        [*content, {"type": "text", "text": text}] if isinstance(content, list) else f"{content or ''}\n\n{text}"
    )
    return [{**first, "content": joined}, *messages[1:]]
