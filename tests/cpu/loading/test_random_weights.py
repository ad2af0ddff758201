"""`--load-format dummy`: a model without weights on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quire.models.loading.load import load_model
from quire.models.loading.random_weights import RandomWeights, _repeat


@pytest.fixture
def dummy(tmp_path: Path, checkpoints: Any) -> Any:
    config = checkpoints.config_of(vocab_size=8192)
    checkpoints.write_folder(tmp_path, config, {})
    (tmp_path / "model.safetensors").unlink()
    return checkpoints.open(tmp_path, load_format="dummy")


def test_the_seed_decides(dummy: Any, checkpoints: Any) -> None:
    first, again = checkpoints.load_tensors(dummy, seed=1), checkpoints.load_tensors(dummy, seed=1)
    other = checkpoints.load_tensors(dummy, seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)


def test_numbers_look_like_those_of_a_fresh_model(dummy: Any, checkpoints: Any) -> None:
    tensors = checkpoints.load_tensors(dummy)
    embedding = tensors["model.embed_tokens.weight"]
    assert embedding.numel() > 2**20
    assert embedding.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(embedding.mean().item()) < 1e-4
    assert len(embedding.unique(dim=0)) == len(embedding)
    assert torch.equal(tensors["model.norm.weight"], torch.ones(256))
    layers = [tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in (0, 1)]
    assert not torch.equal(*layers)


def test_a_dummy_model_is_ready(dummy: Any) -> None:
    model = load_model(dummy, dtype=torch.bfloat16, progress=True, seed=3)
    assert model.is_ready
    assert model.embedding.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("doubling", [False, True])
@pytest.mark.parametrize("length", [1, 4, 5, 6, 10, 11, 39, 40, 41, 100])
def test_numbers_repeat_whichever_way_they_are_copied(length: int, doubling: bool) -> None:
    out = torch.full((length,), -1.0)
    out[:5] = torch.arange(5.0)[:length]
    _repeat(out, 5, doubling=doubling)
    assert torch.equal(out, torch.arange(length) % 5.0)


@pytest.mark.parametrize("size", [3, 1_048_573, 1_048_574, 2_500_000])
def test_each_parameter_starts_at_its_own_place(size: int) -> None:
    weights = RandomWeights(0)
    first, again, other = (torch.empty(size) for _ in range(3))
    weights.fill("layers.0.mlp.down.weight", first)
    weights.fill("layers.0.mlp.down.weight", again)
    weights.fill("layers.1.mlp.down.weight", other)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[1_048_573:], first[: max(0, size - 1_048_573)][: len(first[1_048_573:])])
