"""The bodies of `/v1/messages` and `/v1/messages/count_tokens`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from quire.entrypoints.http import refusals
from quire.entrypoints.http.output_fields import StructuredOutputs, read_structure
from quire.entrypoints.http.protocol import PositiveCount, TemplateVariables
from quire.entrypoints.http.request_body import LARGEST_INT, WHOLE, RequestBody
from quire.entrypoints.http.sampling_fields import SamplingFields
from quire.entrypoints.http.tool_fields import MAX_TOOLS, TOOL_NAME_PATTERN, check_tools, named_choice
from quire.errors import InvalidRequestError, ParameterError
from quire.frontend.answer.tools import FunctionTool, ToolChoice
from quire.types.sampling import MAX_STOP_STRING_LENGTH, MAX_STOP_STRINGS, SamplingParams
from quire.types.structured_outputs import StructuredOutputsParams

MAX_MESSAGES = 4096
MAX_BLOCKS = 1024
SMALLEST_BUDGET = 1024

REFUSALS: Mapping[str, refusals.Refusal] = {
    **{name: refusal for name, refusal in refusals.COMMON.items() if name != "stop_sequences"},
    "stop": refusals.Refusal("use stop_sequences"),
    "max_completion_tokens": refusals.Refusal("use max_tokens"),
    "response_format": refusals.Refusal('use output_config={"format": {"type": "json_schema", "schema": ...}}'),
    "n": refusals.Refusal("send several requests", (1,)),
    "logprobs": refusals.Refusal("ask /v1/chat/completions for them", (False,)),
    "prompt": refusals.Refusal("send messages"),
    "container": refusals.Refusal("no tools run on this server"),
    "mcp_servers": refusals.Refusal("no tools run on this server", ([],)),
    "context_management": refusals.Refusal("send fewer messages"),
    "reasoning_effort": refusals.Refusal("use output_config.effort"),
}


def _block(kind: str, **fields: str) -> dict[str, Any]:
    properties = {name: {"type": json_type} for name, json_type in fields.items()}
    return {"type": "object", "required": ["type", *fields], "properties": {"type": {"const": kind}, **properties}}


_TEXT_BLOCK = _block("text", text="string")
_BLOCK = {
    "anyOf": [
        _TEXT_BLOCK,
        _block("document", source="object"),
        _block("thinking", thinking="string"),
        _block("redacted_thinking", data="string"),
        _block("tool_use", id="string", name="string", input="object"),
        _block("tool_result", tool_use_id="string"),
    ]
}


class MessageParam(BaseModel):
    """One turn. `messages` checks what it holds."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Any,
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _BLOCK, "maxItems": MAX_BLOCKS}]}),
    ]


