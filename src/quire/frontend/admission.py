"""How many requests may be in the engine, how many prompt tokens may wait, and when the next has a chance.

With several tenants none may fill the queue alone: each may hold as much as is left free (Choudhury and Hahne,
"Dynamic queue length thresholds for shared-memory packet switches", 1998). One that floods so gets half of the bound,
and whoever comes later finds room.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from quire.errors import OverloadedError, ParameterError
from quire.types.request import GenerationRequest

_REMEMBERED_EVENTS = 64
_MAX_REMEMBERED_TENANTS = 1024
_UNKNOWN_RATE_SECONDS = 5.0
_MIN_WAIT_SECONDS = 1.0
_MAX_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On which terms a request is served.

    Attributes:
        tenant: Who asks; tenants share the engine and its queue fairly.
        weight: The tenant's share of the engine relative to the others'.
        deadline: When the request must have ended, in seconds on the host's monotonic clock.
        reserve: Called with the request before the engine gets it; what it raises refuses the request.
    """

    tenant: str = ""
    weight: float = 1.0
    deadline: float | None = None
    reserve: Callable[[GenerationRequest], None] | None = None


@dataclass(slots=True)
class _Use:
    """What somebody, or everybody together, has in the engine."""

    num_answers: int = 0
    num_tokens: int = 0


@dataclass(slots=True)
class _Ticket:
    """One request.

    Attributes:
        num_answers: Its samples: each is a sequence in the engine.
        num_tokens: Of its prompt, until its first token is produced.
    """

    tenant: str
    num_answers: int
    num_tokens: int = 0


