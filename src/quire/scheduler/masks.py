"""The masks of plans in flight."""

from collections import deque

from quire.scheduler.constraint import MakeMasks
from quire.scheduler.draft import InFlight


class PlanMasks:
    """Gives plans the masks of their constrained rows. They are computed once all tokens before them are known.

    Args:
        make_masks: None where no request has a grammar.

    Attributes:
        num_constrained: Sequences in the engine that have a grammar.
    """

    def __init__(self, make_masks: MakeMasks | None) -> None:
        self._make_masks = make_masks
        self.num_constrained = 0

    def promise(self, record: InFlight, *, is_next: bool) -> None:
        """Puts a promise into a sealed plan; keeps it at once if no plan before it is in flight (`is_next`)."""
        if not self.num_constrained:
            return
        plan = record.plan
        constrained = [
            (row, sequence.constraint)
            for row, sequence in enumerate(record.rows)
            if sequence.constraint is not None and plan.samples[row]
        ]
        if constrained:
            assert self._make_masks is not None, "constraints without anyone to compute their masks"
            plan.masks = self._make_masks(constrained)
            if is_next:
                plan.masks.start()

    def start_oldest(self, in_flight: deque[InFlight]) -> None:
        """Has the masks of the oldest plan in flight computed: all tokens before it are known."""
        if in_flight and (masks := in_flight[0].plan.masks) is not None:
            masks.start()
