"""`--quantization` on the command line and in Python, and how `quire info` shows what it comes to."""

import pytest

from quire.config.engine import EngineConfig
from quire.config.model import QUANTIZATIONS
from quire.entrypoints.cli.info import as_text
from quire.entrypoints.cli.serve import COMMAND as SERVE
from quire.errors import ConfigError


@pytest.mark.parametrize("value", QUANTIZATIONS)
@pytest.mark.parametrize("flag", ["--quantization", "-q"])
def test_what_is_built_is_taken(flag: str, value: str) -> None:
    assert SERVE.parse(["m", flag, value]).make_engine_config().model.quantization == value
    assert EngineConfig.from_options(model="m", quantization=value).model.quantization == value


@pytest.mark.parametrize("value", ["awq", "gptq", "fp8", "bitsandbytes"])
def test_what_vllm_has_is_refused_with_a_hint(value: str) -> None:
    with pytest.raises(ConfigError, match=f"not built in this version of quire: --quantization {value}") as caught:
        SERVE.parse(["m", "--quantization", value])
    assert "--quantization int8 or int4" in (caught.value.hint or "")


def test_a_word_that_nobody_knows_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="int9") as caught:
        SERVE.parse(["m", "--quantization", "int9"])
    assert all(value in f"{caught.value.message} {caught.value.hint}" for value in QUANTIZATIONS)
    with pytest.raises(ConfigError, match="must be one of none, gguf, int8, int4, got 'int9'"):
        EngineConfig.from_options(model="m", quantization="int9")


def test_info_shows_kernels_and_formats() -> None:
    facts = {
        "device": {"device": "cpu", "kernels": "compiled, avx2", "instruction_sets": ["avx2", "portable"]},
        "model": {"dtype": "Q4_1", "matrices_by_format": {"Q4_1": 209, "Q6_K": 1}, "kv_bytes_per_token": 23_040},
    }
    assert as_text(facts).splitlines() == [
        "device:",
        "  device            cpu",
        "  kernels           compiled, avx2",
        "  instruction sets  avx2, portable",
        "model:",
        "  dtype               Q4_1",
        "  matrices by format  Q4_1=209, Q6_K=1",
        "  kv per token        22.5 KiB",
    ]
