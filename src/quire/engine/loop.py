"""The loop: schedule, execute, update, with two steps in flight.

        host    | schedule 1 | schedule 2 | update 1, schedule 3 | update 2, schedule 4 | ...
        device               | step 1               | step 2               | step 3

While the device runs a step, the host prepares the next one without having seen the tokens of the first: a
plan says how many tokens a sequence computes, and the worker itself holds the token that it drew last. A
sequence that turns out to have ended is dropped, with the one token that was computed too many.

The price is that a request that comes during step 1 runs in step 3. Where a step with prompts takes long beside what
the host needs, as on a CPU, nothing is handed out behind it: the next step takes in who has come meanwhile.
"""

from collections import deque
from collections.abc import Callable

from quire.engine.executor import Executor
from quire.engine.grammar_compiler import GrammarIntake
from quire.errors import StepFailedError
from quire.scheduler.scheduler import Scheduler
from quire.types.deltas import SequenceDelta, StepOutputs
from quire.types.ids import RequestId
from quire.types.plan import StepPlan
from quire.types.request import GenerationRequest


class EngineLoop:
    """Drives one scheduler and one executor.

    Args:
        clock: Seconds, monotonic.
        steps_in_flight: 2 overlaps host and device; 1 runs them in turn, for debugging.
        intake: Compiles the grammars of requests; None where no request may have one.
        overlaps_prompts: Whether the next step is prepared also while one with prompts runs.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Callable[[], float],
        steps_in_flight: int = 2,
        intake: GrammarIntake | None = None,
        overlaps_prompts: bool = True,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._clock = clock
        self._steps_in_flight = steps_in_flight
        self._intake = intake
        self._overlaps_prompts = overlaps_prompts
        self._in_flight: deque[StepPlan] = deque()

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is being prepared, waiting or running, or a step is in flight."""
        return self.can_step or (self._intake is not None and self._intake.has_pending)

    @property
    def can_step(self) -> bool:
        """Whether `step` has something to do at once, and need not wait for a grammar."""
        has_ready = self._intake is not None and self._intake.has_ready
        return has_ready or bool(self._in_flight) or self._scheduler.has_unfinished

    def notify_ready(self, notify: Callable[[], None]) -> None:
        """Has `notify` called, from any thread, whenever `can_step` may have become true without a call to `add`."""
        if self._intake is not None:
            self._intake.notify = notify

    def add(self, request: GenerationRequest) -> None:
        """Queues a request; one with a grammar when that is compiled."""
        if not request.grammar:
            self._scheduler.add(request)
        elif self._intake is None:
            self._scheduler.reject(request, "this engine takes no grammars")
        else:
            self._intake.add(request)

    def abort(self, request_id: RequestId) -> None:
        """Ends a request and frees all that it holds; nothing more is heard of it. Unknown ids have no effect."""
        if self._intake is not None:
            self._intake.abort(request_id)
        self._scheduler.abort(request_id)

    def reset_prefix_cache(self) -> None:
        """Forgets the content of all blocks that no sequence refers to."""
        self._scheduler.reset_prefix_cache()

    def step(self) -> StepOutputs:
        """One turn: fills the pipeline, then waits for its oldest step. Empty when there is nothing to do.

        With nothing but requests whose grammars are being compiled, it waits for one of those.
        """
        self._take_prepared()
        while self._has_room() and (plan := self._scheduler.schedule(self._clock())):
            self._executor.submit(plan)
            self._in_flight.append(plan)
        deltas = self._scheduler.take_rejected()
        if self._in_flight:
            deltas += self._update(self._in_flight.popleft())
        return StepOutputs(deltas=deltas, stats=self._scheduler.statistics())

    def _has_room(self) -> bool:
        """Whether another step may be handed out now."""
        if not self._in_flight:
            return True
        if len(self._in_flight) >= self._steps_in_flight:
            return False
        return self._overlaps_prompts or max(self._in_flight[-1].num_tokens) == 1

    def _take_prepared(self) -> None:
        if self._intake is None:
            return
        for prepared in self._intake.take_ready(wait=not self.can_step):
            if prepared.error is None:
                self._scheduler.add(prepared.request, tuple(prepared.constraints))
            else:
                self._scheduler.reject(prepared.request, prepared.error)

    def _update(self, plan: StepPlan) -> list[SequenceDelta]:
        try:
            result = self._executor.wait()
        except StepFailedError as error:
            return self._scheduler.fail(plan, error.message)
        return self._scheduler.update(plan, result)
