"""How a front end reaches an engine, wherever it runs."""

from dataclasses import dataclass
from typing import Protocol

from quire.types.deltas import StepOutputs
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What a front end must know of an engine to check requests against it.

    Attributes:
        max_model_len: Prompt and answer together, in tokens, that a sequence may have.
        max_num_seqs: Sequences in one step.
        max_num_batched_tokens: Tokens in one step.
        scheduling_policy: "fcfs" or "priority".
        num_blocks: Blocks of the KV cache.
        block_size: Tokens per block.
        dtype: Number format of weights and activations.
        device: "cpu" or "cuda".
        memory: The memory ledger in bytes by purpose.
        start_seconds: What the start spent its time on.
        enable_prefix_caching: Whether prompts reuse what others have computed.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    scheduling_policy: str
    num_blocks: int
    block_size: int
    vocab_size: int
    dtype: str
    device: str
    memory: dict[str, int]
    start_seconds: dict[str, float]
    enable_prefix_caching: bool = True


class EnginePort(Protocol):
    """An engine as the front end sees it. All methods belong to one event loop."""

    @property
    def info(self) -> EngineInfo:
        """What the engine has settled on."""

    async def add(self, request: GenerationRequest) -> None:
        """Sends a request.

        Raises:
            EngineDeadError: The engine has ended.
        """

    async def abort(self, request_ids: list[RequestId]) -> None:
        """Ends requests; nothing more is heard of them. Unknown ids have no effect.

        Raises:
            EngineDeadError: The engine has ended.
        """

    async def start_profile(self) -> None:
        """Begins to record a trace.

        Raises:
            ConfigError: There is no folder for traces, or nothing can be written to it.
            InvalidRequestError: One is being recorded already.
            EngineDeadError: The engine has ended.
        """

    async def stop_profile(self) -> str:
        """Ends it and returns the trace's path. No step runs while the trace is written.

        Raises:
            InvalidRequestError: None is being recorded.
            EngineDeadError: The engine has ended.
        """

    async def receive(self) -> list[StepOutputs]:
        """Waits until the engine has produced something and returns all of it, in order.

        Raises:
            EngineDeadError: The engine has ended; noticed within 2 s.
        """

    async def close(self) -> None:
        """Ends the engine and waits for it."""
