"""What the holder of a key has used, and what is left. Pure: the time comes from outside."""

import math
from collections.abc import Callable

from quire.entrypoints.http.keys import ApiKey
from quire.errors import OverloadedError, ParameterError
from quire.types.request import GenerationRequest

_CONCURRENCY_RETRY_SECONDS = 1.0


class RateLimit:
    """A token bucket: refilled evenly, holds at most a minute's worth, and may be in debt.

    Args:
        per_minute: What may be taken in a minute on average, and at once after a minute's rest.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._time = now

    def resize(self, per_minute: int, now: float) -> None:
        """Another limit from now on; what was used stays used."""
        used = self.per_minute - self.level(now)
        self.per_minute = per_minute
        self._level = per_minute - used

    def level(self, now: float) -> float:
        """What is left; negative in debt."""
        if now > self._time:
            self._level = min(self.per_minute, self._level + (now - self._time) * self.per_minute / 60.0)
            self._time = now
        return self._level

    def wait_seconds(self, amount: float, now: float) -> float:
        """When `amount` can be taken; more than a minute's worth can when the bucket is full."""
        missing = min(amount, self.per_minute) - self.level(now)
        # Less than a millionth is an error of rounding, and would be waited for in vain.
        return missing * 60.0 / self.per_minute if missing > 1e-6 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Takes `amount`; a negative one is given back."""
        self._level = min(self.per_minute, self.level(now) - amount)

    def reset_seconds(self, now: float) -> float:
        """When the bucket is full again."""
        return (self.per_minute - self.level(now)) * 60.0 / self.per_minute


class Account:
    """The use that is made of one key.

    Args:
        clock: Seconds, monotonic.

    Attributes:
        key: Its limits; changes when the file of keys does.
    """

    def __init__(self, key: ApiKey, clock: Callable[[], float]) -> None:
        self.key = key
        self._clock = clock
        self._requests: RateLimit | None = None
        self._tokens: RateLimit | None = None
        self._reserved: dict[str, int] = {}
        self.configure(key)

    @property
    def num_running(self) -> int:
        """Prompts that are being answered."""
        return len(self._reserved)

    def configure(self, key: ApiKey) -> None:
        """Puts other limits in force."""
        now = self._clock()
        self.key = key
        self._requests = _resized(self._requests, key.requests_per_minute, now)
        self._tokens = _resized(self._tokens, key.tokens_per_minute, now)

    def count_request(self) -> None:
        """Counts a request that asks for work.

        Raises:
            OverloadedError: There were too many within the last minute.
        """
        if self._requests is None:
            return
        now = self._clock()
        if wait := self._requests.wait_seconds(1, now):
            raise _exceeded(f"{self._requests.per_minute} requests per minute", wait)
        self._requests.take(1, now)

    def reserve(self, request: GenerationRequest) -> None:
        """Reserves the tokens that a request may take: its prompt, and all that its samples may produce.

        Raises:
            OverloadedError: They are more than are left, or too many requests of this key run.
        """
        if self.key.max_concurrency is not None and self.num_running >= self.key.max_concurrency:
            raise _exceeded(f"{self.key.max_concurrency} prompts at a time", _CONCURRENCY_RETRY_SECONDS)
        amount = 0
        if self._tokens is not None:
            now = self._clock()
            amount = len(request.prompt_token_ids) + request.num_samples * (request.sampling.max_tokens or 0)
            if wait := self._tokens.wait_seconds(amount, now):
                text = f"{self._tokens.per_minute} tokens per minute, and this request may take {amount}"
                raise _exceeded(text, wait, hint="a smaller max_tokens reserves fewer tokens")
            amount = min(amount, self._tokens.per_minute)
            self._tokens.take(amount, now)
        self._reserved[request.request_id] = amount

    def settle(self, request_id: str, num_tokens: int) -> None:
        """A request has ended: corrects what was reserved for it to what it took. Unknown ids have no effect."""
        amount = self._reserved.pop(request_id, None)
        if amount is not None and self._tokens is not None:
            self._tokens.take(num_tokens - amount, self._clock())

    def priority(self, wanted: int | None) -> int:
        """The priority of a request.

        Raises:
            ParameterError: It is better than the key's.
        """
        if self.key.priority is None:
            return wanted or 0
        if wanted is not None and wanted < 0:
            raise ParameterError("priority", "at least 0: it is added to the priority of your API key", wanted)
        return self.key.priority + (wanted or 0)

    def headers(self) -> dict[str, str]:
        """What is left, in OpenAI's headers; none without limits."""
        now = self._clock()
        headers = {}
        for name, limit in (("requests", self._requests), ("tokens", self._tokens)):
            if limit is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(limit.per_minute)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(limit.level(now) + 1e-6)))
                headers[f"x-ratelimit-reset-{name}"] = show_duration(limit.reset_seconds(now))
        return headers


def show_duration(seconds: float) -> str:
    """A time as OpenAI writes it: "120ms", "1.5s", "6m0s"."""
    if seconds < 1:
        return f"{math.ceil(max(0.0, seconds) * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 1000) / 1000, 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"


def _resized(limit: RateLimit | None, per_minute: int | None, now: float) -> RateLimit | None:
    if per_minute is None:
        return None
    if limit is None:
        return RateLimit(per_minute, now)
    limit.resize(per_minute, now)
    return limit


def _exceeded(limit: str, wait_seconds: float, hint: str | None = None) -> OverloadedError:
    again = f"try again in {math.ceil(wait_seconds)} s"
    return OverloadedError(
        f"this API key is limited to {limit}",
        retry_after_seconds=wait_seconds,
        hint=f"{again}; {hint}" if hint else again,
        reason="quota",
    )
