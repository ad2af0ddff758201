"""Writers of small model files, byte by byte, so that tests can also write wrong ones."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: Any, value: Any) -> bytes:
    if isinstance(kind, tuple):
        _, inner = kind
        inner_number = ARRAY if isinstance(inner, tuple) else inner
        return struct.pack("<IQ", inner_number, len(value)) + b"".join(_value(inner, item) for item in value)
    return _string(value) if kind == STRING else struct.pack("<" + _CODES[kind], value)


class GGUFBuilder:
    """Writes a GGUF file. Kinds are the format's numbers; (ARRAY, kind) for arrays."""

    U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)

    def __init__(self) -> None:
        self.keys: dict[str, tuple[Any, Any]] = {}
        self.tensors: list[tuple[str, tuple[int, ...], int, bytes]] = []
        self.alignment = 32
        self.version = 3

    def set(self, key: str, kind: Any, value: Any) -> "GGUFBuilder":
        self.keys[key] = (kind, value)
        return self

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, data: bytes) -> "GGUFBuilder":
        self.tensors.append((name, shape, kind, data))
        return self

    def build(self) -> bytes:
        header = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))
        for key, (kind, value) in self.keys.items():
            header += _string(key) + struct.pack("<I", ARRAY if isinstance(kind, tuple) else kind) + _value(kind, value)
        data = b""
        for name, shape, kind, content in self.tensors:
            data += b"\0" * (-len(data) % self.alignment)
            header += _string(name) + struct.pack("<I", len(shape))
            header += b"".join(struct.pack("<Q", size) for size in reversed(shape))
            header += struct.pack("<IQ", kind, len(data))
            data += content
        return header + b"\0" * (-len(header) % self.alignment) + data


@pytest.fixture(scope="session")
def gguf_builder() -> type[GGUFBuilder]:
    return GGUFBuilder


@pytest.fixture(scope="session")
def small_gguf() -> Callable[[], GGUFBuilder]:
    """A complete little llama: 2 layers' worth of keys, 8 tokens, two tensors."""

    def make() -> GGUFBuilder:
        builder = GGUFBuilder()
        builder.set("general.architecture", STRING, "llama").set("general.name", STRING, "Tiny")
        for key, value in {
            "block_count": 2,
            "context_length": 128,
            "embedding_length": 32,
            "feed_forward_length": 64,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
            "rope.dimension_count": 8,
        }.items():
            builder.set(f"llama.{key}", U32, value)
        builder.set("llama.attention.layer_norm_rms_epsilon", F32, 1e-5)
        builder.set("llama.rope.freq_base", F32, 10_000.0)
        builder.set("tokenizer.ggml.model", STRING, "gpt2").set("tokenizer.ggml.pre", STRING, "smollm")
        builder.set("tokenizer.ggml.tokens", (ARRAY, STRING), ["<s>", "</s>", "a", "b", "c", "ab", "Ġ", "é"])
        builder.set("tokenizer.ggml.token_type", (ARRAY, I32), [3, 3, 1, 1, 1, 1, 1, 1])
        builder.set("tokenizer.ggml.merges", (ARRAY, STRING), ["a b"])
        builder.set("tokenizer.ggml.bos_token_id", U32, 0).set("tokenizer.ggml.eos_token_id", U32, 1)
        builder.set("tokenizer.ggml.add_bos_token", BOOL, True)
        builder.set("tokenizer.chat_template", STRING, "{{ messages }}")
        builder.tensor("token_embd.weight", (8, 32), 0, bytes(8 * 32 * 4))
        builder.tensor("blk.0.attn_q.weight", (32, 32), 3, bytes(32 * 20))
        return builder

    return make


@pytest.fixture(scope="session")
def safetensors_bytes() -> Callable[..., bytes]:
    """Writes {name: (dtype, shape, data)}; `change` may spoil the header's object before it is written."""

    def write(
        tensors: dict[str, tuple[str, list[int], bytes]],
        change: Callable[[dict[str, Any]], None] = lambda header: None,
        tail: bytes = b"",
    ) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        data = b""
        for name, (dtype, shape, content) in tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
            data += content
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data + tail

    return write


@pytest.fixture
def llama_config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.fixture
def model_folder(tmp_path: Path, llama_config: dict[str, Any], safetensors_bytes: Callable[..., bytes]) -> Path:
    """A folder with a config, one tensor and a tokenizer file whose content nobody reads here."""
    (tmp_path / "config.json").write_text(json.dumps(llama_config))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({"model.norm.weight": ("BF16", [32], bytes(64))}))
    return tmp_path
