"""What a start spends its time on. Without torch: the time to import that is a part of it."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_MAX_AGE_SECONDS = 3600.0
"""A process that has just started is not older; if the system says so, its clocks do not go together."""


class StartReport:
    """The phases of a start, one after the other without a gap: together they are the time since the first began.

    Args:
        age_seconds: How long ago the first phase began.
        clock: Seconds, monotonic.

    Attributes:
        seconds: By phase, in the order in which they ended first.
    """

    def __init__(self, *, age_seconds: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._phase_began = clock() - age_seconds
        self.seconds: dict[str, float] = {}

    @property
    def total_seconds(self) -> float:
        """Of all phases that have ended."""
        return sum(self.seconds.values())

    def end_phase(self, name: str) -> None:
        """Everything since the last phase was this one; a name that comes again adds up. The next phase begins."""
        now = self._clock()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._phase_began
        self._phase_began = now

    def include(self, phases: Mapping[str, float], *, rest: str) -> None:
        """Everything since the last phase was these phases, which were measured elsewhere; what is left is `rest`."""
        for name, seconds in phases.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        now = self._clock()
        remaining = now - self._phase_began - sum(phases.values())
        self.seconds[rest] = self.seconds.get(rest, 0.0) + max(0.0, remaining)
        self._phase_began = now

    def table(self) -> str:
        """The phases for the log, longest first; those below 1 % together in one line."""
        total = self.total_seconds
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        rows = [(name.replace("_", " "), seconds) for name, seconds in ordered if seconds >= 0.01 * total]
        short = total - sum(seconds for _, seconds in rows)
        if len(rows) < len(ordered):
            rows.append(("the rest", short))
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"  {name:<{width}} {seconds:7.2f} s {seconds / max(total, 1e-9):5.0%}" for name, seconds in rows]
        return "\n".join((f"started in {total:.2f} s", *lines))


def process_age_seconds(stat: Path = Path("/proc/self/stat")) -> float:
    """How long ago the system made this process; 0 where it does not tell."""
    try:
        fields = stat.read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return age if 0.0 <= age <= _MAX_AGE_SECONDS else 0.0
