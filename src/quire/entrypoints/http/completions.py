"""POST /v1/completions."""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.entrypoints.http.answer_bodies import (
    SYSTEM_FINGERPRINT,
    CompletionAnswer,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    UsageCount,
)
from quire.entrypoints.http.generation import Answers, Call, renamed_fields
from quire.entrypoints.http.logprobs import CompletionLogprobsBuilder, TokenNames, prompt_logprobs
from quire.entrypoints.http.openapi import describe
from quire.entrypoints.http.output_fields import read_structure
from quire.entrypoints.http.prompts import encode_text, split_prompts, truncate_prompt
from quire.entrypoints.http.protocol import CompletionBody
from quire.entrypoints.http.streaming import FrameEncoder, respond
from quire.frontend.input_processor import Prompt
from quire.frontend.tokenizer import Tokenizer
from quire.types.deltas import FinishReason
from quire.types.outputs import CompletionOutput, RequestOutput
from quire.types.sampling import SamplingParams

router = APIRouter()


@router.post("/v1/completions", openapi_extra=describe(CompletionBody, CompletionAnswer, event=CompletionChunk))
async def create_completion(request: Request) -> Response:
    """Continues prompts, as one body or as a stream of events."""
    call = await Call.read(request, CompletionBody, "cmpl-")
    params = call.sampling_params(call.state.engine.input.default_sampling_params())
    with renamed_fields(call.body.field_names()):
        structured = read_structure(call.body.response_format, call.body.structured_outputs)
    if structured is not None:
        params = params.with_changes(structured_outputs=structured)
    return await respond(
        call,
        lambda: _open(call, params),
        lambda answers: _whole(call, answers, params.n),
        lambda answers: _frames(call, answers, params.n),
    )


async def _open(call: Call[CompletionBody], params: SamplingParams) -> Answers:
    body = call.body
    adds_special = body.add_special_tokens is not False
    prompts: Sequence[Prompt] = split_prompts(body.prompt)
    if body.truncate_prompt_tokens is not None:
        prompts = [await _truncated(call, prompt, params, adds_special) for prompt in prompts]
    return await call.open(prompts, params, add_special_tokens=adds_special)


async def _truncated(call: Call[CompletionBody], prompt: Any, params: SamplingParams, adds_special: bool) -> list[int]:
    body, engine = call.body, call.state.engine
    token_ids = prompt
    if isinstance(prompt, str):
        token_ids = await encode_text(engine.input.tokenizer, prompt, add_special_tokens=adds_special)
    return truncate_prompt(
        token_ids,
        body.truncate_prompt_tokens,
        body.truncation_side or "left",
        max_model_len=engine.info.max_model_len,
        max_tokens=params.max_tokens,
    )


async def _whole(call: Call[CompletionBody], answers: Answers, n: int) -> bytes:
    """The whole answer: the final state of what would have been streamed."""
    tokenizer = call.state.engine.input.tokenizer
    usage = UsageCount()
    choices = []
    for prompt_index, output in enumerate(await answers.finals()):
        usage.add(prompt_index, output)
        for completion in output.outputs:
            completion.index += prompt_index * n
            choices.append(_choice(call.body, output, completion, tokenizer))
    answer = CompletionAnswer(
        id=call.answer_id,
        object="text_completion",
        created=call.created,
        model=call.model_name,
        choices=choices,
        usage=usage.usage(without_completion=call.body.prompt_only),
        system_fingerprint=SYSTEM_FINGERPRINT,
    )
    return msgspec.json.encode(answer)


def _choice(
    body: CompletionBody, output: RequestOutput, completion: CompletionOutput, tokenizer: Tokenizer
) -> CompletionChoice:
    choice = CompletionChoice(
        index=completion.index,
        text=completion.text,
        logprobs=_logprobs(body, output, completion, tokenizer),
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        prompt_logprobs=prompt_logprobs(output.prompt_logprobs) if body.prompt_logprobs is not None else None,
        prompt_token_ids=output.prompt_token_ids if body.return_token_ids else None,
        token_ids=completion.token_ids if body.return_token_ids else None,
        prompt_text=_prompt_text(body, output, tokenizer) if body.return_prompt_text else None,
    )
    if body.prompt_only:
        choice.text, choice.finish_reason, choice.stop_reason = "", FinishReason.LENGTH, None
        choice.token_ids = [] if body.return_token_ids else None
    if body.echo:
        choice.text = _prompt_text(body, output, tokenizer) + choice.text
    return choice


