"""A conversation with the model, whichever API asks for it: from checked wishes to answers in told-apart parts.

Chat completions, responses and messages differ in the shapes of their bodies. What they share is here: the prompt
by the chat template, and the grammar that tools and formats put on the answer. `conversation_answers` reads it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.entrypoints.http.conversation_answers import ConversationAnswers
from quire.entrypoints.http.generation import Call, renamed_fields
from quire.entrypoints.http.prompts import truncate_prompt
from quire.entrypoints.http.served_request import served_request_of
from quire.entrypoints.http.state import ServerState
from quire.entrypoints.http.tool_prompt import template_tool, with_tools_described
from quire.errors import ConfigError, InvalidRequestError
from quire.frontend.answer.grammar import answer_grammar
from quire.frontend.answer.syntax import AnswerSyntax, answer_syntax
from quire.frontend.answer.tools import FunctionTool, ToolChoice
from quire.frontend.chat_template import ChatPrompt, ChatTemplate
from quire.types.sampling import SamplingParams
from quire.types.structured_outputs import StructuredOutputsParams

NO_TOOLS = ToolChoice("none")

_GRAMMAR = "structured_outputs.grammar"
"""The name that a grammar made here goes by further down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a client wants of a conversation, already checked as far as possible without the model.

    Attributes:
        messages: As the chat template reads them; see `messages.template_messages`.
        tools: Functions the model may call.
        tool_choice: Whether it may, must, or must not.
        parallel_tool_calls: Whether one answer may hold several calls.
        structured: What the content of the answer must look like.
        include_reasoning: Whether reasoning is shown. Hidden reasoning hides its tokens, too.
        thinking_token_budget: Tokens that the reasoning may take; None for no limit.
        template_variables: Further variables for the chat template.
        documents: What the template may quote.
        add_generation_prompt: End the prompt with the head of an answer.
        continue_final_message: End the prompt within the last message.
        add_special_tokens: Put bos in front of what the template writes.
        truncate_prompt_tokens: Tokens of the prompt to keep; -1 for as many as leave room for the answer.
        truncation_side: "left" or "right": where tokens are cut off.
        chat_template: Instead of the model's own.
        call_id_prefix: What the ids of tool calls begin with.
    """

    messages: Sequence[dict[str, Any]]
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: ToolChoice = NO_TOOLS
    parallel_tool_calls: bool = True
    structured: StructuredOutputsParams | None = None
    include_reasoning: bool = True
    thinking_token_budget: int | None = None
    template_variables: dict[str, Any] = field(default_factory=dict)
    documents: Sequence[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    truncate_prompt_tokens: int | None = None
    truncation_side: str = "left"
    chat_template: str | None = None
    call_id_prefix: str = "chatcmpl-tool-"


def chat_defaults(call: Call[Any]) -> SamplingParams:
    """The model's own defaults, with all of the context for the answer where they do not say otherwise."""
    own = call.state.engine.input
    return own.default_sampling_params().with_changes(max_tokens=own.sampling_defaults.get("max_tokens"))


