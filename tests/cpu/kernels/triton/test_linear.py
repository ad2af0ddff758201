"""Products with few rows, every option, against the reference."""

import itertools

import pytest
import torch

from quire.kernels.linear import NormWeight, cuda, reference, tiles, triton_float32, triton_skinny
from quire.kernels.linear.tiles import SkinnyTiles, VectorTiles

# The interpreter cuts float32 off where a GPU rounds to the nearest bfloat16.
RATIOS = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
# The interpreter of Triton 3.6 multiplies bfloat16 matrices as if they were integers.
DOT_FORMATS = (torch.bfloat16, torch.float16) if torch.cuda.is_available() else (torch.float16,)

# name: tokens, columns (of the result), inputs, tiles
SKINNY_CASES = {
    "x-first": (3, 48, 64, SkinnyTiles(16, 32, 1, 4, 3)),
    "one-row": (1, 16, 48, SkinnyTiles(16, 16, 1, 4, 3)),
    "odd-columns": (5, 37, 64, SkinnyTiles(16, 32, 1, 4, 3)),
    "odd-inputs": (17, 32, 80, SkinnyTiles(32, 32, 1, 4, 4)),
    "weight-first": (2, 128, 64, SkinnyTiles(64, 32, 1, 4, 4)),
    "weight-first-odd": (33, 131, 112, SkinnyTiles(64, 64, 1, 4, 3)),
    "64-rows": (64, 80, 64, SkinnyTiles(64, 32, 1, 4, 3)),
    "65-rows": (65, 80, 64, SkinnyTiles(64, 32, 1, 4, 3)),
    "blocks-of-rows": (70, 80, 64, SkinnyTiles(64, 32, 1, 4, 3, 32)),
    "split-2-blocks-of-rows": (45, 48, 128, SkinnyTiles(16, 32, 2, 4, 3, 16)),
    "split-2": (5, 48, 128, SkinnyTiles(16, 32, 2, 4, 3)),
    "split-4-odd": (17, 41, 208, SkinnyTiles(32, 16, 4, 4, 3)),
    "split-3-weight-first": (33, 100, 192, SkinnyTiles(64, 32, 3, 4, 3)),
    "split-with-an-empty-part": (2, 32, 80, SkinnyTiles(16, 32, 4, 4, 3)),
}
VECTOR_CASES = {
    "at-once": (1, 24, 64, VectorTiles(8, 64, 1)),
    "at-once-odd": (1, 21, 48, VectorTiles(4, 64, 1)),
    "blocks": (1, 16, 192, VectorTiles(8, 64, 1)),
    "blocks-odd": (2, 19, 144, VectorTiles(8, 64, 1)),
    "two-rows": (2, 16, 64, VectorTiles(4, 64, 1)),
    "four-rows": (3, 16, 128, VectorTiles(2, 64, 1)),
}
OPTIONS = {
    "plain": {},
    "bias": {"bias"},
    "norm": {"norm"},
    "norm-bias": {"norm", "bias"},
    "gated": {"gated"},
    "norm-gated-bias": {"norm", "gated", "bias"},
    "add": {"add"},
    "norm-add-bias": {"norm", "add", "bias"},
    "float32-out": {"float32"},
    "norm-float32-out": {"norm", "float32"},
}


