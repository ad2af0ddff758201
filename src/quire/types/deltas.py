"""What the engine tells the front end after each step."""

import enum
from dataclasses import dataclass, field

from quire.types.ids import RequestId
from quire.types.plan import PositionLogprobs
from quire.types.stats import EngineStats


@enum.unique
class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(slots=True)
class SequenceDelta:
    """New tokens of one sample, and its end if it ended.

    Attributes:
        sample_index: Which of the request's samples.
        token_ids: Produced since the last delta; the stop token included. One, or many at once where
            `SamplingParams.needs_every_token` is false.
        logprobs: One entry per token of `token_ids`; empty unless asked for.
        finish_reason: Set on the last delta of a sample.
        stop_token_id: The stop token that ended it; None for end-of-sequence and all else.
        shows_last_token: With `FinishReason.STOP`: the last token is a part of the text, which it completed.
        error: A text without paths or traces, with `FinishReason.ERROR`.
        blames_request: Whether the request's own parameters are the cause of the error.
        num_cached_tokens: Prompt tokens taken from the prefix cache; on the first delta of a sample.
        queue_seconds: From arrival to the first scheduling; on the first delta of a sample.
        prompt_logprobs: Positions 1.. of the prompt; on sample 0, spread over the deltas of a chunked prefill.
        num_preemptions: How often the sample was put back for want of blocks; on its last delta.
    """

    request_id: RequestId
    sample_index: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: str | None = None
    num_cached_tokens: int | None = None
    queue_seconds: float | None = None
    prompt_logprobs: list[PositionLogprobs] = field(default_factory=list)
    num_preemptions: int = 0
    shows_last_token: bool = False
    blames_request: bool = False


@dataclass(slots=True)
class StepOutputs:
    """All that one turn of the loop produced."""

    deltas: list[SequenceDelta] = field(default_factory=list)
    stats: EngineStats | None = None
