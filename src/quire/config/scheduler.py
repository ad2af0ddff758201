"""What one step may hold."""

from dataclasses import dataclass

from quire.config.option import option
from quire.errors import ConfigError

POLICIES = ("fcfs", "priority")
POSITIVE = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_num_prompt_tokens",
    "max_num_queued_reqs",
    "max_num_queued_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of a step and the order of the queue. None means: by device, filled in by `resolve`."""

    max_num_seqs: int | None = option(None, human_integer=True, basic=True, help="Sequences in one step.")
    max_num_batched_tokens: int | None = option(
        None,
        human_integer=True,
        basic=True,
        help="Tokens computed in one step, over all sequences.",
    )
    max_num_prompt_tokens: int | None = option(
        None,
        human_integer=True,
        help="Those of them that belong to prompts; a short prompt of a key that was served less than others may have "
        "all. By default 64 for a server on a CPU if max_num_batched_tokens is not set, else no bound.",
    )
    scheduling_policy: str = option(
        "fcfs",
        choices=POLICIES,
        help="Order of waiting requests: first come first served, or by priority.",
    )
    enable_chunked_prefill: bool = option(True, help="Spread long prompts over steps; cannot be turned off.")
    max_num_queued_reqs: int = option(
        4096,
        help="Requests in the engine, running or waiting; further ones are refused with a 429.",
    )
    max_num_queued_tokens: int = option(
        2_000_000,
        human_integer=True,
        help="Prompt tokens that wait for their first answer token; further ones are refused with a 429.",
    )

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}", param=name)
        if self.scheduling_policy not in POLICIES:
            raise ConfigError(
                f"scheduling_policy must be one of {', '.join(POLICIES)}, got {self.scheduling_policy!r}",
                param="scheduling_policy",
            )
        if not self.enable_chunked_prefill:
            raise ConfigError(
                "enable_chunked_prefill cannot be turned off: a step has one token budget for prompts and answers",
                hint="raise max_num_batched_tokens to the longest prompt to compute each prompt in one step",
                param="enable_chunked_prefill",
            )
