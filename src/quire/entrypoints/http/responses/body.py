"""The body of `/v1/responses`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from quire.entrypoints.http import refusals
from quire.entrypoints.http.output_fields import StructuredOutputs, read_structure
from quire.entrypoints.http.protocol import PositiveCount, StopStrings, TemplateVariables
from quire.entrypoints.http.request_body import Count
from quire.entrypoints.http.responses.input import MAX_ITEMS
from quire.entrypoints.http.responses.tools import ResponsesTool, ResponsesToolChoice
from quire.entrypoints.http.sampling_fields import SamplingFields
from quire.entrypoints.http.tool_fields import MAX_TOOLS
from quire.errors import InvalidRequestError
from quire.types.sampling import SamplingParams
from quire.types.structured_outputs import StructuredOutputsParams

MAX_METADATA = 16
LOGPROBS = "message.output_text.logprobs"

REFUSALS: Mapping[str, refusals.Refusal] = {
    **{name: refusal for name, refusal in refusals.COMMON.items() if name != "max_output_tokens"},
    "background": refusals.Refusal("send the request without it, and read the answer or its stream", (False,)),
    "conversation": refusals.Refusal("go on from an earlier response with previous_response_id"),
    "prompt": refusals.Refusal("templates are not kept here; send their text as instructions and input"),
    "context_management": refusals.Refusal('use truncation "auto", or send less input', ([],)),
    "moderation": refusals.Refusal("this server does not moderate"),
    "messages": refusals.Refusal("send input here, or messages to /v1/chat/completions"),
    "response_format": refusals.Refusal("use text.format"),
    "max_tokens": refusals.Refusal("use max_output_tokens"),
    "max_completion_tokens": refusals.Refusal("use max_output_tokens"),
    "reasoning_effort": refusals.Refusal("use reasoning.effort"),
    "n": refusals.Refusal("send several requests", (1,)),
    "best_of": refusals.Refusal("send several requests", (1,)),
    "logprobs": refusals.Refusal(f"use top_logprobs, with include: [{LOGPROBS!r}]", (False,)),
    "prompt_logprobs": refusals.Refusal("ask /v1/completions for them"),
    "allowed_token_ids": refusals.Refusal("use logit_bias or structured_outputs"),
    "truncate_prompt_tokens": refusals.Refusal('use truncation "auto"'),
    "enable_response_messages": refusals.Refusal("leave it out", (False,)),
    "previous_input_messages": refusals.Refusal("send the earlier messages as input, or use previous_response_id"),
}


class TextFormat(BaseModel):
    """What the text must look like."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=256)] | None = None
    description: Annotated[str, Field(max_length=65_536)] | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Answers always follow the schema; accepted for compatibility.")


class TextOptions(BaseModel):
    """How the text is to be."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = Field(None, description="Ask for anything else in the instructions.")


class ReasoningOptions(BaseModel):
    """How the model is to think."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Given to the chat template; none also turns off enable_thinking."
    )
    summary: Literal["auto"] | None = Field(
        None, description="Nothing summarises here: the reasoning itself is in the answer."
    )
    generate_summary: Literal["auto"] | None = None


class ResponsesStreamOptions(BaseModel):
    """How a stream is to be. Its last event always has the usage."""

    model_config = ConfigDict(strict=True, extra="allow")

    include_obfuscation: Literal[False] | None = Field(None, description="Events are never padded.")


InputValue = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_ITEMS,
                    "items": {
                        "type": "object",
                        "properties": {
                            "type": {
                                "enum": [
                                    *("message", "function_call", "function_call_output"),
                                    *("reasoning", "item_reference"),
                                ]
                            },
                            "role": {"enum": ["user", "assistant", "system", "developer"]},
                        },
                    },
                },
            ]
        }
    ),
]
"""A text or a list of items; `input` checks them."""


class ResponsesBody(SamplingFields):
    """POST /v1/responses."""

    input: InputValue = Field(description="A text, or items: messages, calls, their outputs, reasoning, references.")
    instructions: str | None = Field(None, description="A system message in front of all input.")
    previous_response_id: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="The conversation goes on from that response, which must still be kept."
    )
    store: bool | None = Field(
        None, description="Keep the response in memory, within the server's bounds; default true."
    )
    max_output_tokens: PositiveCount | None = Field(
        None, description="Tokens to produce at most, reasoning included; by default the rest of the context."
    )
    max_tool_calls: PositiveCount | None = Field(
        None, description="Of tools that run on the server, of which there are none."
    )
    stop: StopStrings | None = Field(None, description="Strings that end the answer.")
    top_logprobs: Count | None = Field(None, description="Alternatives per token of the text.")
    include: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=32)] | None = Field(
        None, description=f"{LOGPROBS} adds log-probabilities; the rest belongs to parts that are not here."
    )
    text: TextOptions | None = Field(None, description="What the text must look like.")
    structured_outputs: StructuredOutputs | None = Field(None, description="The same, with more kinds.")
    tools: Annotated[list[ResponsesTool], Field(max_length=MAX_TOOLS)] | None = Field(
        None, description="Functions that the model may call."
    )
    tool_choice: ResponsesToolChoice = Field(None, description="Whether it must; default auto with tools.")
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call in an answer.")
    reasoning: ReasoningOptions | None = Field(None, description="How the model is to think.")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: where the input is too long, its oldest turns are left out."
    )
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=MAX_METADATA),
        ]
        | None
    ) = Field(None, description="Repeated in the response.")
    user: Annotated[str, Field(max_length=1024)] | None = Field(None, description="Repeated in the response.")
    safety_identifier: Annotated[str, Field(max_length=1024)] | None = Field(None, description="Repeated as well.")
    prompt_cache_key: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="Repeated as well; prefixes are found without it."
    )
    stream_options: ResponsesStreamOptions | None = Field(None, description="How a stream is to be.")
    chat_template_kwargs: TemplateVariables | None = Field(None, description="Variables of the chat template.")

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities of the text are shown."""
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    def check(self) -> None:
        """See `RequestBody`."""
        refusals.refuse_unknown(self.model_extra or {}, REFUSALS, type(self).model_fields)
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream=true", param="stream_options")

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """See `RequestBody`."""
        changes = self.drawing()
        if self.stop is not None:
            changes["stop"] = self.stop
        if self.max_output_tokens is not None:
            changes["max_tokens"] = self.max_output_tokens
        if self.wants_logprobs:
            changes["logprobs"] = self.top_logprobs or 0
        return defaults.with_changes(**changes)

    def field_names(self) -> Mapping[str, str]:
        """See `RequestBody`."""
        names = {"max_tokens": "max_output_tokens", "logprobs": "top_logprobs"}
        if self.text is not None and self.text.format is not None:
            names["structured_outputs.json"] = "text.format.schema"
            names["structured_outputs.json_object"] = "text.format"
        return names


def read_text_structure(body: ResponsesBody) -> StructuredOutputsParams | None:
    """What the text must look like, None for free text.

    Raises:
        InvalidRequestError: Two fields constrain it, or one of them breaks a rule.
    """
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return read_structure(None, body.structured_outputs)
    if body.structured_outputs is not None:
        raise InvalidRequestError(
            "text.format and structured_outputs exclude each other",
            hint="send one of them",
            param="structured_outputs",
        )
    if wanted.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if wanted.json_schema is None:
        raise InvalidRequestError(
            "text.format of the type json_schema needs a schema",
            hint='send {"type": "json_schema", "name": ..., "schema": {...}}',
            param="text.format.schema",
        )
    return StructuredOutputsParams(json=wanted.json_schema)
