"""Weights packed for the compiled kernels: the numbers of the file, or near them where they are rounded at load."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from quire.checkpoint.checkpoint import Checkpoint
from quire.checkpoint.tensor_entry import TensorEntry
from quire.kernels.linear.native import formats_of, unpack
from quire.kernels.native import NativeCpu
from quire.models.decoder import DecoderModel
from quire.models.loading.load import load_packed_weights
from quire.models.loading.mapped_files import MappedFiles
from quire.models.loading.native_packing import NativePacking
from quire.models.registry import create_model

Tensors = dict[str, torch.Tensor]
ROPED = ("q_proj", "k_proj")


@pytest.fixture
def native() -> NativeCpu:
    found = NativeCpu.create(2)
    if found is None:
        pytest.skip("quire was installed without compiled kernels")
    return found


def packed_model(
    native: NativeCpu, checkpoint: Checkpoint, wanted: str = "stored"
) -> tuple[DecoderModel, NativePacking]:
    model, packing = create_model(checkpoint.architecture, dtype=torch.float32), NativePacking(native, wanted)
    load_packed_weights(model, checkpoint, packing, progress=False)
    return model, packing


def matrix_owners(model: DecoderModel) -> dict[str, Any]:
    """The modules that have a packed weight."""
    return {name: module for name, module in model.named_modules() if getattr(module, "packed", None) is not None}


def tensors_of(model: DecoderModel) -> Tensors:
    """The numbers that the kernels multiply with, by Hugging Face's names."""
    packed = {f"{name}.weight": unpack(module.packed) for name, module in matrix_owners(model).items()}
    found = {}
    places = create_model(model.architecture, dtype=torch.float32, device="meta").tensor_map()
    for name, place in places.items():
        parameter = packed[place.parameter] if place.parameter in packed else model.get_parameter(place.parameter).data
        found[name] = parameter[place.row_start : place.row_start + place.num_rows]
    return found


def assert_near(found: Tensors, expected: Tensors, error: float) -> None:
    """The error of each matrix relative to its numbers; vectors are equal."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        allowed = error if tensor.dim() == 2 else 0.0
        assert (found[name] - tensor).norm() <= allowed * tensor.norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_safetensors_keep_their_numbers(
    tmp_path: Path, checkpoints: Any, same_tensors: Any, native: NativeCpu, name: str, dtype: torch.dtype
) -> None:
    changes = {"vocab_size": 37, "hidden_size": 72, "intermediate_size": 51, "head_dim": 20, "num_attention_heads": 3}
    config = checkpoints.config_of(name, **changes, num_key_value_heads=1)
    checkpoints.write_folder(tmp_path, config, checkpoints.random_tensors(config, dtype))
    checkpoint = checkpoints.open(tmp_path)
    model, packing = packed_model(native, checkpoint)
    same_tensors(tensors_of(model), checkpoints.load_tensors(checkpoint))
    assert set(packing.num_bytes) == {str(dtype).removeprefix("torch.")}
    assert not packing.converted


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_gguf_tensors_keep_their_numbers(tmp_path: Path, checkpoints: Any, native: NativeCpu, kind: str) -> None:
    config = checkpoints.config_of(vocab_size=37, intermediate_size=96)
    tensors = checkpoints.random_tensors(config)
    expected = checkpoints.write_gguf(tmp_path / "m.gguf", config, tensors, GGMLQuantizationType[kind])
    model, packing = packed_model(native, checkpoints.open(tmp_path / "m.gguf"))
    # Scales are multiplied in another order than the gguf package's.
    assert_near(tensors_of(model), expected, 0.0 if kind in ("F32", "F16", "BF16") else 1e-6)
    name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(kind, kind)
    assert set(packing.num_bytes) == {name} and not packing.converted
    assert packing.num_bytes[name] == sum(module.packed.num_bytes for module in matrix_owners(model).values())


def random_blocks(kind: GGMLQuantizationType, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of a type that the gguf package reads and does not write: any bytes, scales of ordinary size."""
    block, size = gguf.constants.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(shape[0])
    rows = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.03, (*rows.shape[:2], 2)).astype(np.float16).view(np.uint8)
    places = {"Q2_K": slice(80, 84), "Q3_K": slice(108, 110), "Q6_K": slice(208, 210)}
    place = places.get(kind.name, slice(0, 4))
    rows[..., place] = scales[..., : place.stop - place.start]
    return rows.reshape(shape[0], -1)


