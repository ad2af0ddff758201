"""POST /v1/chat/completions."""

import contextlib
from collections.abc import AsyncGenerator

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.entrypoints.http.generation import Answers, Call
from quire.entrypoints.http.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from quire.entrypoints.http.messages import template_messages
from quire.entrypoints.http.protocol import ChatBody
from quire.entrypoints.http.responses import (
    SYSTEM_FINGERPRINT,
    ChatAnswer,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    Delta,
    Message,
    UsageCount,
)
from quire.entrypoints.http.streaming import EventStream, FrameEncoder
from quire.frontend.input_processor import Prompt
from quire.types.outputs import CompletionOutput, RequestOutput
from quire.types.sampling import SamplingParams

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation, as one body or as a stream of events."""
    call = await Call.read(request, ChatBody, "chatcmpl-")
    params = call.sampling_params(_chat_defaults(call))
    run = call.state.activity.run
    if not call.body.stream:
        body = await run(request.receive, _answer(call, params))
        return Response(body, media_type="application/json")
    answers = await run(request.receive, _open(call, params))
    return EventStream(_frames(call, answers), answers, call.state.activity, request.state.request_id)


def _chat_defaults(call: Call[ChatBody]) -> SamplingParams:
    """The model's own defaults, with all of the context for the answer where they do not say otherwise."""
    own = call.state.engine.input
    return own.default_sampling_params().with_changes(max_tokens=own.sampling_defaults.get("max_tokens"))


async def _open(call: Call[ChatBody], params: SamplingParams) -> Answers:
    return await call.open([await _prompt(call)], params)


async def _prompt(call: Call[ChatBody]) -> Prompt:
    body = call.body
    continues = bool(body.continue_final_message)
    generates = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    chat = await call.state.engine.encode_chat(
        template_messages(body.messages),
        add_generation_prompt=generates,
        continue_final_message=continues,
        variables=body.chat_template_kwargs or {},
    )
    return {"prompt": chat.text, "prompt_token_ids": chat.token_ids}


async def _answer(call: Call[ChatBody], params: SamplingParams) -> bytes:
    """The whole answer: the final state of what would have been streamed."""
    with contextlib.closing(await _open(call, params)) as answers:
        (output,) = await answers.finals()
    usage = UsageCount()
    usage.add(0, output)
    answer = ChatAnswer(
        id=call.answer_id,
        object="chat.completion",
        created=call.created,
        model=call.model_name,
        choices=[_choice(call.body, completion) for completion in output.outputs],
        usage=usage.usage(),
        system_fingerprint=SYSTEM_FINGERPRINT,
        prompt_logprobs=prompt_logprobs(output.prompt_logprobs),
        prompt_token_ids=output.prompt_token_ids if call.body.return_token_ids else None,
    )
    return msgspec.json.encode(answer)


def _choice(body: ChatBody, completion: CompletionOutput) -> ChatChoice:
    return ChatChoice(
        index=completion.index,
        message=Message("assistant", completion.text),
        logprobs=_logprobs(body, completion),
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        token_ids=completion.token_ids if body.return_token_ids else None,
    )


def _logprobs(body: ChatBody, completion: CompletionOutput) -> ChatLogprobs | None:
    if completion.logprobs is None or not body.logprobs:
        return None
    names = TokenNames(bool(body.return_tokens_as_token_ids))
    return chat_logprobs(completion.token_ids, completion.logprobs, body.top_logprobs or 0, names)


async def _frames(call: Call[ChatBody], answers: Answers) -> AsyncGenerator[bytes, None]:
    """The frames of a stream: per choice one with the role, then its pieces; at the end, if wanted, the usage."""
    body = call.body
    shared = {
        "id": call.answer_id,
        "object": "chat.completion.chunk",
        "created": call.created,
        "model": call.model_name,
        "system_fingerprint": SYSTEM_FINGERPRINT,
    }
    encoder = FrameEncoder(shared, include_usage=body.include_usage)
    usage = UsageCount()
    begun: set[int] = set()
    async for _, output in answers.news():
        usage.add(0, output)
        current = usage.usage() if body.continuous_usage else None
        frames = []
        for completion in output.outputs:
            if completion.index not in begun:
                begun.add(completion.index)
                at_start = usage.usage(without_completion=True) if body.continuous_usage else None
                frames.append(encoder.frame(_first_piece(body, completion.index, output), at_start))
            if piece := _piece(body, completion):
                frames.append(encoder.frame(piece, current))
        if frames:
            yield b"".join(frames)
    if body.include_usage:
        yield encoder.frame(None, usage.usage())


def _first_piece(body: ChatBody, index: int, output: RequestOutput) -> ChatChunkChoice:
    prompt_token_ids = output.prompt_token_ids if body.return_token_ids else None
    return ChatChunkChoice(index, Delta("assistant", ""), None, None, prompt_token_ids=prompt_token_ids)


def _piece(body: ChatBody, completion: CompletionOutput) -> ChatChunkChoice | None:
    """What is new in a choice; None where there is nothing to show, as while text is held back."""
    token_ids = completion.token_ids if body.return_token_ids else None
    logprobs = _logprobs(body, completion)
    if not (completion.text or completion.finish_reason or logprobs or token_ids):
        return None
    return ChatChunkChoice(
        index=completion.index,
        delta=Delta(content=completion.text or None),
        logprobs=logprobs,
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        token_ids=token_ids,
    )
