"""Every format against the gguf package, to the bit."""

from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from quire.checkpoint.gguf_file import GGML_TYPES
from quire.errors import UnsupportedModelError
from quire.models.loading import dequantize as dequantize_module
from quire.models.loading.dequantize import LOADABLE_TYPES, PLAIN_TYPES, Dequantizer

BLOCK_TYPES = sorted(LOADABLE_TYPES - PLAIN_TYPES)


def unpack(packed: torch.Tensor, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    out = torch.full((len(packed), packed.shape[1] // num_bytes * values), float("nan"), dtype=dtype)
    with Dequantizer() as dequantizer:
        dequantizer.write(packed, name, out)
    return out


def random_blocks(name: str, num_rows: int = 12, blocks_per_row: int = 3) -> torch.Tensor:
    """Random bytes; where they make a scale that is no number, the result must be none either."""
    _, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    generator = torch.Generator().manual_seed(len(name) + num_bytes)
    return torch.randint(0, 256, (num_rows, blocks_per_row * num_bytes), dtype=torch.uint8, generator=generator)


def reference(packed: torch.Tensor, name: str) -> torch.Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(packed.numpy(), GGMLQuantizationType[name]))


def test_block_sizes_are_the_formats() -> None:
    ours = {number: (values, num_bytes) for number, (_, values, num_bytes) in GGML_TYPES.items()}
    names = {number: name for number, (name, _, _) in GGML_TYPES.items()}
    assert names == {kind.value: kind.name for kind in GGMLQuantizationType}
    assert ours == {kind.value: size for kind, size in GGML_QUANT_SIZES.items()}


def test_all_that_gguf_dequantises_is_loadable() -> None:
    known = set()
    for kind, (_, num_bytes) in GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, num_bytes), dtype=np.uint8), kind)
        except NotImplementedError:
            continue
        known.add(kind.name)
    assert known <= LOADABLE_TYPES
    assert LOADABLE_TYPES - known == {"F64"}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_random_bytes(name: str) -> None:
    packed = random_blocks(name)
    expected = reference(packed, name).nan_to_num(nan=12345.0)
    assert torch.equal(unpack(packed, name).nan_to_num(nan=12345.0), expected)
    assert torch.equal(
        unpack(packed, name, torch.bfloat16).nan_to_num(nan=12345.0),
        reference(packed, name).bfloat16().nan_to_num(nan=12345.0),
    )


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "TQ1_0", "TQ2_0", "MXFP4"])
def test_what_gguf_quantises(name: str) -> None:
    values = np.random.default_rng(3).normal(size=(7, 512)).astype(np.float32)
    packed = gguf.quants.quantize(values, GGMLQuantizationType[name]).view(np.uint8)
    expected = gguf.quants.dequantize(packed, GGMLQuantizationType[name])
    found = unpack(torch.from_numpy(packed), name)
    assert torch.equal(found, torch.from_numpy(expected))
    assert np.abs(found.numpy() - values).max() < 3.0


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K", "IQ4_NL", "F16"])
def test_more_than_one_thread_and_piece(name: str) -> None:
    """Large enough to be shared out, and to end in a piece that is not full."""
    values, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    num_rows = 3 * dequantize_module._MIN_SHARE_VALUES // (5 * 256) + 1
    row = random_blocks(name, 1, 5 * 256 // values)
    row[row >= 0x7C] = 0x31
    packed = row.repeat(num_rows, 1)
    packed[:, num_bytes - 1] = torch.arange(num_rows).remainder(100).to(torch.uint8)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = unpack(packed, name)
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(found, reference(packed, name))


def test_torchs_own_threads_are_as_before() -> None:
    def of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Dequantizer():
            assert (torch.get_num_threads(), of_a_new_thread()) == (3, 3)
        assert (torch.get_num_threads(), of_a_new_thread()) == (3, 3)
    finally:
        torch.set_num_threads(num_threads)


def test_numbers_that_are_not_aligned() -> None:
    values = torch.randn(4, 6)
    moved = torch.cat([torch.zeros(1, dtype=torch.uint8), values.view(torch.uint8).view(-1)])[1:].view(4, -1)
    assert moved.data_ptr() % 4
    assert torch.equal(unpack(moved, "F32"), values)
    assert torch.equal(unpack(values.double().view(torch.uint8), "F64"), values)


def test_a_format_that_the_installed_gguf_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(data: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
        raise NotImplementedError(kind.name)

    monkeypatch.setattr(gguf.quants, "dequantize", unknown)
    with pytest.raises(UnsupportedModelError, match="IQ4_NL"):
        unpack(random_blocks("IQ4_NL"), "IQ4_NL")
