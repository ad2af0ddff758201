import re
from dataclasses import replace

import pytest
import torch

from quire.checkpoint.architecture import parse_architecture
from quire.config.cache import CacheConfig
from quire.errors import InsufficientMemoryError
from quire.models.registry import create_model
from quire.worker.memory import (
    GIB,
    MemoryLedger,
    available_bytes,
    check_weights_fit,
    choose_num_blocks,
    count_parameters,
    resident_bytes,
)

BLOCK_BYTES = 1024 * 1024


def ledger(**changes):
    """10 GiB, of which half may be used; 1 GiB weights, 0.5 GiB activations; 3.5 GiB are left for the KV cache."""
    base = MemoryLedger(
        available_bytes=10 * GIB,
        utilization=0.5,
        weight_bytes=GIB,
        activation_bytes=GIB // 2,
        rest_bytes=GIB // 4,
        block_bytes=BLOCK_BYTES,
        block_size=16,
    )
    return replace(base, **changes)


def num_blocks(config=None, book=None, *, max_num_seqs=64, max_model_len=1600):
    return choose_num_blocks(
        book or ledger(), config or CacheConfig(), max_num_seqs=max_num_seqs, max_model_len=max_model_len
    )


def test_takes_no_more_than_the_sequences_can_use():
    assert num_blocks(max_num_seqs=3, max_model_len=161) == 33


def test_takes_no_more_than_what_is_left():
    assert num_blocks() == 3584


def test_takes_no_more_than_4_gib_but_always_one_whole_sequence():
    large = ledger(utilization=1.0)
    assert num_blocks(book=large) == 4096
    assert num_blocks(book=large, max_model_len=6000 * 16) == 6000


def test_exact_sizes_are_taken_as_they_are():
    assert num_blocks(CacheConfig(kv_cache_memory_bytes=5 * GIB + 17)) == 5120
    assert num_blocks(CacheConfig(num_gpu_blocks_override=100)) == 100


def test_too_long_a_sequence_names_the_numbers_and_what_fits():
    with pytest.raises(InsufficientMemoryError) as caught:
        num_blocks(max_model_len=131072)
    text = str(caught.value)
    assert "max_model_len=131072" in text
    assert "needs 8.00 GiB of KV cache, there is 3.50 GiB" in text
    assert "10.00 GiB available x 0.5 - 1.00 GiB weights - 0.50 GiB activations" in text
    fitting = int(re.search(r"--max-model-len (\d+) fits", text)[1])
    assert num_blocks(max_model_len=fitting, max_num_seqs=1) == fitting // 16
    with pytest.raises(InsufficientMemoryError):
        num_blocks(max_model_len=fitting + 1)
    share = float(re.search(r"--gpu-memory-utilization ([\d.]+) makes room", text)[1])
    assert num_blocks(book=ledger(utilization=share), max_model_len=131072) == 8192


@pytest.mark.parametrize(
    "config", [CacheConfig(kv_cache_memory_bytes=9 * BLOCK_BYTES), CacheConfig(num_gpu_blocks_override=9)]
)
def test_an_exact_size_below_one_sequence_names_what_would_do(config):
    with pytest.raises(InsufficientMemoryError, match="needs 10 blocks of 16 tokens") as caught:
        num_blocks(config, max_model_len=160)
    assert "--max-model-len 144 fits" in str(caught.value)
    needed = int(re.search(r"--kv-cache-memory-bytes (\d+)", str(caught.value))[1])
    assert num_blocks(CacheConfig(kv_cache_memory_bytes=needed), max_model_len=160) == 10


def test_an_exact_size_beyond_the_machine_is_refused():
    with pytest.raises(InsufficientMemoryError, match=r"20\.00 GiB does not fit") as caught:
        num_blocks(CacheConfig(kv_cache_memory_bytes=20 * GIB))
    fitting = int(re.search(r"--kv-cache-memory-bytes (\d+) fits", str(caught.value))[1])
    assert num_blocks(CacheConfig(kv_cache_memory_bytes=fitting)) * BLOCK_BYTES == fitting == 8 * GIB + GIB // 2


def test_weights_that_leave_nothing_are_refused_before_loading():
    check_weights_fit(ledger())
    with pytest.raises(InsufficientMemoryError, match=r"(?s)weights take 6\.00 GiB .*utilization 0\.66 makes room"):
        check_weights_fit(ledger(weight_bytes=6 * GIB))
    with pytest.raises(InsufficientMemoryError, match="smaller or a quantised model"):
        check_weights_fit(ledger(weight_bytes=11 * GIB))


def test_table_shows_every_purpose():
    table = replace(ledger(), num_blocks=2048).table()
    assert [line.split("  ")[1].strip() for line in table.splitlines()[1:]] == [
        "weights",
        "KV cache",
        "activations",
        "rest",
        "available",
    ]
    assert "2.00 GiB  32,768 tokens in 2,048 blocks" in table


FAMILIES = [
    ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    ("MistralForCausalLM", {}),
    ("Qwen2ForCausalLM", {}),
    ("Qwen3ForCausalLM", {}),
]


@pytest.mark.parametrize(("name", "changes"), FAMILIES, ids=str)
def test_parameters_are_counted_as_the_model_has_them(name, changes):
    config = {
        "architectures": [name],
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        **changes,
    }
    architecture = parse_architecture(config, source="test")
    model = create_model(architecture, dtype=torch.float32, device="cpu")
    model.finish_loading()
    assert count_parameters(architecture) * 4 == model.num_weight_bytes()


def test_machine_numbers_are_plausible(tmp_path):
    assert 2**27 < available_bytes() < 2**50
    assert 2**20 < resident_bytes() < 2**40
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4000 kB\nMemAvailable:   1000 kB\n")
    assert available_bytes(meminfo) == 1_024_000
