"""The loop: schedule, execute, update, with two steps in flight.

        host    | schedule 1 | schedule 2 | update 1, schedule 3 | update 2, schedule 4 | ...
        device               | step 1               | step 2               | step 3

While the device runs a step, the host prepares the next one without having seen the tokens of the first: a
plan says how many tokens a sequence computes, and the worker itself holds the token that it drew last. A
sequence that turns out to have ended is dropped, with the one token that was computed too many.
"""

from collections import deque
from collections.abc import Callable

from quire.engine.executor import Executor
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
    """

    def __init__(
        self, scheduler: Scheduler, executor: Executor, clock: Callable[[], float], steps_in_flight: int = 2
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._clock = clock
        self._steps_in_flight = steps_in_flight
        self._in_flight: deque[StepPlan] = deque()

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is waiting or running, or a step is in flight."""
        return bool(self._in_flight) or self._scheduler.has_unfinished

    def add(self, request: GenerationRequest) -> None:
        """Queues a request."""
        self._scheduler.add(request)

    def abort(self, request_id: RequestId) -> None:
        """Ends a request and frees all that it holds; nothing more is heard of it. Unknown ids have no effect."""
        self._scheduler.abort(request_id)

    def reset_prefix_cache(self) -> None:
        """Forgets the content of all blocks that no sequence refers to."""
        self._scheduler.reset_prefix_cache()

    def step(self) -> StepOutputs:
        """One turn: fills the pipeline, then waits for its oldest step. Empty when there is nothing to do."""
        while len(self._in_flight) < self._steps_in_flight and (plan := self._scheduler.schedule(self._clock())):
            self._executor.submit(plan)
            self._in_flight.append(plan)
        deltas = self._scheduler.take_rejected()
        if self._in_flight:
            deltas += self._update(self._in_flight.popleft())
        return StepOutputs(deltas=deltas, stats=self._scheduler.statistics())

    def _update(self, plan: StepPlan) -> list[SequenceDelta]:
        try:
            result = self._executor.wait()
        except StepFailedError as error:
            return self._scheduler.fail(plan, error.message)
        return self._scheduler.update(plan, result)
