"""Weights on a GPU are those on the CPU, arrive without a second copy, and random ones are there at once."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quire.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quire.config.model import ModelConfig
from quire.models.loading.load import load_model
from quire.models.loading.random_weights import RandomWeights
from quire.models.registry import create_model

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 20_000,
    "hidden_size": 512,
    "intermediate_size": 3000,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

LLAMA_8B = CONFIG | {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attention_bias": False,
}


def open_folder(folder: Path, config: dict[str, Any], **options: Any) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return open_checkpoint(ModelConfig(model=str(folder), **options))


def write_weights(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> Checkpoint:
    """A checkpoint with random weights, some of its tensors larger than the buffers on the way to a GPU."""
    checkpoint = open_folder(folder, config, load_format="dummy")
    model = create_model(checkpoint.architecture, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(place.num_rows, *model.get_parameter(place.parameter).shape[1:], generator=generator).to(
            dtype
        )
        for name, place in model.tensor_map().items()
    }
    save_file(tensors, folder / "model.safetensors")
    return open_folder(folder, config)


def fill(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """The parameters by name, before they are packed."""
    from quire.models.loading.load import fill_parameters

    model = create_model(checkpoint.architecture, dtype=dtype)
    for _ in fill_parameters(model, checkpoint, progress=False, device=torch.device(device), seed=7):
        pass
    return {name: parameter.data for name, parameter in model.named_parameters()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], device: str) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.device.type == device
        assert torch.equal(tensor.cpu(), expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_random_weights_are_those_of_the_cpu(tmp_path: Path, device: str, dtype: torch.dtype) -> None:
    checkpoint = open_folder(tmp_path, CONFIG, load_format="dummy")
    assert_same(fill(checkpoint, dtype, device), fill(checkpoint, dtype, "cpu"), device)


def test_a_long_parameter_repeats_as_on_the_cpu(device: str) -> None:
    """Long enough for several doublings."""
    expected, found = torch.empty(20_000_001), torch.empty(20_000_001, device=device)
    RandomWeights(5).fill("layers.0.mlp.gate_up.weight", expected)
    RandomWeights(5).fill("layers.0.mlp.gate_up.weight", found)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_safetensors_arrive_as_on_the_cpu(
    tmp_path: Path, device: str, stored: torch.dtype, wanted: torch.dtype
) -> None:
    checkpoint = write_weights(tmp_path, CONFIG, stored)
    assert_same(fill(checkpoint, wanted, device), fill(checkpoint, wanted, "cpu"), device)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_gguf_arrives_as_on_the_cpu(model_path: Path, device: str, wanted: torch.dtype) -> None:
    checkpoint = open_checkpoint(ModelConfig(model=str(model_path)))
    assert_same(fill(checkpoint, wanted, device), fill(checkpoint, wanted, "cpu"), device)


@pytest.mark.usefixtures("real_gpu")
@pytest.mark.parametrize("is_tied", [False, True])
def test_no_weight_is_twice_on_the_gpu(tmp_path: Path, is_tied: bool) -> None:
    """The most that is allocated at any time is the parameters alone, a tied embedding counted once."""
    from quire.kernels.linear import triton_skinny

    checkpoint = write_weights(tmp_path, CONFIG | {"tie_word_embeddings": is_tied}, torch.bfloat16)
    expected = sum(
        parameter.numel() * 2 for parameter in create_model(checkpoint.architecture, dtype=torch.bfloat16).parameters()
    )
    triton_skinny.workspace(torch.device("cuda", 0))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model = load_model(checkpoint, dtype=torch.bfloat16, progress=False, device="cuda")
    assert model.is_ready
    assert torch.cuda.max_memory_allocated() - before < 1.02 * expected


@pytest.mark.usefixtures("real_gpu")
def test_eight_billion_random_weights_are_there_within_a_second(tmp_path: Path) -> None:
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("the GPU has less than 24 GiB free")
    checkpoint = open_folder(tmp_path, LLAMA_8B, load_format="dummy")
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    begin = time.perf_counter()
    model = load_model(checkpoint, dtype=torch.bfloat16, progress=False, device="cuda")
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    assert model.is_ready
    assert seconds < 1.0
