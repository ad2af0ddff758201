"""Time that passes when it is told to."""


class VirtualClock:
    """A clock to call for the time in seconds, like `time.monotonic`. It never goes back."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        """The time in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Lets `seconds` pass; not negative."""
        assert seconds >= 0.0, f"a clock cannot go back by {-seconds} s"
        self._now += seconds

    def advance_to(self, now: float) -> None:
        """Lets time pass until `now`; no effect if that is over."""
        self._now = max(self._now, now)
