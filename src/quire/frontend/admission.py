"""How many requests may be in the engine, and when the next one has a chance."""

import math
from collections import deque

from quire.errors import OverloadedError

_REMEMBERED_FINISHES = 64
_UNKNOWN_RATE_SECONDS = 5.0
_MIN_WAIT_SECONDS = 1.0
_MAX_WAIT_SECONDS = 60.0


class Admission:
    """Refuses requests above a bound, with a time to wait that comes from how quickly requests finish.

    Args:
        max_requests: Requests in the engine, running or waiting.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._finish_times: deque[float] = deque(maxlen=_REMEMBERED_FINISHES)

    def check(self, num_requests: int, now: float) -> None:
        """Lets one more request pass beside `num_requests`.

        Raises:
            OverloadedError: They are too many.
        """
        if num_requests < self._max_requests:
            return
        wait = self.retry_after_seconds(num_requests - self._max_requests + 1, now)
        raise OverloadedError(
            f"{num_requests} requests are in the engine, the limit is {self._max_requests}",
            retry_after_seconds=wait,
            hint=f"try again in {math.ceil(wait)} s",
        )

    def note_finish(self, now: float) -> None:
        """Counts a request that has left the engine."""
        self._finish_times.append(now)

    def retry_after_seconds(self, num_to_finish: int, now: float) -> float:
        """How long `num_to_finish` requests take to finish at the rate of the last ones."""
        if not self._finish_times:
            return _UNKNOWN_RATE_SECONDS
        per_request = max(0.0, now - self._finish_times[0]) / len(self._finish_times)
        return min(_MAX_WAIT_SECONDS, max(_MIN_WAIT_SECONDS, num_to_finish * per_request))
