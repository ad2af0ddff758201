"""Long conversations: the oldest turns are left out until the rest fits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from quire.entrypoints.http.conversation import Conversation, encode_conversation, open_conversation
from quire.entrypoints.http.conversation_answers import ConversationAnswers
from quire.entrypoints.http.generation import Call
from quire.errors import PromptTooLongError
from quire.types.sampling import SamplingParams


async def open_trimmed(
    call: Call[Any], conversation: Conversation, params: SamplingParams, *, trims: bool
) -> ConversationAnswers:
    """Hands a conversation to the engine; without its oldest turns if it `trims` and is too long.

    Raises:
        PromptTooLongError: It is too long; with `trims`, even its last message alone is.
        QuireError: As `open_conversation`.
    """
    try:
        return await open_conversation(call, conversation, params)
    except PromptTooLongError:
        if not trims:
            raise
    limit = max(1, call.state.engine.info.max_model_len - (params.max_tokens or 1))
    low, high = 1, len(conversation.messages)
    while low < high:
        middle = (low + high) // 2
        shorter = replace(conversation, messages=without_oldest(conversation.messages, middle))
        prompt = await encode_conversation(call.state, shorter)
        if len(prompt.token_ids) <= limit:
            high = middle
        else:
            low = middle + 1
    shorter = replace(conversation, messages=without_oldest(conversation.messages, low))
    return await open_conversation(call, shorter, params)


def without_oldest(messages: Sequence[dict[str, Any]], num_dropped: int) -> list[dict[str, Any]]:
    """The messages without some at the begin. A system message there stays, and so does the last message.

    Results of tools go with the calls that they belong to.
    """
    head = [message for message in messages[:1] if message["role"] == "system"]
    rest = messages[len(head) :]
    start = min(num_dropped, len(rest) - 1)
    while start < len(rest) - 1 and rest[start]["role"] == "tool":
        start += 1
    return [*head, *rest[max(0, start) :]]
