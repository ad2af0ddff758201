"""CUDA graphs of the decode step: one launch in place of hundreds."""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch

logger = logging.getLogger("quire.worker")

MAX_BUCKET = 512

Run = Callable[[int, bool], None]


def default_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """Batch sizes with a graph of their own: padding costs at most a few rows where rows are dear.

    Beyond `MAX_BUCKET` a step takes the device longer than the host needs to launch it kernel by kernel.
    """
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, MAX_BUCKET + 1, 64)]
    largest = min(max_num_seqs, MAX_BUCKET)
    return (*(size for size in sizes if size < largest), largest)


class DecodeGraphs:
    """Captures a graph when a batch first needs it, replays it from then on.

    A graph of B rows serves every smaller batch: the rest is padding. Graphs share one memory pool, because they run
    one after the other and nothing of one is read after the next has begun.

    Args:
        run: Launches the step of so many rows on fixed tensors; the flag tells whether it draws the next tokens
            too. Must have no effect on rows that are padding, and keep nothing that it allocates.
        pad: Turns so many rows of the fixed input tensors into padding.
        buckets: Numbers of rows, rising.
    """

    def __init__(self, run: Run, pad: Callable[[int], None], buckets: Sequence[int]) -> None:
        self._run = run
        self._pad = pad
        self._buckets = tuple(buckets)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}

    def bucket(self, num_rows: int) -> int | None:
        """Rows of the graph that serves so many; None where none does."""
        index = bisect_left(self._buckets, num_rows)
        return self._buckets[index] if index < len(self._buckets) else None

    def ensure(self, bucket: int, *, draws: bool) -> None:
        """Captures the graph if there is none. Makes padding of the input tensors then: call it before filling them."""
        if (bucket, draws) not in self._graphs:
            started = time.perf_counter()
            self._graphs[bucket, draws] = self._capture(bucket, draws)
            logger.debug("captured the decode step of %d rows in %.3f s", bucket, time.perf_counter() - started)

    def replay(self, bucket: int, *, draws: bool) -> None:
        """Runs the step on what the fixed tensors hold."""
        self._graphs[bucket, draws].replay()

    def _capture(self, bucket: int, draws: bool) -> torch.cuda.CUDAGraph:
        self._pad(bucket)
        # Compiles and loads the kernels, which a capture may not.
        self._run(bucket, draws)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            self._run(bucket, draws)
        finally:
            graph.capture_end()
        return graph
