"""The real small model in float32 against Transformers: tokens and log-probabilities, down every path.

Generated tokens are fed to the reference (teacher forcing). At each position where the reference's two best tokens
are further apart than `MARGIN`, ours must be its best; everywhere our log-probability must be the reference's.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from quire import LLM, RequestOutput, SamplingParams
from quire.checkpoint.checkpoint import small_model_path
from quire.errors import CheckpointNotFoundError

MARGIN = 1e-3
TOLERANCE = 1e-3
NUM_TOKENS = 64

OPENINGS = (
    "The capital of France is", "Once upon a time, in a village by the sea,", "def fibonacci(n):\n",
    "Water boils at", "1, 1, 2, 3, 5, 8,", "To be, or not to be,", "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to", "import numpy as np\n", "In 1969, humans first",
)  # fmt: skip
SUBJECTS = ("the history of bread", "how bridges carry weight", "a fox who learns to read", "prime numbers")


def make_prompts() -> list[str]:
    """40 prompts of 4 to about 200 tokens, some of which share beginnings."""
    prompts = list(OPENINGS)
    for number, subject in enumerate(SUBJECTS * 5):
        prompts.append(f"Write {number + 1} sentences about {subject}. " + "Be clear and kind. " * (number * 2))
    prompts += [f"{opening} {opening} Then number {index}:" for index, opening in enumerate(OPENINGS)]
    return prompts


@pytest.fixture(scope="module")
def model_path() -> Path:
    try:
        return small_model_path()
    except CheckpointNotFoundError as error:
        pytest.skip(str(error))


class Reference:
    """Transformers on the same file, asked once per sequence."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def __call__(self, prompt: list[int], answer: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Per answer position: its best token, whether that one is clear, and the answer's log-probability."""
        key = (*prompt, -1, *answer)
        if key not in self._known:
            with torch.inference_mode():
                rows = len(answer) + 1
                logits = self._model(torch.tensor([prompt + answer]), logits_to_keep=rows).logits[0, :-1].float()
            best = logits.topk(2, dim=-1)
            logprobs = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
            self._known[key] = (best.indices[:, 0], best.values[:, 0] - best.values[:, 1] > MARGIN, logprobs)
        return self._known[key]


@pytest.fixture(scope="module")
def reference(model_path: Path) -> Reference:
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patches:
        # Transformers reads the file's head twice and makes the map of names anew for each module: half of the time.
        for name in ("GGUFReader", "get_tensor_name_map"):
            patches.setattr(gguf, name, cache(getattr(gguf, name)))
        return Reference(
            transformers.AutoModelForCausalLM.from_pretrained(
                model_path.parent, gguf_file=model_path.name, dtype=torch.float32
            )
        )


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[LLM]:
    llm = make_engine(model_path)
    yield llm
    llm.shutdown()


@pytest.fixture(scope="module")
def first_and_again(engine: LLM) -> tuple[list[RequestOutput], list[RequestOutput]]:
    """Answers to all prompts from an engine that knows none of them, and from the same when it knows them all."""
    engine.reset_prefix_cache()
    first = greedy(engine, make_prompts())
    return first, greedy(engine, make_prompts())


@pytest.fixture(scope="module")
def crowded_engine(model_path: Path) -> Iterator[LLM]:
    """Its cache holds only a part of what is asked at a time."""
    llm = make_engine(model_path, num_gpu_blocks_override=64)
    yield llm
    llm.shutdown()


def generate_with_preemptions(llm: LLM, prompts: list[str], params: Any) -> list[RequestOutput]:
    llm.reset_prefix_cache()
    before = llm.get_stats()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    after = llm.get_stats()
    assert after is not None
    assert after.num_preemptions > (0 if before is None else before.num_preemptions)
    assert after.cache.num_blocks_in_use == 0
    return outputs


def make_engine(model_path: Path, **options: Any) -> LLM:
    return LLM(str(model_path), dtype="float32", max_model_len=1024, use_tqdm_on_load=False, **options)


GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)


