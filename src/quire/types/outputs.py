"""What a user gets back. Field names are vLLM's."""

from dataclasses import dataclass, field

from quire.types.deltas import FinishReason


@dataclass(slots=True)
class Logprob:
    """One token's log-probability at one position.

    Attributes:
        logprob: Natural logarithm of the model's probability, before any sampling parameter.
        rank: 1 for the most likely token of the vocabulary.
        decoded_token: The token as text; None without detokenisation.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One answer.

    Attributes:
        index: Its number among the request's answers.
        text: Empty without detokenisation.
        token_ids: The stop token included.
        cumulative_logprob: Sum over the tokens; None unless logprobs were asked for.
        logprobs: Per token, the token's own entry first, then the alternatives in falling order.
        finish_reason: None while it runs.
        stop_reason: The stop string or stop token that ended it; None for end-of-sequence.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """When things happened to a request, in seconds on the host's monotonic clock.

    Attributes:
        queue_seconds: From arrival until it was first scheduled.
        num_preemptions: How often its samples were put back for want of blocks.
    """

    arrival_time: float
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    queue_seconds: float | None = None
    num_preemptions: int = 0


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its answers.

    Attributes:
        prompt: The text, None where ids were given.
        prompt_logprobs: Per prompt position; the first is None. None unless asked for.
        finished: Whether every answer has ended.
        num_cached_tokens: Prompt tokens that came from the prefix cache.
        error: Why it failed; None otherwise.
        blames_request: Whether its own parameters are why.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int | None = None
    metrics: RequestMetrics | None = None
    error: str | None = field(default=None)
    blames_request: bool = False