class _Rate:
    """How quickly something goes on, from its last events."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED_EVENTS)

    def note(self, amount: int, now: float) -> None:
        self._events.append((now, amount))

    def seconds_for(self, amount: int, now: float) -> float | None:
        """None if nothing is known yet."""
        done = sum(event[1] for event in self._events)
        return amount * max(0.0, now - self._events[0][0]) / done if done else None


class Admission:
    """Refuses requests above the bounds, with a time to wait that comes from how quickly requests go on.

    Args:
        max_requests: Requests in the engine, running or waiting; one with several samples counts once for each.
        max_queued_tokens: Prompt tokens of those that have not produced a token; None for no bound.
    """

    def __init__(self, max_requests: int, max_queued_tokens: int | None = None) -> None:
        self._max_requests = max_requests
        self._max_queued_tokens = max_queued_tokens
        self._tickets: dict[str, _Ticket] = {}
        self._total = _Use()
        self._uses: dict[str, _Use] = {}
        self._finishes = _Rate()
        self._starts = _Rate()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._tickets

    def __len__(self) -> int:
        """Requests that are in."""
        return len(self._tickets)

    def enter(self, request_id: str, tenant: str, num_answers: int, now: float) -> None:
        """Lets a request in; `leave` must follow.

        Raises:
            ParameterError: A request of this id is in.
            OverloadedError: There are too many.
        """
        if request_id in self._tickets:
            raise ParameterError("request_id", "unique among the running requests", request_id)
        use, limit = self._use_of(tenant), self._max_requests
        free = limit - self._total.num_answers
        excess = self._excess(use.num_answers, num_answers, free)
        if excess > 0 and self._total.num_answers > 0:
            whose = f"{self._total.num_answers} requests are in the engine, the limit is {limit}"
            if num_answers <= free:
                whose = f"{use.num_answers} of your requests are in the engine, and {free} places are left for others"
            raise _overloaded(whose, self._finishes.seconds_for(excess, now))
        self._tickets[request_id] = _Ticket(tenant, num_answers)
        for counted in (use, self._total):
            counted.num_answers += num_answers

    def queue(self, request_id: str, num_tokens: int, now: float, deadline: float | None = None) -> None:
        """Lets the prompt of a request that is in wait for the engine, which ends with `start`.

        Raises:
            OverloadedError: Too many tokens wait, or too many for this one to be served by `deadline`.
        """
        ticket = self._tickets[request_id]
        use, limit = self._use_of(ticket.tenant), self._max_queued_tokens
        if limit is not None and self._total.num_tokens:
            excess = self._excess(use.num_tokens, num_tokens, limit - self._total.num_tokens)
            if excess > 0:
                text = f"{self._total.num_tokens} prompt tokens wait, {num_tokens} more exceed the limit of {limit}"
                if num_tokens <= limit - self._total.num_tokens:
                    text = f"{use.num_tokens} prompt tokens of yours wait, {num_tokens} more would leave others no room"
                raise _overloaded(text, self._starts.seconds_for(excess, now))
        wait = self.expected_wait_seconds(ticket.tenant, now)
        if deadline is not None and now + wait > deadline:
            raise _overloaded(f"the queue takes about {wait:.1f} s, longer than the request may take", wait)
        ticket.num_tokens = num_tokens
        for counted in (use, self._total):
            counted.num_tokens += num_tokens

    def start(self, request_id: str, now: float) -> None:
        """The engine has produced the first token of a request. Again, or for unknown ids, it has no effect."""
        ticket = self._tickets.get(request_id)
        if ticket is not None and ticket.num_tokens:
            self._starts.note(ticket.num_tokens, now)
            self._leave_queue(ticket)

    def leave(self, request_id: str, now: float | None = None) -> None:
        """A request is out.

        Args:
            request_id: It must be in.
            now: When it has finished; None if it never got to the engine.
        """
        ticket = self._tickets.pop(request_id)
        self._leave_queue(ticket)
        for counted in (self._uses[ticket.tenant], self._total):
            counted.num_answers -= ticket.num_answers
        if now is not None:
            self._finishes.note(ticket.num_answers, now)

    def expected_wait_seconds(self, tenant: str, now: float) -> float:
        """How long a new prompt of a tenant waits, at the pace of the last ones; 0 if that is not known.

        Tenants are served in turn, so a tenant with little in the queue does not wait for all that is in it.
        """
        num_waiting = sum(use.num_tokens > 0 for use in self._uses.values())
        ahead = min(self._total.num_tokens, num_waiting * self._use_of(tenant).num_tokens)
        return (ahead and self._starts.seconds_for(ahead, now)) or 0.0

    def check_invariants(self) -> None:
        """Asserts that the sums are those of the tickets."""
        tickets = self._tickets.values()
        for tenant, use in [*self._uses.items(), (None, self._total)]:
            own = [ticket for ticket in tickets if tenant is None or ticket.tenant == tenant]
            assert use.num_answers == sum(ticket.num_answers for ticket in own), "answers are miscounted"
            assert use.num_tokens == sum(ticket.num_tokens for ticket in own), "queued tokens are miscounted"

    def _excess(self, held: int, wanted: int, free: int) -> int:
        """How much must go before `wanted` more can come."""
        return max(wanted - free, held + wanted - free if len(self._uses) > 1 else 0)

    def _use_of(self, tenant: str) -> _Use:
        """Tenants that have been seen are remembered: a queue with one who is alone need not keep room for others."""
        use = self._uses.get(tenant)
        if use is None:
            if len(self._uses) >= _MAX_REMEMBERED_TENANTS:
                self._uses = {name: known for name, known in self._uses.items() if known.num_answers}
            use = self._uses[tenant] = _Use()
        return use

    def _leave_queue(self, ticket: _Ticket) -> None:
        for counted in (self._uses[ticket.tenant], self._total):
            counted.num_tokens -= ticket.num_tokens
        ticket.num_tokens = 0


def _overloaded(message: str, wait_seconds: float | None) -> OverloadedError:
    wait = _UNKNOWN_RATE_SECONDS if wait_seconds is None else wait_seconds
    wait = min(_MAX_WAIT_SECONDS, max(_MIN_WAIT_SECONDS, wait))
    return OverloadedError(message, retry_after_seconds=wait, hint=f"try again in {math.ceil(wait)} s")
