"""The same request, the same tokens: whoever shares the batch, with and without graphs, across preemptions and prefix
hits. What holds in float32 for the logits holds in every format for the noise.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from quire import LLM, RequestOutput, SamplingParams

PROMPT = "Tell me about the sea and the wind."
SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "ignore_eos": True}


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [answer.token_ids for output in outputs for answer in output.outputs]


def seeded(count: int, num_tokens: int, **changes: Any) -> list[SamplingParams]:
    return [SamplingParams(seed=seed, max_tokens=num_tokens, **{**SAMPLING, **changes}) for seed in range(count)]


def around(prompts: list[str], count: int) -> tuple[list[str], list[SamplingParams]]:
    """Other requests, of all kinds and lengths."""
    numbers = random.Random(1)
    chosen = [prompts[index % len(prompts)] for index in range(count)]
    return chosen, [
        SamplingParams(temperature=numbers.choice([0.0, 1.0]), max_tokens=numbers.randint(5, 48), ignore_eos=True)
        for _ in range(count)
    ]


@pytest.mark.parametrize("params", [{"temperature": 0.9, "top_p": 0.95}, {"temperature": 0.0}, {"temperature": 1.2}])
def test_float32_alone_and_among_others(params: dict[str, Any], engine: LLM, prompts: list[str]) -> None:
    mine = SamplingParams(seed=1234, max_tokens=48, ignore_eos=True, **params)
    engine.reset_prefix_cache()
    alone = tokens_of(engine.generate([PROMPT], mine, use_tqdm=False))
    for count in (1, 2, 7, 31, 63):
        others, other_params = around(prompts, count)
        crowd = [*others[: count // 2], PROMPT, *others[count // 2 :]]
        crowd_params = [*other_params[: count // 2], mine, *other_params[count // 2 :]]
        outputs = engine.generate(crowd, crowd_params, use_tqdm=False)
        assert outputs[count // 2].outputs[0].token_ids == alone[0], f"among {count} others"


@pytest.mark.parametrize("batch", [1, 3, 8, 24])
def test_float32_with_and_without_graphs(
    batch: int, engine: LLM, model_path: Path, prompts: list[str], start_engine: Any
) -> None:
    chosen = [prompts[index % len(prompts)] for index in range(batch)]
    engine.reset_prefix_cache()
    with_graphs = tokens_of(engine.generate(chosen, seeded(batch, 40), use_tqdm=False))
    eager = start_engine(model_path, enforce_eager=True)
    assert tokens_of(eager.generate(chosen, seeded(batch, 40), use_tqdm=False)) == with_graphs


def test_float32_across_preemption(model_path: Path, prompts: list[str], start_engine: Any) -> None:
    count, num_blocks = (24, 64) if len(prompts) == 40 else (8, 24)
    chosen = prompts[:count]
    calm = start_engine(model_path, enable_prefix_caching=False)
    expected = tokens_of(calm.generate(chosen, seeded(count, 64), use_tqdm=False))
    crowded = start_engine(model_path, num_gpu_blocks_override=num_blocks, max_model_len=16 * num_blocks)
    actual = tokens_of(crowded.generate(chosen, seeded(count, 64), use_tqdm=False))
    stats = crowded.get_stats()
    assert stats is not None
    assert stats.num_preemptions > 0
    assert actual == expected


def test_float32_with_prefix_hits(engine: LLM, prompts: list[str]) -> None:
    chosen = [f"{prompt} {prompt} {prompt} {prompt}" for prompt in prompts[:16]]
    engine.reset_prefix_cache()
    first = engine.generate(chosen, seeded(len(chosen), 40), use_tqdm=False)
    again = engine.generate(chosen, seeded(len(chosen), 40), use_tqdm=False)
    assert sum(output.num_cached_tokens or 0 for output in again) > 50
    assert tokens_of(again) == tokens_of(first)


def test_samples_of_one_prompt(engine: LLM, cpu_engine: LLM) -> None:
    prompt = "Name an animal. " * 30
    params = SamplingParams(n=4, temperature=1.0, seed=5, max_tokens=8, ignore_eos=True)
    engine.generate(["warm"], params, use_tqdm=False)
    engine.reset_prefix_cache()
    before = engine.get_stats()
    output = engine.generate([prompt], params, use_tqdm=False)
    after = engine.get_stats()
    assert before is not None and after is not None
    assert len({tuple(token_ids) for token_ids in tokens_of(output)}) > 1
    assert tokens_of(output) == tokens_of(cpu_engine.generate([prompt], params, use_tqdm=False))
    assert after.num_prompt_tokens - before.num_prompt_tokens <= len(output[0].prompt_token_ids) + 3


NOISE_TOKENS = [3, 17, 101, 256, 500, 777, 1000, 1030]


def flat(model: Any) -> None:
    """Makes all logits zero, so that only the noise decides."""
    model.lm_head.weight.zero_()


def noise(llm: LLM, count: int, *, first: int = 0, num_tokens: int = 24, length: int = 9) -> list[list[int]]:
    """Tokens of requests with seeds from `first` on, drawn uniformly from eight."""
    params = [
        SamplingParams(seed=seed, temperature=1.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False,
                       allowed_token_ids=NOISE_TOKENS)
        for seed in range(first, first + count)
    ]  # fmt: skip
    prompts = [[3 + (7 * seed + place) % 1000 for place in range(length)] for seed in range(first, first + count)]
    return tokens_of(llm.generate(prompts, params, use_tqdm=False))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_noise_is_the_same_whatever_the_batch(dtype: str, tiny_model: Any, model_path: Path, start_engine: Any) -> None:
    folder, _ = tiny_model("llama", edit=flat)
    options: dict[str, Any] = {"tokenizer": str(model_path), "dtype": dtype, "max_model_len": 256}
    llm = start_engine(folder, **options)
    together = noise(llm, 64)
    assert len({tuple(token_ids) for token_ids in together}) == 64
    assert sorted({token for token_ids in together for token in token_ids}) == NOISE_TOKENS
    for count in (1, 2, 5, 17, 40):
        assert noise(llm, count, first=20) == together[20 : 20 + count], f"{count} at a time"
    assert noise(start_engine(folder, enforce_eager=True, **options), 64) == together, "without graphs"
    small = start_engine(folder, num_gpu_blocks_override=40, **options)
    longer = noise(small, 24, num_tokens=90)
    assert [token_ids[:24] for token_ids in longer] == together[:24], "with preemption"
    stats = small.get_stats()
    assert stats is not None and stats.num_preemptions > 0
    on_cpu = start_engine(folder, **{**options, "device": "cpu", "dtype": "float32", "threads": 2})
    assert noise(on_cpu, 64) == together, "on the CPU"


def test_noise_is_even(tiny_model: Any, model_path: Path, start_engine: Any) -> None:
    folder, _ = tiny_model("llama", edit=flat)
    llm = start_engine(folder, tokenizer=str(model_path), dtype="bfloat16", max_model_len=256)
    drawn = torch.tensor(noise(llm, 128, num_tokens=64))
    counts = torch.tensor([int((drawn == token).sum()) for token in NOISE_TOKENS], dtype=torch.float64)
    expected = drawn.numel() / len(NOISE_TOKENS)
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 29.9, f"{counts.tolist()}: seven degrees of freedom exceed 29.9 once in 10,000 times"
