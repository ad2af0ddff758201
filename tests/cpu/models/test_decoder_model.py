"""What a model promises besides its numbers."""

import dataclasses

import pytest
import torch

from quire.checkpoint.architecture import parse_architecture
from quire.errors import UnsupportedModelError
from quire.models.registry import MODELS, create_model


def _architecture(reference):
    return parse_architecture(reference.config.to_dict(), source="config.json")


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_tensor_map_covers_the_checkpoint_and_every_row(model_type, reference_of):
    reference = reference_of(model_type, attention_bias=True)
    model = create_model(_architecture(reference), dtype=torch.float32)
    places = model.tensor_map()
    assert set(places) == set(reference.state_dict())
    for name, parameter in model.named_parameters():
        spans = sorted((p.row_start, p.row_start + p.num_rows) for p in places.values() if p.parameter == name)
        assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
        assert spans[-1][1] == len(parameter)


def test_a_model_takes_no_memory_before_it_is_loaded(reference_of):
    model = create_model(_architecture(reference_of("qwen3")), dtype=torch.bfloat16)
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in model.parameters())


@pytest.mark.parametrize("is_tied", [False, True])
def test_weight_bytes_count_every_layout(is_tied, reference_of, model_of):
    reference = reference_of("llama", tie_word_embeddings=is_tied)
    untouched = create_model(_architecture(reference), dtype=torch.float32)
    head_bytes = 131 * 48 * 4
    assert untouched.num_weight_bytes() == sum(p.numel() * 4 for p in reference.parameters())
    model = model_of(reference)
    model.finish_loading()
    assert model.num_weight_bytes() == untouched.num_weight_bytes() + (head_bytes if is_tied else 0)


def test_loading_gives_up_the_packed_parameters(reference_of, model_of):
    model = model_of(reference_of("llama"))
    model.finish_loading()
    left = {name for name, _ in model.named_parameters()}
    assert "embedding.weight" in left and "layers.0.attention_norm.weight" in left
    assert not any(name.endswith(("qkv.weight", "down.weight", "logits.weight")) for name in left)


def test_the_first_step_packs_what_nobody_has(reference_of, driver_of):
    reference = reference_of("llama")
    model = create_model(_architecture(reference), dtype=torch.float32).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.zero_()
    assert driver_of(model).step({"a": [1, 2, 3]})["a"].abs().max() == 0.0
    assert model.is_ready


def test_unknown_architecture_is_refused(reference_of):
    architecture = dataclasses.replace(_architecture(reference_of("llama")), name="MambaForCausalLM")
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM") as error:
        create_model(architecture, dtype=torch.float32)
    assert all(name in str(error.value) for name in MODELS)
