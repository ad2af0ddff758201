"""POST /v1/responses, and the responses that are kept."""

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.entrypoints.http.answer_bodies import TokenLogprob, UsageCount
from quire.entrypoints.http.conversation import (
    Conversation,
    chat_defaults,
    encode_conversation,
    reasoning_variables,
)
from quire.entrypoints.http.conversation_answers import ChoicePiece, ConversationAnswers
from quire.entrypoints.http.errors import ErrorEnvelope
from quire.entrypoints.http.generation import Call, renamed_fields
from quire.entrypoints.http.logprobs import TokenNames, chat_logprobs
from quire.entrypoints.http.openapi import describe
from quire.entrypoints.http.response_store import ResponseStore, StoredResponse
from quire.entrypoints.http.responses.body import ResponsesBody, read_text_structure
from quire.entrypoints.http.responses.events import ResponsesEncoder, without_cut_end
from quire.entrypoints.http.responses.input import (
    MAX_ITEMS,
    Item,
    read_input,
    resolve_references,
    template_messages,
    with_ids,
)
from quire.entrypoints.http.responses.objects import (
    DeletedResponse,
    InputItemList,
    InputTokenCount,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseEvent,
    ResponseObject,
    ResponsesUsage,
)
from quire.entrypoints.http.responses.tools import function_tools, read_tool_choice
from quire.entrypoints.http.responses.trimming import open_trimmed
from quire.entrypoints.http.state import state_of
from quire.entrypoints.http.streaming import StreamEnd, respond
from quire.errors import InvalidRequestError, ParameterError
from quire.frontend.answer.events import AnswerEvent, ContentText
from quire.types.deltas import FinishReason
from quire.types.outputs import CompletionOutput
from quire.types.sampling import SamplingParams

router = APIRouter()

_INCOMPLETE = {FinishReason.LENGTH: "max_output_tokens"}
_PAGE: dict[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 100},
    "order": {"enum": ["asc", "desc"]},
    "after": {"type": "string"},
}


@router.post("/v1/responses", openapi_extra=describe(ResponsesBody, ResponseObject, event=ResponseEvent))
async def create_response(request: Request) -> Response:
    """Answers an input, as one body or as a stream of events."""
    call = await Call.read(request, ResponsesBody, "resp_")
    turn = _Turn(call, call.sampling_params(chat_defaults(call)))
    return await respond(call, turn.open, turn.whole, turn.frames, StreamEnd(b"", turn.failure))


@router.post("/v1/responses/input_tokens", openapi_extra=describe(ResponsesBody, InputTokenCount))
async def count_input_tokens(request: Request) -> Response:
    """The number of tokens that a request would have as input."""
    call = await Call.read(request, ResponsesBody, "resp_")
    turn = _Turn(call, call.sampling_params(chat_defaults(call)))
    prompt = await encode_conversation(call.state, turn.conversation)
    return Response(msgspec.json.encode(InputTokenCount(len(prompt.token_ids))), media_type="application/json")


@router.get("/v1/responses/{response_id}", openapi_extra=describe(answer=ResponseObject))
async def retrieve_response(request: Request, response_id: str) -> Response:
    """A response that is kept."""
    if request.query_params.get("stream", "false").lower() != "false":
        raise InvalidRequestError("a kept response cannot be streamed", hint="read it without stream", param="stream")
    kept = state_of(request).stored_responses.get(owner_of(request), response_id)
    return Response(kept.body, media_type="application/json")


@router.delete("/v1/responses/{response_id}", openapi_extra=describe(answer=DeletedResponse))
async def delete_response(request: Request, response_id: str) -> Response:
    """Drops a response that is kept."""
    state_of(request).stored_responses.delete(owner_of(request), response_id)
    return Response(msgspec.json.encode(DeletedResponse(response_id)), media_type="application/json")


@router.post("/v1/responses/{response_id}/cancel", openapi_extra=describe(answer=ResponseObject))
async def cancel_response(request: Request, response_id: str) -> Response:
    """Refuses: a response that is kept has ended. Closing the connection ends one that is under way."""
    state_of(request).stored_responses.get(owner_of(request), response_id)
    raise InvalidRequestError(
        "only background responses can be cancelled, and this server runs none",
        hint="close the connection of a response to end it",
        param="response_id",
    )


