"""Histograms that cost a token next to nothing: no locks and no labels, for one thread fills and reads them."""

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client.utils import floatToGoString


class BucketCounts:
    """How many values fell into each bucket.

    Args:
        bounds: Upper bounds of the buckets, rising; a value equal to a bound is in its bucket.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Adds `value`, `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self.sum += value * count

    def cumulative(self) -> list[tuple[str, float]]:
        """How many values are at most each bound, by the bound as Prometheus writes it; the last is "+Inf"."""
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            name: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
            buckets.append((name, float(total)))
        return buckets


FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_GAP_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    *(5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
PHASE_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SAMPLES_BUCKETS = (1, 2, 5, 10, 20)
STEP_TOKENS_BUCKETS = tuple(2**exponent for exponent in range(15))
PREEMPTIONS_BUCKETS = (0, 1, 2, 3, 5, 10, 20, 50)


def size_buckets(largest: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 ... up to `largest`."""
    sizes = [digit * 10**power for power in range(len(str(largest))) for digit in (1, 2, 5)]
    return [size for size in sizes if size <= largest] or [1]
