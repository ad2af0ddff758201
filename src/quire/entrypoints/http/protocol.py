"""The bodies of chat and completion. What the model can do is checked further down."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from quire.entrypoints.http import refusals
from quire.entrypoints.http.output_fields import ResponseFormat, StructuredOutputs, structure_names
from quire.entrypoints.http.prompts import MAX_PROMPTS
from quire.entrypoints.http.request_body import LARGEST_INT, WHOLE, Count, CountOrAll, TokenId
from quire.entrypoints.http.sampling_fields import SamplingFields
from quire.entrypoints.http.tool_fields import ToolChoiceValue, Tools
from quire.errors import InvalidRequestError, ParameterError
from quire.types.sampling import (
    MAX_SAMPLES,
    MAX_STOP_STRING_LENGTH,
    MAX_STOP_STRINGS,
    SamplingParams,
)

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TEMPLATE_VARIABLES = 64
MAX_DOCUMENTS = 1024
MAX_TEMPLATE_CHARACTERS = 131_072

TokenIds = Annotated[list[TokenId], Field(max_length=2**18)]
PositiveCount = Annotated[int, Field(ge=1, le=LARGEST_INT), WHOLE]

_STOP_STRING = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_LENGTH}
StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_STRING_LENGTH)]],
    Field(max_length=MAX_STOP_STRINGS),
    BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
    WithJsonSchema({"anyOf": [_STOP_STRING, {"type": "array", "items": _STOP_STRING, "maxItems": MAX_STOP_STRINGS}]}),
]
"""One string or several."""

_TOKEN_LIST = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": LARGEST_INT}, "minItems": 1}
_PROMPT_LIST = {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS}
PromptValue = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _TOKEN_LIST,
                {**_PROMPT_LIST, "items": {"type": "string"}},
                {**_PROMPT_LIST, "items": _TOKEN_LIST},
            ]
        }
    ),
]
"""A text, token ids, or a list of either."""

_SAME_NAME = (
    *("n", "best_of", "stop", "include_stop_str_in_output", "prompt_logprobs", "allowed_token_ids"),
    "spaces_between_special_tokens",
)
"""Of the parameters that `SamplingFields` does not know."""


class StreamOptions(BaseModel):
    """What a stream reports beside the text."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = Field(None, description="End the stream with the usage.")
    continuous_usage_stats: bool | None = Field(None, description="Put the usage so far into every event.")


class GenerationBody(SamplingFields):
    """What chat and completion have in common."""

    max_tokens: PositiveCount | None = Field(
        None, description="Tokens to produce at most; by default the rest of the context."
    )
    max_completion_tokens: PositiveCount | None = Field(None, description="OpenAI's newer name of max_tokens.")
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES), WHOLE] | None = Field(None, description="Answers to return.")
    best_of: Annotated[int, Field(ge=1, le=MAX_SAMPLES), WHOLE] | None = Field(
        None, description="Answers to produce, of which the n most likely ones are returned."
    )
    stop: StopStrings | None = Field(None, description="Strings that end the answer.")
    include_stop_str_in_output: bool | None = Field(None, description="Leave the stop string in the text.")
    prompt_logprobs: CountOrAll | None = Field(
        None, description="Alternatives to report per token of the prompt; -1 for all."
    )
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = Field(
        None, description="Only these may be produced."
    )
    spaces_between_special_tokens: Literal[True] | None = Field(None, description="Accepted for compatibility.")
    echo: bool | None = Field(None, description="Put the prompt, or the last message of the assistant, in front.")
    add_special_tokens: bool | None = Field(None, description="Put bos in front where the model is used to it.")
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=LARGEST_INT), WHOLE] | None = Field(
        None, description="Tokens of the prompt to keep; -1 for as many as leave room for the answer."
    )
    truncation_side: Literal["left", "right"] | None = Field(None, description="Where tokens are cut off.")
    response_format: ResponseFormat | None = Field(None, description="What the text must look like, in OpenAI's way.")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="What the text must look like, in vLLM's way."
    )
    stream_options: StreamOptions | None = Field(None, description="What a stream reports beside the text.")
    return_token_ids: bool | None = Field(None, description="Show the tokens of prompt and answer.")
    return_tokens_as_token_ids: bool | None = Field(
        None, description="Write tokens as token_id:17 in log-probabilities."
    )
    return_prompt_text: bool | None = Field(None, description="Show the prompt as the chat template wrote it.")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether every frame of a stream carries the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def check(self) -> None:
        """See `RequestBody`."""
        refusals.refuse_unknown(self.model_extra or {}, self.refusals(), type(self).model_fields)
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("stream_options needs stream=true", param="stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequestError("prompt_logprobs cannot be streamed", param="prompt_logprobs")
        if self.stream and self.best_of is not None and self.best_of > (self.n or 1):
            raise InvalidRequestError("best_of above n cannot be streamed", param="best_of")
        if self.truncate_prompt_tokens == 0:
            raise ParameterError("truncate_prompt_tokens", "-1 or at least 1", 0)
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise InvalidRequestError(
                f"max_tokens={both[0]} and max_completion_tokens={both[1]} contradict each other",
                param="max_completion_tokens",
            )

    def refusals(self) -> Mapping[str, refusals.Refusal]:
        """The undeclared fields that this kind of request refuses."""
        raise NotImplementedError

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """See `RequestBody`."""
        own = {name: value for name in _SAME_NAME if (value := getattr(self, name)) is not None}
        changes = self.drawing() | own
        max_tokens = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        if max_tokens is not None:
            changes["max_tokens"] = max_tokens
        return defaults.with_changes(**changes)

    def field_names(self) -> dict[str, str]:
        """See `RequestBody`."""
        names = structure_names(self.response_format)
        if self.max_tokens is None and self.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
        return names


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: PromptValue = Field(description="A text, token ids, or a list of either.")
    max_tokens: Count | None = Field(
        None, description="Tokens to produce at most, 16 by default; 0, with echo, shows the prompt only."
    )
    logprobs: CountOrAll | None = Field(None, description="Alternatives to report per token; -1 for all.")

    @property
    def prompt_only(self) -> bool:
        """Whether only the prompt is wanted back: `echo` with no tokens to produce."""
        return bool(self.echo) and self.max_tokens == 0

    def refusals(self) -> Mapping[str, refusals.Refusal]:
        """See `GenerationBody`."""
        return refusals.COMPLETION

    def check(self) -> None:
        """See `GenerationBody`."""
        super().check()
        if self.echo and self.stream and self.logprobs is not None:
            raise InvalidRequestError(
                "logprobs cannot be streamed together with echo", hint="leave out stream", param="logprobs"
            )

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """See `GenerationBody`."""
        if self.prompt_only:
            body = self.model_copy(update={"max_tokens": 1, "max_completion_tokens": None})
            return body.sampling_params(defaults)
        changes: dict[str, Any] = {}
        if self.logprobs is not None:
            changes["logprobs"] = self.logprobs
            if self.echo and self.prompt_logprobs is None:
                changes["prompt_logprobs"] = self.logprobs
        return super().sampling_params(defaults).with_changes(**changes)


_PART_TYPES = {"text": ["text", "input_text", "output_text"], "refusal": ["refusal"], "thinking": ["thinking"]}
_PART = {
    "anyOf": [
        {"type": "string"},
        *(
            {
                "type": "object",
                "required": ["type", field],
                "properties": {"type": {"enum": types}, field: {"type": "string"}},
            }
            for field, types in _PART_TYPES.items()
        ),
    ]
}
_CALL = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}, "arguments": {"type": ["string", "object", "null"]}},
        },
    },
}
_MESSAGE_FIELDS = {
    "tool_calls": {"type": ["array", "null"], "items": _CALL, "description": "What the assistant has called."},
    "tool_call_id": {"type": ["string", "null"], "description": "The call that a message of the role tool answers."},
    "name": {"type": ["string", "null"]},
    "refusal": {"type": ["string", "null"]},
    "reasoning": {"type": ["string", "null"], "description": "What the assistant has thought."},
    "reasoning_content": {"type": ["string", "null"], "description": "Another name of it."},
}
_TEXT = {"type": "string", "minLength": 1}
_MESSAGE_NEEDS = {
    "content": {"type": ["string", "array"]},
    "tool_calls": {"type": "array", "minItems": 1},
    **dict.fromkeys(("refusal", "reasoning", "reasoning_content"), _TEXT),
}


