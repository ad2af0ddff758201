"""What `/v1/responses` answers with: the response object, its items and its usage."""

from typing import Any, Literal

import msgspec

from quire.entrypoints.http.answer_bodies import TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class MessageItem(msgspec.Struct, tag_field="type", tag="message"):
    """What the model says to the user."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: str = "assistant"


class ReasoningContent(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    """The text of a reasoning."""

    text: str


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    """What the model thought before it answered. Nothing summarises it, so `summary` stays empty."""

    id: str
    status: ItemStatus
    content: list[ReasoningContent]
    summary: list[Any]


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    """A call of a function; `call_id` is what its output refers to."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


class InputTokensDetails(msgspec.Struct):
    """Where the tokens of the input came from. Writing to the prefix cache is neither counted nor charged."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    """What the tokens of the output were for."""

    reasoning_tokens: int


class ResponsesUsage(msgspec.Struct):
    """Tokens that a request took."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    """Why a response is not complete."""

    reason: str


class ResponseFailure(msgspec.Struct):
    """Why a response failed."""

    code: str
    message: str


class ResponseObject(msgspec.Struct):
    """A response, as it stands. The fields from `instructions` on repeat the request, defaults filled in."""

    id: str
    created_at: int
    status: ResponseStatus
    model: str
    output: list[OutputItem]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    user: str | None
    usage: ResponsesUsage | None = None
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    completed_at: int | None = None
    background: bool = False
    service_tier: str = "default"
    object: str = "response"


class ResponseEvent(msgspec.Struct):
    """What all events of a stream have; each type has fields of its own beside them."""

    type: str
    sequence_number: int


class DeletedResponse(msgspec.Struct):
    """A response that is kept no longer."""

    id: str
    object: str = "response"
    deleted: bool = True


class InputItemList(msgspec.Struct):
    """A page of input items."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class InputTokenCount(msgspec.Struct):
    """How many tokens an input has."""

    input_tokens: int
    object: str = "response.input_tokens"
