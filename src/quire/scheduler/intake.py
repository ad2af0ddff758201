"""What keeps a sequence from running, and the deltas that say so."""

from quire.kvcache.manager import KVCacheManager
from quire.scheduler.sequence import Sequence
from quire.types.deltas import FinishReason, SequenceDelta


def num_blocks_for(sequence: Sequence, cache: KVCacheManager) -> int:
    """Blocks that the known tokens of a sequence fill."""
    return -(-len(sequence.token_ids) // cache.block_size)


def is_too_large(sequence: Sequence, cache: KVCacheManager) -> bool:
    """Whether its known tokens exceed the whole cache."""
    return num_blocks_for(sequence, cache) > cache.num_blocks


def obstacle(sequence: Sequence, cache: KVCacheManager, max_model_len: int) -> str | None:
    """Why a new sequence could never run; None if it can. The front end checks the same before."""
    if not sequence.num_prompt_tokens:
        return "the prompt holds no token"
    num_tokens = len(sequence.token_ids)
    if num_tokens >= max_model_len:
        return f"the prompt has {num_tokens} tokens, and a context of {max_model_len} leaves none for an answer"
    return too_large_message(sequence, cache) if is_too_large(sequence, cache) else None


def too_large_message(sequence: Sequence, cache: KVCacheManager) -> str:
    """For a sequence that does not fit the cache although it is alone."""
    return (
        f"after {len(sequence.token_ids)} tokens the KV cache is full: it holds {cache.num_blocks * cache.block_size} "
        f"({cache.num_blocks} blocks of {cache.block_size}); give it more memory or ask for fewer tokens"
    )


def error_delta(sequence: Sequence, message: str, *, blames_request: bool = False) -> SequenceDelta:
    """The end of a sequence that failed, with the outputs that were not reported yet."""
    return SequenceDelta(
        sequence.request_id,
        sequence.sample_index,
        sequence.token_ids[sequence.num_reported_tokens :],
        finish_reason=FinishReason.ERROR,
        error=message,
        num_preemptions=sequence.num_preemptions,
        blames_request=blames_request,
    )
