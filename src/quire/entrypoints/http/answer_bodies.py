"""The bodies of answers. A field without a default is always there; one with a default is left out where it is that."""

import msgspec

from quire import __version__
from quire.types.outputs import RequestOutput

SYSTEM_FINGERPRINT = f"quire-{__version__}"


class PromptTokensDetails(msgspec.Struct):
    """Where the prompt's tokens came from."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    """What the tokens of the answers were spent on."""

    reasoning_tokens: int


class Usage(msgspec.Struct, omit_defaults=True):
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None


class UsageCount:
    """Adds up the usage of a request over its prompts and, in a stream, over its frames."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, int]] = {}
        self._num_completion_tokens = 0

    def add(self, prompt_index: int, output: RequestOutput) -> None:
        """Counts the new tokens of `output`; the prompt counts once."""
        self._prompts[prompt_index] = (len(output.prompt_token_ids), output.num_cached_tokens or 0)
        for answer in output.outputs:
            self._num_completion_tokens += len(answer.token_ids)

    def usage(self, *, without_completion: bool = False, num_reasoning_tokens: int | None = None) -> Usage:
        """The usage so far; reasoning is listed where it is told apart."""
        prompt_tokens = sum(length for length, _ in self._prompts.values())
        completion_tokens = 0 if without_completion else self._num_completion_tokens
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(sum(cached for _, cached in self._prompts.values())),
            completion_tokens_details=None
            if num_reasoning_tokens is None
            else CompletionTokensDetails(num_reasoning_tokens),
        )


class TopLogprob(msgspec.Struct):
    """An alternative at one position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """A token of a chat answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities in the shape of chat."""

    content: list[TokenLogprob]


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities in the shape of completion."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(msgspec.Struct):
    """A token at one position of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[int, PromptLogprob] | None]


class Function(msgspec.Struct):
    """The function of a call, its arguments as JSON text."""

    name: str
    arguments: str


class MessageToolCall(msgspec.Struct):
    """A call that the assistant wants to be made."""

    id: str
    type: str
    function: Function


class Message(msgspec.Struct, omit_defaults=True):
    """What the assistant said."""

    role: str
    content: str | None
    reasoning: str | None = None
    tool_calls: list[MessageToolCall] | None = None


class ChatChoice(msgspec.Struct, omit_defaults=True):
    """One answer of a chat."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class ChatAnswer(msgspec.Struct, omit_defaults=True):
    """The whole answer of a chat."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None


class CompletionChoice(msgspec.Struct, omit_defaults=True):
    """One answer of a completion, whole or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    prompt_text: str | None = None


class CompletionAnswer(msgspec.Struct):
    """The whole answer of a completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    """What is new in the function of a call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """What is new in a call. The first piece has its id, type and name; later ones have more of its arguments."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct, omit_defaults=True):
    """What is new in a chat answer."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(msgspec.Struct, omit_defaults=True):
    """A piece of one answer of a chat."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    prompt_text: str | None = None


class ChatChunk(msgspec.Struct, omit_defaults=True):
    """An event of a chat's stream. The last one may have no choice but the usage."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChunk(msgspec.Struct, omit_defaults=True):
    """An event of a completion's stream."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
