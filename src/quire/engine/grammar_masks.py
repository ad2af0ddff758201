"""Masks of a step, computed by threads while the device runs the step's forward pass."""

import ctypes
import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLExecutor

from quire.engine.grammar import SampleConstraint, find_problem, is_empty
from quire.scheduler.constraint import Constraint

logger = logging.getLogger("quire.engine")

_MAX_THREADS = 8


class MaskMaker:
    """Computes masks, one step after the other, the rows of a step in parallel.

    Args:
        vocab_size: Width of the logits.
        num_threads: Default is half the processors.
    """

    def __init__(self, vocab_size: int, *, num_threads: int | None = None) -> None:
        self.row_bytes = (vocab_size + 31) // 32 * 4
        self._executor = LLExecutor(num_threads or max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2)))
        # One, so that two steps never work on the same matcher.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="quire-masks")

    def promise(self, entries: Sequence[tuple[int, Constraint]]) -> "StepMasks":
        """The masks of a step, given its rows and their constraints."""
        constraints = [constraint for _, constraint in entries]
        assert all(isinstance(constraint, SampleConstraint) for constraint in constraints)
        return StepMasks(self, [row for row, _ in entries], constraints)  # type: ignore[arg-type]

    def submit(self, masks: "StepMasks") -> None:
        """Has `masks` computed."""
        self._thread.submit(masks.compute, self._executor)


class StepMasks:
    """Which tokens the rows of one step may draw. Implements `quire.types.plan.TokenMasks`."""

    def __init__(self, maker: MaskMaker, rows: list[int], constraints: list[SampleConstraint]) -> None:
        self.rows = rows
        self._maker = maker
        self._constraints = constraints
        self._is_started = False
        self._done: Future[bytearray] = Future()

    def start(self) -> None:
        """Begins to compute: every constraint has taken in all tokens before this step. Later calls have no effect."""
        if not self._is_started:
            self._is_started = True
            self._maker.submit(self)

    def result(self) -> bytearray:
        """Waits; [rows, words] uint32, one bit per token, the lowest bit first.

        Raises:
            CancelledError: It was cancelled.
        """
        return self._done.result()

    def cancel(self) -> None:
        """Nobody will start or read them any more."""
        self._done.cancel()

    def compute(self, executor: LLExecutor) -> None:
        """Fills in the result. Runs on the maker's thread."""
        if not self._done.set_running_or_notify_cancel():
            return
        row_bytes, num_rows = self._maker.row_bytes, len(self.rows)
        # Rows of samples that have ended stay like this: their token is dropped.
        buffer = bytearray(b"\xff") * (num_rows * row_bytes)
        try:
            self._fill(buffer, executor)
        except Exception:
            logger.exception("the masks of %d rows could not be computed", num_rows)
            for constraint in self._constraints:
                constraint.fail("its mask could not be computed")
        self._done.set_result(buffer)

    def _fill(self, buffer: bytearray, executor: LLExecutor) -> None:
        row_bytes, num_rows = self._maker.row_bytes, len(self.rows)
        live = [(index, constraint) for index, constraint in enumerate(self._constraints) if not constraint.is_over]
        if not live:
            return
        matchers = [(constraint.matcher, index) for index, constraint in live]
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        executor.unsafe_compute_mask_ptr(matchers, address, row_bytes, num_rows)
        words = memoryview(buffer).cast("I")
        num_words = row_bytes // 4
        for index, constraint in live:
            mask = words[index * num_words : (index + 1) * num_words]
            if constraint.matcher.is_error() or is_empty(mask):
                constraint.fail(find_problem(constraint.matcher))
                mask[:] = memoryview(b"\xff" * row_bytes).cast("I")
            else:
                constraint.narrow(mask)
