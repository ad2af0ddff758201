"""The tools that a request offers to the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function that the model may call.

    Attributes:
        parameters: JSON schema of its arguments; empty for one that takes none or any.
        strict: Whether the caller insists that arguments follow the schema.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model must call a tool.

    Attributes:
        name: The function to call, of kind "named" only.
    """

    kind: Literal["none", "auto", "required", "named"] = "auto"
    name: str | None = None