def _prompt_text(body: CompletionBody, output: RequestOutput, tokenizer: Tokenizer) -> str:
    if output.prompt is not None:
        return output.prompt
    return tokenizer.decode(output.prompt_token_ids, skip_special_tokens=body.skip_special_tokens is not False)


def _builder(body: CompletionBody) -> CompletionLogprobsBuilder:
    return CompletionLogprobsBuilder(body.logprobs or 0, TokenNames(bool(body.return_tokens_as_token_ids)))


def _logprobs(
    body: CompletionBody, output: RequestOutput, completion: CompletionOutput, tokenizer: Tokenizer
) -> CompletionLogprobs | None:
    """The log-probabilities of the answer, with `echo` behind those of the prompt."""
    if body.logprobs is None or completion.logprobs is None:
        return None
    token_ids = [] if body.prompt_only else completion.token_ids
    positions = [] if body.prompt_only else completion.logprobs
    if not body.echo:
        return _builder(body).build(token_ids, positions)
    assert output.prompt_logprobs is not None, "echo with logprobs asks for prompt_logprobs"
    first_text = tokenizer.token_text(output.prompt_token_ids[0])
    return _builder(body).build(
        [*output.prompt_token_ids, *token_ids], [*output.prompt_logprobs, *positions], first_text
    )


async def _frames(call: Call[CompletionBody], answers: Answers, n: int) -> AsyncGenerator[bytes, None]:
    """The frames of a stream: with `echo` the prompt first, then pieces; at the end, if wanted, the usage."""
    body = call.body
    shared = {
        "id": call.answer_id,
        "object": "text_completion",
        "created": call.created,
        "model": call.model_name,
        "system_fingerprint": SYSTEM_FINGERPRINT,
    }
    encoder = FrameEncoder(shared, include_usage=body.include_usage)
    usage = UsageCount()
    builders: dict[int, CompletionLogprobsBuilder] = {}
    async with contextlib.aclosing(answers.news()) as outputs:
        async for prompt_index, output in outputs:
            usage.add(prompt_index, output)
            current = usage.usage(without_completion=body.prompt_only) if body.continuous_usage else None
            frames = []
            for completion in output.outputs:
                completion.index += prompt_index * n
                if completion.index not in builders:
                    builders[completion.index] = _builder(body)
                    if first := _first_piece(call, output, completion.index):
                        frames.append(encoder.frame(first, current))
                if not body.prompt_only and (piece := _piece(body, completion, builders[completion.index])):
                    frames.append(encoder.frame(piece, current))
            if frames:
                yield b"".join(frames)
    if body.include_usage:
        yield encoder.frame(None, usage.usage(without_completion=body.prompt_only))


def _first_piece(call: Call[CompletionBody], output: RequestOutput, index: int) -> CompletionChoice | None:
    """What comes before the answer: the prompt, as text or as tokens, if it is wanted."""
    body = call.body
    if not (body.echo or body.return_token_ids or body.return_prompt_text):
        return None
    tokenizer = call.state.engine.input.tokenizer
    return CompletionChoice(
        index=index,
        text=_prompt_text(body, output, tokenizer) if body.echo else "",
        logprobs=None,
        finish_reason=FinishReason.LENGTH if body.prompt_only else None,
        stop_reason=None,
        prompt_token_ids=output.prompt_token_ids if body.return_token_ids else None,
        prompt_text=_prompt_text(body, output, tokenizer) if body.return_prompt_text else None,
    )


def _piece(
    body: CompletionBody, completion: CompletionOutput, builder: CompletionLogprobsBuilder
) -> CompletionChoice | None:
    """What is new in a choice; None where there is nothing to show, as while text is held back."""
    logprobs = None
    if body.logprobs is not None and completion.logprobs is not None:
        logprobs = builder.build(completion.token_ids, completion.logprobs)
    token_ids = completion.token_ids if body.return_token_ids else None
    if not (completion.text or completion.finish_reason or logprobs or token_ids):
        return None
    return CompletionChoice(
        index=completion.index,
        text=completion.text,
        logprobs=logprobs,
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        token_ids=token_ids,
    )