class Case:
    """Random operands and what they should yield."""

    def __init__(self, num_tokens, num_out, num_in, options, device, dtype=DOT_FORMATS[0]):
        generator = torch.Generator().manual_seed(num_tokens * 1000 + num_out)

        def random(*shape, scale=1.0):
            return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device)

        self.gated = "gated" in options
        rows = 2 * num_out if self.gated else num_out
        self.x = random(num_tokens, num_in, scale=3.0)
        self.weight = random(rows, num_in, scale=0.3)
        self.bias = random(rows) if "bias" in options else None
        self.norm = NormWeight(random(num_in) + 1, 1e-5) if "norm" in options else None
        self.add_to = random(num_tokens, num_out, scale=10.0) if "add" in options else None
        self.out_dtype = torch.float32 if "float32" in options else None

    def expected(self):
        return reference.linear(
            self.x,
            self.weight,
            self.bias,
            norm=self.norm,
            gated=self.gated,
            add_to=self.add_to,
            out_dtype=self.out_dtype,
        )

    def operands(self):
        return self.x, self.weight, self.bias, self.norm, self.gated, self.add_to, self.out_dtype


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch, device):
    """Fresh memory and the scratch of split products are NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))
    monkeypatch.setattr(tiles, "PARTIAL_ELEMENTS", 2**20)
    monkeypatch.setattr(triton_skinny, "PARTIAL_ELEMENTS", 2**20)
    triton_skinny.workspace.cache_clear()
    yield
    triton_skinny.workspace.cache_clear()


def check(name, case, chosen, assert_close):
    expected = case.expected()
    actual = cuda.fused(*case.operands(), chosen)
    assert actual.is_contiguous()
    assert (actual is case.add_to) == (case.add_to is not None)
    assert_close(name, actual, expected, RATIOS[case.x.dtype])
    assert not triton_skinny.workspace(case.x.device).counters.any()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["x-first", "weight-first-odd", "split-2", "split-3-weight-first"])
def test_skinny_options(name, options, device, assert_close):
    num_tokens, num_out, num_in, chosen = SKINNY_CASES[name]
    check(options, Case(num_tokens, num_out, num_in, OPTIONS[options], device), chosen, assert_close)


@pytest.mark.parametrize("dtype", DOT_FORMATS)
@pytest.mark.parametrize("options", ["plain", "norm-gated-bias"])
@pytest.mark.parametrize("name", SKINNY_CASES)
def test_skinny_shapes(name, options, dtype, device, assert_close):
    num_tokens, num_out, num_in, chosen = SKINNY_CASES[name]
    case = Case(num_tokens, num_out, num_in, OPTIONS[options], device, dtype)
    check(name, case, chosen, assert_close)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["at-once", "blocks-odd"])
def test_vector_options(name, options, device, assert_close):
    num_tokens, num_out, num_in, chosen = VECTOR_CASES[name]
    check(name, Case(num_tokens, num_out, num_in, OPTIONS[options], device, torch.bfloat16), chosen, assert_close)


@pytest.mark.parametrize("options", ["plain", "norm-gated-bias"])
@pytest.mark.parametrize("name", VECTOR_CASES)
def test_vector_shapes(name, options, device, assert_close):
    num_tokens, num_out, num_in, chosen = VECTOR_CASES[name]
    check(name, Case(num_tokens, num_out, num_in, OPTIONS[options], device, torch.float16), chosen, assert_close)


def test_split_products_are_deterministic_and_reset_their_counters(device):
    num_tokens, num_out, num_in, chosen = SKINNY_CASES["split-2"]
    case = Case(num_tokens, num_out, num_in, {"norm", "gated"}, device)
    results = [cuda.fused(*case.operands(), chosen) for _ in range(20 if device == "cuda" else 3)]
    assert all(torch.equal(result, results[0]) for result in results)
    assert not triton_skinny.workspace(case.x.device).counters.any()


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5, 17, 33, 64, 65])
@pytest.mark.parametrize("options", ["plain", "norm-gated-bias", "norm-float32-out"])
def test_chosen_tiles(num_tokens, options, device, assert_close):
    """The whole path, with the tiles of the rules, or cuBLAS's side of it."""
    case = Case(num_tokens, 21, 80, OPTIONS[options], device)
    expected = case.expected()
    if device == "cpu" and case.out_dtype is not None and num_tokens > tiles.MAX_SKINNY_TOKENS:
        pytest.skip("torch.mm of a CPU has no out_dtype")
    assert_close(options, cuda.linear(*case.operands()), expected, RATIOS[case.x.dtype])


def test_no_rows(device):
    for options in OPTIONS.values():
        case = Case(0, 8, 16, options, device)
        assert cuda.linear(*case.operands()).shape == (0, 8)