def reasoning_variables(effort: str | None) -> dict[str, Any]:
    """The variables by which chat templates know how much to reason."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort} | ({"enable_thinking": False} if effort == "none" else {})


async def encode_conversation(state: ServerState, conversation: Conversation) -> ChatPrompt:
    """The prompt that the chat template makes of a conversation, before any truncation.

    Raises:
        InvalidRequestError: No template, or messages that do not fit it.
    """
    template = await _template(state, conversation)
    shows_tools = conversation.tool_choice.kind != "none" or not state.config.exclude_tools_when_tool_choice_none
    tools = [template_tool(tool) for tool in conversation.tools] if shows_tools else []
    messages = conversation.messages
    if tools and template is not None and not template.reads_tools:
        messages = with_tools_described(messages, tools)
    prompt = await state.engine.encode_chat(
        messages,
        template=template,
        tools=tools,
        documents=conversation.documents,
        add_generation_prompt=conversation.add_generation_prompt,
        continue_final_message=conversation.continue_final_message,
        variables=state.config.default_template_variables | conversation.template_variables,
    )
    if not conversation.add_special_tokens:
        return prompt
    return ChatPrompt(prompt.text, state.engine.input.tokenizer.add_special_tokens(prompt.token_ids))


async def open_conversation(call: Call[Any], conversation: Conversation, params: SamplingParams) -> ConversationAnswers:
    """Hands a conversation to the engine. The caller must close what it gets.

    Raises:
        InvalidRequestError: A wish that the model, its template or the server's settings cannot grant.
        OverloadedError: Too many requests.
        EngineDeadError: The engine has ended.
    """
    check_tool_choice(call.state, conversation)
    _check_reasoning_wishes(call.state, conversation)
    prompt = await encode_conversation(call.state, conversation)
    syntax = _syntax(call.state, conversation, prompt)
    if syntax is not None and syntax.tool_format is not None:
        served_request_of(call.request).tool_format = syntax.tool_format.name
    with renamed_fields({_GRAMMAR: _grammar_source(call, conversation)}):
        answers = await call.open(
            [_truncated(call.state, conversation, prompt, params)],
            _constrained(params, conversation, syntax),
            shown_special_tokens=syntax.shown_special_tokens if syntax else frozenset(),
        )
    return ConversationAnswers(
        answers,
        syntax,
        call.state.engine.input.tokenizer,
        include_reasoning=conversation.include_reasoning,
        skip_special_tokens=params.skip_special_tokens,
        call_id_prefix=conversation.call_id_prefix,
    )


def check_tool_choice(state: ServerState, conversation: Conversation) -> None:
    """Checks what a client wants of its tools against the server's settings.

    Raises:
        InvalidRequestError: The model is to decide by itself, and the server does not let it.
    """
    if conversation.tool_choice.kind != "auto":
        return
    if not state.formats.auto_tool_choice:
        name = state.formats.tools.name if state.formats.tools else "NAME"
        raise InvalidRequestError(
            'tool_choice "auto" is switched off on this server',
            hint=f"start it with --enable-auto-tool-choice --tool-call-parser {name}, or send tool_choice "
            '"required", "none" or the name of a function',
            param="tool_choice",
        )


def _check_reasoning_wishes(state: ServerState, conversation: Conversation) -> None:
    if conversation.thinking_token_budget is not None and state.formats.reasoning is None:
        raise InvalidRequestError(
            "thinking_token_budget needs a model whose reasoning is told apart",
            hint="start the server with --reasoning-parser NAME",
            param="thinking_token_budget",
        )


def _syntax(state: ServerState, conversation: Conversation, prompt: ChatPrompt) -> AnswerSyntax | None:
    """How the answers are to be read; None for plain text."""
    formats, kind = state.formats, conversation.tool_choice.kind
    if formats.reasoning is None and kind == "none":
        return None
    return answer_syntax(
        tool_format=formats.tools if kind != "none" else None,
        reasoning_format=formats.reasoning,
        tools=conversation.tools if kind != "none" else (),
        prompt=prompt.text,
        added_tokens=state.engine.input.tokenizer.added_tokens,
        calls_are_forced=kind in ("required", "named"),
    )


def _constrained(params: SamplingParams, conversation: Conversation, syntax: AnswerSyntax | None) -> SamplingParams:
    structured, budget = conversation.structured, conversation.thinking_token_budget
    is_free = structured is None and budget is None and conversation.tool_choice.kind == "none"
    if syntax is not None and not is_free:
        grammar = answer_grammar(
            syntax,
            conversation.tool_choice,
            parallel_tool_calls=conversation.parallel_tool_calls,
            structured=structured,
            thinking_token_budget=budget,
        )
        structured = None if grammar is None else StructuredOutputsParams(grammar=grammar)
    return params if structured is None else params.with_changes(structured_outputs=structured)


def _grammar_source(call: Call[Any], conversation: Conversation) -> str:
    """The request's field that the grammar of its answers is made of."""
    if conversation.structured is None or conversation.tool_choice.kind != "none":
        return "tools"
    name = f"structured_outputs.{conversation.structured.kind}"
    names: Mapping[str, str] = call.body.field_names()
    return names.get(name, name)


def _truncated(
    state: ServerState, conversation: Conversation, prompt: ChatPrompt, params: SamplingParams
) -> dict[str, Any]:
    token_ids = truncate_prompt(
        prompt.token_ids,
        conversation.truncate_prompt_tokens,
        conversation.truncation_side,
        max_model_len=state.engine.info.max_model_len,
        max_tokens=params.max_tokens,
    )
    return {"prompt": prompt.text, "prompt_token_ids": token_ids}


async def _template(state: ServerState, conversation: Conversation) -> ChatTemplate | None:
    """The template for a conversation: the client's, if it brings one and may, otherwise the model's."""
    if conversation.chat_template is None:
        return state.engine.input.template
    if not state.config.trust_request_chat_template:
        raise InvalidRequestError(
            "chat_template is not accepted by this server",
            hint="start it with --trust-request-chat-template, or pass variables in chat_template_kwargs",
            param="chat_template",
        )
    named_tokens = state.engine.input.tokenizer.named_tokens
    try:
        return await asyncio.to_thread(ChatTemplate, conversation.chat_template, named_tokens=named_tokens)
    except ConfigError as error:
        raise InvalidRequestError(error.message, param="chat_template") from error
