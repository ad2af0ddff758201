"""Loading GGUF: names, quantised types and the order of query and key rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from quire.checkpoint.checkpoint import open_checkpoint, small_model_path
from quire.config.model import ModelConfig
from quire.errors import CheckpointNotFoundError, TensorMismatchError, UnsupportedModelError

Tensors = dict[str, torch.Tensor]
Same = Callable[[Tensors, Tensors], None]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("LlamaForCausalLM", {}),
        ("LlamaForCausalLM", {"tie_word_embeddings": True}),
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
        ("Qwen2ForCausalLM", {}),
        ("Qwen3ForCausalLM", {}),
    ],
)
def test_each_architecture(
    tmp_path: Path, checkpoints: Any, same_tensors: Same, name: str, changes: dict[str, Any]
) -> None:
    config = checkpoints.config_of(name, **changes)
    tensors = checkpoints.random_tensors(config)
    expected = checkpoints.write_gguf(tmp_path / "m.gguf", config, tensors, GGMLQuantizationType.Q8_0)
    checkpoint = checkpoints.open(tmp_path / "m.gguf")
    wanted = checkpoints.architecture(config)
    found = checkpoint.architecture
    for field in ("name", "head_dim", "attention_bias", "attention_output_bias", "mlp_bias", "qk_norm"):
        assert getattr(found, field) == getattr(wanted, field), field
    assert found.tie_word_embeddings == wanted.tie_word_embeddings
    same_tensors(checkpoints.load_tensors(checkpoint), expected)


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_type_that_gguf_writes(
    tmp_path: Path, checkpoints: Any, same_tensors: Same, kind: str, dtype: torch.dtype
) -> None:
    config = checkpoints.config_of(num_hidden_layers=1)
    tensors = checkpoints.random_tensors(config)
    expected = checkpoints.write_gguf(tmp_path / "m.gguf", config, tensors, GGMLQuantizationType[kind])
    found = checkpoints.load_tensors(checkpoints.open(tmp_path / "m.gguf"), dtype)
    same_tensors(found, {name: tensor.to(dtype) for name, tensor in expected.items()})


def test_a_missing_and_a_superfluous_tensor(tmp_path: Path, checkpoints: Any) -> None:
    config = checkpoints.config_of(num_hidden_layers=1)
    tensors = checkpoints.random_tensors(config)
    lacking = {name: tensor for name, tensor in tensors.items() if "down_proj" not in name}
    checkpoints.write_gguf(tmp_path / "lacking.gguf", config, lacking, GGMLQuantizationType.F16)
    with pytest.raises(TensorMismatchError, match=r"lacking\.gguf: tensor 'model\.layers\.0\.mlp\.down_proj\.weight'"):
        checkpoints.load_tensors(checkpoints.open(tmp_path / "lacking.gguf"))
    more = tensors | {"model.layers.0.self_attn.q_norm.weight": torch.ones(32)}
    checkpoints.write_gguf(tmp_path / "more.gguf", config, more, GGMLQuantizationType.F16)
    with pytest.raises(TensorMismatchError, match=r"more\.gguf: tensor 'blk\.0\.attn_q_norm\.weight' is not part"):
        checkpoints.load_tensors(checkpoints.open(tmp_path / "more.gguf"))


def test_quantised_vectors_are_refused(tmp_path: Path, checkpoints: Any) -> None:
    config = checkpoints.config_of(num_hidden_layers=1)
    tensors = checkpoints.random_tensors(config)
    checkpoints.write_gguf(tmp_path / "m.gguf", config, tensors, GGMLQuantizationType.Q8_0, quantised_vectors=True)
    with pytest.raises(UnsupportedModelError, match=r"m\.gguf: tensor '[a-z0-9._]+norm\.weight': Q8_0"):
        checkpoints.load_tensors(checkpoints.open(tmp_path / "m.gguf"))


@pytest.fixture(scope="module")
def small_model() -> Path:
    try:
        return small_model_path()
    except CheckpointNotFoundError as error:
        pytest.skip(str(error))


def test_the_small_models_architecture(small_model: Path) -> None:
    architecture = open_checkpoint(ModelConfig(model=str(small_model))).architecture
    assert (architecture.name, architecture.num_hidden_layers, architecture.hidden_size) == (
        "LlamaForCausalLM",
        30,
        576,
    )
    assert (architecture.num_attention_heads, architecture.num_key_value_heads, architecture.head_dim) == (9, 3, 64)
    assert (architecture.rms_norm_eps, architecture.rope.theta) == (1e-5, 100_000.0)
    assert (architecture.vocab_size, architecture.eos_token_ids) == (49_152, (2,))
    assert architecture.tie_word_embeddings


def test_the_small_models_tensors_are_transformers(small_model: Path, checkpoints: Any) -> None:
    """Numbers by the gguf package, the order of rows by Transformers' own code for llama files."""
    processors = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    processor = processors.LlamaTensorProcessor(config={"num_attention_heads": 9, "num_key_value_heads": 3})
    checkpoint = open_checkpoint(ModelConfig(model=str(small_model)))
    found = checkpoints.load_tensors(checkpoint)
    content = np.memmap(small_model, dtype=np.uint8, mode="r")
    for name, hf_name in {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
        "blk.17.attn_k.weight": "model.layers.17.self_attn.k_proj.weight",
        "blk.17.attn_v.weight": "model.layers.17.self_attn.v_proj.weight",
        "blk.29.ffn_up.weight": "model.layers.29.mlp.up_proj.weight",
        "blk.29.ffn_down.weight": "model.layers.29.mlp.down_proj.weight",
    }.items():
        entry = checkpoint.tensors[name]
        packed = content[entry.offset : entry.offset + entry.num_bytes].reshape(*entry.shape[:-1], -1)
        values = gguf.quants.dequantize(packed, GGMLQuantizationType[entry.dtype])
        expected = processor.process(weights=values, name=name).weights
        assert torch.equal(found[hf_name], torch.from_numpy(np.array(expected))), name
