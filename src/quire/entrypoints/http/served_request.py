"""What is known of one HTTP request, gathered while it runs and handed to those who count, log and trace at its end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.types import Scope

from quire.errors import QuireError
from quire.frontend.processor import RequestState

UNMATCHED_ROUTE = "unmatched"
CLIENT_LEFT_STATUS = 499
"""Stands for the status of a request whose client left before it was sent one."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(slots=True)
class ServedRequest:
    """One HTTP request.

    Attributes:
        request_id: What `X-Request-Id` says.
        begin: Seconds on the host's monotonic clock, as everything in `RequestMetrics`.
        begin_unix_nanoseconds: The same moment on the wall clock.
        status: What was sent; None before.
        end: When the last byte was handed over, on the clock of `begin`.
        model: The name under which the model was asked.
        answer_id: The id that the answer shows; empty for requests that are not for answers.
        generations: What the engine was asked for, one per prompt.
        error: What ended it, if that was raised on purpose.
        client_left: Whether its client did not wait for the end.
        tool_format: The format that its answer is parsed by for tool calls; empty without.
    """

    scope: Scope
    request_id: str
    begin: float = field(default_factory=time.monotonic)
    begin_unix_nanoseconds: int = field(default_factory=time.time_ns)
    status: int | None = None
    end: float = 0.0
    model: str = ""
    answer_id: str = ""
    generations: list[RequestState] = field(default_factory=list)
    error: QuireError | None = None
    client_left: bool = False
    tool_format: str = ""

    @property
    def method(self) -> str:
        """The method, "OTHER" for what no client should send: a label must not be the client's to choose."""
        method: str = self.scope["method"]
        return method if method in _METHODS else "OTHER"

    @property
    def route(self) -> str:
        """The path of the route that was matched, with names in place of values."""
        path: str = getattr(self.scope.get("route"), "path", UNMATCHED_ROUTE)
        return path

    @property
    def key_name(self) -> str:
        """The name of the key that it was sent with; empty without keys."""
        name: str | None = self.scope["state"].get("key_name")
        return name or ""

    @property
    def final_status(self) -> int:
        """The status, also where none was sent."""
        return self.status or (CLIENT_LEFT_STATUS if self.client_left else 500)

    @property
    def error_text(self) -> str:
        """What went wrong, in one text; empty if nothing did."""
        if self.error is not None:
            return self.error.message
        texts = [state.error for state in self.generations if state.error]
        return texts[0] if texts else ""

    @property
    def failed(self) -> bool:
        """Whether it ended in an error, whoever's; also one that came when the status had been sent."""
        return self.final_status >= 400 or self.error is not None or any(state.error for state in self.generations)

    def unix_nanoseconds(self, moment: float) -> int:
        """A moment of the monotonic clock on the wall clock."""
        return self.begin_unix_nanoseconds + int((moment - self.begin) * 1e9)


@dataclass(frozen=True, slots=True)
class Totals:
    """The generations of a request, added up.

    Attributes:
        queue_seconds: The longest wait for the engine; None if none was scheduled.
        first_token_seconds: From the begin of the request to the first token of all; None without one.
        finish_reasons: Each once, in order of appearance.
    """

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    queue_seconds: float | None
    first_token_seconds: float | None
    finish_reasons: tuple[str, ...]


def totals_of(served: ServedRequest) -> Totals:
    """What the generations of `served` came to."""
    states = served.generations
    samples = [sample for state in states for sample in state.samples]
    waits = [state.metrics.queue_seconds for state in states if state.metrics.queue_seconds is not None]
    firsts = [state.metrics.first_token_time for state in states if state.metrics.first_token_time is not None]
    return Totals(
        num_prompt_tokens=sum(len(state.request.prompt_token_ids) for state in states),
        num_cached_tokens=sum(state.num_cached_tokens or 0 for state in states),
        num_output_tokens=sum(len(sample.token_ids) for sample in samples),
        num_preemptions=sum(state.metrics.num_preemptions for state in states),
        queue_seconds=max(waits, default=None),
        first_token_seconds=min(firsts) - served.begin if firsts else None,
        finish_reasons=tuple(dict.fromkeys(str(sample.finish_reason or "none") for sample in samples)),
    )


class RequestObserver(Protocol):
    """Someone who is told about every HTTP request at its end. Must be quick and may not block."""

    def on_request(self, served: ServedRequest) -> None:
        """A request has ended, in whatever way."""


def served_request_of(holder: Any) -> ServedRequest:
    """The served of the request that a scope, a `Request` or anything else with a `scope` belongs to."""
    scope: Scope = holder if isinstance(holder, dict) else holder.scope
    served: ServedRequest = scope["state"]["served"]
    return served


SILENT_ROUTES: Sequence[str] = ("/health", "/ready", "/ping", "/metrics", "/load", "/version")
"""Asked for by machines, all the time: neither counted as requests, nor logged, nor traced."""