@router.get("/v1/responses/{response_id}/input_items", openapi_extra=describe(answer=InputItemList, query=_PAGE))
async def list_input_items(request: Request, response_id: str) -> Response:
    """What the input of a response was, that of earlier responses included; the newest item first."""
    context = state_of(request).stored_responses.get(owner_of(request), response_id).input_context()
    page = _page(context, request)
    return Response(msgspec.json.encode(page), media_type="application/json")


def owner_of(request: Request) -> str:
    """Whom a response belongs to: the name of the key, or everybody where there are no keys."""
    return request.state.key_name or ""


def _page(items: list[Item], request: Request) -> InputItemList:
    query = request.query_params
    limit, order, after = query.get("limit", "20"), query.get("order", "desc"), query.get("after")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= 100):
        raise ParameterError("limit", "between 1 and 100", limit)
    if order not in ("asc", "desc"):
        raise ParameterError("order", "asc or desc", order)
    ordered = items if order == "asc" else items[::-1]
    ids = [item["id"] for item in ordered]
    if after is not None and after not in ids:
        raise ParameterError("after", "the id of an input item", after)
    start = 0 if after is None else ids.index(after) + 1
    page = ordered[start : start + int(limit)]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return InputItemList(page, first, last, start + len(page) < len(ordered))


class _Turn:
    """One request, from its checked body to its answer.

    Attributes:
        conversation: What it asks of the model.
    """

    def __init__(self, call: Call[ResponsesBody], params: SamplingParams) -> None:
        body, store = call.body, call.state.stored_responses
        self._call = call
        self._params = params
        self._owner = owner_of(call.request)
        self._previous = self._previous_response(store)
        self._items = self._input_items(store)
        context = self._previous.context() if self._previous else []
        if len(context) + len(self._items) > MAX_ITEMS:
            raise ParameterError("input", f"at most {MAX_ITEMS} items with those before it", len(context))
        given_tools = function_tools(body.tools)
        tools, choice = read_tool_choice(body.tool_choice, given_tools)
        self.conversation = Conversation(
            messages=template_messages([*context, *self._items], body.instructions),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            structured=read_text_structure(body),
            template_variables=reasoning_variables(body.reasoning.effort if body.reasoning else None)
            | (body.chat_template_kwargs or {}),
            call_id_prefix="call_",
        )
        self._stores = store.enabled and body.store is not False
        self._encoder = ResponsesEncoder(
            new_response(call, params, stores=self._stores), call.answer_id.removeprefix("resp_")
        )
        self._usage = UsageCount()
        self._logprobs = _ShownLogprobs()

    def _previous_response(self, store: ResponseStore) -> StoredResponse | None:
        response_id = self._call.body.previous_response_id
        if response_id is None:
            return None
        return store.get(self._owner, response_id, param="previous_response_id")

    def _input_items(self, store: ResponseStore) -> list[Item]:
        items = read_input(self._call.body.input)
        if any(item["type"] == "item_reference" for item in items):
            items = resolve_references(items, store.items(self._owner))
        return with_ids(items, self._call.answer_id.removeprefix("resp_"))

    async def open(self) -> ConversationAnswers:
        """Hands the request to the engine."""
        trims = self._call.body.truncation == "auto"
        with renamed_fields(self._call.body.field_names()):
            return await open_trimmed(self._call, self.conversation, self._params, trims=trims)

    async def whole(self, answers: ConversationAnswers) -> bytes:
        """The whole answer: the final state of what would have been streamed."""
        output, ((completion, pieces),) = await answers.final_pieces()
        self._usage.add(0, output)
        self._encoder.begin()
        logprobs = self._token_logprobs(completion)
        start = 0
        if completion.finish_reason is not FinishReason.STOP:
            pieces = _without_cut_end(pieces)
        for events, num_tokens in pieces:
            shown = self._logprobs.take(events, logprobs[start : start + num_tokens])
            self._encoder.encode(events, shown)
            start += num_tokens
        self._finish(completion, answers)
        return msgspec.json.encode(self._encoder.response)

    async def frames(self, answers: ConversationAnswers) -> AsyncGenerator[bytes, None]:
        """The answer as it comes."""
        yield self._encoder.begin()
        async for output, news in answers.news():
            self._usage.add(0, output)
            for choice in news:
                completion = choice.completion
                shown = self._logprobs.take(choice.events, self._token_logprobs(completion))
                is_cut = completion.finish_reason not in (None, FinishReason.STOP)
                frames = self._encoder.encode(without_cut_end(choice.events) if is_cut else choice.events, shown)
                if completion.finish_reason is not None:
                    frames += self._finish(completion, answers)
                if frames:
                    yield frames

    def failure(self, envelope: bytes) -> bytes:
        """The last event of a stream that an error ended."""
        error = msgspec.json.decode(envelope, type=ErrorEnvelope).error
        code = "server_error" if error.code >= 500 else "rate_limit_exceeded" if error.code == 429 else "invalid_prompt"
        return self._encoder.fail(code, error.message)

    def _token_logprobs(self, completion: CompletionOutput) -> Sequence[TokenLogprob]:
        body = self._call.body
        if completion.logprobs is None or not body.wants_logprobs:
            return ()
        names = TokenNames(False)
        return chat_logprobs(completion.token_ids, completion.logprobs, body.top_logprobs or 0, names).content

    def _finish(self, completion: CompletionOutput, answers: ConversationAnswers) -> bytes:
        """Completes the response and keeps it; returns its last frames."""
        reason = completion.finish_reason
        incomplete = None if reason is FinishReason.STOP else _INCOMPLETE.get(reason, reason) if reason else None
        usage = responses_usage(self._usage, answers.num_reasoning_tokens or 0)
        frames = self._encoder.finish(usage, int(time.time()), incomplete)
        if self._stores:
            response = self._encoder.response
            body, sent = msgspec.json.encode(response), msgspec.json.encode(self._items)
            kept = StoredResponse(response.id, body, sent, self._previous)
            self._call.state.stored_responses.put(self._owner, kept)
        return frames


