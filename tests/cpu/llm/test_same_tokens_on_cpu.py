"""The small real model in its own formats (Q4_1, bfloat16 keys and values): a sequence's numbers are its own.

Tokens and log-probabilities are equal to the last bit in whatever company, pieces and number of threads they are
computed. In float32 `tests/cpu/parity` compares them with Transformers.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from quire import LLM, RequestOutput, SamplingParams
from quire.checkpoint.checkpoint import small_model_path
from quire.errors import CheckpointNotFoundError
from quire.kernels import native

NUM_TOKENS = 16
OPENINGS = ("The capital of France is", "Once upon a time,", "def fibonacci(n):\n", "1, 1, 2, 3, 5, 8,")
# Of 4 to about 170 tokens, all with beginnings that others have too.
PROMPTS = [
    f"{opening} {'Be clear and kind. ' * (9 * (number % 4))}{number}" for number in range(4) for opening in OPENINGS
]
CHOICES = (
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "seed": 8},
    {"temperature": 0.7, "min_p": 0.05, "repetition_penalty": 1.1, "seed": 13},
)
# What is told of a sample: its tokens, and of each position log-probabilities by token.
Answer = tuple[list[int], list[dict[int, float]]]


def params_of(number: int, **changes: Any) -> SamplingParams:
    mix = CHOICES[number % len(CHOICES)]
    return SamplingParams(**{**mix, "max_tokens": NUM_TOKENS, "ignore_eos": True, "logprobs": 2, **changes})


PARAMS = [params_of(number // 4 + number) for number in range(len(PROMPTS))]


def answers(output: RequestOutput) -> list[Answer]:
    return [
        (
            sample.token_ids,
            [{token_id: entry.logprob for token_id, entry in step.items()} for step in sample.logprobs or []],
        )
        for sample in output.outputs
    ]


def start(**options: Any) -> LLM:
    try:
        path = small_model_path()
    except CheckpointNotFoundError as error:
        pytest.skip(str(error))
    if native.extension() is None:
        pytest.skip("quire was installed without compiled kernels")
    given = {"device": "cpu", "max_model_len": 512, "enable_prefix_caching": False, "threads": 2} | options
    return LLM(str(path), use_tqdm_on_load=False, **given)


def generate(llm: LLM, prompts: list[str], params: list[SamplingParams]) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    engine = start(enable_prefix_caching=True)
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[list[Answer]]:
    """Each prompt's answer with the engine and an empty cache to itself."""
    found = []
    for prompt, params in zip(PROMPTS, PARAMS, strict=True):
        llm.reset_prefix_cache()
        (output,) = generate(llm, [prompt], [params])
        assert not output.num_cached_tokens
        found.append(answers(output))
    assert all(len(tokens) == len(logprobs) == NUM_TOKENS for ((tokens, logprobs),) in found)
    return found


def assert_same(outputs: list[RequestOutput], expected: list[list[Answer]]) -> None:
    different = [
        number
        for number, (output, answer) in enumerate(zip(outputs, expected, strict=True))
        if answers(output) != answer
    ]
    assert not different, f"prompts {different} got another answer"


def test_in_a_batch_and_with_prefix_hits(llm: LLM, alone: list[list[Answer]]) -> None:
    llm.reset_prefix_cache()
    assert_same(generate(llm, PROMPTS, PARAMS), alone)
    again = generate(llm, PROMPTS, PARAMS)
    assert sum(output.num_cached_tokens or 0 for output in again) > 800
    assert_same(again, alone)


def test_in_another_order(llm: LLM, alone: list[list[Answer]]) -> None:
    llm.reset_prefix_cache()
    assert_same(generate(llm, PROMPTS[::-1], PARAMS[::-1]), alone[::-1])


def test_a_repeated_request_draws_the_same(llm: LLM) -> None:
    params = params_of(1)
    first, second = (answers(output) for output in generate(llm, [PROMPTS[0]] * 2, [params] * 2))
    assert first == second
    (other,) = generate(llm, [PROMPTS[0]], [params.with_changes(seed=6)])
    assert answers(other) != first


def test_samples_of_one_request(llm: LLM) -> None:
    """They fork one prompt; alone or among others they are the same."""
    params = params_of(2, n=2)
    llm.reset_prefix_cache()
    (output,) = generate(llm, [PROMPTS[3]], [params])
    expected = answers(output)
    assert len(expected) == 2 and expected[0] != expected[1]
    llm.reset_prefix_cache()
    outputs = generate(llm, [*PROMPTS[:3], PROMPTS[3], *PROMPTS[4:8]], [*PARAMS[:3], params, *PARAMS[4:8]])
    assert answers(outputs[3]) == expected


@pytest.mark.parametrize(
    "options",
    [{"max_num_batched_tokens": 64, "threads": 1}, {"max_num_batched_tokens": 37, "block_size": 4, "threads": 3}],
    ids=str,
)
def test_prompts_in_pieces_on_other_threads(options: dict[str, Any], alone: list[list[Answer]]) -> None:
    engine = start(max_num_seqs=16, **options)
    outputs = generate(engine, PROMPTS, PARAMS)
    engine.shutdown()
    assert_same(outputs, alone)


def test_after_preemption(alone: list[list[Answer]]) -> None:
    engine = start(num_gpu_blocks_override=18, max_model_len=256)
    outputs = generate(engine, PROMPTS, PARAMS)
    stats = engine.get_stats()
    engine.shutdown()
    assert stats is not None and stats.num_preemptions > 0
    assert_same(outputs, alone)
