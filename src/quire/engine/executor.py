"""All that the engine knows of the compute half."""

from typing import Protocol

from quire.types.plan import StepPlan, StepResult


class Executor(Protocol):
    """Runs plans one after the other, in the order of submission."""

    def submit(self, plan: StepPlan) -> None:
        """Hands over a plan and returns without waiting for it."""

    def wait(self) -> StepResult:
        """Waits for the oldest plan that was submitted and not waited for.

        Raises:
            StepFailedError: The step could not be run; later plans can.
            EngineDeadError: The device is lost.
        """

    def shutdown(self) -> None:
        """Ends what the executor has started. Plans in flight are dropped."""
