"""Recorded programs: their instructions against references, memory that values share, errors, threads.

Products have tests of their own (`test_native_linear.py`), and so has attention.
"""

import random
import time
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from quire.kernels import native as native_package
from quire.kernels.linear.native import pack, unpack
from quire.kernels.native import NativeCpu, describe_kernels
from quire.kernels.rms_norm.reference import rms_norm
from quire.kernels.rope.reference import rope_tables
from quire.kernels.rope_kv_write.reference import rope_kv_write
from quire.kernels.silu_mul.reference import silu_mul

BLOCK_SIZE, NUM_BLOCKS, MAX_LEN = 4, 24, 40
UNTOUCHED = 7
# What a format keeps of a number.
CACHES = {
    "float32": (torch.float32, 1e-6),
    "bfloat16": (torch.bfloat16, 3e-3),
    "float16": (torch.float16, 4e-4),
    "int8": (torch.int8, 8e-3),
}


class Step:
    """Sequences in slots of two tables, as (slot, tokens before, tokens in the step)."""

    def __init__(self, *parts: tuple[int, int, int], vocab_size: int = 50):
        generator = torch.Generator().manual_seed(len(parts))
        self.token_table = torch.randint(0, vocab_size, (4, MAX_LEN), dtype=torch.int32, generator=generator)
        blocks = torch.randperm(NUM_BLOCKS, generator=generator, dtype=torch.int32)
        self.block_tables = torch.full((4, MAX_LEN // BLOCK_SIZE), -1, dtype=torch.int32)
        for slot, start, count in parts:
            used = -(-(start + count) // BLOCK_SIZE)
            self.block_tables[slot, :used], blocks = blocks[:used], blocks[used:]
        self.slots, self.starts, self.num_tokens = torch.tensor(parts).view(-1, 3).t().contiguous()
        self.logit_rows = torch.empty(0, dtype=torch.int64)
        places = [(slot, start + i) for slot, start, count in parts for i in range(count)]
        self.length = len(places)
        self.positions = torch.tensor([position for _, position in places])
        self.token_ids = torch.tensor([self.token_table[place] for place in places])
        self.cache_slots = torch.tensor(
            [int(self.block_tables[slot, p // BLOCK_SIZE]) * BLOCK_SIZE + p % BLOCK_SIZE for slot, p in places]
        )

    def run(self, program, width, given=None, num_rows=None):
        out = torch.full((self.length if num_rows is None else num_rows, width), torch.nan)
        self.run_into(program, out, given)
        return out

    def run_into(self, program, out, given=None):
        tables = (self.token_table, self.block_tables, self.slots, self.starts, self.num_tokens, self.logit_rows)
        program.run(*tables, out, given=given)


MIXED = ((2, 0, 9), (0, 13, 1), (3, 5, 6))


def new_program(native, cache_format="float32"):
    program = native.extension.StepProgram(native.pool, native.instruction_set)
    program.set_cache_shape(cache_format, NUM_BLOCKS, BLOCK_SIZE)
    return program


class Cache:
    """One layer's keys and values with their scales, all `UNTOUCHED`."""

    def __init__(self, cache_format, num_kv_heads, head_dim):
        shape = (2, NUM_BLOCKS, BLOCK_SIZE, num_kv_heads)
        self.numbers = torch.full((*shape, head_dim), UNTOUCHED, dtype=CACHES[cache_format][0])
        self.scales = torch.ones(shape)

    def give_to(self, program):
        program.add_cache(*(tensor.data_ptr() for tensor in (*self.numbers, *self.scales)))

    def floats(self):
        return self.numbers.float() * self.scales.unsqueeze(-1)

    def is_untouched(self):
        return bool((self.numbers == UNTOUCHED).all() and (self.scales == 1).all())


NUM_HEADS, NUM_KV_HEADS = 4, 2


@lru_cache
def roped(head_dim, rotary_dim, with_norms):
    """(qkv, frequencies, norms, step, queries, keys and values [2, NUM_BLOCKS, BLOCK_SIZE, heads, head_dim])"""
    torch.manual_seed(head_dim)
    step = Step(*MIXED)
    qkv = torch.randn(step.length, (NUM_HEADS + 2 * NUM_KV_HEADS) * head_dim)
    frequencies = 100.0 ** -torch.linspace(0, 1, rotary_dim // 2)
    norms = (torch.rand(head_dim) + 0.5, torch.rand(head_dim) + 0.5) if with_norms else (None, None)
    caches = torch.zeros(2, NUM_BLOCKS, BLOCK_SIZE, NUM_KV_HEADS, head_dim)
    query = rope_kv_write(
        qkv,
        rope_tables(step.positions, frequencies, 1.25),
        *caches,
        step.cache_slots,
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        query_norm=norms[0],
        key_norm=norms[1],
        epsilon=1e-5,
    )
    return qkv, frequencies, norms, step, query.flatten(1), caches


@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize("cache_format", CACHES)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(8, 8), (20, 20), (64, 64), (72, 24), (80, 80), (38, 10)])
def test_rope_kv_write_matches_reference(compiled, head_dim, rotary_dim, cache_format, with_norms, assert_close):
    qkv, frequencies, norms, step, expected_query, expected = roped(head_dim, rotary_dim, with_norms)
    program, cache = new_program(compiled, cache_format), Cache(cache_format, NUM_KV_HEADS, head_dim)
    given = program.input(qkv.shape[1])
    tables = program.rope_tables(frequencies.numpy(), 1.25)
    vectors = [None if norm is None else norm.numpy() for norm in norms]
    query = program.rope_kv_write(given, tables, 0, NUM_HEADS, NUM_KV_HEADS, head_dim, *vectors, 1e-5)
    program.finish(query, True)
    cache.give_to(program)
    assert_close("query", step.run(program, NUM_HEADS * head_dim, qkv), expected_query, 1e-6)
    written, wanted = cache.floats().flatten(1, 2), expected.flatten(1, 2)
    for name, actual, part in zip(("keys", "values"), written, wanted, strict=True):
        assert_close(name, actual[step.cache_slots], part[step.cache_slots], CACHES[cache_format][1])
    others = torch.ones(NUM_BLOCKS * BLOCK_SIZE, dtype=torch.bool)
    others[step.cache_slots] = False
    assert (written[:, others] == UNTOUCHED).all()


@pytest.mark.parametrize("width", [1, 15, 16, 33, 576])
@pytest.mark.parametrize("num_rows", [0, 1, 9])
def test_norm_and_activation_match_their_references(compiled, width, num_rows, assert_close):
    torch.manual_seed(width)
    weight, x = torch.randn(width), torch.randn(num_rows, 2 * width) * 8
    normed = new_program(compiled)
    normed.finish(normed.rms_norm(normed.input(width), True, weight.numpy(), 1e-5), True)
    activated = new_program(compiled)
    activated.finish(activated.silu_mul(activated.input(2 * width), True), True)
    out = torch.full((num_rows, width), torch.nan)
    left = x[:, :width].contiguous()
    normed.run_rows(left, out)
    if num_rows:
        assert_close("norm", out, rms_norm(left.double(), weight.double(), 1e-5).float(), 1e-6)
    activated.run_rows(x, out)
    if num_rows:
        assert_close("activation", out, silu_mul(x.double()).float(), 1e-6)


def test_an_activation_of_huge_numbers_is_finite(compiled):
    program = new_program(compiled)
    program.finish(program.silu_mul(program.input(8), True), True)
    out = torch.empty(1, 4)
    program.run_rows(torch.tensor([[-1e30, -200.0, 200.0, 1e30, 1.0, 1.0, 1.0, 1.0]]), out)
    assert out.tolist() == [[0.0, 0.0, 200.0, pytest.approx(1e30)]]


@pytest.mark.parametrize("weight_format", ["float32", "bfloat16", "int8", "Q4_1", "Q8_0"])
def test_embeddings_of_the_rows_that_are_asked_for(compiled, weight_format):
    torch.manual_seed(0)
    weight, step = pack(compiled, torch.randn(50, 96), weight_format), Step(*MIXED)
    step.logit_rows = torch.tensor([8, 15, 9])
    program = new_program(compiled)
    program.finish(program.select_rows(program.embedding(weight.data)), False)
    assert torch.equal(step.run(program, 96, num_rows=3), unpack(weight)[step.token_ids[[8, 15, 9]]])


def test_more_logit_rows_than_tokens(best):
    step, x = Step((1, 3, 1)), torch.randn(1, 16)
    program = new_program(best)
    program.finish(program.select_rows(program.input(16)), False)
    step.logit_rows = torch.zeros(70, dtype=torch.int64)
    assert torch.equal(step.run(program, 16, x, num_rows=70), x.expand(70, -1))


class RandomProgram:
    """Linears, norms and activations of whatever has been computed so far, old values as often as new ones.

    Attributes:
        expected: The result, float64.
    """

    def __init__(self, native, seed, given, logit_rows, num_instructions=40):
        self.random, self.native = random.Random(seed), native
        self.program, self.kept = new_program(native), []
        # (value, numbers, is of tokens)
        self.values = [(self.program.input(given.shape[1]), given.double(), True)]
        for _ in range(num_instructions):
            self.random.choice((self.linear, self.linear, self.add, self.norm, self.activate))()
        value, numbers, of_tokens = self.random.choice([entry for entry in self.values if entry[2]])
        self.values = [(self.program.select_rows(value), numbers[logit_rows], False)]
        for _ in range(num_instructions // 2):
            self.random.choice((self.linear, self.linear, self.add, self.norm, self.activate))()
        value, self.expected, of_tokens = self.random.choice(self.values)
        self.program.finish(value, of_tokens)
        self.width = self.expected.shape[1]

    def weight(self, num_out, num_in):
        generator = torch.Generator().manual_seed(self.random.randrange(2**30))
        numbers = torch.randn(num_out, num_in, generator=generator) / num_in**0.5
        self.kept.append(pack(self.native, numbers))
        return self.kept[-1].data, numbers.double()

    def linear(self):
        value, numbers, of_tokens = self.random.choice(self.values)
        data, weight = self.weight(self.random.choice((16, 32, 48)), numbers.shape[1])
        product = self.program.linear(value, of_tokens, data, None, None, 0.0, False, None)
        self.values.append((product, numbers @ weight.T, of_tokens))

    def add(self):
        value, numbers, of_tokens = self.random.choice(self.values)
        index = self.random.randrange(len(self.values))
        target, sums, _ = self.values[index]
        if target == value:
            return
        data, weight = self.weight(sums.shape[1], numbers.shape[1])
        self.program.linear(value, of_tokens, data, None, None, 0.0, False, target)
        self.values[index] = (target, sums + numbers @ weight.T, of_tokens)

    def norm(self):
        value, numbers, of_tokens = self.random.choice(self.values)
        weight = torch.linspace(0.5, 1.5, numbers.shape[1])
        self.kept.append(weight)
        normed = self.program.rms_norm(value, of_tokens, weight.numpy(), 1e-5)
        self.values.append((normed, rms_norm(numbers, weight.double(), 1e-5), of_tokens))

    def activate(self):
        value, numbers, of_tokens = self.random.choice(self.values)
        if numbers.shape[1] % 32 == 0:
            self.values.append((self.program.silu_mul(value, of_tokens), silu_mul(numbers), of_tokens))


@pytest.mark.parametrize("seed", range(12))
def test_values_that_share_memory_do_not_disturb_each_other(seed, assert_close):
    torch.manual_seed(seed)
    step, results = Step(*MIXED), []
    x = torch.randn(step.length, 32)
    step.logit_rows = torch.tensor([3, 3, 15, 8])
    for num_threads in (1, 2, 3):
        native = NativeCpu.create(num_threads) or pytest.skip("quire was installed without compiled kernels")
        made = RandomProgram(native, seed, x, step.logit_rows)
        results += [step.run(made.program, made.width, x, num_rows=4) for _ in range(2)]
    assert_close("result", results[0], made.expected.float(), 1e-5)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("token_id", [-1, 50, 2**31 - 1])
def test_a_chunk_that_throws_ends_its_run_alone(best, token_id):
    weight, step = pack(best, torch.randn(50, 32)), Step(*MIXED)
    program, other = new_program(best), new_program(best)
    embedded = program.embedding(weight.data)
    program.finish(program.linear(embedded, True, pack(best, torch.eye(32)).data, None, None, 0.0, False, None), True)
    other.finish(other.embedding(weight.data), True)
    expected = step.run(program, 32)
    kept = step.token_table[0, 13].clone()
    for _ in range(3):
        step.token_table[0, 13] = token_id
        out = torch.full_like(expected, UNTOUCHED)
        with pytest.raises(IndexError, match="a token outside the vocabulary"):
            step.run_into(program, out)
        assert (out == UNTOUCHED).all()
        step.token_table[0, 13] = kept
        assert torch.equal(step.run(other, 32), unpack(weight)[step.token_ids])
        assert torch.equal(step.run(program, 32), expected)


REFUSED = {
    "a block below the cache": (lambda step: step.block_tables[0, 1].fill_(-1), IndexError, "a block outside"),
    "a block behind the cache": (lambda step: step.block_tables[3, 2].fill_(NUM_BLOCKS), IndexError, "a block outside"),
    "a slot behind the tables": (lambda step: step.slots[1].fill_(4), IndexError, "outside the tables"),
    "a negative slot": (lambda step: step.slots[0].fill_(-1), IndexError, "outside the tables"),
    "a negative start": (lambda step: step.starts[0].fill_(-1), IndexError, "outside the tables"),
    "no tokens of a sequence": (lambda step: step.num_tokens[1].fill_(0), IndexError, "outside the tables"),
    "more tokens than the table": (lambda step: step.num_tokens[2].fill_(MAX_LEN), IndexError, "outside the tables"),
    "a block table too short": (
        lambda step: setattr(step, "block_tables", step.block_tables[:, :2].contiguous()),
        IndexError,
        "outside the tables",
    ),
    "too few block tables": (
        lambda step: setattr(step, "block_tables", step.block_tables[:3].contiguous()),
        IndexError,
        "outside the tables",
    ),
    "fewer starts than slots": (
        lambda step: setattr(step, "starts", step.starts[:2].contiguous()),
        ValueError,
        "different lengths",
    ),
    "fewer lengths than slots": (
        lambda step: setattr(step, "num_tokens", step.num_tokens[:2].contiguous()),
        ValueError,
        "different lengths",
    ),
    "a logit row behind the step": (
        lambda step: setattr(step, "logit_rows", torch.tensor([0, step.length])),
        IndexError,
        "a logit row outside",
    ),
    "a negative logit row": (
        lambda step: setattr(step, "logit_rows", torch.tensor([-1])),
        IndexError,
        "a logit row outside",
    ),
}


@pytest.fixture
def writer(best):
    """A program that writes the cache, the cache, and what it is given."""
    program, cache = new_program(best), Cache("float32", 1, 8)
    given = program.input(4 * 8)
    tables = program.rope_tables(torch.ones(4).numpy(), 1.0)
    program.finish(program.rope_kv_write(given, tables, 0, 2, 1, 8, None, None, 0.0), True)
    cache.give_to(program)
    return program, cache, torch.randn(16, 32)


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_outside_its_tables_is_refused_and_writes_nothing(writer, name):
    program, cache, x = writer
    spoil, error, message = REFUSED[name]
    step, out = Step(*MIXED), torch.full((16, 16), float(UNTOUCHED))
    spoil(step)
    with pytest.raises(error, match=message):
        step.run_into(program, out, x)
    assert cache.is_untouched() and (out == UNTOUCHED).all()
    assert Step(*MIXED).run(program, 16, x).isfinite().all() and not cache.is_untouched()


@pytest.mark.parametrize(
    ("given_shape", "out_shape", "message"),
    [
        ((15, 32), (16, 16), "another number of rows"),
        ((16, 31), (16, 16), "rows of 32 where 31 are needed"),
        ((16, 32), (15, 16), "the result has another shape"),
        ((16, 32), (16, 17), "the result has another shape"),
    ],
)
def test_arrays_of_another_shape_are_refused(writer, given_shape, out_shape, message):
    program, cache, _ = writer
    out = torch.full(out_shape, float(UNTOUCHED))
    with pytest.raises(ValueError, match=message):
        Step(*MIXED).run_into(program, out, torch.zeros(given_shape))
    assert cache.is_untouched() and (out == UNTOUCHED).all()


def test_what_cannot_be_recorded_is_refused(best):
    program, weight = new_program(best), pack(best, torch.zeros(16, 32))
    with pytest.raises(ValueError, match="rows of 31 where 32 are needed"):
        program.linear(program.input(31), True, weight.data, None, None, 0.0, False, None)
    x = program.input(32)
    with pytest.raises(ValueError, match="rows of 32 where 16 are needed"):
        program.linear(x, True, weight.data, None, None, 0.0, False, x)
    with pytest.raises(ValueError, match="a vector of another length"):
        program.linear(x, True, weight.data, torch.zeros(15).numpy(), None, 0.0, False, None)
    with pytest.raises(ValueError, match="rows of 32 where 33 are needed"):
        program.rms_norm(x, True, torch.zeros(33).numpy(), 0.0)
    with pytest.raises(ValueError, match="no cache format is called fp8"):
        program.set_cache_shape("fp8", 1, 1)
    program.finish(program.attend(x, 2, 4, 1, 8, 1.0, 0, 0.0), True)
    with pytest.raises(ValueError, match="layers without a cache"):
        Step(*MIXED).run(program, 32, torch.zeros(16, 32))
    with pytest.raises(ValueError):
        best.extension.StepProgram(best.pool, "sse9")


def test_a_step_without_sequences_is_nothing(writer):
    program, cache, x = writer
    assert Step().run(program, 16, x[:0]).shape == (0, 16)
    assert cache.is_untouched()


def test_kernels_are_told_with_what_would_be_faster(best, monkeypatch):
    assert describe_kernels() == f"compiled, {best.instruction_set}"
    monkeypatch.setattr(native_package, "extension", lambda: None)
    assert describe_kernels().startswith("torch and oneDNN, because quire was installed without a compiler; install")
    assert native_package.instruction_sets() == [] and NativeCpu.create(2) is None


def test_the_best_instruction_set_comes_first(best):
    known = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "neon_dotprod", "portable")
    found = native_package.instruction_sets()
    assert found == [name for name in known if name in found]
    assert (found[0], found[-1]) == (best.instruction_set, "portable")


def has_threads(number):
    """Whether the process comes to have so many: the kernel wakes who joins a thread, then takes it off its list."""
    deadline = time.monotonic() + 10
    while len(list(Path("/proc/self/task").iterdir())) != number:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_pools_and_programs_come_and_go():
    native = NativeCpu.create(1) or pytest.skip("quire was installed without compiled kernels")
    step, x, before = Step(*MIXED), torch.randn(16, 32), len(list(Path("/proc/self/task").iterdir()))
    for number in range(60):
        native = NativeCpu.create(1 + number % 4)
        made = RandomProgram(native, number % 3, x, torch.tensor([0]), num_instructions=1 + number % 7)
        step.logit_rows = torch.tensor([0])
        if number % 2:
            step.run(made.program, made.width, x, num_rows=1)
        assert has_threads(before + number % 4)
        # The program keeps its pool alive.
        del native
        made.native = None
        step.run(made.program, made.width, x, num_rows=1)
        del made
    assert has_threads(before)


def test_programs_of_all_lengths_take_turns_on_a_pool_larger_than_the_machine():
    native = NativeCpu.create(24) or pytest.skip("quire was installed without compiled kernels")
    step, x = Step(*MIXED), torch.randn(16, 32)
    step.logit_rows = torch.tensor([5, 0])
    programs = [RandomProgram(native, seed, x, step.logit_rows, num_instructions=2**seed) for seed in range(7)]
    expected = [step.run(made.program, made.width, x, num_rows=2) for made in programs]
    order = random.Random(1)
    for _ in range(60):
        index = order.randrange(len(programs))
        assert torch.equal(step.run(programs[index].program, programs[index].width, x, num_rows=2), expected[index])
