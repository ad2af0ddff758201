"""Compiled paged attention: against its reference on odd shapes, and bit for bit against itself in other company.

Every slot that a step may not read holds NaN: those behind each sequence's end and those of unused blocks.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch

from quire.kernels.native import _extension
from quire.kernels.paged_attention import reference

ISAS = _extension.instruction_sets()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
ERROR_RATIO = 1e-6
# Queries of a step as (sequence, tokens before, tokens in it).
Part = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    num_kv_heads: int = 2
    group_size: int = 3
    head_dim: int = 32
    block_size: int = 16
    window: int | None = None
    soft_cap: float | None = None
    cache_format: str = "float32"

    @property
    def width(self) -> int:
        return self.num_kv_heads * self.group_size * self.head_dim


class Sequences:
    """Sequences of random queries, keys and values, whose steps can be run in any order and company."""

    def __init__(self, shape: Shape, lengths: tuple[int, ...]):
        generator = torch.Generator().manual_seed(1)
        self.shape, self.lengths = shape, lengths
        self.queries = [torch.randn((n, shape.width), generator=generator) for n in lengths]
        blocks = [-(-n // shape.block_size) for n in lengths]
        self.num_blocks = sum(blocks) + 3
        free = random.Random(2).sample(range(self.num_blocks), self.num_blocks)
        self.tables = torch.full((len(lengths), max(blocks) + 1), -1, dtype=torch.int32)
        for sequence, count in enumerate(blocks):
            self.tables[sequence, :count] = torch.tensor([free.pop() for _ in range(count)])
        slots = (self.num_blocks, shape.block_size, shape.num_kv_heads)
        numbers = torch.randn((2, *slots, shape.head_dim), generator=generator)
        self.scales = torch.ones((2, *slots))
        if shape.cache_format == "int8":
            self.scales = numbers.abs().amax(-1) / 127
            numbers = (numbers / self.scales.unsqueeze(-1)).round()
        self.numbers = numbers.to(DTYPES[shape.cache_format])

    def run(self, isa: str, step: list[Part], num_threads: int = 1) -> list[torch.Tensor]:
        """The output rows of each part."""
        shape = self.shape
        numbers, scales = self.numbers.clone(), self.scales.clone()
        unused = self._unused(step)
        scales[:, unused] = float("nan")
        numbers[:, unused] = 127 if numbers.dtype == torch.int8 else float("nan")
        program = _program(isa, num_threads, shape)
        program.set_cache_shape(shape.cache_format, self.num_blocks, shape.block_size)
        keys_and_values = (*numbers, *scales)
        program.add_cache(*(tensor.data_ptr() for tensor in keys_and_values))
        slots, starts, counts = torch.tensor(step).t().contiguous()
        query = torch.cat([self.queries[sequence][start : start + count] for sequence, start, count in step])
        out = torch.full_like(query, float("nan"))
        tokens = torch.zeros((len(self.lengths), max(self.lengths)), dtype=torch.int32)
        no_rows = torch.zeros(0, dtype=torch.int64)
        program.run(tokens, self.tables, slots, starts, counts, no_rows, out, given=query)
        return list(out.split(counts.tolist()))

    def expected(self, step: list[Part]) -> torch.Tensor:
        shape = self.shape
        keys, values = self.numbers.double() * self.scales.double().unsqueeze(-1)
        query = torch.cat([self.queries[sequence][start : start + count] for sequence, start, count in step])
        out = reference.attend(
            query.view(len(query), -1, shape.head_dim),
            keys,
            values,
            [count for _, _, count in step],
            [start + count for _, start, count in step],
            self.tables[[sequence for sequence, _, _ in step]],
            shape.head_dim**-0.5,
            shape.window,
            shape.soft_cap,
        )
        return out.flatten(1)

    def _unused(self, step: list[Part]) -> torch.Tensor:
        """[num_blocks, block_size] whether a slot may not be read."""
        unused = torch.ones((self.num_blocks, self.shape.block_size), dtype=torch.bool)
        for sequence, start, count in step:
            first = 0 if self.shape.window is None else max(0, start + 1 - self.shape.window)
            positions = torch.arange(first, start + count)
            blocks = self.tables[sequence, positions // self.shape.block_size].long()
            unused[blocks, positions % self.shape.block_size] = False
        return unused


@lru_cache
def _pool(num_threads: int) -> _extension.ThreadPool:
    return _extension.ThreadPool(num_threads)


def _program(isa: str, num_threads: int, shape: Shape) -> _extension.StepProgram:
    program = _extension.StepProgram(_pool(num_threads), isa)
    out = program.attend(
        program.input(shape.width),
        layer=0,
        num_heads=shape.num_kv_heads * shape.group_size,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        scale=shape.head_dim**-0.5,
        sliding_window=shape.window or 0,
        soft_cap=shape.soft_cap or 0.0,
    )
    program.finish(out, True)
    return program


MIXED = ((0, 0, 5), (1, 50, 1), (2, 17, 30), (3, 0, 1), (4, 99, 1), (5, 0, 16), (6, 48, 1))
CHUNKS = ((0, 45, 40), (1, 9, 1), (2, 3, 4), (3, 130, 1))
CASES: dict[str, tuple[Shape, tuple[Part, ...]]] = {
    "one token": (Shape(), ((0, 0, 1),)),
    "mixed": (Shape(), MIXED),
    "mixed, bfloat16": (Shape(cache_format="bfloat16"), MIXED),
    "mixed, float16": (Shape(cache_format="float16"), MIXED),
    "mixed, int8": (Shape(cache_format="int8"), MIXED),
    "smallest head": (Shape(head_dim=8, group_size=1), MIXED),
    "head 20": (Shape(head_dim=20), MIXED),
    "head 4, int8": (Shape(head_dim=4, cache_format="int8"), MIXED),
    "head 20, blocks of 4": (Shape(head_dim=20, group_size=2, block_size=4, cache_format="bfloat16"), MIXED),
    "head 24, int8": (Shape(head_dim=24, cache_format="int8"), MIXED),
    "head 40, bfloat16": (Shape(head_dim=40, cache_format="bfloat16"), MIXED),
    "head 64, blocks of 1": (Shape(head_dim=64, block_size=1, group_size=4), MIXED),
    "head 72, float16": (Shape(head_dim=72, block_size=8, cache_format="float16"), MIXED),
    "head 80, multi-query": (Shape(num_kv_heads=1, group_size=8, head_dim=80), MIXED),
    "head 96, bfloat16": (Shape(head_dim=96, group_size=2, cache_format="bfloat16"), MIXED),
    "head 112, int8": (Shape(head_dim=112, group_size=5, cache_format="int8", block_size=2), MIXED),
    "head 120": (Shape(head_dim=120, group_size=6, block_size=32), MIXED),
    "head 128, bfloat16": (Shape(head_dim=128, group_size=4, cache_format="bfloat16"), MIXED),
    "head 256, group of 7": (Shape(num_kv_heads=1, group_size=7, head_dim=256, block_size=64), MIXED),
    "window of one": (Shape(window=1), MIXED),
    "window in a block": (Shape(window=21), CHUNKS),
    "window over blocks": (Shape(window=70, cache_format="int8"), CHUNKS),
    "window wider than all": (Shape(window=512), CHUNKS),
    "window of 64": (Shape(window=64, cache_format="bfloat16"), CHUNKS),
    "soft cap": (Shape(soft_cap=0.8), MIXED),
    "weak soft cap and window": (Shape(soft_cap=50.0, window=13), CHUNKS),
    "segments": (Shape(num_kv_heads=1, group_size=2), ((0, 1500, 1), (1, 700, 2), (2, 511, 2), (3, 512, 1))),
    "segments and window": (Shape(num_kv_heads=1, group_size=2, window=530), ((0, 1500, 1), (1, 1030, 20))),
}


def _sequences_of(name: str) -> tuple[Sequences, list[Part]]:
    shape, step = CASES[name]
    return Sequences(shape, tuple(start + count for _, start, count in step)), list(step)


@lru_cache
def _expected(name: str) -> torch.Tensor:
    sequences, step = _sequences_of(name)
    return sequences.expected(step)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_matches_reference(name, isa, assert_close):
    sequences, step = _sequences_of(name)
    for num_threads in (1, 2):
        assert_close(name, torch.cat(sequences.run(isa, step, num_threads)), _expected(name), ERROR_RATIO)


# Two prompts, the longer one of several segments, and how they are cut into steps.
ALIKE = {
    "float32": Shape(),
    "bfloat16, head 72": Shape(head_dim=72, cache_format="bfloat16", group_size=1, num_kv_heads=3),
    "float16, head 64": Shape(head_dim=64, cache_format="float16", group_size=4, num_kv_heads=1),
    "int8, head 24": Shape(head_dim=24, cache_format="int8", group_size=5, block_size=4),
    "window": Shape(window=77, head_dim=16),
    "window over segments": Shape(window=600, head_dim=64, cache_format="bfloat16"),
    "soft cap": Shape(soft_cap=2.0, head_dim=16, cache_format="int8"),
    "group of 8": Shape(group_size=8, num_kv_heads=1, head_dim=64, cache_format="bfloat16"),
}
LENGTHS = (1100, 90)


@pytest.fixture(params=ALIKE)
def sequences(request) -> Sequences:
    return Sequences(ALIKE[request.param], LENGTHS)


@pytest.fixture(params=ISAS)
def isa(request) -> str:
    return request.param


def _assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.isfinite().all()
    different = (actual.view(torch.int32) != expected.view(torch.int32)).any(-1).nonzero().flatten().tolist()
    assert not different, f"{len(different)} of {len(expected)} tokens differ, the first are {different[:8]}"


def test_same_bits_however_a_prompt_is_cut(sequences, isa):
    (whole,) = sequences.run(isa, [(0, 0, LENGTHS[0])])
    for size in (7, 100, 513):
        starts = range(0, LENGTHS[0], size) if size > 7 else range(994, LENGTHS[0] - size, size)
        for start in starts:
            count = min(size, LENGTHS[0] - start)
            (chunk,) = sequences.run(isa, [(0, start, count)], num_threads=2)
            _assert_same_bits(chunk, whole[start : start + count])


def test_same_bits_in_decode_and_in_prefill(sequences, isa):
    (whole,) = sequences.run(isa, [(0, 0, LENGTHS[0])])
    for position in (0, 1, 15, 16, 17, 63, 64, 76, 77, 78, 130, 511, 512, 513, 599, 600, 601, 1023, 1024, 1099):
        (one,) = sequences.run(isa, [(0, position, 1)], num_threads=1 + position % 2)
        _assert_same_bits(one, whole[position : position + 1])


@pytest.mark.parametrize("name", ["bfloat16, head 72", "int8, head 24", "window over segments"])
def test_same_bits_over_many_segments(name):
    """Decoding cuts a long context into segments for the threads, a prompt walks through them."""
    sequences, best = Sequences(ALIKE[name], (2100,)), ISAS[0]
    ((tail,), (chunk,)) = (sequences.run(best, [(0, start, 2100 - start)], num_threads=2) for start in (1020, 2040))
    _assert_same_bits(chunk, tail[1020:])
    for position in (1020, 1023, 1024, 1025, 1535, 1536, 2047, 2048, 2049, 2099):
        (one,) = sequences.run(best, [(0, position, 1)], num_threads=3)
        _assert_same_bits(one, tail[position - 1020 : position - 1019])


def test_same_bits_token_by_token(sequences):
    (whole,) = sequences.run(ISAS[0], [(1, 0, LENGTHS[1])])
    for position in range(LENGTHS[1]):
        (one,) = sequences.run(ISAS[0], [(1, position, 1)])
        _assert_same_bits(one, whole[position : position + 1])


def test_same_bits_alone_and_in_a_batch(sequences, isa):
    parts = [(0, 1000, 100), (1, 89, 1)]
    alone = [sequences.run(isa, [part])[0] for part in parts]
    for actual, expected in zip(sequences.run(isa, parts[::-1]), alone[::-1], strict=True):
        _assert_same_bits(actual, expected)


@pytest.mark.parametrize("step", [[(0, 1099, 1)], [(0, 1099, 1), (1, 89, 1)], [(0, 1040, 60), (1, 0, 90)]])
def test_same_bits_with_any_number_of_threads(step, sequences, isa):
    expected = torch.cat(sequences.run(isa, step))
    for num_threads in (2, 3, 8):
        _assert_same_bits(torch.cat(sequences.run(isa, step, num_threads)), expected)


def test_not_a_number_stays_in_its_sequence_and_head(isa):
    sequences = Sequences(Shape(), (40, 33))
    step = [(0, 39, 1), (1, 20, 13)]
    expected = sequences.run(isa, step)
    sequences.queries[0][39, :32] = float("nan")
    actual = sequences.run(isa, step)
    assert actual[0][:, :32].isnan().all()
    _assert_same_bits(actual[0][:, 32:], expected[0][:, 32:])
    _assert_same_bits(actual[1], expected[1])
