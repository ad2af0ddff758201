"""What a step has left for prompts."""

from dataclasses import dataclass, field

from quire.scheduler.tenant import Tenant


@dataclass(slots=True)
class StepBudget:
    """Tokens that a step may still hand out.

    Where a step takes as long as its tokens, as on a CPU, prompts are kept short, for the sake of who comes while it
    runs. The first prompt of a step is not, if the step is enough for it and its tenant was served less than another
    that runs.

    Attributes:
        num_tokens: Of the whole step.
        num_prompt_tokens: Of those for prompts that are kept short.
        served_most: The service of that of the running tenants which was served most.
    """

    num_tokens: int
    num_prompt_tokens: int
    served_most: float
    _is_first: bool = field(default=True, init=False)

    def share(self, tenant: Tenant, num_wanted: int) -> int:
        """Tokens that the next prompt may have, of those that it wants; none if not positive."""
        if self._is_first and tenant.service < self.served_most and num_wanted <= self.num_tokens:
            return num_wanted
        return min(num_wanted, self.num_tokens, self.num_prompt_tokens)

    def take(self, num_tokens: int) -> None:
        """Counts tokens of a prompt as handed out."""
        self.num_tokens -= num_tokens
        self.num_prompt_tokens -= num_tokens
        self._is_first = False
