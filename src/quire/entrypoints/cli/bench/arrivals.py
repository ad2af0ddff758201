"""When requests are sent."""

import math
import random


def arrival_offsets(count: int, rate: float, burstiness: float, rng: random.Random) -> list[float]:
    """Seconds from the start of the run until each request is sent; the first is sent at 0.

    Gaps are drawn from a gamma distribution of shape `burstiness` (1 is a Poisson process, below 1 is burstier,
    above 1 more regular), then scaled so that the last request is sent at (count - 1) / rate: the load is the one
    that was asked for, not a sample of it.

    Args:
        count: Requests, at least 0.
        rate: Requests per second; infinity sends all at once.
        burstiness: Shape of the distribution, above 0.
        rng: Where the gaps come from; modified.
    """
    if math.isinf(rate) or count < 2:
        return [0.0] * count
    gaps = [rng.gammavariate(burstiness, 1 / burstiness) for _ in range(count - 1)]
    total = sum(gaps)
    scale = (count - 1) / rate / total if total else 0.0
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap * scale)
    return offsets
