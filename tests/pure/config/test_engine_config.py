"""Settings: flat options find their owners, and open values are resolved into new objects."""

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from quire.config.cache import CacheConfig
from quire.config.device import DeviceConfig
from quire.config.engine import EngineConfig
from quire.config.model import ModelConfig
from quire.config.option import options_of
from quire.config.resolve import resolve
from quire.config.scheduler import SchedulerConfig
from quire.config.server import ServerConfig
from quire.errors import ConfigError

OWNERS = (ModelConfig, CacheConfig, SchedulerConfig, DeviceConfig, ServerConfig)

REFUSED: list[tuple[str, Any]] = [
    ("block_size", 24),
    ("block_size", 0),
    ("gpu_memory_utilization", 0.0),
    ("gpu_memory_utilization", 1.5),
    ("kv_cache_memory_bytes", 0),
    ("num_gpu_blocks_override", -1),
    ("kv_cache_dtype", "int3"),
    ("dtype", "float8"),
    ("load_format", "pickle"),
    ("max_model_len", 0),
    ("max_num_seqs", 0),
    ("max_num_batched_tokens", -5),
    ("max_num_queued_reqs", 0),
    ("scheduling_policy", "random"),
    ("enable_chunked_prefill", False),
    ("trust_remote_code", True),
    ("device", "tpu"),
    ("threads", 0),
    ("cudagraph_capture_sizes", []),
    ("cudagraph_capture_sizes", [8, 0]),
    ("torch_profiler_dir", ""),
]


@pytest.mark.parametrize("owner", OWNERS)
def test_every_setting_has_a_sentence_of_help(owner: type) -> None:
    described = options_of(owner)
    assert set(described) == {field.name for field in fields(owner)}
    assert all(option.help.endswith(".") for _, option in described.values())


def test_no_two_owners_share_a_name() -> None:
    names = [name for owner in OWNERS for name in options_of(owner)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_refused_value_names_its_option(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_options(**{name: value})
    assert caught.value.param == name


def test_options_find_their_owner() -> None:
    config = EngineConfig.from_options(model="m", block_size=32, max_num_seqs=7, threads=2)
    assert (config.model.model, config.cache.block_size) == ("m", 32)
    assert (config.scheduler.max_num_seqs, config.device.threads) == (7, 2)


def test_capture_sizes_are_kept_in_order() -> None:
    config = EngineConfig.from_options(cudagraph_capture_sizes=[8, 1, 8, 2])
    assert config.device.cudagraph_capture_sizes == (1, 2, 8)


def test_graphs_and_no_graphs_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="enforce_eager for none"):
        EngineConfig.from_options(cudagraph_capture_sizes=[8], enforce_eager=True)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown option 'blocksize'"):
        EngineConfig.from_options(blocksize=16)


def test_resolve_makes_a_new_object() -> None:
    config = EngineConfig()
    resolved = resolve(config, context_length=8192, device="cpu", serving=False)
    assert config.model.max_model_len is None
    assert resolved.model.max_model_len == 8192
    assert resolved.scheduler.max_num_seqs == 256
    assert resolved.scheduler.max_num_batched_tokens == 1024
    assert resolved.device.device == "cpu"
    with pytest.raises(FrozenInstanceError):
        resolved.device.device = "cuda"  # type: ignore[misc]


def test_a_server_takes_shorter_steps() -> None:
    resolved = resolve(EngineConfig(), context_length=8192, device="cpu", serving=True)
    assert (resolved.scheduler.max_num_seqs, resolved.scheduler.max_num_batched_tokens) == (128, 128 + 128)
    assert resolved.scheduler.max_num_prompt_tokens == 64
    few = resolve(EngineConfig.from_options(max_num_seqs=16), context_length=8192, device="cpu", serving=True)
    assert few.scheduler.max_num_batched_tokens == 16 + 128
    asked = EngineConfig.from_options(max_num_batched_tokens=4096)
    assert resolve(asked, context_length=8192, device="cpu", serving=True).scheduler.max_num_prompt_tokens is None
    assert (
        resolve(EngineConfig(), context_length=8192, device="cuda", serving=True).scheduler.max_num_prompt_tokens
        is None
    )


def test_what_the_user_said_stays() -> None:
    config = EngineConfig.from_options(max_model_len=100, max_num_seqs=3, max_num_batched_tokens=17)
    resolved = resolve(config, context_length=8192, device="cpu", serving=True)
    assert resolved.model.max_model_len == 100
    assert (resolved.scheduler.max_num_seqs, resolved.scheduler.max_num_batched_tokens) == (3, 17)


def test_a_context_beyond_the_model_is_refused() -> None:
    config = EngineConfig.from_options(max_model_len=9000)
    with pytest.raises(ConfigError, match=r"9000 exceeds the 8192 tokens") as caught:
        resolve(config, context_length=8192, device="cpu", serving=True)
    assert "--max-model-len 8192" in str(caught.value.hint)


@pytest.mark.parametrize(("serving", "expected"), [(False, (1024, 16384)), (True, (512, 1536))])
def test_a_gpu_takes_larger_steps(serving: bool, expected: tuple[int, int]) -> None:
    resolved = resolve(EngineConfig(), context_length=8192, device="cuda", serving=serving)
    assert (resolved.scheduler.max_num_seqs, resolved.scheduler.max_num_batched_tokens) == expected


def test_a_default_budget_is_no_more_than_all_sequences_can_have() -> None:
    config = EngineConfig.from_options(max_model_len=64, max_num_seqs=8)
    assert resolve(config, context_length=8192, device="cuda", serving=False).scheduler.max_num_batched_tokens == 512
    asked = EngineConfig.from_options(max_model_len=64, max_num_seqs=8, max_num_batched_tokens=600)
    assert resolve(asked, context_length=8192, device="cuda", serving=False).scheduler.max_num_batched_tokens == 600


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_block_sizes_that_a_gpu_has(block_size: int) -> None:
    config = EngineConfig.from_options(block_size=block_size)
    assert resolve(config, context_length=8192, device="cuda", serving=False).cache.block_size == block_size


@pytest.mark.parametrize("block_size", [8, 128])
def test_block_sizes_that_only_a_cpu_has(block_size: int) -> None:
    config = EngineConfig.from_options(block_size=block_size)
    assert resolve(config, context_length=8192, device="cpu", serving=False).cache.block_size == block_size
    with pytest.raises(ConfigError, match="16, 32, 64 on a GPU") as caught:
        resolve(config, context_length=8192, device="cuda", serving=False)
    assert caught.value.param == "block_size"
    assert "--device cpu" in str(caught.value.hint)


def test_a_cpu_has_no_graphs_to_capture() -> None:
    config = EngineConfig.from_options(cudagraph_capture_sizes=[1, 2])
    assert resolve(config, context_length=8192, device="cuda", serving=False).device.cudagraph_capture_sizes == (1, 2)
    with pytest.raises(ConfigError, match="needs a GPU"):
        resolve(config, context_length=8192, device="cpu", serving=False)


def test_a_graph_for_more_sequences_than_a_step_has_is_refused() -> None:
    config = EngineConfig.from_options(cudagraph_capture_sizes=[1, 64], max_num_seqs=48)
    with pytest.raises(ConfigError, match="has 64, and a step has at most 48") as caught:
        resolve(config, context_length=8192, device="cuda", serving=False)
    assert "--max-num-seqs 64" in str(caught.value.hint)