def _describe_message(schema: dict[str, Any]) -> None:
    """Adds to the schema of a message what `messages.py` checks. Modifies `schema`."""
    schema["properties"] |= _MESSAGE_FIELDS
    schema["anyOf"] = [{"required": [name], "properties": {name: rule}} for name, rule in _MESSAGE_NEEDS.items()]


class ChatMessage(BaseModel):
    """One turn. `messages.py` checks what it holds."""

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        json_schema_extra=_describe_message,
    )

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Annotated[
        Any,
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "maxItems": MAX_PARTS, "items": _PART}, {"type": "null"}]}
        ),
    ] = None


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
TemplateVariables = Annotated[dict[str, Any], Field(max_length=MAX_TEMPLATE_VARIABLES)]
ChatTemplateText = Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE_CHARACTERS)]


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Messages = Field(description="The conversation so far.")
    logprobs: bool | None = Field(None, description="Report the log-probability of every token.")
    top_logprobs: CountOrAll | None = Field(None, description="Alternatives to report per token; -1 for all.")
    tools: Tools | None = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoiceValue = Field(None, description="Whether it must; auto where there are tools.")
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call in an answer.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Given to the chat template; none also turns off enable_thinking."
    )
    include_reasoning: bool | None = Field(None, description="False: reasoning is not shown.")
    thinking_token_budget: CountOrAll | None = Field(None, description="Tokens for reasoning; -1 for no limit.")
    add_generation_prompt: bool | None = Field(
        None, description="End the prompt with the head of an answer; true by default."
    )
    continue_final_message: bool | None = Field(None, description="Go on with the last message.")
    chat_template: ChatTemplateText | None = Field(
        None, description="Only of servers with --trust-request-chat-template."
    )
    chat_template_kwargs: TemplateVariables | None = Field(None, description="Further variables for the chat template.")
    documents: Annotated[list[dict[str, Any]], Field(max_length=MAX_DOCUMENTS)] | None = Field(
        None, description="What the template may quote."
    )

    @property
    def generates(self) -> bool:
        """Whether the prompt ends with the head of an answer: it does unless the last message is continued."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt

    def refusals(self) -> Mapping[str, refusals.Refusal]:
        """See `GenerationBody`."""
        return refusals.CHAT

    def check(self) -> None:
        """See `GenerationBody`."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs=true", param="top_logprobs")
        check_continuation(self.continue_final_message, self.add_generation_prompt)

    def sampling_params(self, defaults: SamplingParams) -> SamplingParams:
        """See `GenerationBody`."""
        params = super().sampling_params(defaults)
        return params.with_changes(logprobs=self.top_logprobs or 0) if self.logprobs else params

    def field_names(self) -> dict[str, str]:
        """See `GenerationBody`."""
        return super().field_names() | {"logprobs": "top_logprobs"}


def check_continuation(continues: bool | None, generates: bool | None) -> None:
    """Checks how a prompt is to end.

    Raises:
        InvalidRequestError: In two ways at once.
    """
    if continues and generates:
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
        )
