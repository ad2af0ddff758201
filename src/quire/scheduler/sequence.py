"""One sample of one request, and the samples of one request, as the scheduler sees them."""

import copy

from quire.kvcache.block_table import BlockTable
from quire.scheduler.constraint import Constraint
from quire.scheduler.tenant import Tenant
from quire.types.deltas import SequenceDelta
from quire.types.ids import RequestId, SequenceId, SlotIndex
from quire.types.request import GenerationRequest
from quire.types.sampling import SamplingParams

REPORT_INTERVAL = 32
"""Tokens of a sample that are reported together where nobody looks at each."""


class SampleGroup:
    """The samples of one request that have not ended.

    Attributes:
        samples: In the order of their index.
        held: Those that wait for another sample to compute the prompt, so that it is computed once.
    """

    __slots__ = ("held", "samples")

    def __init__(self) -> None:
        self.samples: list[Sequence] = []
        self.held: list[Sequence] = []

    def sharer(self, last_step: int) -> "Sequence | None":
        """A sample in a slot whose prompt is computed by a plan up to `last_step`."""
        for sequence in self.samples:
            if sequence.slot is not None and 0 < sequence.shareable_after_step <= last_step:
                return sequence
        return None


class Sequence:
    """Tokens known, tokens computed and tokens wanted of one sample.

        0            num_prompt_tokens       len(token_ids)   num_tokens
        |   prompt   |   outputs seen        |   pending      |
        |   handed out to plans, so far ....... num_computed_tokens

    A plan computes tokens from `num_computed_tokens` on. When that reaches `num_tokens` one more token is drawn,
    and `num_tokens` grows before anyone on the host has seen it. A running sequence holds a slot and a table;
    a waiting one holds neither.

    Attributes:
        sampling: The request's, without `prompt_logprobs` where this sample has none to send.
        tenant: Who is served with it.
        rank: Place in the order of service of its tenant, smaller first; kept across preemptions.
        token_ids: Prompt, then the outputs that were seen; a replay's produced tokens are outputs.
        num_tokens: Known and pending ones.
        max_num_tokens: What `num_tokens` never exceeds.
        num_ready_tokens: Up to this `num_tokens` it wants one token and has the block for it; 0 if that is not known.
        num_quiet_tokens: Up to this length of `token_ids`, a token that is no stop token needs nothing but to be
            appended, and reported if the interval is 1: it ends nothing and completes no block to share.
        num_reported_tokens: Leading ones of `token_ids` that need not be reported any more.
        stop_token_ids: Every token that ends it.
        constraint: Its place in its grammar; None for free text.
        table: Its blocks while it holds a slot.
        num_reused_tokens: Leading tokens it did not compute itself when it last entered a slot.
        num_cached_tokens: The same for the first time: what the user is told.
        num_charged_tokens: Leading ones of `token_ids` that its tenant was charged for.
        num_prompt_logprobs: Prompt positions whose log-probabilities it sends: all but the first, or none.
        num_sent_prompt_logprobs: How many of them it has sent.
        chunk_starts: By step, where a chunk of a prompt with log-probabilities began.
        shareable_after_step: Later plans may copy its prompt; 0 while that is not computed.
        entered_step: The plan with which it last entered a slot.
        num_counted_prompt_tokens: Prompt tokens that the statistics hold already.
        num_blocks_needed: With fewer free blocks, entering a slot is not tried again.
        queue_seconds: From arrival until it first entered a slot.
        is_reported: Whether a delta was produced.
        report_interval: Tokens that are reported together.
        report_at: Length of `token_ids` from which on it is due to be reported.
    """

    __slots__ = (
        "chunk_starts",
        "constraint",
        "entered_step",
        "group",
        "is_finished",
        "is_reported",
        "max_num_tokens",
        "max_tokens",
        "min_tokens",
        "num_blocks_needed",
        "num_cached_tokens",
        "num_charged_tokens",
        "num_computed_tokens",
        "num_counted_prompt_tokens",
        "num_preemptions",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "num_quiet_tokens",
        "num_ready_tokens",
        "num_reported_tokens",
        "num_reused_tokens",
        "num_sent_prompt_logprobs",
        "num_tokens",
        "queue_seconds",
        "rank",
        "report_at",
        "report_interval",
        "request",
        "request_id",
        "sample_index",
        "sampling",
        "seed",
        "sequence_id",
        "shareable_after_step",
        "slot",
        "stop_token_ids",
        "table",
        "tenant",
        "token_ids",
    )

    def __init__(
        self,
        request: GenerationRequest,
        sample_index: int,
        *,
        sequence_id: SequenceId,
        rank: tuple[int, int],
        group: SampleGroup,
        max_model_len: int,
        tenant: Tenant | None = None,
    ) -> None:
        sampling = request.sampling
        produced = request.produced_token_ids[sample_index] if sample_index < len(request.produced_token_ids) else ()
        self.sequence_id = sequence_id
        self.request = request
        self.request_id: RequestId = request.request_id
        self.sample_index = sample_index
        self.rank = rank
        self.tenant = tenant or Tenant("")
        self.group = group
        self.token_ids: list[int] = [*request.prompt_token_ids, *produced]
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_tokens = self.num_reported_tokens = len(self.token_ids)
        self.report_interval = 1 if sampling.needs_every_token else REPORT_INTERVAL
        self.report_at = self.num_reported_tokens + 1
        self.max_tokens: int = max_model_len if sampling.max_tokens is None else sampling.max_tokens
        self.min_tokens: int = sampling.min_tokens
        self.max_num_tokens = min(self.num_prompt_tokens + self.max_tokens, max_model_len)
        self.stop_token_ids = request.stop_token_ids
        self.constraint: Constraint | None = None
        sends_prompt_logprobs = sampling.prompt_logprobs is not None and sample_index == 0 and not produced
        self.num_prompt_logprobs = self.num_prompt_tokens - 1 if sends_prompt_logprobs else 0
        self.num_sent_prompt_logprobs = 0
        assert sampling.seed is not None, "the front end fills in the seed"
        self.seed: int = sampling.seed
        self.sampling: SamplingParams = sampling
        if sampling.prompt_logprobs is not None and not self.num_prompt_logprobs:
            self.sampling = sampling.with_changes(prompt_logprobs=None)
        # The prompt of a request counts once, however many samples share it.
        self.num_counted_prompt_tokens = 0 if sample_index == 0 else self.num_prompt_tokens
        self.num_preemptions = 0
        self.num_charged_tokens = 0
        self.num_cached_tokens = 0
        self.queue_seconds: float | None = None
        self.is_reported = False
        self.is_finished = False
        self._reset_progress()

    def _reset_progress(self) -> None:
        self.num_computed_tokens = 0
        self.table: BlockTable | None = None
        self.slot: SlotIndex | None = None
        self.num_reused_tokens = 0
        self.chunk_starts: dict[int, int] = {}
        self.shareable_after_step = 0
        self.entered_step = 0
        self.num_blocks_needed = 0
        self.num_ready_tokens = 0
        self.num_quiet_tokens = 0

    @property
    def num_output_tokens(self) -> int:
        """Outputs seen, those of a replay included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Tokens drawn in plans whose result was not seen yet."""
        return self.num_tokens - len(self.token_ids)

    @property
    def is_behind(self) -> bool:
        """Whether it wants more than the one token that follows the last it drew."""
        return self.num_tokens - self.num_computed_tokens != 1 or self.num_computed_tokens < self.num_prompt_tokens

    @property
    def reads_cache(self) -> bool:
        """Whether it may reuse cached tokens: not while it owes log-probabilities that only computing yields."""
        return self.num_sent_prompt_logprobs == self.num_prompt_logprobs

    def report(self) -> SequenceDelta:
        """The outputs that were not reported yet. Modifies what counts as reported."""
        num_known = len(self.token_ids)
        delta = SequenceDelta(self.request_id, self.sample_index, self.token_ids[self.num_reported_tokens :])
        self.num_reported_tokens = num_known
        self.report_at = num_known + self.report_interval
        if not self.is_reported:
            self.introduce(delta)
            # Sequences that started together are reported in different steps from here on.
            self.report_at = num_known + 1 + self.sequence_id % self.report_interval
        return delta

    def charge(self, num_reused_tokens: int = 0) -> None:
        """Charges its tenant for the known tokens that it was not charged for, less those that were in the cache."""
        num_known = len(self.token_ids)
        if num_known > self.num_charged_tokens:
            self.tenant.charge(num_known - max(self.num_charged_tokens, num_reused_tokens))
            self.num_charged_tokens = num_known

    @property
    def restricts_tokens(self) -> bool:
        """Whether its parameters allow some tokens only, so that together they may allow none."""
        return self.constraint is not None or self.sampling.allowed_token_ids is not None

    def become_quiet(self) -> None:
        """Sets `num_quiet_tokens` when all that was due has been done. A grammar looks at every token."""
        if self.constraint is not None:
            self.num_quiet_tokens = 0
            return
        num_quiet = self.max_num_tokens - 1
        if self.report_interval > 1:
            num_quiet = min(num_quiet, self.report_at - 1)
        if self.table is not None:
            num_quiet = min(num_quiet, self.table.num_tokens_to_commit)
        self.num_quiet_tokens = num_quiet

    def introduce(self, delta: SequenceDelta) -> None:
        """Adds what the first delta of a sample carries."""
        self.is_reported = True
        delta.num_cached_tokens = self.num_cached_tokens
        delta.queue_seconds = self.queue_seconds

    def restarted(self, sequence_id: SequenceId) -> "Sequence":
        """A copy that knows the same tokens and has computed none; nothing is pending."""
        fresh = copy.copy(self)
        fresh.sequence_id = sequence_id
        fresh.token_ids = list(self.token_ids)
        fresh.num_tokens = len(self.token_ids)
        fresh._reset_progress()
        return fresh
