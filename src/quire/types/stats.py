"""Counters and gauges. Immutable snapshots; counters only grow."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheStats:
    """The KV cache at one moment.

    Attributes:
        num_blocks: Blocks that exist.
        num_blocks_in_use: Blocks that some sequence refers to.
        num_cached_blocks: Blocks that can be found by their content, in use or not.
        num_wasted_slots: Token slots allocated to sequences but not (yet) used.
        num_slots_in_use: Token slots allocated to sequences.
        num_queried_tokens: Tokens looked up in the prefix index (counter).
        num_hit_tokens: Tokens found there (counter).
        num_missed_no_match: Prompt lookups that ended at a block never seen (counter, per lookup).
        num_missed_under_one_block: Lookups of prompts too short to fill a block (counter).
        num_missed_evicted: Lookups that ended at a block that had been cached and was evicted (counter).
        num_missed_other_salt: Lookups that would have gone on under another salt (counter).
        num_missed_other_adapter: Lookups that would have gone on under another adapter (counter).
        num_evicted_blocks: Cached blocks whose content was given up (counter).
    """

    num_blocks: int = 0
    num_blocks_in_use: int = 0
    num_cached_blocks: int = 0
    num_wasted_slots: int = 0
    num_slots_in_use: int = 0
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0
    num_missed_no_match: int = 0
    num_missed_under_one_block: int = 0
    num_missed_evicted: int = 0
    num_missed_other_salt: int = 0
    num_missed_other_adapter: int = 0
    num_evicted_blocks: int = 0

    @property
    def usage(self) -> float:
        """Fraction of the blocks in use, 0 to 1."""
        return self.num_blocks_in_use / self.num_blocks if self.num_blocks else 0.0

    @property
    def waste(self) -> float:
        """Fraction of the allocated slots that hold nothing, 0 to 1."""
        return self.num_wasted_slots / self.num_slots_in_use if self.num_slots_in_use else 0.0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine after a step.

    Attributes:
        step: Steps finished so far.
        num_running: Sequences in a slot.
        num_waiting: Sequences that wait for a slot, preempted ones included.
        num_preemptions: Sequences put back for want of blocks (counter).
        num_prompt_tokens: Prompt tokens computed or taken from the cache (counter).
        num_generated_tokens: Tokens produced (counter).
        num_step_tokens: Tokens that the last step computed.
        execute_seconds: Time the last step took on the device.
        num_deferred: Those of `num_waiting` that wait for a sibling to compute the prompt they share.
        num_cached_prompt_tokens: Those of `num_prompt_tokens` that came from the cache (counter).
    """

    step: int
    num_running: int
    num_waiting: int
    num_preemptions: int
    num_prompt_tokens: int
    num_generated_tokens: int
    num_step_tokens: int
    execute_seconds: float
    cache: CacheStats
    num_deferred: int = 0
    num_cached_prompt_tokens: int = 0
