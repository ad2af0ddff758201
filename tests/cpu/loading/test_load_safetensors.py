"""Loading safetensors: straight into place, and refusals that name file and tensor."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quire.errors import CorruptCheckpointError, TensorMismatchError, UnsupportedModelError
from quire.models.loading.load import fill_parameters, load_model
from quire.models.registry import create_model

Tensors = dict[str, torch.Tensor]
Same = Callable[[Tensors, Tensors], None]

ARCHITECTURES = [
    ("LlamaForCausalLM", {}),
    ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    ("MistralForCausalLM", {"sliding_window": 16}),
    ("Qwen2ForCausalLM", {}),
    ("Qwen3ForCausalLM", {}),
]


@pytest.mark.parametrize(("name", "changes"), ARCHITECTURES)
def test_each_architecture(
    tmp_path: Path, checkpoints: Any, same_tensors: Same, name: str, changes: dict[str, Any]
) -> None:
    config = checkpoints.config_of(name, **changes)
    tensors = checkpoints.random_tensors(config)
    checkpoint = checkpoints.open(checkpoints.write_folder(tmp_path, config, tensors))
    same_tensors(checkpoints.load_tensors(checkpoint), tensors)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
def test_number_formats(
    tmp_path: Path, checkpoints: Any, same_tensors: Same, stored: torch.dtype, wanted: torch.dtype
) -> None:
    config = checkpoints.config_of(num_hidden_layers=1)
    tensors = {name: tensor.to(stored) for name, tensor in checkpoints.random_tensors(config).items()}
    checkpoint = checkpoints.open(checkpoints.write_folder(tmp_path, config, tensors))
    expected = {name: tensor.to(wanted) for name, tensor in tensors.items()}
    same_tensors(checkpoints.load_tensors(checkpoint, wanted), expected)


def test_shards(tmp_path: Path, checkpoints: Any, same_tensors: Same) -> None:
    """Query, key and value of a layer in different files, which one parameter takes."""
    config = checkpoints.config_of()
    tensors = checkpoints.random_tensors(config)
    checkpoints.write_folder(tmp_path, config, tensors)
    (tmp_path / "model.safetensors").unlink()
    files = {name: f"model-{index % 3 + 1:05d}-of-00003.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    same_tensors(checkpoints.load_tensors(checkpoints.open(tmp_path)), tensors)


def test_a_file_whose_numbers_are_not_aligned(tmp_path: Path, checkpoints: Any, same_tensors: Same) -> None:
    config = checkpoints.config_of(num_hidden_layers=1)
    tensors = checkpoints.random_tensors(config)
    path = checkpoints.write_folder(tmp_path, config, tensors) / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    path.write_bytes(struct.pack("<Q", length + 1) + content[8 : 8 + length] + b" " + content[8 + length :])
    same_tensors(checkpoints.load_tensors(checkpoints.open(tmp_path)), tensors)


def test_tensors_that_are_not_needed_are_left_out(tmp_path: Path, checkpoints: Any, same_tensors: Same) -> None:
    config = checkpoints.config_of(tie_word_embeddings=True)
    tensors = checkpoints.random_tensors(config)
    more = {"lm_head.weight": torch.zeros(40, 256), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}
    checkpoint = checkpoints.open(checkpoints.write_folder(tmp_path, config, tensors | more))
    same_tensors(checkpoints.load_tensors(checkpoint), tensors)


def refuse(tmp_path: Path, checkpoints: Any, tensors: Tensors, config: dict[str, Any]) -> str:
    """The message; before it nothing has been allocated."""
    checkpoint = checkpoints.open(checkpoints.write_folder(tmp_path, config, tensors))
    model = create_model(checkpoint.architecture, dtype=torch.float32)
    with pytest.raises((TensorMismatchError, UnsupportedModelError)) as caught:
        list(fill_parameters(model, checkpoint, progress=False, device=torch.device("cpu"), seed=0))
    assert all(parameter.is_meta for parameter in model.parameters())
    return str(caught.value)


def test_a_missing_tensor(tmp_path: Path, checkpoints: Any) -> None:
    config = checkpoints.config_of()
    tensors = checkpoints.random_tensors(config)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    message = refuse(tmp_path, checkpoints, tensors, config)
    assert str(tmp_path) in message
    assert "model.norm.weight" in message
    assert "1 more" in message


def test_a_tensor_of_the_wrong_shape(tmp_path: Path, checkpoints: Any) -> None:
    config = checkpoints.config_of()
    tensors = checkpoints.random_tensors(config)
    tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(96, 256)
    message = refuse(tmp_path, checkpoints, tensors, config)
    assert "model.safetensors: tensor 'model.layers.1.self_attn.k_proj.weight'" in message
    assert "[96, 256], the model needs [128, 256]" in message


def test_a_tensor_that_is_not_the_models(tmp_path: Path, checkpoints: Any) -> None:
    config = checkpoints.config_of()
    tensors = checkpoints.random_tensors(config) | {"model.layers.0.self_attn.q_norm.weight": torch.ones(32)}
    message = refuse(tmp_path, checkpoints, tensors, config)
    assert "model.safetensors: tensor 'model.layers.0.self_attn.q_norm.weight' is not part of Llama" in message


def test_weights_that_are_no_real_numbers(tmp_path: Path, checkpoints: Any) -> None:
    config = checkpoints.config_of()
    tensors = checkpoints.random_tensors(config)
    tensors["lm_head.weight"] = torch.zeros(40, 256, dtype=torch.int8)
    assert "tensor 'lm_head.weight': I8" in refuse(tmp_path, checkpoints, tensors, config)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path, checkpoints: Any) -> None:
    config = checkpoints.config_of()
    path = checkpoints.write_folder(tmp_path, config, checkpoints.random_tensors(config)) / "model.safetensors"
    checkpoint = checkpoints.open(tmp_path)
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors: tensor .* the file has changed"):
        load_model(checkpoint, dtype=torch.float32, progress=False)


def test_a_loaded_model_is_ready(tmp_path: Path, checkpoints: Any) -> None:
    config = checkpoints.config_of(num_hidden_layers=1)
    checkpoint = checkpoints.open(checkpoints.write_folder(tmp_path, config, checkpoints.random_tensors(config)))
    model = load_model(checkpoint, dtype=torch.bfloat16, progress=False)
    assert model.is_ready
    assert not model.training
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("progress", "is_terminal"), [(True, True), (True, False), (False, True)])
def test_a_bar_on_a_terminal(
    tmp_path: Path,
    checkpoints: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    progress: bool,
    is_terminal: bool,
) -> None:
    config = checkpoints.config_of(num_hidden_layers=1)
    checkpoint = checkpoints.open(checkpoints.write_folder(tmp_path, config, checkpoints.random_tensors(config)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    load_model(checkpoint, dtype=torch.bfloat16, progress=progress)
    assert ("Loading weights: 100%" in capsys.readouterr().err) == (progress and is_terminal)
