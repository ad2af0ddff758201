"""Logits of every architecture against Transformers on small random weights, in float32."""

import random

import pytest
import torch

RELATIVE_ERROR = 1e-4
LENGTH = 61

ARCHITECTURES = {
    "llama": ("llama", {}),
    "llama with biases, tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama, one key head": ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window 11": ("mistral", {"sliding_window": 11}),
    "mistral, window 40": ("mistral", {"sliding_window": 40}),
    "qwen2": ("qwen2", {"num_key_value_heads": 6}),
    "qwen2, upper layers windowed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("qwen3", {"head_dim": 20}),
    "qwen3 with biases": ("qwen3", {"head_dim": 8, "attention_bias": True}),
}

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "dynamic, short": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, given factor": {
        "rope_type": "yarn",
        "rope_theta": 900.0,
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        "rope_theta": 500.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 0.7,
        "mscale_all_dim": 1.5,
    },
}

CHUNKINGS = {
    "whole": [61],
    "chunks": [17, 1, 30, 13],
    "prefill, decode": [50] + [1] * 11,
    "token by token": [1] * 61,
}


def _tokens(count: int, seed: int = 0) -> list[int]:
    return [random.Random(f"{seed} {i}").randrange(131) for i in range(count)]


@torch.inference_mode()
def _expected(reference: torch.nn.Module, token_ids: list[int]) -> torch.Tensor:
    return reference(torch.tensor([token_ids])).logits[0]


def _assert_logits(name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    errors = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
    worst = int(errors.nan_to_num(torch.inf).argmax())
    assert float(errors[worst]) <= RELATIVE_ERROR, f"{name}: relative error {errors[worst]:.2e} in row {worst}"


def _run_chunks(driver, token_ids: list[int], sizes: list[int], name: str = "a") -> torch.Tensor:
    assert sum(sizes) == len(token_ids)
    logits, start = [], 0
    for size in sizes:
        logits.append(driver.step({name: token_ids[start : start + size]})[name])
        start += size
    return torch.cat(logits)


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architecture(architecture, chunking, reference_of, model_of, driver_of):
    model_type, overrides = ARCHITECTURES[architecture]
    reference = reference_of(model_type, **overrides)
    token_ids = _tokens(LENGTH)
    actual = _run_chunks(driver_of(model_of(reference)), token_ids, CHUNKINGS[chunking])
    _assert_logits(architecture, actual, _expected(reference, token_ids))


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_rope(model_type, rope, reference_of, model_of, driver_of):
    reference = reference_of(model_type, rope_parameters=dict(ROPES[rope]))
    token_ids = _tokens(LENGTH)
    driver = driver_of(model_of(reference, max_model_len=64))
    _assert_logits(rope, _run_chunks(driver, token_ids, [40, 20, 1]), _expected(reference, token_ids))


@pytest.mark.parametrize("length", [LENGTH, 100])
def test_dynamic_rope_at_the_longest_sequence(length, reference_of, model_of, driver_of):
    """Transformers scales by the sequence at hand, quire by the longest it admits: equal for that one."""
    reference = reference_of("llama", max_position_embeddings=40, rope_parameters=dict(ROPES["dynamic, short"]))
    token_ids = _tokens(length)
    driver = driver_of(model_of(reference, max_model_len=length))
    actual = _run_chunks(driver, token_ids, [length - 30, 29, 1])
    _assert_logits("dynamic", actual, _expected(reference, token_ids))


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("architecture", ["llama", "mistral, window 11", "qwen2, upper layers windowed", "qwen3"])
def test_mixed_batches(architecture, block_size, reference_of, model_of, driver_of):
    """Sequences that join, pause, decode and prefill beside each other, each as if it were alone."""
    model_type, overrides = ARCHITECTURES[architecture]
    reference = reference_of(model_type, **overrides)
    driver = driver_of(model_of(reference), block_size=block_size)
    lengths = {"a": 61, "b": 40, "c": 33, "d": 17, "e": 2}
    prompts = {name: _tokens(length, seed) for seed, (name, length) in enumerate(lengths.items())}
    remaining = {name: list(token_ids) for name, token_ids in prompts.items()}
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in prompts}
    generator = random.Random(5)
    while any(remaining.values()):
        active = [name for name in remaining if remaining[name] and generator.random() < 0.8]
        work = {name: remaining[name][: generator.choice([1, 1, 1, 5, 23])] for name in active}
        if not work:
            continue
        for name, rows in driver.step(work).items():
            logits[name].append(rows)
            del remaining[name][: len(rows)]
    for name, token_ids in prompts.items():
        _assert_logits(name, torch.cat(logits[name]), _expected(reference, token_ids))


def test_last_rows_only(reference_of, model_of, driver_of):
    """The last layer computes the rows that are asked for, in the order that is asked for."""
    reference = reference_of("qwen3", head_dim=20)
    prompts = {name: _tokens(length, seed) for seed, (name, length) in enumerate((("a", 30), ("b", 1), ("c", 12)))}
    logits = driver_of(model_of(reference)).step(prompts, num_last=1)
    for name, token_ids in prompts.items():
        _assert_logits(name, logits[name], _expected(reference, token_ids)[-1:])


def test_step_without_logits(reference_of, model_of, driver_of):
    """A chunk in the middle of a prompt: nothing is asked for, keys and values are written."""
    reference = reference_of("llama")
    driver = driver_of(model_of(reference))
    token_ids = _tokens(LENGTH)
    assert driver.step({"a": token_ids[:30]}, num_last=0)["a"].shape == (0, 131)
    rest = driver.step({"a": token_ids[30:]})["a"]
    _assert_logits("rest", rest, _expected(reference, token_ids)[30:])


def test_bfloat16_is_as_close_as_transformers_in_bfloat16(reference_of, model_of, driver_of):
    reference = reference_of("llama")
    token_ids = _tokens(LENGTH)
    exact = _expected(reference, token_ids)
    actual = driver_of(model_of(reference, dtype=torch.bfloat16)).step({"a": token_ids})["a"]
    theirs = _expected(reference.bfloat16(), token_ids).float()
    assert (actual - exact).norm() <= 1.25 * (theirs - exact).norm()
