"""POST /v1/messages and /v1/messages/count_tokens."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.entrypoints.http.answer_bodies import UsageCount
from quire.entrypoints.http.anthropic.body import (
    CountTokensBody,
    MessagesBody,
    MessagesInput,
    client_tools,
    read_output_structure,
    read_tool_choice,
)
from quire.entrypoints.http.anthropic.events import AnthropicEncoder
from quire.entrypoints.http.anthropic.messages import continues_answer, template_messages
from quire.entrypoints.http.anthropic.objects import (
    AnthropicMessage,
    AnthropicUsage,
    InputTokens,
    MessageEvent,
    ThinkingDetails,
)
from quire.entrypoints.http.conversation import (
    Conversation,
    chat_defaults,
    encode_conversation,
    open_conversation,
    reasoning_variables,
)
from quire.entrypoints.http.conversation_answers import ConversationAnswers
from quire.entrypoints.http.error_shapes import AnthropicError, anthropic_error
from quire.entrypoints.http.generation import Call, renamed_fields
from quire.entrypoints.http.openapi import describe
from quire.entrypoints.http.streaming import StreamEnd, respond
from quire.types.deltas import FinishReason
from quire.types.outputs import CompletionOutput
from quire.types.sampling import SamplingParams

router = APIRouter()


@router.post(
    "/v1/messages",
    openapi_extra=describe(MessagesBody, AnthropicMessage, event=MessageEvent, error=AnthropicError),
)
async def create_message(request: Request) -> Response:
    """Answers messages, as one body or as a stream of events."""
    call = await Call.read(request, MessagesBody, "msg_")
    turn = _Turn(call, call.sampling_params(chat_defaults(call)))
    return await respond(call, turn.open, turn.whole, turn.frames, StreamEnd(b"", turn.failure))


@router.post("/v1/messages/count_tokens", openapi_extra=describe(CountTokensBody, InputTokens, error=AnthropicError))
async def count_tokens(request: Request) -> Response:
    """The number of tokens that messages would have as input."""
    call = await Call.read(request, CountTokensBody, "")
    prompt = await encode_conversation(call.state, _conversation(call.body))
    return Response(msgspec.json.encode(InputTokens(len(prompt.token_ids))), media_type="application/json")


def _conversation(body: MessagesInput) -> Conversation:
    messages = template_messages(body.system, body.messages)
    continues = continues_answer(messages)
    tools = client_tools(body.tools)
    choice, thinking = body.tool_choice, body.thinking
    return Conversation(
        messages=messages,
        tools=tools,
        tool_choice=read_tool_choice(choice, tools),
        parallel_tool_calls=choice is None or not choice.disable_parallel_tool_use,
        structured=read_output_structure(body),
        include_reasoning=thinking is None or thinking.display != "omitted",
        thinking_token_budget=thinking.budget_tokens if thinking else None,
        template_variables=_template_variables(body),
        add_generation_prompt=not continues,
        continue_final_message=continues,
        call_id_prefix="toolu_",
    )


def _template_variables(body: MessagesInput) -> dict[str, Any]:
    variables = reasoning_variables(body.output_config.effort if body.output_config else None)
    if body.thinking is not None:
        variables["enable_thinking"] = body.thinking.type != "disabled"
    return variables | (body.chat_template_kwargs or {})


class _Turn:
    """One request, from its checked body to its answer."""

    def __init__(self, call: Call[MessagesBody], params: SamplingParams) -> None:
        self._call = call
        self._params = params
        self._conversation = _conversation(call.body)
        self._count = UsageCount()
        self._encoder = AnthropicEncoder(AnthropicMessage(call.answer_id, call.model_name, [], AnthropicUsage(0, 0, 0)))

    async def open(self) -> ConversationAnswers:
        """Hands the request to the engine."""
        with renamed_fields(self._call.body.field_names()):
            return await open_conversation(self._call, self._conversation, self._params)

    async def whole(self, answers: ConversationAnswers) -> bytes:
        """The whole message: what its stream would add up to."""
        output, ((completion, pieces),) = await answers.final_pieces()
        self._count.add(0, output)
        for events, _ in pieces:
            self._encoder.encode(events)
        self._finish(completion, answers)
        return msgspec.json.encode(self._encoder.message)

    async def frames(self, answers: ConversationAnswers) -> AsyncGenerator[bytes, None]:
        """The message as it comes. What came from the cache is known with the first token, not before."""
        begun = False
        async for output, news in answers.news():
            self._count.add(0, output)
            frames = b""
            if not begun:
                begun = True
                self._encoder.message.usage = self._usage(answers)
                frames = self._encoder.begin()
            for choice in news:
                frames += self._encoder.encode(choice.events)
                if choice.completion.finish_reason is not None:
                    frames += self._finish(choice.completion, answers)
            if frames:
                yield frames

    def failure(self, envelope: bytes) -> bytes:
        """The last event of a stream that an error ended."""
        request_id: str = self._call.request.state.request_id
        return b"event: error\ndata: " + anthropic_error(envelope, request_id) + b"\n\n"

    def _finish(self, completion: CompletionOutput, answers: ConversationAnswers) -> bytes:
        reason, sequence = stop_reason(completion)
        return self._encoder.finish(self._usage(answers), reason, sequence)

    def _usage(self, answers: ConversationAnswers) -> AnthropicUsage:
        usage, num_thinking = self._count.usage(), answers.num_reasoning_tokens
        cached = usage.prompt_tokens_details.cached_tokens
        return AnthropicUsage(
            input_tokens=usage.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens,
            output_tokens_details=None if num_thinking is None else ThinkingDetails(num_thinking),
        )


def stop_reason(completion: CompletionOutput) -> tuple[str, str | None]:
    """Why the model stopped, and the stop sequence if it was one."""
    if completion.finish_reason is not FinishReason.STOP:
        return "max_tokens", None
    if isinstance(completion.stop_reason, str):
        return "stop_sequence", completion.stop_reason
    return "end_turn", None