def _without_cut_end(pieces: Sequence[ChoicePiece]) -> list[ChoicePiece]:
    last = max((index for index, (events, _) in enumerate(pieces) if events), default=0)
    return [
        (list(without_cut_end(events)) if index == last else events, size)
        for index, (events, size) in enumerate(pieces)
    ]


class _ShownLogprobs:
    """Finds the log-probabilities of the text of messages among those of all tokens.

    Tokens whose text is held back wait for it; those of reasoning and of calls are not shown.
    """

    def __init__(self) -> None:
        self._waiting: list[TokenLogprob] = []

    def take(self, events: Sequence[AnswerEvent], logprobs: Sequence[TokenLogprob]) -> Sequence[TokenLogprob]:
        """Those that belong to the text in `events`, which `logprobs` are the tokens of."""
        if not logprobs and not self._waiting:
            return ()
        self._waiting += logprobs
        if not events:
            return ()
        shown = self._waiting if any(isinstance(event, ContentText) for event in events) else ()
        self._waiting = []
        return shown


def responses_usage(count: UsageCount, num_reasoning_tokens: int) -> ResponsesUsage:
    """The usage under this API's names."""
    usage = count.usage()
    return ResponsesUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(num_reasoning_tokens),
        total_tokens=usage.total_tokens,
    )


def new_response(call: Call[ResponsesBody], params: SamplingParams, *, stores: bool) -> ResponseObject:
    """The response at its begin: it repeats what the request said."""
    body = call.body
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    reasoning = body.reasoning
    return ResponseObject(
        id=call.answer_id,
        created_at=call.created,
        status="in_progress",
        model=call.model_name,
        output=[],
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning={
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        safety_identifier=body.safety_identifier,
        store=stores,
        temperature=params.temperature,
        text={"format": {"type": "text"}, **text},
        tool_choice=_shown_tool_choice(body),
        tools=[_shown_tool(tool.model_dump(exclude_none=True)) for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=params.top_p,
        truncation=body.truncation or "disabled",
        user=body.user,
    )


def _shown_tool_choice(body: ResponsesBody) -> str | dict[str, Any]:
    choice: str | dict[str, Any] | None = body.tool_choice
    return "auto" if choice is None else choice


def _shown_tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"strict": True, "description": None, "parameters": {}, **tool}
