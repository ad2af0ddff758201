"""Those who share the engine."""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Tenant:
    """Somebody whose requests share the engine with those of others.

    Attributes:
        weight: Its share relative to the others'.
        service: Tokens computed for it, divided by its weight; raised to the others' when it comes back from idling.
        num_running: Its sequences in a slot.
    """

    name: str
    weight: float = 1.0
    service: float = 0.0
    num_running: int = 0

    def charge(self, num_tokens: int) -> None:
        """Counts tokens as served."""
        self.service += num_tokens / self.weight