@pytest.fixture
def random_k_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the gguf package "quantise" to types that it only reads."""
    quantize = gguf.quants.quantize

    def fake(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
        return random_blocks(kind, values.shape) if kind.name.endswith("_K") else quantize(values, kind)

    monkeypatch.setattr(gguf.quants, "quantize", fake)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.usefixtures("random_k_types")
def test_k_types_keep_their_numbers(tmp_path: Path, checkpoints: Any, native: NativeCpu, kind: str) -> None:
    config = checkpoints.config_of(num_hidden_layers=1)
    tensors = checkpoints.random_tensors(config)
    expected = checkpoints.write_gguf(tmp_path / "m.gguf", config, tensors, GGMLQuantizationType[kind])
    model, packing = packed_model(native, checkpoints.open(tmp_path / "m.gguf"))
    assert_near(tensors_of(model), expected, 1e-6)
    assert set(packing.num_bytes) == {kind}


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K"])
@pytest.mark.usefixtures("random_k_types")
def test_types_that_no_kernel_reads_become_8_bits_with_a_note(
    tmp_path: Path, checkpoints: Any, native: NativeCpu, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = checkpoints.config_of(num_hidden_layers=1)
    tensors = checkpoints.random_tensors(config)
    expected = checkpoints.write_gguf(tmp_path / "m.gguf", config, tensors, GGMLQuantizationType[kind])
    with caplog.at_level(logging.INFO, logger="quire.models"):
        model, packing = packed_model(native, checkpoints.open(tmp_path / "m.gguf"))
    assert_near(tensors_of(model), expected, 0.01)
    assert set(packing.num_bytes) == {"Q8_0"}
    assert f"9 tensors in {kind} were converted to 8 bits: no CPU kernel reads that format" in caplog.messages


@pytest.mark.parametrize("kind", ["Q8_0", "F32"])
def test_a_tied_head_is_shared_and_not_copied(tmp_path: Path, checkpoints: Any, native: NativeCpu, kind: str) -> None:
    config = checkpoints.config_of(tie_word_embeddings=True, num_hidden_layers=1)
    tensors = checkpoints.random_tensors(config)
    expected = checkpoints.write_gguf(tmp_path / "m.gguf", config, tensors, GGMLQuantizationType[kind])
    model, packing = packed_model(native, checkpoints.open(tmp_path / "m.gguf"))
    owners = [module for module in matrix_owners(model).values() if module.packed.out_features == 40]
    assert len({id(module.packed.data) for module in owners}) == 1
    assert_near(tensors_of(model), expected, 1e-6)
    assert sum(packing.num_bytes.values()) == model.num_weight_bytes() - 3 * 256 * 4
    hidden = torch.randn(3, 256)
    embedding = tensors_of(model)["model.embed_tokens.weight"]
    logits = model.compute_logits(hidden)
    assert (logits - hidden @ embedding.T).norm() < 0.01 * logits.norm()


@pytest.mark.parametrize(("wanted", "error"), [("int8", 0.012), ("int4", 0.09), ("bfloat16", 0.003), ("float16", 4e-4)])
@pytest.mark.parametrize("stored", ["safetensors", "Q4_1"])
def test_rounding_at_load_is_bounded(
    tmp_path: Path, checkpoints: Any, native: NativeCpu, stored: str, wanted: str, error: float
) -> None:
    config = checkpoints.config_of(num_hidden_layers=1, vocab_size=43)
    tensors = expected = checkpoints.random_tensors(config)
    path = tmp_path if stored == "safetensors" else tmp_path / "m.gguf"
    if stored == "safetensors":
        checkpoints.write_folder(tmp_path, config, tensors)
    else:
        expected = checkpoints.write_gguf(path, config, tensors, GGMLQuantizationType[stored])
    model, packing = packed_model(native, checkpoints.open(path), wanted)
    found = tensors_of(model)
    assert_near(found, expected, error)
    assert not packing.converted
    formats = {name: formats_of(module.packed) for name, module in matrix_owners(model).items()}
    vocabulary = {"int4": "Q8_0"}.get(wanted, wanted)
    for name, of_parts in formats.items():
        is_vocabulary = matrix_owners(model)[name].packed.out_features == 43
        layers = {"int4": "Q4_1"}.get(wanted, wanted)
        assert set(of_parts) == {vocabulary if is_vocabulary else layers}, name
    assert sum(vocabulary in of_parts for of_parts in formats.values()) >= 2


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "int8"])
def test_dummy_weights_are_those_of_the_float_model(
    tmp_path: Path, checkpoints: Any, native: NativeCpu, wanted: str
) -> None:
    config = checkpoints.config_of(hidden_size=72, intermediate_size=50)
    checkpoints.write_folder(tmp_path, config, {"unread": torch.zeros(1)})
    checkpoint = checkpoints.open(tmp_path, load_format="dummy")
    model, packing = packed_model(native, checkpoint, wanted)
    error = {"float32": 0.0, "bfloat16": 0.003, "int8": 0.012}[wanted]
    assert_near(tensors_of(model), checkpoints.load_tensors(checkpoint), error)
    assert set(packing.num_bytes) == {wanted}


def resident_kib(path: Path) -> int:
    """How much of the file is in this process's memory."""
    total, is_inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and ":" not in first:
            is_inside = line.endswith(str(path))
        elif is_inside and first == "Rss:":
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident pages are read from /proc")
def test_pages_of_the_file_are_given_back(
    tmp_path: Path, checkpoints: Any, native: NativeCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each weight, so that a file as large as memory can be loaded."""
    config = checkpoints.config_of(intermediate_size=2048)
    path = checkpoints.write_folder(tmp_path, config, checkpoints.random_tensors(config)) / "model.safetensors"
    forget, resident = MappedFiles.forget, []

    def measured(self: MappedFiles, entry: TensorEntry) -> None:
        before = resident_kib(path)
        forget(self, entry)
        resident.append(SimpleNamespace(before=before, after=resident_kib(path)))

    monkeypatch.setattr(MappedFiles, "forget", measured)
    packed_model(native, checkpoints.open(tmp_path))
    whole = path.stat().st_size // 1024
    assert max(step.before for step in resident) >= 2048
    # Neighbours' pages at both ends of a tensor may stay, and what the system reads ahead.
    assert max(step.before for step in resident) < whole * 0.75
    assert resident[-1].after < whole * 0.1
