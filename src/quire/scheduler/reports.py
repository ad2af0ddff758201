"""What deltas say beyond the tokens of a step."""

from quire.scheduler.draft import InFlight
from quire.scheduler.sequence import Sequence
from quire.types.deltas import FinishReason, SequenceDelta
from quire.types.plan import StepResult


def last_report(sequence: Sequence, reason: FinishReason) -> SequenceDelta:
    """The end of a sequence, with the tokens that were not reported yet."""
    delta = sequence.report()
    delta.finish_reason = reason
    delta.num_preemptions = sequence.num_preemptions
    token_id = sequence.token_ids[-1]
    is_stop_token = token_id in sequence.stop_token_ids and token_id not in sequence.request.eos_token_ids
    if reason is FinishReason.STOP and is_stop_token:
        delta.stop_token_id = token_id
    constraint = sequence.constraint
    delta.shows_last_token = constraint is not None and constraint.is_complete and not constraint.ended_by_eos
    return delta


def attach_prompt_logprobs(record: InFlight, result: StepResult, deltas: list[SequenceDelta]) -> None:
    """Adds the positions that were not sent before: a preempted prompt computes some of them again."""
    first_samples = {delta.request_id: delta for delta in deltas if delta.sample_index == 0}
    for sequence in record.rows:
        begin = sequence.chunk_starts.pop(record.plan.step, None)
        delta = first_samples.get(sequence.request_id)
        if begin is None or (sequence.is_finished and delta is None):
            continue
        entries = result.prompt_logprobs.get(sequence.sequence_id, [])[sequence.num_sent_prompt_logprobs - begin :]
        if not entries:
            continue
        sequence.num_sent_prompt_logprobs += len(entries)
        if delta is None:
            delta = SequenceDelta(sequence.request_id, sequence.sample_index)
            sequence.introduce(delta)
            deltas.append(delta)
        delta.prompt_logprobs += entries
