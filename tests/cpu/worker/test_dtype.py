from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quire.checkpoint.architecture import parse_architecture
from quire.checkpoint.checkpoint import Checkpoint, TensorEntry, TokenizerSource
from quire.errors import ConfigError
from quire.worker.dtype import check_quantization, cpu_flags, dtype_name, resolve_dtype, resolve_kv_cache_dtype

FAST = frozenset(("avx512f", "avx512_bf16"))
SLOW = frozenset(("avx512f",))


def checkpoint(*tensor_dtypes, config_dtype="float32"):
    """A checkpoint whose tensors have these formats, the first ones larger."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "torch_dtype": config_dtype,
    }
    tensors = {
        f"t{index}": TensorEntry(f"t{index}", Path("file"), dtype, (8,), 0, 1000 - index)
        for index, dtype in enumerate(tensor_dtypes)
    }
    return Checkpoint(
        name="tiny",
        path=Path("folder"),
        format="safetensors" if tensors else "dummy",
        architecture=parse_architecture(config, source="test"),
        tensors=tensors,
        generation_defaults={},
        tokenizer=TokenizerSource("tokenizer.json", Path("tokenizer.json")),
        chat_template=None,
    )


@pytest.mark.parametrize(
    ("tensor_dtypes", "flags", "expected"),
    [
        (["BF16", "F32"], FAST, torch.bfloat16),
        (["BF16", "F32"], SLOW, torch.float32),
        (["Q4_1", "F32", "Q6_K"], FAST, torch.bfloat16),
        (["Q4_1"], SLOW, torch.float32),
        (["F32", "BF16"], FAST, torch.float32),
        (["F16"], FAST, torch.float32),
        (["BF16"], frozenset(["asimd", "bf16"]), torch.bfloat16),
        (["BF16"], frozenset(["amx_bf16"]), torch.bfloat16),
    ],
)
def test_auto_is_fast_where_no_precision_is_lost(tensor_dtypes, flags, expected):
    assert resolve_dtype("auto", checkpoint(*tensor_dtypes), flags=flags) == expected


def test_auto_for_random_weights_follows_the_config():
    assert resolve_dtype("auto", checkpoint(config_dtype="bfloat16"), flags=FAST) == torch.bfloat16
    assert resolve_dtype("auto", checkpoint(config_dtype="float16"), flags=FAST) == torch.float32


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("half", torch.float16),
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("float", torch.float32),
        ("float32", torch.float32),
    ],
)
def test_a_named_format_is_taken(name, expected):
    assert resolve_dtype(name, checkpoint("BF16"), flags=SLOW) == expected


@pytest.mark.parametrize(
    ("tensor_dtypes", "expected"),
    [
        (["BF16", "F32"], torch.bfloat16),
        (["F16"], torch.float16),
        (["F32", "F16"], torch.bfloat16),
        (["F64"], torch.bfloat16),
        (["Q4_K", "F32"], torch.bfloat16),
    ],
)
def test_auto_on_a_gpu_has_16_bits(tensor_dtypes, expected):
    assert resolve_dtype("auto", checkpoint(*tensor_dtypes), device="cuda") == expected
    assert resolve_dtype("float32", checkpoint(*tensor_dtypes), device="cuda") == torch.float32


@pytest.mark.parametrize(
    ("config_dtype", "expected"),
    [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.bfloat16), (None, torch.bfloat16)],
)
def test_auto_on_a_gpu_for_random_weights_follows_the_config(config_dtype, expected):
    assert resolve_dtype("auto", checkpoint(config_dtype=config_dtype), device="cuda") == expected


def test_a_gpu_keeps_keys_and_values_in_the_models_format():
    assert resolve_kv_cache_dtype("auto", torch.float16, device="cuda") == torch.float16
    assert resolve_kv_cache_dtype("bfloat16", torch.bfloat16, device="cuda") == torch.bfloat16
    with pytest.raises(ConfigError, match="--dtype float32") as caught:
        resolve_kv_cache_dtype("float32", torch.bfloat16, device="cuda")
    assert caught.value.param == "kv_cache_dtype"


def test_a_gpu_has_no_8_bits():
    with pytest.raises(ConfigError, match="kv_cache_dtype int8") as caught:
        resolve_kv_cache_dtype("int8", torch.bfloat16, device="cuda")
    assert caught.value.hint == "leave it out"
    for name in ("int8", "int4"):
        check_quantization(name, checkpoint("BF16"))
        with pytest.raises(ConfigError, match=f"quantization {name} is for CPUs") as caught:
            check_quantization(name, checkpoint("BF16"), device="cuda")
        assert caught.value.param == "quantization"
    for name in (None, "none"):
        check_quantization(name, checkpoint("BF16"), device="cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_quantization_gguf_needs_a_gguf_file_on_every_device(device):
    with pytest.raises(ConfigError, match="quantization gguf needs a GGUF file"):
        check_quantization("gguf", checkpoint("BF16"), device=device)
    check_quantization("gguf", replace(checkpoint("Q4_K"), format="gguf"), device=device)


def test_kv_cache_follows_the_model_unless_named():
    assert resolve_kv_cache_dtype("auto", torch.bfloat16) == torch.bfloat16
    assert resolve_kv_cache_dtype("float32", torch.bfloat16) == torch.float32
    assert dtype_name(torch.bfloat16) == "bfloat16"


@pytest.mark.parametrize("line", ["flags\t\t: fpu avx512_bf16 sse", "Features\t: asimd avx512_bf16"])
def test_flags_come_from_the_first_processor(tmp_path, line):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\nflags\t: other\n")
    assert "avx512_bf16" in cpu_flags(tmp_path / "cpuinfo")
    assert "other" not in cpu_flags(tmp_path / "cpuinfo")
    assert cpu_flags(tmp_path / "absent") == frozenset()
