"""Which number formats are chosen on a CPU, with the compiled kernels and without."""

import math
from pathlib import Path

import pytest
import torch

from quire.checkpoint.architecture import parse_architecture
from quire.checkpoint.checkpoint import Checkpoint, TensorEntry, TokenizerSource
from quire.config.engine import EngineConfig
from quire.errors import ConfigError
from quire.kernels import native
from quire.worker import cpu_formats
from quire.worker.cpu_formats import choose_formats, expected_weight_bytes, is_compiled_for, matrices_by_format
from quire.worker.dtype import resolve_dtype

# Bytes of 256 numbers.
BLOCK_BYTES = {"F32": 1024, "F16": 512, "BF16": 512, "Q4_1": 160, "Q4_K": 144, "Q6_K": 210, "Q8_0": 272, "Q2_K": 84}


def checkpoint(*matrices, config_dtype="float32", head_dim=32, file_format=None):
    """A checkpoint with one matrix of each of these types, the first ones larger, and a vector."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 256,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "head_dim": head_dim,
        "torch_dtype": config_dtype,
    }
    shapes = {f"t{index}": (dtype, (1024 >> 2 * index, 256)) for index, dtype in enumerate(matrices)}
    if matrices:
        shapes["norm"] = ("F32", (256,))
    tensors = {
        name: TensorEntry(name, Path("file"), dtype, shape, 0, math.prod(shape) // 256 * BLOCK_BYTES[dtype])
        for name, (dtype, shape) in shapes.items()
    }
    stored = "gguf" if set(matrices) - {"F32", "F16", "BF16"} else "safetensors"
    return Checkpoint(
        name="tiny",
        path=Path("folder"),
        format=file_format or (stored if tensors else "dummy"),
        architecture=parse_architecture(config, source="test"),
        tensors=tensors,
        generation_defaults={},
        tokenizer=TokenizerSource("tokenizer.json", Path("tokenizer.json")),
        chat_template=None,
    )


def chosen(of, **options):
    """(weights, KV cache, name)"""
    formats = choose_formats(EngineConfig.from_options(model="tiny", **options), of)
    return formats.weights, str(formats.kv_cache).removeprefix("torch."), formats.name


@pytest.fixture
def with_kernels():
    if native.extension() is None:
        pytest.skip("quire was installed without compiled kernels")


@pytest.fixture
def without_kernels(monkeypatch):
    """As if quire had been installed without a compiler."""
    monkeypatch.setattr(native, "extension", lambda: None)
    monkeypatch.setattr(cpu_formats, "extension", lambda: None)


@pytest.mark.parametrize(
    ("matrices", "options", "expected"),
    [
        (["F32"], {}, ("stored", "float32", "float32")),
        (["BF16", "F32"], {}, ("stored", "bfloat16", "bfloat16")),
        (["F16"], {}, ("stored", "bfloat16", "float16")),
        (["Q4_1", "Q6_K"], {}, ("stored", "bfloat16", "Q4_1")),
        (["Q2_K"], {}, ("stored", "bfloat16", "Q8_0")),
        (["BF16"], {"quantization": "none"}, ("stored", "bfloat16", "bfloat16")),
        (["BF16"], {"dtype": "float32"}, ("float32", "float32", "float32")),
        (["F32"], {"dtype": "half"}, ("float16", "bfloat16", "float16")),
        (["Q4_K"], {"dtype": "float"}, ("float32", "float32", "float32")),
        (["Q4_K"], {"dtype": "float32", "quantization": "gguf"}, ("stored", "bfloat16", "Q4_K")),
        (["F32"], {"quantization": "int8"}, ("int8", "bfloat16", "int8")),
        (["Q8_0"], {"quantization": "int4", "dtype": "float32"}, ("int4", "bfloat16", "int4")),
        (["F32"], {"kv_cache_dtype": "int8"}, ("stored", "int8", "float32")),
        (["BF16"], {"kv_cache_dtype": "float32"}, ("stored", "float32", "bfloat16")),
        (["F32"], {"kv_cache_dtype": "bfloat16", "quantization": "int8"}, ("int8", "bfloat16", "int8")),
        ([], {}, ("float32", "float32", "float32")),
        ([], {"dtype": "bfloat16"}, ("bfloat16", "bfloat16", "bfloat16")),
        ([], {"quantization": "int4"}, ("int4", "bfloat16", "int4")),
    ],
)
def test_choice(with_kernels, matrices, options, expected):
    assert chosen(checkpoint(*matrices), **options) == expected


@pytest.mark.parametrize(("config_dtype", "expected"), [("bfloat16", "bfloat16"), ("float16", "float16")])
def test_random_weights_have_the_configs_format(with_kernels, config_dtype, expected):
    assert chosen(checkpoint(config_dtype=config_dtype)) == (expected, "bfloat16", expected)


def test_a_gguf_file_of_floats_may_be_asked_for_by_name(with_kernels):
    of_floats = checkpoint("F16", file_format="gguf")
    assert chosen(of_floats, quantization="gguf") == ("stored", "bfloat16", "float16")
    assert chosen(of_floats, quantization="gguf", dtype="float32") == ("float32", "float32", "float32")


def test_activations_are_float32_beside_any_weights(with_kernels):
    for options in ({}, {"dtype": "bfloat16"}, {"quantization": "int8"}):
        formats = choose_formats(EngineConfig.from_options(model="tiny", **options), checkpoint("BF16"))
        assert formats.activations == torch.float32


@pytest.mark.parametrize("kernels", ["with_kernels", "without_kernels"])
def test_quantization_gguf_needs_a_gguf_file(request, kernels):
    request.getfixturevalue(kernels)
    with pytest.raises(ConfigError, match="quantization gguf needs a GGUF file, tiny is safetensors") as caught:
        chosen(checkpoint("BF16"), quantization="gguf")
    assert caught.value.param == "quantization"
    assert caught.value.hint == "leave it out, or name a .gguf file"


REFUSED = [{"quantization": "int8"}, {"quantization": "int4"}, {"kv_cache_dtype": "int8"}]


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_int8_and_int4_need_compiled_kernels(without_kernels, options):
    ((option, value),) = options.items()
    with pytest.raises(
        ConfigError, match=f"{option} {value} needs the compiled CPU kernels, .* without them"
    ) as caught:
        chosen(checkpoint("BF16"), **options)
    assert caught.value.param == option
    assert "install a C++ compiler" in caught.value.hint


@pytest.mark.parametrize("options", REFUSED, ids=str)
@pytest.mark.parametrize("head_dim", [2, 6, 258])
def test_heads_that_no_kernel_takes_run_on_torch(with_kernels, head_dim, options):
    other = checkpoint("BF16", head_dim=head_dim)
    assert not is_compiled_for(other.architecture) and is_compiled_for(checkpoint("BF16").architecture)
    dtype = str(resolve_dtype("auto", other)).removeprefix("torch.")
    assert chosen(other) == ("stored", dtype, dtype)
    with pytest.raises(ConfigError, match=f"they have none for heads of {head_dim} numbers") as caught:
        chosen(other, **options)
    assert caught.value.hint == "leave it out"


def test_without_kernels_all_have_torchs_format(without_kernels):
    for matrices in (["BF16"], ["Q4_1"], ["F32"]):
        of = checkpoint(*matrices)
        dtype = resolve_dtype("auto", of)
        name = str(dtype).removeprefix("torch.")
        assert chosen(of) == ("stored", name, name)
        assert chosen(of, dtype="float16", kv_cache_dtype="float32") == ("stored", "float32", "float16")
        formats = choose_formats(EngineConfig.from_options(model="tiny"), of)
        assert formats.activations == dtype
        assert matrices_by_format(of, formats) == {name: 1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"Q4_1": 2, "Q6_K": 1, "Q8_0": 2, "float32": 1}),
        ({"quantization": "int8"}, {"int8": 6}),
        ({"dtype": "bfloat16"}, {"bfloat16": 6}),
    ],
)
def test_matrices_are_counted_by_format(with_kernels, options, expected):
    of = checkpoint("Q4_1", "Q4_1", "Q6_K", "Q8_0", "Q2_K", "F32")
    formats = choose_formats(EngineConfig.from_options(model="tiny", **options), of)
    assert matrices_by_format(of, formats) == expected


@pytest.mark.parametrize(
    ("matrices", "options", "expected"),
    [
        (["BF16"], {}, 1024 * 512 + 1024),
        (["Q4_1", "Q6_K"], {}, 1024 * 160 + 256 * 210 + 1024),
        (["Q2_K"], {}, 1024 * 272 + 1024),
        (["Q4_1"], {"dtype": "float32"}, 4_000_000),
        (["BF16"], {"dtype": "bfloat16"}, 2_000_000),
        (["BF16"], {"quantization": "int8"}, 1_000_000),
        (["BF16"], {"quantization": "int4"}, (1_000_000 - 2 * 2**16) * 5 // 8 + 2 * 2**16 * 34 // 32),
        ([], {}, 4_000_000),
        ([], {"dtype": "float16"}, 2_000_000),
    ],
)
def test_expected_bytes(with_kernels, matrices, options, expected):
    of = checkpoint(*matrices)
    formats = choose_formats(EngineConfig.from_options(model="tiny", **options), of)
    assert expected_weight_bytes(of, formats, 1_000_000) == expected