def greedy(llm: LLM, prompts: list[Any]) -> list[RequestOutput]:
    return llm.generate(prompts, GREEDY, use_tqdm=False)


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def check_against_reference(reference: Reference, outputs: list[RequestOutput]) -> None:
    num_clear = 0
    for output in outputs:
        answer = output.outputs[0]
        assert answer.logprobs is not None
        best, clear, logprobs = reference(output.prompt_token_ids, answer.token_ids)
        wrong = clear & (best != torch.tensor(answer.token_ids))
        assert not wrong.any(), f"prompt {output.request_id}: first at {wrong.nonzero()[0].item()}"
        ours = [entry[token_id].logprob for entry, token_id in zip(answer.logprobs, answer.token_ids, strict=True)]
        error = (torch.tensor(ours) - logprobs).abs().max().item()
        assert error <= TOLERANCE, f"prompt {output.request_id}: log-probability off by {error}"
        num_clear += int(clear.sum())
    assert num_clear > 0.9 * len(outputs) * NUM_TOKENS


def test_mixed_batch_equals_transformers(reference: Reference, first_and_again: Any) -> None:
    first, _ = first_and_again
    assert len(first) == 40
    check_against_reference(reference, first)


def test_prefix_cache_hits_equal_transformers(reference: Reference, first_and_again: Any) -> None:
    _, again = first_and_again
    assert sum(output.num_cached_tokens or 0 for output in again) > 1000
    check_against_reference(reference, again)


def test_chunked_prefill_equals_transformers(reference: Reference, model_path: Path) -> None:
    llm = make_engine(model_path, max_num_batched_tokens=53, max_num_seqs=9, enable_prefix_caching=False)
    outputs = greedy(llm, make_prompts())
    llm.shutdown()
    check_against_reference(reference, outputs)


def test_preemption_equals_transformers(reference: Reference, crowded_engine: LLM) -> None:
    check_against_reference(reference, generate_with_preemptions(crowded_engine, make_prompts(), GREEDY))


def test_one_at_a_time_equals_transformers(reference: Reference, engine: LLM) -> None:
    alone = [greedy(engine, [prompt])[0] for prompt in make_prompts()[:6]]
    check_against_reference(reference, alone)


def test_the_same_seed_gives_the_same_tokens_alone_and_among_63_others(engine: LLM) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.95, seed=1234, max_tokens=48, ignore_eos=True)
    others = SamplingParams(temperature=1.0, max_tokens=40, ignore_eos=True)
    prompt = "Tell me about the sea and the wind."
    engine.reset_prefix_cache()
    alone = engine.generate([prompt], params, use_tqdm=False)
    prompts = [*make_prompts()[:31], prompt, *make_prompts()[:32]]
    crowd = engine.generate(prompts, [others] * 31 + [params] + [others] * 32, use_tqdm=False)
    assert len(prompts) == 64
    assert crowd[31].outputs[0].token_ids == alone[0].outputs[0].token_ids


def test_the_same_seed_gives_the_same_tokens_across_preemption(model_path: Path, crowded_engine: LLM) -> None:
    sampling = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "max_tokens": 64, "ignore_eos": True}
    params = [SamplingParams(seed=seed, **sampling) for seed in range(24)]
    prompts = make_prompts()[:24]
    roomy = make_engine(model_path, enable_prefix_caching=False)
    calm = roomy.generate(prompts, params, use_tqdm=False)
    roomy.shutdown()
    stormy = generate_with_preemptions(crowded_engine, prompts, params)
    assert tokens_of(stormy) == tokens_of(calm)


def test_samples_of_one_prompt_share_its_prefill(engine: LLM) -> None:
    prompt = "Name an animal. " * 30
    params = SamplingParams(n=4, temperature=1.0, seed=5, max_tokens=8, ignore_eos=True)
    engine.generate(["warm"], params, use_tqdm=False)
    engine.reset_prefix_cache()
    before = engine.get_stats()
    output = engine.generate([prompt], params, use_tqdm=False)[0]
    after = engine.get_stats()
    assert before is not None
    assert after is not None
    assert len({tuple(answer.token_ids) for answer in output.outputs}) > 1
    assert after.num_prompt_tokens - before.num_prompt_tokens <= len(output.prompt_token_ids) + 3
