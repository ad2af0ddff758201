"""The formats in which the served model writes tool calls and reasoning: named by the operator, or read off its
chat template."""

import logging
from dataclasses import dataclass

from quire.config.server import ServerConfig
from quire.errors import ConfigError
from quire.frontend.answer.detect import detect_formats
from quire.frontend.answer.formats import (
    ReasoningFormat,
    ToolFormat,
    reasoning_format,
    tool_format,
    tool_format_names,
)

logger = logging.getLogger("quire.http")

NO_FORMAT = "none"
"""The name that switches the parsing off, also where a format would be detected."""


@dataclass(frozen=True, slots=True)
class AnswerFormats:
    """How answers of the served model are read.

    Attributes:
        tools: None if nothing is known about how the model calls tools; forced calls are then plain JSON.
        reasoning: None if reasoning is not told apart from the rest of the answer.
        auto_tool_choice: Whether the model may decide by itself to call a tool.
    """

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    auto_tool_choice: bool = False


def check_format_names(server: ServerConfig) -> None:
    """Checks the names that the operator gave, before a model is loaded.

    Raises:
        ConfigError: One that does not exist; the hint lists those that do.
    """
    _named_tools(server.tool_call_parser)
    _named_reasoning(server.reasoning_parser)


def choose_formats(server: ServerConfig, chat_template: str | None) -> AnswerFormats:
    """The formats for a server: those that were named, otherwise those that the template shows.

    Raises:
        ConfigError: A name that does not exist, or `enable_auto_tool_choice` without any format of tool calls.
    """
    detected_tools, detected_reasoning = detect_formats(chat_template)
    tools = _named_tools(server.tool_call_parser or detected_tools)
    reasoning = _named_reasoning(server.reasoning_parser or detected_reasoning)
    if server.enable_auto_tool_choice and tools is None:
        raise ConfigError(
            "enable_auto_tool_choice needs to know how the model writes tool calls, and its chat template does not "
            "show it",
            hint=f"name the format with --tool-call-parser: {', '.join(tool_format_names())}",
            param="tool_call_parser",
        )
    named = {"tool calls": tools and tools.name, "reasoning": reasoning and reasoning.name}
    logger.info("formats of the answers: %s", ", ".join(f"{kind} {name or NO_FORMAT}" for kind, name in named.items()))
    return AnswerFormats(tools, reasoning, server.enable_auto_tool_choice)


def _named_tools(name: str | None) -> ToolFormat | None:
    return None if name in (None, NO_FORMAT) else tool_format(name)


def _named_reasoning(name: str | None) -> ReasoningFormat | None:
    return None if name in (None, NO_FORMAT) else reasoning_format(name)
