"""Which tokens run next.

There is no prefill and no decode. A sequence has tokens computed and tokens wanted, and every step hands out a
budget of tokens so that computed catches up with wanted:

    1. running sequences that want one token, which is all of them in the steady state,
    2. running sequences that want more, with what is left,
    3. waiting sequences, while budget, slots and blocks last; fairly between tenants, see `queue.py`.

So a long prompt comes in chunks of whatever the others leave of the budget. A waiting sequence enters only while
budget and blocks are left, so when all running ones have been served: at most one of them is ever behind, and no
step has more sequences that want one token than its budget.

That holds for each tenant by itself. A sequence of one that was served less enters before the prompt of another goes
on, and takes slot and blocks from a tenant that has more than its share, see `fair_share.py`. Where steps are kept
short, see `budget.py`, its prompt even goes ahead of the answers of others, as long as these wait for one step only.

Blocks are allocated as tokens are handed out. When they run out, `victim.py` names who gives way; its blocks can
be reused at once, because plans execute in order.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable

from quire.errors import InvalidRequestError
from quire.kvcache.block_table import BlockTable
from quire.kvcache.manager import KVCacheManager
from quire.scheduler import invariants
from quire.scheduler.budget import StepBudget
from quire.scheduler.constraint import Constraint, MakeMasks
from quire.scheduler.draft import Draft, InFlight, describe
from quire.scheduler.fair_share import choose_yielder
from quire.scheduler.intake import error_delta, is_too_large, num_blocks_for, obstacle, too_large_message
from quire.scheduler.masks import PlanMasks
from quire.scheduler.queue import WaitingQueue, turn_of
from quire.scheduler.reports import attach_prompt_logprobs, last_report
from quire.scheduler.sequence import SampleGroup, Sequence
from quire.scheduler.slots import Slots
from quire.scheduler.victim import choose_victim
from quire.types.deltas import FinishReason, SequenceDelta
from quire.types.ids import RequestId, SequenceId
from quire.types.plan import StepPlan, StepResult
from quire.types.request import GenerationRequest
from quire.types.stats import EngineStats

logger = logging.getLogger("quire.scheduler")

_EXCLUDES_ALL = "structured_outputs, allowed_token_ids, bad_words and min_tokens together leave no token to produce"

IDLE_CREDIT_STEPS = 4
"""Steps full of tokens that a tenant which was idle may be served before the others."""

StopCheck = Callable[[Sequence], FinishReason | None]


class Scheduler:
    """Decides what each step computes, and follows what came of it.

    `schedule` may be called again before the result of its last plan is known; `update` or `fail` is called once
    per plan, in the order of the plans.

    Args:
        max_num_seqs: Sequences that hold a slot.
        max_num_batched_tokens: Tokens that one step computes.
        max_num_prompt_tokens: Those of them that belong to prompts, where steps are to be short; None for no bound.
        max_model_len: Prompt and answer together, in tokens.
        policy: "fcfs" or "priority".
        check_stop: Called after any token that may end a sequence: one of its stop tokens, or the last that it may
            have; the reason to end it, None to go on. It may be called after others as well.
        make_masks: Promises the masks of the constrained rows of a plan; None where no request has a grammar.
    """

    def __init__(
        self,
        *,
        cache: KVCacheManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        max_num_prompt_tokens: int | None = None,
        policy: str = "fcfs",
        check_stop: StopCheck,
        make_masks: MakeMasks | None = None,
    ) -> None:
        self._cache = cache
        self._block_size = cache.block_size
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_num_prompt_tokens = max_num_prompt_tokens
        self._max_model_len = max_model_len
        self._by_priority = policy == "priority"
        self._check_stop = check_stop
        self._masks = PlanMasks(make_masks)
        self._groups: dict[RequestId, SampleGroup] = {}
        self._waiting = WaitingQueue(idle_credit=IDLE_CREDIT_STEPS * max_num_batched_tokens)
        self._slots = Slots(cache, max_num_seqs)
        self._num_held = 0
        self._in_flight: deque[InFlight] = deque()
        self._last_record: InFlight | None = None
        self._shareable_groups: list[SampleGroup] = []
        self._rejected: list[SequenceDelta] = []
        self._last_step = 0
        self._num_tokens_ahead = 0
        self._num_sequences = 0
        self._num_finished_steps = 0
        self._num_preemptions = 0
        self._num_prompt_tokens = 0
        self._num_cached_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._num_step_tokens = 0
        self._execute_seconds = 0.0

    @property
    def has_unfinished(self) -> bool:
        """Whether a sequence waits or runs, or a rejection has not been taken."""
        return bool(self._groups or self._rejected)

    @property
    def num_running(self) -> int:
        """Sequences in a slot."""
        return self._slots.num_running

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting) + self._num_held

    def sequences(self, request_id: RequestId) -> tuple[Sequence, ...]:
        """The samples of a request that have not ended; for tests and debugging."""
        group = self._groups.get(request_id)
        return tuple(group.samples) if group else ()

    def add(self, request: GenerationRequest, constraints: tuple[Constraint, ...] = ()) -> None:
        """Queues a request's samples. One that can never run ends at once; `take_rejected` tells.

        Args:
            request: What to generate.
            constraints: One per sample, where the request has a grammar.

        Raises:
            InvalidRequestError: A request of this id is in the engine.
        """
        if request.request_id in self._groups:
            raise InvalidRequestError(f"request {request.request_id!r} is in the engine already", param="request_id")
        group = SampleGroup()
        for sample_index in range(request.num_samples):
            sequence = self._make_sequence(request, sample_index, group)
            if constraints:
                sequence.constraint = constraints[sample_index]
            if (delta := self._end_before_start(sequence)) is not None:
                self._rejected.append(delta)
            else:
                group.samples.append(sequence)
                self._masks.num_constrained += sequence.constraint is not None
        if group.samples:
            self._groups[request.request_id] = group
            self._waiting.push(group.samples[0])
            group.held = group.samples[1:]
            self._num_held += len(group.held)

    def reject(self, request: GenerationRequest, message: str) -> None:
        """Ends a request that cannot be added; `take_rejected` tells."""
        for sample_index in range(request.num_samples):
            self._rejected.append(
                SequenceDelta(request.request_id, sample_index, finish_reason=FinishReason.ERROR, error=message)
            )

    def abort(self, request_id: RequestId) -> None:
        """Ends a request and frees all that it holds. Produces no delta. Unknown ids have no effect."""
        self._rejected = [delta for delta in self._rejected if delta.request_id != request_id]
        group = self._groups.get(request_id)
        if group is not None:
            for sequence in reversed(list(group.samples)):
                self._end(sequence)

    def schedule(self, now: float) -> StepPlan | None:
        """Hands out the next step.

        Args:
            now: Seconds, on the clock of `GenerationRequest.arrival_time`.

        Returns:
            None when there is nothing to compute before the result of a plan in flight is known.
        """
        self._slots.sort_out()
        self._release_held()
        draft = Draft(self._last_step + 1)
        went_ahead = self._let_prompts_go_ahead(draft, now)
        if not went_ahead:
            self._hand_out_prompts(draft, self._hand_out_single_tokens(draft), now)
        if not draft.singles and not draft.chunks:
            return None
        self._num_tokens_ahead = self._num_tokens_ahead + sum(draft.plan.num_tokens) if went_ahead else 0
        self._last_record = draft.seal(self._slots.take_released(), self._last_record)
        self._masks.promise(self._last_record, is_next=not self._in_flight)
        self._in_flight.append(self._last_record)
        self._last_step = draft.plan.step
        return draft.plan

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceDelta]:
        """Takes in what a step produced and frees what it ended. Written for speed, as `_hand_out_single_tokens`.

        Args:
            plan: The oldest plan whose result was not taken in.
            result: What came of it.

        Returns:
            One delta per sequence with something to tell: not those that have ended since, or whose report is not due.
        """
        record = self._take_record(plan, result)
        deltas = self._end_failed(record, result) if result.failures else []
        logprobs, num_dropped = result.logprobs, 0
        for sequence, token_id in zip(record.sampled, result.token_ids, strict=True):
            if sequence.is_finished:
                num_dropped += 1
                continue
            token_ids = sequence.token_ids
            token_ids.append(token_id)
            if len(token_ids) > sequence.num_quiet_tokens or token_id in sequence.stop_token_ids:
                if (delta := self._look_at(sequence)) is None:
                    continue
            elif sequence.report_interval == 1:
                sequence.num_reported_tokens += 1
                delta = SequenceDelta(sequence.request_id, sequence.sample_index, [token_id])
            else:
                continue
            deltas.append(delta)
            if logprobs and delta.token_ids and sequence.sequence_id in logprobs:
                delta.logprobs.append(logprobs[sequence.sequence_id])
        self._num_generated_tokens += len(record.sampled) - num_dropped
        if result.prompt_logprobs:
            attach_prompt_logprobs(record, result, deltas)
        self._masks.start_oldest(self._in_flight)
        return deltas

    def fail(self, plan: StepPlan, message: str) -> list[SequenceDelta]:
        """Ends the sequences of a step that could not be run, and forgets the prefix cache.

        Sequences of later plans that have reused what this step should have computed start again.

        Args:
            plan: The oldest plan whose result was not taken in.
            message: For the user; without paths or traces.
        """
        record = self._take_record(plan, None)
        deltas = [self._end_with_error(sequence, message) for sequence in record.rows if not sequence.is_finished]
        self._forget_computed(self._in_flight, plan.step + 1)
        self._masks.start_oldest(self._in_flight)
        return deltas

    def take_rejected(self) -> list[SequenceDelta]:
        """The ends of sequences that no step will tell of: those that cannot run, and replays that had ended."""
        rejected, self._rejected = self._rejected, []
        return rejected

    def reset_prefix_cache(self) -> None:
        """Forgets the content of all blocks that no sequence refers to."""
        self._cache.reset_prefix_cache()

    def statistics(self) -> EngineStats:
        """A snapshot after the last `update`."""
        return EngineStats(
            step=self._num_finished_steps,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_preemptions=self._num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_step_tokens=self._num_step_tokens,
            execute_seconds=self._execute_seconds,
            cache=self._cache.statistics(),
            num_deferred=self._num_held,
            num_cached_prompt_tokens=self._num_cached_prompt_tokens,
        )

    def _make_sequence(self, request: GenerationRequest, sample_index: int, group: SampleGroup) -> Sequence:
        sequence_id = self._next_sequence_id()
        return Sequence(
            request,
            sample_index,
            sequence_id=sequence_id,
            rank=(request.priority if self._by_priority else 0, sequence_id),
            group=group,
            max_model_len=self._max_model_len,
            tenant=self._waiting.tenant(request.tenant, request.weight),
        )

    def _next_sequence_id(self) -> SequenceId:
        self._num_sequences += 1
        return SequenceId(self._num_sequences)

    def _end_before_start(self, sequence: Sequence) -> SequenceDelta | None:
        """The end of a sequence that has nothing to compute or never could."""
        if sequence.constraint is not None and sequence.constraint.error is not None:
            return error_delta(sequence, sequence.constraint.error)
        if sequence.num_output_tokens and (reason := self._check_stop(sequence)) is not None:
            return SequenceDelta(sequence.request_id, sequence.sample_index, finish_reason=reason)
        message = obstacle(sequence, self._cache, self._max_model_len)
        return None if message is None else error_delta(sequence, message)

    def _release_held(self) -> None:
        """Lets samples wait for a slot whose prompt another one has computed in an earlier plan."""
        for group in self._shareable_groups:
            for sequence in group.held:
                self._waiting.push(sequence)
            self._num_held -= len(group.held)
            group.held = []
        self._shareable_groups.clear()

    def _hand_out_single_tokens(self, draft: Draft) -> list[Sequence]:
        """Serves the sequences that want one token; returns the running ones that want more.

        Written for speed: in the steady state this loop is what `schedule` does.
        """
        singles = draft.singles
        behind: list[Sequence] = []
        growing: list[Sequence] = []
        for sequence in self._slots.running:
            num_tokens = sequence.num_tokens
            table: BlockTable = sequence.table  # type: ignore[assignment]
            if num_tokens > sequence.num_ready_tokens:
                if sequence.is_behind:
                    behind.append(sequence)
                    continue
                if num_tokens >= sequence.max_num_tokens:
                    continue
                if num_tokens > table.capacity:
                    growing.append(sequence)
                else:
                    sequence.num_ready_tokens = min(table.capacity, sequence.max_num_tokens - 1)
            sequence.num_computed_tokens = table.num_tokens = num_tokens
            sequence.num_tokens = num_tokens + 1
            singles.append(sequence)
        if growing:
            self._grow_singles(growing, draft)
        return behind

    def _grow_singles(self, growing: list[Sequence], draft: Draft) -> None:
        for sequence in growing:
            if sequence.slot is None:
                continue
            assert sequence.table is not None
            while (block_ids := self._cache.grow(sequence.table, sequence.num_computed_tokens)) is None:
                victim = choose_victim(self._slots.running)
                if victim is None:
                    self._give_up(sequence, draft)
                    break
                self._preempt(victim, draft)
                if victim is sequence:
                    break
            else:
                draft.plan.new_block_ids[sequence.slot] = block_ids

    def _let_prompts_go_ahead(self, draft: Draft, now: float) -> bool:
        """Where steps are short, computes prompts before answers go on, if the first is of a tenant served less.

        A step must be enough for it, with all that went ahead since the answers last did.

        Returns:
            Whether any prompt was served.
        """
        if self._max_num_prompt_tokens is None:
            return False
        behind = [sequence for sequence in self._slots.running if sequence.is_behind]
        head = self._waiting.peek()
        first = min(behind if head is None else [*behind, head], key=turn_of, default=None)
        if first is None or first.tenant.service >= self._served_most():
            return False
        num_tokens = self._num_tokens_ahead + first.num_tokens - first.num_computed_tokens
        if num_tokens > self._max_num_batched_tokens:
            return False
        self._hand_out_prompts(draft, behind, now)
        return bool(draft.chunks)

    def _served_most(self) -> float:
        return max((tenant.service for tenant in self._waiting.tenants() if tenant.num_running), default=0.0)

    def _hand_out_prompts(self, draft: Draft, behind: list[Sequence], now: float) -> None:
        """Serves the running sequences that want more than one token, who was served least first, then waiting ones.

        None enters while one lacks tokens or blocks, or after one has given way: it might enter again.
        """
        if not behind and not len(self._waiting):
            return
        budget = self._budget(len(draft.singles))
        is_any_behind = False
        for sequence in sorted(behind, key=turn_of):
            if not is_any_behind:
                self._overtake(sequence, budget, draft, now)
            self._catch_up(sequence, budget, draft)
            is_any_behind |= sequence.slot is not None and sequence.is_behind
        if not is_any_behind and not draft.has_preempted:
            self._admit(draft, budget, now)

    def _budget(self, num_singles: int) -> StepBudget:
        num_tokens = self._max_num_batched_tokens - num_singles
        if self._max_num_prompt_tokens is None:
            return StepBudget(num_tokens, num_tokens, served_most=0.0)
        return StepBudget(num_tokens, self._max_num_prompt_tokens, self._served_most())

    def _catch_up(self, sequence: Sequence, budget: StepBudget, draft: Draft) -> None:
        """Gives a running sequence as many tokens as it wants and budget and blocks allow.

        Without blocks it waits for others to end, unless it is the first in rank, for which others give way.
        """
        computed = sequence.num_computed_tokens
        allowed = budget.share(sequence.tenant, sequence.num_tokens - computed)
        if allowed <= 0 or sequence.slot is None:
            return
        table = sequence.table
        assert table is not None
        while (room := table.capacity + self._cache.num_free_blocks * self._block_size - computed) <= 0:
            if sequence.rank != min(other.rank for other in self._slots.running if other.slot is not None):
                return
            victim = choose_victim(self._slots.running)
            assert victim is not None, "a sequence alone lacks blocks that were counted when it entered"
            self._preempt(victim, draft)
        num_tokens = min(allowed, room)
        block_ids = self._cache.grow(table, computed + num_tokens)
        assert block_ids is not None, "the cache has fewer blocks than it said"
        if block_ids:
            draft.plan.new_block_ids[sequence.slot] = block_ids
        self._add_chunk(sequence, num_tokens, draft)
        budget.take(num_tokens)

    def _admit(self, draft: Draft, budget: StepBudget, now: float) -> None:
        """Lets waiting sequences enter, in order, until the first that cannot."""
        while (sequence := self._waiting.peek()) is not None and self._has_tokens_for(sequence, budget):
            if is_too_large(sequence, self._cache):
                self._reject_too_large(sequence)
                continue
            if not self._let_in(sequence, budget, draft, now):
                return

    def _overtake(self, behind: Sequence, budget: StepBudget, draft: Draft, now: float) -> None:
        """Lets waiting sequences of tenants that were served less enter before the prompt of another goes on."""
        while (sequence := self._waiting.peek()) is not None and self._has_tokens_for(sequence, budget):
            goes_first = sequence.tenant.service < behind.tenant.service and sequence.rank[0] <= behind.rank[0]
            if not goes_first or is_too_large(sequence, self._cache):
                return
            if not self._let_in(sequence, budget, draft, now):
                return

    def _let_in(self, sequence: Sequence, budget: StepBudget, draft: Draft, now: float) -> bool:
        """Moves the first of the queue into a slot, if it can be; returns whether it was."""
        if sequence.num_pending or not self._make_room(sequence, draft):
            return False
        self._waiting.pop()
        self._enter(sequence, budget, draft, now)
        return True

    def _has_tokens_for(self, sequence: Sequence, budget: StepBudget) -> bool:
        """Whether this step has a token for a waiting sequence, and every later one for all that run."""
        return self.num_running < self._max_num_batched_tokens and budget.share(sequence.tenant, 1) > 0

    def _make_room(self, sequence: Sequence, draft: Draft) -> bool:
        """Gives a waiting sequence a table, if there is a slot; if need be, another tenant gives way to it."""
        while not self._slots.prepare(sequence, draft.plan, self._last_step):
            if sequence.tenant.num_running == self.num_running:
                return False
            yielder = choose_yielder(
                sequence,
                self._slots.running,
                self._waiting.tenants(),
                spared=draft.chunks,
                num_blocks_needed=num_blocks_for(sequence, self._cache),
                max_num_seqs=self._max_num_seqs,
                num_blocks=self._cache.num_blocks,
            )
            if yielder is None:
                return False
            self._preempt(yielder, draft)
        return True

    def _enter(self, sequence: Sequence, budget: StepBudget, draft: Draft, now: float) -> None:
        """Puts a sequence with a table into a slot and hands it its first tokens."""
        plan, table = draft.plan, self._slots.enter(sequence)
        sequence.entered_step = plan.step
        sequence.num_quiet_tokens = 0
        num_reused = sequence.num_reused_tokens
        if sequence.queue_seconds is None:
            sequence.queue_seconds = now - sequence.request.arrival_time
            sequence.num_cached_tokens = min(num_reused, sequence.num_prompt_tokens)
            if sequence.sample_index == 0:
                self._num_cached_prompt_tokens += sequence.num_cached_tokens
        num_tokens = budget.share(sequence.tenant, sequence.num_tokens - num_reused)
        grown = self._cache.grow(table, num_reused + num_tokens)
        assert grown is not None, "the cache has fewer blocks than it said"
        plan.new_sequences.append(describe(sequence))
        self._add_chunk(sequence, num_tokens, draft)
        budget.take(num_tokens)

    def _add_chunk(self, sequence: Sequence, num_tokens: int, draft: Draft) -> None:
        """Hands out tokens for which there are blocks."""
        plan, begin = draft.plan, sequence.num_computed_tokens
        end = sequence.num_computed_tokens = begin + num_tokens
        assert sequence.table is not None
        self._cache.commit(sequence.table, sequence.token_ids, end)
        num_prompt_tokens = sequence.num_prompt_tokens
        num_uncounted = min(end, num_prompt_tokens) - sequence.num_counted_prompt_tokens
        if num_uncounted > 0:
            self._num_prompt_tokens += num_uncounted
            sequence.num_counted_prompt_tokens += num_uncounted
        if sequence.num_prompt_logprobs and begin < num_prompt_tokens:
            sequence.chunk_starts[plan.step] = begin
        if not sequence.shareable_after_step and end >= num_prompt_tokens - 1:
            sequence.shareable_after_step = plan.step
            if sequence.group.held:
                self._shareable_groups.append(sequence.group)
        samples = end == sequence.num_tokens
        if samples:
            sequence.num_tokens += 1
        draft.add_chunk(sequence, num_tokens, samples=samples)

    def _look_at(self, sequence: Sequence) -> SequenceDelta | None:
        """Ends a sequence whose last token says so, shares the blocks that are full, and reports what is due."""
        constraint = sequence.constraint
        if constraint is not None and (error := constraint.advance(sequence.token_ids[-1])) is not None:
            sequence.token_ids.pop()
            return self._end_with_error(sequence, error, blames_request=True)
        reason = self._check_stop(sequence)
        if reason is not None:
            return self._stop(sequence, reason)
        token_ids, table = sequence.token_ids, sequence.table
        delta = sequence.report() if len(token_ids) >= sequence.report_at else None
        if table is not None:
            self._cache.commit(table, token_ids, len(token_ids) - 1)
        sequence.charge()
        sequence.become_quiet()
        return delta

    def _preempt(self, sequence: Sequence, draft: Draft) -> None:
        """Takes a running sequence out of its slot, and of the draft, and lets it wait."""
        draft.take_back(sequence)
        draft.has_preempted = True
        self._slots.leave(sequence, keep_content=True)
        sequence.num_preemptions += 1
        self._num_preemptions += 1
        self._waiting.push(sequence)

    def _give_up(self, sequence: Sequence, draft: Draft) -> None:
        """Ends a sequence that does not fit although it is alone; not before it is known to need more."""
        draft.take_back(sequence)
        if not sequence.num_pending:
            self._reject_too_large(sequence)

    def _end(self, sequence: Sequence, *, keep_content: bool = True) -> None:
        """Frees all that a sequence holds. Results in flight for it will be ignored."""
        group = sequence.group
        sequence.is_finished = True
        self._masks.num_constrained -= sequence.constraint is not None
        group.samples.remove(sequence)
        if sequence.slot is not None:
            self._slots.leave(sequence, keep_content=keep_content)
        elif sequence in group.held:
            group.held.remove(sequence)
            self._num_held -= 1
        else:
            self._waiting.drop(sequence)
        if not group.samples:
            del self._groups[sequence.request_id]
        elif len(group.held) == len(group.samples):
            self._waiting.push(group.held.pop(0))
            self._num_held -= 1

    def _end_with_error(self, sequence: Sequence, message: str, *, blames_request: bool = False) -> SequenceDelta:
        """Ends a sequence and keeps nothing of what it computed."""
        self._end(sequence, keep_content=False)
        return error_delta(sequence, message, blames_request=blames_request)

    def _reject_too_large(self, sequence: Sequence) -> None:
        self._rejected.append(self._end_with_error(sequence, too_large_message(sequence, self._cache)))

    def _stop(self, sequence: Sequence, reason: FinishReason) -> SequenceDelta:
        delta = last_report(sequence, reason)
        self._end(sequence)
        return delta

    def _restart(self, sequence: Sequence) -> None:
        """Replaces a sequence by one that has computed nothing, so that results in flight are ignored."""
        fresh = sequence.restarted(self._next_sequence_id())
        samples = sequence.group.samples
        samples[samples.index(sequence)] = fresh
        sequence.is_finished = True
        if sequence.slot is not None:
            self._slots.leave(sequence, keep_content=False)
        else:
            self._waiting.drop(sequence)
        self._waiting.push(fresh)

    def _take_record(self, plan: StepPlan, result: StepResult | None) -> InFlight:
        record = self._in_flight.popleft()
        assert record.plan is plan, f"result of step {plan.step} before that of step {record.plan.step}"
        self._num_finished_steps += 1
        self._num_step_tokens = sum(plan.num_tokens)
        if result is not None:
            assert result.step == plan.step, f"result of step {result.step} for plan {plan.step}"
            self._execute_seconds = result.execute_seconds
        return record

    def _end_failed(self, record: InFlight, result: StepResult) -> list[SequenceDelta]:
        deltas, is_cache_suspect = [], False
        for sequence in record.rows:
            text = result.failures.get(sequence.sequence_id)
            if text is None or sequence.is_finished:
                continue
            if sequence.sequence_id in result.exhausted and sequence.restricts_tokens:
                deltas.append(self._end_with_error(sequence, _EXCLUDES_ALL, blames_request=True))
                continue
            logger.warning("request %s, sample %d failed: %s", sequence.request_id, sequence.sample_index, text)
            deltas.append(self._end_with_error(sequence, "the model could not compute this answer"))
            is_cache_suspect = True
        if is_cache_suspect:
            self._forget_computed([record, *self._in_flight], record.plan.step)
        return deltas

    def _forget_computed(self, records: Iterable[InFlight], since_step: int) -> None:
        """Drops cached content that may be wrong, and restarts what entered upon it in `since_step` or later."""
        suspects = {
            sequence: None
            for record in records
            for sequence in record.rows
            if sequence.entered_step >= since_step and sequence.num_reused_tokens and not sequence.is_finished
        }
        for sequence in suspects:
            self._restart(sequence)
        self._cache.reset_prefix_cache()

    def check_invariants(self) -> None:
        """Asserts that sequences, slots, blocks and counters agree. O(everything)."""
        running = self._slots.check_invariants()
        waiting = list(self._waiting)
        invariants.check_places(self._groups.values(), running, waiting)
        invariants.check_budget(running, self._max_num_batched_tokens)
        for group in self._groups.values():
            for sequence in group.samples:
                invariants.check_sequence(sequence, self._in_flight)
        assert self._num_held == sum(len(group.held) for group in self._groups.values()), "held samples are miscounted"
        self._waiting.check_invariants()
        self._cache.check_invariants()
