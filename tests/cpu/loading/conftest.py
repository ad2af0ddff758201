"""Small checkpoints on disk, written by the libraries that everybody else writes them with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quire.checkpoint.architecture import ModelArchitecture, parse_architecture
from quire.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quire.config.model import ModelConfig
from quire.models.loading.load import fill_parameters
from quire.models.registry import create_model

MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def config_of(name: str = "LlamaForCausalLM", **changes: Any) -> dict[str, Any]:
    """A config.json; rows of 256 values, so that every quantisation fits."""
    return {
        "architectures": [name],
        "model_type": MODEL_TYPES[name],
        "vocab_size": 40,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    } | changes


def random_tensors(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A random tensor for each name that the model asks for."""
    model = create_model(parse_architecture(config, source="config.json"), dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(place.num_rows, *model.get_parameter(place.parameter).shape[1:], generator=generator).to(
            dtype
        )
        for name, place in model.tensor_map().items()
    }


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return folder


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor."""
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    outer["lm_head.weight"] = "output.weight"
    if name in outer:
        return outer[name]
    _, _, layer, part = name.split(".", 3)
    part, _, kind = part.rpartition(".")
    return f"blk.{layer}.{GGUF_PARTS[part]}.{kind}"


def interleave_heads(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama's converter does to the rows of query and key: first halves and second halves take turns."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    kind: gguf.GGMLQuantizationType,
    *,
    quantised_vectors: bool = False,
) -> dict[str, torch.Tensor]:
    """Writes a GGUF model, matrices quantised; returns what each tensor of Hugging Face's must be after loading."""
    name = config["model_type"] if config["model_type"] != "mistral" else "llama"
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(config["vocab_size"])])
    expected = {}
    for hf_name, tensor in tensors.items():
        values = tensor.float().numpy()
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        num_heads = next((count for part, count in heads.items() if part in hf_name and name == "llama"), None)
        raw_kind = kind if values.ndim == 2 or quantised_vectors else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(values, raw_kind)
        expected[hf_name] = torch.from_numpy(gguf.quants.dequantize(packed, raw_kind).copy())
        stored = packed if num_heads is None else interleave_heads(packed, num_heads)
        writer.add_tensor(gguf_name(hf_name), np.ascontiguousarray(stored), raw_dtype=raw_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def load_tensors(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """What the loader puts into the model, by Hugging Face's names."""
    model = create_model(checkpoint.architecture, dtype=dtype)
    for _ in fill_parameters(model, checkpoint, progress=False, device=torch.device("cpu"), seed=seed):
        pass
    return {
        name: model.get_parameter(place.parameter).data[place.row_start : place.row_start + place.num_rows]
        for name, place in model.tensor_map().items()
    }


class Checkpoints:
    """What the tests of this folder share."""

    config_of = staticmethod(config_of)
    random_tensors = staticmethod(random_tensors)
    write_folder = staticmethod(write_folder)
    write_gguf = staticmethod(write_gguf)
    load_tensors = staticmethod(load_tensors)

    @staticmethod
    def open(path: Path, **options: Any) -> Checkpoint:
        return open_checkpoint(ModelConfig(model=str(path), **options))

    @staticmethod
    def architecture(config: dict[str, Any]) -> ModelArchitecture:
        return parse_architecture(config, source="config.json")


@pytest.fixture
def checkpoints() -> Checkpoints:
    return Checkpoints()


@pytest.fixture
def same_tensors() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None]:
    """Asserts that two sets of tensors are equal to the bit."""

    def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name

    return check
