"""POST /v1/chat/completions."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.entrypoints.http.answer_bodies import ChatAnswer, ChatChunk
from quire.entrypoints.http.chat_answer import ChatView, encode_frames, encode_whole
from quire.entrypoints.http.conversation import Conversation, chat_defaults, open_conversation, reasoning_variables
from quire.entrypoints.http.generation import Call, renamed_fields
from quire.entrypoints.http.messages import template_messages
from quire.entrypoints.http.openapi import describe
from quire.entrypoints.http.output_fields import read_structure
from quire.entrypoints.http.protocol import ChatBody
from quire.entrypoints.http.streaming import respond
from quire.entrypoints.http.tool_fields import function_tools, read_tool_choice

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=describe(ChatBody, ChatAnswer, event=ChatChunk))
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation, as one body or as a stream of events."""
    call = await Call.read(request, ChatBody, "chatcmpl-")
    params = call.sampling_params(chat_defaults(call))
    with renamed_fields(call.body.field_names()):
        conversation = _conversation(call)
    view = ChatView.of(call.body, conversation)
    return await respond(
        call,
        lambda: open_conversation(call, conversation, params),
        lambda answers: encode_whole(call, view, answers),
        lambda answers: encode_frames(call, view, answers),
    )


def _conversation(call: Call[ChatBody]) -> Conversation:
    body = call.body
    tools = function_tools(body.tools)
    budget = body.thinking_token_budget
    return Conversation(
        messages=template_messages(body.messages),
        tools=tools,
        tool_choice=read_tool_choice(body.tool_choice, tools),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        structured=read_structure(body.response_format, body.structured_outputs),
        include_reasoning=body.include_reasoning is not False,
        thinking_token_budget=None if budget == -1 else budget,
        template_variables=reasoning_variables(body.reasoning_effort) | (body.chat_template_kwargs or {}),
        documents=body.documents,
        add_generation_prompt=body.generates,
        continue_final_message=bool(body.continue_final_message),
        add_special_tokens=bool(body.add_special_tokens),
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        truncation_side=body.truncation_side or "left",
        chat_template=body.chat_template,
    )
