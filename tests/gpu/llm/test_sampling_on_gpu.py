"""Every sampling parameter and every form of log-probability gives on the GPU what it gives on the CPU, in float32."""

import math
from typing import Any

import pytest

from quire import LLM, RequestOutput, SamplingParams

TOLERANCE = 1e-3
NUM_TOKENS = 24

MIXES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.9, "seed": 1},
    {"temperature": 1.3, "top_k": 7, "seed": 2},
    {"temperature": 0.8, "min_p": 0.05, "seed": 3},
    {"temperature": 1.1, "top_p": 0.8, "top_k": 20, "min_p": 0.02, "seed": 4},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.7, "top_k": 40, "frequency_penalty": 0.7, "presence_penalty": -0.5, "seed": 5},
    {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
    {"temperature": 0.0, "logit_bias": {28: -100.0, 30: 4.0, 260: 2.0}},
    {"temperature": 1.0, "allowed_token_ids": [28, 30, 260, 284, 253, 198], "seed": 6},
    {"temperature": 0.0, "bad_words": [" the", " of", "\n", " a", " in a"]},
    {"temperature": 0.9, "top_k": 30, "bad_words": [" the", ",", " and the"], "seed": 7},
    {"temperature": 0.0, "min_tokens": 12, "stop_token_ids": [28, 30, 260], "ignore_eos": False},
    {"temperature": 0.0, "stop_token_ids": [28, 30], "ignore_eos": False},
    {"temperature": 0.8, "top_k": 50, "stop": [" the", ". "], "seed": 8, "ignore_eos": False},
    {"temperature": 0.0, "stop": ["e"], "include_stop_str_in_output": True, "min_tokens": 4},
    {"temperature": 0.9, "top_k": 20, "n": 3, "seed": 9},
    {"temperature": 1.0, "top_k": 50, "n": 2, "best_of": 4, "seed": 10, "logprobs": 0},
    {"temperature": 0.0, "logprobs": 5, "prompt_logprobs": 3},
    {"temperature": 0.5, "top_k": 2, "logit_bias": {28: 5.0}, "logprobs": 0, "seed": 11},
    {"temperature": 0.8, "top_k": 10, "logprobs": 3, "prompt_logprobs": 0, "seed": 12},
    {"temperature": 0.0, "repetition_penalty": 1.2, "logit_bias": {30: 3.0}, "min_tokens": 8, "logprobs": 2},
]


def params_of(mix: dict[str, Any]) -> SamplingParams:
    return SamplingParams(**{"max_tokens": NUM_TOKENS, "ignore_eos": True, **mix})


@pytest.fixture(scope="module")
def both(engine: LLM, cpu_engine: LLM, prompts: list[str]) -> list[tuple[RequestOutput, RequestOutput]]:
    """All mixes in one batch, on the GPU and on the CPU."""
    chosen = [prompts[index % len(prompts)] for index in range(len(MIXES))]
    params = [params_of(mix) for mix in MIXES]
    engine.reset_prefix_cache()
    return list(
        zip(
            engine.generate(chosen, params, use_tqdm=False),
            cpu_engine.generate(chosen, params, use_tqdm=False),
            strict=True,
        )
    )


@pytest.mark.parametrize("index", range(len(MIXES)), ids=lambda index: str(MIXES[index])[1:60])
def test_equal_to_the_cpu(index: int, both: list[tuple[RequestOutput, RequestOutput]]) -> None:
    ours, theirs = both[index]
    assert [answer.token_ids for answer in ours.outputs] == [answer.token_ids for answer in theirs.outputs]
    assert [answer.text for answer in ours.outputs] == [answer.text for answer in theirs.outputs]
    for mine, other in zip(ours.outputs, theirs.outputs, strict=True):
        assert (mine.finish_reason, mine.stop_reason) == (other.finish_reason, other.stop_reason)
        assert_logprobs(mine.logprobs, other.logprobs)
        if other.cumulative_logprob is not None:
            assert mine.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=TOLERANCE * NUM_TOKENS)
    assert_logprobs(ours.prompt_logprobs, theirs.prompt_logprobs)


def assert_logprobs(ours: list[Any] | None, theirs: list[Any] | None) -> None:
    """Equal tokens and ranks but for near ties, and values within the tolerance."""
    assert (ours is None) == (theirs is None)
    if ours is None or theirs is None:
        return
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is None:
            continue
        assert len(mine) == len(other)
        falling = zip(sorted(entry.logprob for entry in mine.values()),
                      sorted(entry.logprob for entry in other.values()), strict=True)  # fmt: skip
        assert all(left == pytest.approx(right, abs=TOLERANCE) for left, right in falling)
        for token in mine.keys() & other.keys():
            assert mine[token].logprob == pytest.approx(other[token].logprob, abs=TOLERANCE)
            assert mine[token].decoded_token == other[token].decoded_token
        assert next(iter(mine)) == next(iter(other))


def test_one_by_one_equals_the_batch(
    engine: LLM, prompts: list[str], both: list[tuple[RequestOutput, RequestOutput]]
) -> None:
    """Alone each mix takes the sampler's path for its own needs only."""
    engine.reset_prefix_cache()
    for index, mix in enumerate(MIXES):
        alone = engine.generate([prompts[index % len(prompts)]], params_of(mix), use_tqdm=False)[0]
        batched = both[index][0]
        assert [answer.token_ids for answer in alone.outputs] == [answer.token_ids for answer in batched.outputs], mix
        assert_logprobs(alone.outputs[0].logprobs, batched.outputs[0].logprobs)


def test_all_logprobs_sum_to_one(engine: LLM) -> None:
    llm_params = SamplingParams(temperature=0.0, max_tokens=2, logprobs=20, ignore_eos=True)
    answer = engine.generate(["The sea is"], llm_params, use_tqdm=False)[0].outputs[0]
    assert answer.logprobs is not None
    for entries in answer.logprobs:
        assert [entry.rank for entry in entries.values()] == list(range(1, 21))
        assert 0.0 < sum(math.exp(entry.logprob) for entry in entries.values()) <= 1.0 + 1e-5