class AnthropicTool(BaseModel):
    """A tool that the client runs."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    type: Literal["custom"] | None = Field(None, description="Other kinds would run on the server, and none do.")
    name: Annotated[str, Field(pattern=TOOL_NAME_PATTERN)]
    description: Annotated[str, Field(max_length=65_536)] | None = None
    input_schema: dict[str, Any]
    strict: bool | None = Field(None, description="Inputs always follow the schema; accepted for compatibility.")


class AnthropicToolChoice(BaseModel):
    """Whether tools are used."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    type: Literal["auto", "any", "tool", "none"]
    name: Annotated[str, Field(max_length=128)] | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(BaseModel):
    """Whether the model thinks before it answers."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=SMALLEST_BUDGET, le=LARGEST_INT), WHOLE] | None = None
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="omitted leaves the thinking out; nothing summarises it."
    )


class OutputFormat(BaseModel):
    """What the text must look like."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, populate_by_name=True)

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    """How the answer is to be."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Given to the chat template as reasoning_effort."
    )
    format: OutputFormat | None = None


SystemPrompt = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": _TEXT_BLOCK, "maxItems": MAX_BLOCKS},
                {"type": "null"},
            ]
        }
    ),
]


class MessagesInput(RequestBody):
    """What counts as input."""

    messages: Annotated[list[MessageParam], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(
        description="The conversation; a last message of the assistant is continued."
    )
    system: SystemPrompt = Field(None, description="A system message in front, as a string or as blocks of text.")
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS)] | None = Field(
        None, description="What the model may use."
    )
    tool_choice: AnthropicToolChoice | None = Field(None, description="Whether it must; default auto with tools.")
    thinking: Thinking | None = Field(None, description="Whether and how much the model thinks first.")
    output_config: OutputConfig | None = Field(None, description="How the answer is to be.")
    output_format: OutputFormat | None = Field(None, description="Older name of output_config.format.")
    chat_template_kwargs: TemplateVariables | None = Field(None, description="Variables of the chat template.")

    def check(self) -> None:
        """See `RequestBody`."""
        refusals.refuse_unknown(self.model_extra or {}, REFUSALS, type(self).model_fields)
        thinking = self.thinking
        if thinking is not None and (thinking.type == "enabled") != (thinking.budget_tokens is not None):
            rule = "given with thinking.type enabled, and with no other"
            raise ParameterError("thinking.budget_tokens", rule, thinking.budget_tokens)
        if self.output_format is not None and self.output_config is not None and self.output_config.format is not None:
            raise InvalidRequestError(
                "output_format and output_config.format say the same", hint="send one of them", param="output_format"
            )


class CountTokensBody(MessagesInput):
    """POST /v1/messages/count_tokens."""

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """Nothing is generated."""
        return defaults


class MessagesBody(MessagesInput, SamplingFields):
    """POST /v1/messages."""

    max_tokens: PositiveCount = Field(description="Tokens to produce at most, thinking included.")
    stop_sequences: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_STRING_LENGTH)]],
            Field(max_length=MAX_STOP_STRINGS),
        ]
        | None
    ) = Field(None, description="Strings that end the answer.")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="What the text must look like, with more kinds than output_config.format."
    )

    def check(self) -> None:
        """See `RequestBody`."""
        super().check()
        budget = self.thinking.budget_tokens if self.thinking else None
        if budget is not None and budget >= self.max_tokens:
            raise ParameterError("thinking.budget_tokens", f"below max_tokens={self.max_tokens}", budget)

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """See `RequestBody`."""
        changes = self.drawing()
        if self.stop_sequences is not None:
            changes["stop"] = self.stop_sequences
        return defaults.with_changes(max_tokens=self.max_tokens, **changes)

    def field_names(self) -> Mapping[str, str]:
        """See `RequestBody`."""
        names = {"stop": "stop_sequences", "thinking_token_budget": "thinking.budget_tokens"}
        if self.structured_outputs is None:
            where = "output_format.schema" if self.output_format else "output_config.format.schema"
            names["structured_outputs.json"] = where
        return names


def client_tools(definitions: Sequence[AnthropicTool] | None) -> tuple[FunctionTool, ...]:
    """The tools of a request.

    Raises:
        InvalidRequestError: A name twice, or schemas that are too large or too deep.
    """
    tools = tuple(
        FunctionTool(tool.name, tool.description, tool.input_schema, bool(tool.strict)) for tool in definitions or ()
    )
    check_tools(tools, [f"tools[{index}]" for index in range(len(tools))])
    return tools


def read_tool_choice(choice: AnthropicToolChoice | None, tools: Sequence[FunctionTool]) -> ToolChoice:
    """Whether a tool must be called; left out, the model decides where there are tools.

    Raises:
        InvalidRequestError: It names no tool, or there are no tools.
    """
    if choice is None:
        return ToolChoice("auto" if tools else "none")
    if choice.type == "none":
        return ToolChoice("none")
    if not tools:
        raise InvalidRequestError("tool_choice needs tools", hint="send tools, or leave it out", param="tool_choice")
    if choice.type != "tool":
        return ToolChoice("required" if choice.type == "any" else "auto")
    if choice.name is None:
        raise ParameterError("tool_choice.name", "the name of a tool", None)
    return named_choice(choice.name, tools, "tool_choice.name")


def read_output_structure(body: MessagesInput) -> StructuredOutputsParams | None:
    """What the text must look like, None for free text.

    Raises:
        InvalidRequestError: Two fields constrain it, or one of them breaks a rule.
    """
    wanted = body.output_format or (body.output_config.format if body.output_config else None)
    extra = body.structured_outputs if isinstance(body, MessagesBody) else None
    if wanted is None:
        return read_structure(None, extra)
    if extra is not None:
        raise InvalidRequestError(
            "output_config.format and structured_outputs exclude each other",
            hint="send one of them",
            param="structured_outputs",
        )
    return StructuredOutputsParams(json=wanted.json_schema)
