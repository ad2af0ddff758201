"""The garbage collector, kept from making the device wait."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG_OBJECTS = 100_000
"""Containers that must have come and not gone before the collector looks at them; Python's own number is 700."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """While it lasts, the collector of this process looks for cycles rarely. Modifies its threshold, and restores it.

    Requests come as long lists of ids, which the collector walks through, and go without leaving cycles behind. So
    its looks find nothing and take milliseconds, in which the device has ended its step.
    """
    young, middle, old = gc.get_threshold()
    if young:
        gc.set_threshold(max(young, YOUNG_OBJECTS), middle, old)
    try:
        yield
    finally:
        gc.set_threshold(young, middle, old)
