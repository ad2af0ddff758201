"""What a runner says of a sequence whose token could not be drawn."""

from quire.types.ids import SequenceId
from quire.types.plan import StepResult

_NOT_FINITE = "its logits hold NaN or infinity"
_EXHAUSTED = "no token is left to it"


def add_failure(result: StepResult, sequence_id: SequenceId, *, is_exhausted: bool) -> None:
    """Puts it down in `result`, unless the sequence has failed already."""
    if sequence_id not in result.failures:
        result.failures[sequence_id] = _EXHAUSTED if is_exhausted else _NOT_FINITE
        if is_exhausted:
            result.exhausted.add(sequence_id)