@pytest.mark.parametrize("num_tokens", [1, 3, 17])
@pytest.mark.parametrize("options", ["plain", "bias", "norm-gated-bias", "norm-add-bias"])
def test_float32(num_tokens, options, device, assert_close):
    case = Case(num_tokens, 37, 80, OPTIONS[options], device, torch.float32)
    expected = case.expected()
    assert_close(options, cuda.linear(*case.operands()), expected, 1e-6)


@pytest.mark.usefixtures("independent_rows")
def test_float32_row_alone_equals_row_in_a_batch(device):
    num_tokens = 600 if device == "cuda" else 37
    case = Case(num_tokens, 45, 176, {"bias", "add"}, device, torch.float32)

    def product(rows):
        out = case.add_to[rows].clone()
        triton_float32.multiply(case.x[rows].contiguous(), case.weight, case.bias, out, add=True)
        return out

    whole = product(slice(None))
    for first, length in [(0, 1), (num_tokens - 1, 1), (7, 1), (3, 2), (5, 17), (1, 33)]:
        rows = slice(first, min(first + length, num_tokens))
        assert torch.equal(product(rows), whole[rows]), rows


def test_captured_in_a_graph(device, assert_close):
    if device != "cuda":
        pytest.skip("no GPU")
    case = Case(8, 4096, 4096, {"norm", "add"}, device)
    chosen = SkinnyTiles(64, 128, 4, 4, 4)
    expected = case.expected()
    triton_skinny.workspace(case.x.device)
    before = case.add_to.clone()
    cuda.fused(*case.operands(), chosen)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda.fused(*case.operands(), chosen)
    for _ in range(3):
        case.add_to.copy_(before)
        graph.replay()
        assert_close("graph", case.add_to, expected, RATIOS[case.x.dtype])


LLAMA_AND_QWEN = [
    (6144, 4096, False),
    (4096, 4096, False),
    (28672, 4096, True),
    (4096, 14336, False),
    (128256, 4096, False),
    (4096, 1024, False),
    (1024, 2048, False),
    (6144, 1024, True),
    (1024, 3072, False),
    (151936, 1024, False),
    (960, 576, False),
    (5, 16, False),
]


@pytest.mark.parametrize(("shape", "num_tokens"), list(itertools.product(LLAMA_AND_QWEN, [1, 2, 3, 8, 9, 32, 64])))
def test_rules_fit_the_machine(shape, num_tokens):
    weight_rows, num_in, gated = shape
    chosen = tiles.choose(num_tokens, weight_rows, num_in, gated=gated)
    if isinstance(chosen, SkinnyTiles):
        rows = max(8, tiles.bucket(num_tokens)) + chosen.block_n * (2 if gated else 1)
        assert rows * chosen.block_k * 2 * (chosen.num_stages - 1) <= 227 * 1024
        assert tiles.partial_elements(chosen, num_tokens, weight_rows) <= 4 * 2**20
        num_out = weight_rows // 2 if gated else weight_rows
        assert num_out < 1000 or num_out // chosen.block_n * chosen.split_k >= 48
    else:
        assert isinstance(chosen, VectorTiles)
        assert chosen.block_k % (256 * chosen.num_warps) == 0


def test_measured_tiles_win_over_the_rules(monkeypatch):
    monkeypatch.setattr(
        tiles, "MEASURED", {(96, 64, False, 4): VectorTiles(2, 1024, 4), (96, 64, False, 8): tiles.CuBLAS}
    )
    tiles.choose.cache_clear()
    try:
        assert tiles.choose(3, 96, 64, gated=False) == VectorTiles(2, 1024, 4)
        assert tiles.choose(8, 96, 64, gated=False) is None
        assert isinstance(tiles.choose(3, 96, 64, gated=True), SkinnyTiles)
    finally:
        tiles.choose.cache_clear()


def test_many_rows_are_left_to_cublas():
    assert tiles.choose(65, 4000, 4096, gated=False) is None
    assert tiles.choose(513, 4096, 4096, gated=False) is None
    assert tiles.choose(0, 4096, 4096, gated=False) is None
