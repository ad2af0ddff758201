"""Threads that run phases together: they end, whatever they are doing when they are told to."""

import numpy as np
import torch

from quire.kernels.linear import linear
from quire.kernels.linear.native import pack
from quire.kernels.native import NativeCpu


def test_pools_end_right_behind_their_work(best):
    """A thread that wakes up late must not miss the end; with more threads than cores some always do."""
    weight, x = torch.randn(64, 32), torch.randn(3, 32)
    expected = linear(x, pack(best, weight))
    for round_number in range(400):
        native = NativeCpu.create(2 + round_number % 5, best.instruction_set)
        packed = pack(native, weight)
        for _ in range(round_number % 3):
            assert torch.equal(linear(x, packed), expected)
        del packed, native


def test_pools_that_never_worked_end(best):
    for num_threads in range(1, 9):
        pool = best.extension.ThreadPool(num_threads)
        assert pool.num_threads == num_threads
        del pool


def test_a_pool_goes_on_after_an_error(best):
    """A token outside the vocabulary fails in a chunk; the pool and the program are as good as new."""
    program = best.extension.StepProgram(best.pool, best.instruction_set)
    packed = pack(best, torch.randn(16, 32))
    program.finish(program.embedding(packed.data), True)
    program.set_cache_shape("float32", 4, 4)
    tokens, tables = np.array([[3, 16, 5, -1]], np.int32), np.arange(4, dtype=np.int32)[None]
    zero, none, out = np.zeros(1, np.int64), np.empty(0, np.int64), np.empty((1, 32), np.float32)
    for position, is_good in ((0, True), (1, False), (2, True), (3, False), (0, True)):
        arguments = (tokens, tables, zero, zero + position, zero + 1, none, out)
        if is_good:
            program.run(*arguments)
            assert np.isfinite(out).all()
            continue
        try:
            program.run(*arguments)
        except IndexError as error:
            assert "outside the vocabulary" in str(error)
        else:
            raise AssertionError("a token outside the vocabulary was looked up")
