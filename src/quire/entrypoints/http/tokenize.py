"""POST /tokenize and /detokenize."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from quire.entrypoints.http.body import read_body
from quire.entrypoints.http.conversation import Conversation, encode_conversation
from quire.entrypoints.http.messages import template_messages
from quire.entrypoints.http.openapi import describe
from quire.entrypoints.http.prompts import encode_text
from quire.entrypoints.http.protocol import ChatTemplateText, Messages, TemplateVariables, check_continuation
from quire.entrypoints.http.request_body import TokenId
from quire.entrypoints.http.state import ServerState, state_of
from quire.entrypoints.http.tool_fields import Tools, function_tools, read_tool_choice
from quire.errors import InvalidRequestError, ParameterError

MAX_TOKENS = 2**20

router = APIRouter()


class TokenizeBody(BaseModel):
    """A text, or a chat."""

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]},
    )

    model: Annotated[str, Field(max_length=1024)] | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(None, description="By default true for a prompt and false for messages.")
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: ChatTemplateText | None = None
    chat_template_kwargs: TemplateVariables | None = None
    tools: Tools | None = None


class Tokens(msgspec.Struct):
    """A prompt as tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeBody(BaseModel):
    """Tokens."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    model: Annotated[str, Field(max_length=1024)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS)]


class Text(msgspec.Struct):
    """Tokens as text."""

    prompt: str


@router.post("/tokenize", openapi_extra=describe(TokenizeBody, Tokens))
async def tokenize(request: Request) -> Response:
    """The tokens of a prompt, or of what the chat template makes of messages."""
    state = state_of(request)
    body = await read_body(request, TokenizeBody, state.config.max_body_bytes)
    state.check_model(body.model, request)
    token_ids = await _token_ids(state, body)
    tokenizer = state.engine.input.tokenizer
    texts = [tokenizer.token_text(token_id) for token_id in token_ids] if body.return_token_strs else None
    answer = Tokens(len(token_ids), state.engine.info.max_model_len, token_ids, texts)
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.post("/detokenize", openapi_extra=describe(DetokenizeBody, Text))
async def detokenize(request: Request) -> Response:
    """The text of tokens, control tokens included."""
    state = state_of(request)
    body = await read_body(request, DetokenizeBody, state.config.max_body_bytes)
    state.check_model(body.model, request)
    vocab_size = state.engine.info.vocab_size
    if max(body.tokens, default=0) >= vocab_size:
        rule = f"made of token ids below the vocabulary's size {vocab_size}"
        raise ParameterError("tokens", rule, max(body.tokens))
    text = state.engine.input.tokenizer.decode(body.tokens, skip_special_tokens=False)
    return Response(msgspec.json.encode(Text(text)), media_type="application/json")


async def _token_ids(state: ServerState, body: TokenizeBody) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("exactly one of prompt and messages is needed", param="prompt")
    if body.prompt is not None:
        adds = body.add_special_tokens is not False
        return await encode_text(state.engine.input.tokenizer, body.prompt, add_special_tokens=adds)
    check_continuation(body.continue_final_message, body.add_generation_prompt)
    generates = not body.continue_final_message if body.add_generation_prompt is None else body.add_generation_prompt
    tools = function_tools(body.tools)
    conversation = Conversation(
        messages=template_messages(body.messages or ()),
        tools=tools,
        tool_choice=read_tool_choice(None, tools),
        template_variables=body.chat_template_kwargs or {},
        add_generation_prompt=generates,
        continue_final_message=bool(body.continue_final_message),
        add_special_tokens=bool(body.add_special_tokens),
        chat_template=body.chat_template,
    )
    return (await encode_conversation(state, conversation)).token_ids
