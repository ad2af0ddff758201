"""When a sequence ends."""

from collections.abc import Callable

from quire.scheduler.sequence import Sequence
from quire.types.deltas import FinishReason


def make_stop_check(max_model_len: int) -> Callable[[Sequence], FinishReason | None]:
    """A check that the scheduler calls after every token it appends."""

    def check_stop(sequence: Sequence) -> FinishReason | None:
        """The reason to end `sequence` after its last token, None to go on."""
        if sequence.constraint is not None and sequence.constraint.is_complete:
            return FinishReason.STOP
        num_output_tokens = sequence.num_output_tokens
        if sequence.token_ids[-1] in sequence.stop_token_ids and num_output_tokens >= sequence.min_tokens:
            return FinishReason.STOP
        if num_output_tokens >= sequence.max_tokens or len(sequence.token_ids) >= max_model_len:
            return FinishReason.LENGTH
        return None

    return check_stop
