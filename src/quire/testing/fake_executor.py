"""An executor without a model, which believes nothing that a plan says.

In place of keys and values, every slot of its KV cache holds a fingerprint of all tokens up to that position,
as keys and values depend on all of them. Before a sequence "attends", each position of its context is compared
with the fingerprint that it must have. So a block that was freed too early, shared wrongly, copied too late or
written twice shows as a `PlanViolation` in the step in which a real model would have gone quietly wrong.

    write all tokens of the step ──► check the context of every sequence ──► draw tokens (`tokens.py`)

As in a real worker, a step writes the keys and values of all its tokens before any sequence attends. A sequence
may therefore reuse blocks that another one fills in the same step.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from quire.errors import StepFailedError
from quire.testing.clock import VirtualClock
from quire.testing.tokens import VOCAB_SIZE, next_token_id
from quire.types.ids import BlockId, SequenceId, SlotIndex
from quire.types.plan import NewSequence, PositionLogprobs, StepPlan, StepResult

UNWRITTEN = -1
"""Nothing was ever written here. A fingerprint is not negative; what failed step n should have written is -1 - n."""


class PlanViolation(AssertionError):
    """A plan that a real worker would compute wrongly, or not at all."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """How long a step takes."""

    base_seconds: float = 0.010
    per_token_seconds: float = 0.0001

    def step_seconds(self, num_tokens: int) -> float:
        """Time on the device for a step of `num_tokens`."""
        return self.base_seconds + self.per_token_seconds * num_tokens


@dataclass(slots=True)
class _Resident:
    """A sequence in a slot, as a worker keeps it.

    Attributes:
        fingerprints: Per token, of all tokens up to it.
        broken_by: The step that failed and took it along, as it ran in it or reads what it should have written.
    """

    description: NewSequence
    token_ids: list[int]
    block_ids: list[BlockId]
    num_computed_tokens: int
    sum_of_tokens: int = 0
    fingerprints: list[int] = field(default_factory=list)
    broken_by: int | None = None

    def fingerprint(self) -> None:
        """Brings `fingerprints` up to date with `token_ids`."""
        fingerprints = self.fingerprints
        last = fingerprints[-1] if fingerprints else 0
        for token_id in self.token_ids[len(fingerprints) :]:
            last = hash((last, token_id)) & 0x7FFF_FFFF_FFFF_FFFF
            fingerprints.append(last)


class FakeExecutor:
    """Implements `Executor` on a virtual clock.

    Of the sampling parameters it knows `seed`, `min_tokens`, `logprobs` and `prompt_logprobs`. The log-probability
    of a token at position p is -p, so that a reader can tell where an entry belongs.

    Args:
        clock: Advanced by `wait` to the end of the step.
        max_num_batched_tokens: Plans with more tokens are violations; None for no limit.

    Attributes:
        failing_steps: Text by step number; `wait` raises `StepFailedError` for these.
        failing_sequences: Text by sequence; they come back in `StepResult.failures` when they run, and write nothing.
        exhausted_sequences: Those among them to which nothing is left to draw.
        num_steps: Steps submitted.
        num_computed_tokens: Tokens computed in all of them.
        largest_step: Tokens of the largest one.
        num_entries: How often each sequence entered a slot.
    """

    def __init__(
        self,
        *,
        clock: VirtualClock,
        num_blocks: int,
        block_size: int = 16,
        cost: CostModel | None = None,
        max_num_batched_tokens: int | None = None,
        vocab_size: int = VOCAB_SIZE,
    ) -> None:
        self._clock = clock
        self._block_size = block_size
        self._num_blocks = num_blocks
        self._cost = cost or CostModel()
        self._max_num_batched_tokens = max_num_batched_tokens
        self._vocab_size = vocab_size
        self._kv = [[UNWRITTEN] * block_size for _ in range(num_blocks)]
        self._residents: dict[SlotIndex, _Resident] = {}
        self._results: deque[tuple[float, StepResult | StepFailedError]] = deque()
        self._unfinished: tuple[StepPlan, float, float] | None = None
        self._device_free_at = 0.0
        self._last_step = 0
        self._reported_failures: set[int] = set()
        self._seen_failures: frozenset[int] = frozenset()
        self.failing_steps: dict[int, str] = {}
        self.failing_sequences: dict[SequenceId, str] = {}
        self.exhausted_sequences: set[SequenceId] = set()
        self.num_steps = 0
        self.num_computed_tokens = 0
        self.largest_step = 0
        self.num_entries: dict[SequenceId, int] = {}

    def submit(self, plan: StepPlan) -> None:
        """Runs a plan at once; one with masks with the next call. `wait` gives its result when its time has passed.

        Raises:
            PlanViolation: The plan contradicts itself, an earlier plan or the tokens in the cache.
        """
        self._finish()
        self._seen_failures = frozenset(self._reported_failures)
        self._check_shape(plan)
        self._release(plan.released_slots)
        self._copy_blocks(plan.block_copies)
        self._enter(plan.new_sequences, plan.slots)
        self._append_blocks(plan)
        num_tokens = sum(plan.num_tokens)
        self.num_steps += 1
        self.num_computed_tokens += num_tokens
        self.largest_step = max(self.largest_step, num_tokens)
        seconds = self._cost.step_seconds(num_tokens)
        begin = max(self._clock(), self._device_free_at)
        self._device_free_at = begin + seconds
        self._unfinished = plan, self._device_free_at, seconds
        if plan.masks is None:
            self._finish()

    def wait(self) -> StepResult:
        """The result of the oldest step; lets the time pass until it has ended.

        Raises:
            StepFailedError: For the steps in `failing_steps`.
        """
        if not self._results:
            self._finish()
        assert self._results, "wait without a step in flight"
        finished_at, result = self._results.popleft()
        self._clock.advance_to(finished_at)
        if isinstance(result, StepFailedError) or result.failures:
            self._reported_failures.add(self._last_step - len(self._results) - (self._unfinished is not None))
        if isinstance(result, StepFailedError):
            raise result
        return result

    def shutdown(self) -> None:
        """Drops the steps in flight."""
        self._results.clear()
        self._unfinished = None

    def _finish(self) -> None:
        """Runs the plan that waits for its masks: by now the results of those before it have been taken in."""
        if self._unfinished is not None:
            plan, finished_at, seconds = self._unfinished
            self._unfinished = None
            self._results.append((finished_at, self._run(plan, seconds)))

    # What a plan says of slots and blocks.

    def _check_shape(self, plan: StepPlan) -> None:
        _require(plan.step == self._last_step + 1, f"step {plan.step} follows step {self._last_step}")
        self._last_step = plan.step
        rows = len(plan.slots)
        _require(rows > 0, "a plan without sequences")
        for name in ("sequence_ids", "num_tokens", "samples"):
            _require(
                len(getattr(plan, name)) == rows, f"{name} has {len(getattr(plan, name))} entries for {rows} slots"
            )
        _require(len(set(plan.slots)) == rows, f"a slot runs twice: {plan.slots}")
        _require(min(plan.num_tokens) >= 1, f"a sequence without tokens: {plan.num_tokens}")
        limit = self._max_num_batched_tokens
        _require(limit is None or sum(plan.num_tokens) <= limit, f"{sum(plan.num_tokens)} tokens exceed {limit}")

    def _release(self, slots: list[SlotIndex]) -> None:
        for slot in slots:
            _require(slot in self._residents, f"slot {slot} is released but empty")
            del self._residents[slot]

    def _copy_blocks(self, pairs: list[tuple[BlockId, BlockId]]) -> None:
        destinations = [destination for _, destination in pairs]
        _require(len(set(destinations)) == len(destinations), f"a block is copied onto twice: {pairs}")
        _require(not {source for source, _ in pairs} & set(destinations), f"a copy reads what another writes: {pairs}")
        in_use = (
            {block_id for resident in self._residents.values() for block_id in resident.block_ids} if pairs else set()
        )
        for source, destination in pairs:
            self._check_blocks([source, destination])
            _require(destination not in in_use, f"a copy overwrites block {destination}, which is in use")
            self._kv[destination] = list(self._kv[source])

    def _enter(self, new_sequences: list[NewSequence], slots: list[SlotIndex]) -> None:
        for new in new_sequences:
            _require(new.slot not in self._residents, f"slot {new.slot} is filled twice")
            _require(new.slot in slots, f"sequence {new.sequence_id} enters slot {new.slot} and does not run")
            known = len(new.token_ids)
            _require(0 < new.num_prompt_tokens <= known, f"{new.num_prompt_tokens} prompt tokens among {known}")
            _require(0 <= new.num_computed_tokens < known, f"{new.num_computed_tokens} of {known} tokens are computed")
            self._check_blocks(new.block_ids)
            resident = _Resident(new, list(new.token_ids), list(new.block_ids), new.num_computed_tokens)
            resident.sum_of_tokens = sum(resident.token_ids)
            self._residents[new.slot] = resident
            self.num_entries[new.sequence_id] = self.num_entries.get(new.sequence_id, 0) + 1

    def _append_blocks(self, plan: StepPlan) -> None:
        entered = {new.slot for new in plan.new_sequences}
        for slot, block_ids in plan.new_block_ids.items():
            _require(slot in self._residents, f"blocks for slot {slot}, which is empty")
            _require(slot not in entered, f"blocks for slot {slot}, whose sequence has just brought its own")
            resident = self._residents[slot]
            resident.block_ids += block_ids
            self._check_blocks(resident.block_ids)

    def _check_blocks(self, block_ids: Sequence[BlockId]) -> None:
        _require(len(set(block_ids)) == len(block_ids), f"a block stands twice in {list(block_ids)}")
        if block_ids:
            low, high = min(block_ids), max(block_ids)
            _require(low >= 0 and high < self._num_blocks, f"block {low} or {high} is not below {self._num_blocks}")

    # Running it.

    def _run(self, plan: StepPlan, seconds: float) -> StepResult | StepFailedError:
        rows = [self._resident_of_row(plan, row) for row in range(len(plan.slots))]
        message = self.failing_steps.get(plan.step)
        for resident in rows:
            fails = message is not None or resident.description.sequence_id in self.failing_sequences
            if fails and resident.broken_by is None:
                resident.broken_by = plan.step
        self._write_tokens(rows, plan.num_tokens)
        if message is not None:
            for resident, num_tokens in zip(rows, plan.num_tokens, strict=True):
                resident.num_computed_tokens += num_tokens
            return StepFailedError(message)
        result = StepResult(step=plan.step, token_ids=[], execute_seconds=seconds)
        banned = self._banned_by_masks(plan)
        for row, (resident, num_tokens, samples) in enumerate(zip(rows, plan.num_tokens, plan.samples, strict=True)):
            begin = resident.num_computed_tokens
            resident.num_computed_tokens += num_tokens
            self._check_context(resident)
            self._report_prompt(resident, begin, result)
            if samples:
                result.token_ids.append(self._draw(resident, result, banned.get(row, frozenset())))
            if resident.description.sequence_id in self.failing_sequences:
                sequence_id = resident.description.sequence_id
                result.failures[sequence_id] = self.failing_sequences[sequence_id]
                result.exhausted |= {sequence_id} & self.exhausted_sequences
        return result

    def _resident_of_row(self, plan: StepPlan, row: int) -> _Resident:
        """The sequence of a row, after checking all that the row says of it."""
        slot, sequence_id, num_tokens = plan.slots[row], plan.sequence_ids[row], plan.num_tokens[row]
        _require(slot in self._residents, "slot {} runs but is empty", slot)
        resident = self._residents[slot]
        found = resident.description.sequence_id
        _require(found == sequence_id, "slot {} holds sequence {}, the plan says {}", slot, found, sequence_id)
        doomed = resident.broken_by in self._seen_failures
        _require(not doomed, "sequence {} runs on although its step {} failed", sequence_id, resident.broken_by)
        end, known = resident.num_computed_tokens + num_tokens, len(resident.token_ids)
        if resident.broken_by is None:
            _require(end <= known, "sequence {} computes up to {} and has {} tokens", sequence_id, end, known)
            samples = plan.samples[row]
            fits = samples == (end == known)
            _require(fits, "sequence {} at {} of {}: samples is {}", sequence_id, end, known, samples)
        capacity = len(resident.block_ids) * self._block_size
        _require(end <= capacity, "sequence {} computes up to {} in blocks for {}", sequence_id, end, capacity)
        return resident

    def _write_tokens(self, rows: list[_Resident], counts: list[int]) -> None:
        writers: dict[BlockId, SequenceId] = {}
        for resident, num_tokens in zip(rows, counts, strict=True):
            sequence_id = resident.description.sequence_id
            resident.fingerprint()
            size, begin = self._block_size, resident.num_computed_tokens
            end = begin + num_tokens
            for first in range(begin - begin % size, end, size):
                block_id = resident.block_ids[first // size]
                other = writers.setdefault(block_id, sequence_id)
                same = other == sequence_id
                _require(same, "sequences {} and {} both write block {}", other, sequence_id, block_id)
                low, high = max(first, begin), min(first + size, end)
                written = resident.fingerprints[low:high]
                if resident.broken_by is not None:
                    written = [-1 - resident.broken_by] * (high - low)
                self._kv[block_id][low - first : high - first] = written

    def _check_context(self, resident: _Resident) -> None:
        """Compares what the blocks hold with what the sequence needs there."""
        if resident.broken_by is not None:
            return
        size, length, expected = self._block_size, resident.num_computed_tokens, resident.fingerprints
        for index, block_id in enumerate(resident.block_ids[: -(-length // size)]):
            begin = index * size
            end = min(begin + size, length)
            found = self._kv[block_id]
            if found[: end - begin] != expected[begin:end]:
                failed_steps = [-1 - value for value in found[: end - begin] if value < UNWRITTEN]
                if failed_steps and not self._reported_failures.intersection(failed_steps):
                    resident.broken_by = min(failed_steps)
                    return
                position = next(at for at in range(begin, end) if found[at - begin] != expected[at])
                state = "another sequence's token" if found[position - begin] >= 0 else "nothing"
                sequence_id = resident.description.sequence_id
                raise PlanViolation(f"sequence {sequence_id} reads position {position}: block {block_id} holds {state}")

    def _banned_by_masks(self, plan: StepPlan) -> dict[int, frozenset[int]]:
        """By row of the plan, the tokens that its mask excludes."""
        if plan.masks is None:
            return {}
        words = memoryview(plan.masks.result()).cast("I")
        num_words = (self._vocab_size + 31) // 32
        _require(
            len(words) == num_words * len(plan.masks.rows),
            f"masks of {len(words)} words for {len(plan.masks.rows)} rows",
        )
        banned = {}
        for place, row in enumerate(plan.masks.rows):
            mask = words[place * num_words : (place + 1) * num_words]
            _require(plan.samples[row], "row {} has a mask and draws nothing", row)
            banned[row] = frozenset(
                token for token in range(self._vocab_size) if not mask[token >> 5] >> (token & 31) & 1
            )
        return banned

    def _draw(self, resident: _Resident, result: StepResult, banned: frozenset[int]) -> int:
        new = resident.description
        if resident.broken_by is not None:
            return 0
        position = len(resident.token_ids)
        may_stop = position - new.num_prompt_tokens >= new.sampling.min_tokens
        token_id = next_token_id(
            position,
            resident.sum_of_tokens,
            seed=new.seed,
            sample_index=new.sample_index,
            banned=banned if may_stop else banned | new.stop_token_ids,
            vocab_size=self._vocab_size,
        )
        resident.token_ids.append(token_id)
        resident.sum_of_tokens += token_id
        if new.sampling.logprobs is not None:
            result.logprobs[new.sequence_id] = _logprobs_at(position, token_id)
        return token_id

    def _report_prompt(self, resident: _Resident, begin: int, result: StepResult) -> None:
        new = resident.description
        if new.sampling.prompt_logprobs is None:
            return
        positions = range(begin + 1, min(resident.num_computed_tokens + 1, new.num_prompt_tokens))
        if positions:
            entries = [_logprobs_at(position, new.token_ids[position]) for position in positions]
            result.prompt_logprobs[new.sequence_id] = entries


def _logprobs_at(position: int, token_id: int) -> PositionLogprobs:
    return PositionLogprobs(token_ids=[token_id], logprobs=[-float(position)], ranks=[1])


def _require(holds: bool, message: str, *values: object) -> None:
    """Raises with `message`, into which `values` are put only then: most checks hold, and there are many."""
    if not holds:
        raise PlanViolation(message.format(*values) if values else message)
