"""NaN does not spread: neither from pages that nobody has written, nor from one request to another."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quire import LLM, RequestOutput, SamplingParams

BAD_TOKEN = 999


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@torch.inference_mode()
def poison(llm: LLM) -> None:
    """Fills every page of an idle engine with NaN."""
    executor: Any = llm._engine.executor
    synchronize()  # The executor has a stream of its own.
    for keys, values in executor.kv_caches:
        keys.fill_(torch.nan)
        values.fill_(torch.nan)
    synchronize()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def requests(count: int) -> tuple[list[list[int]], list[SamplingParams]]:
    prompts = [[3 + (31 * number + 7 * place) % 900 for place in range(5 + 9 * number)] for number in range(count)]
    params = [
        SamplingParams(temperature=number % 2 * 0.8, top_k=40, seed=number, max_tokens=12 + 3 * number,
                       ignore_eos=True, detokenize=False)
        for number in range(count)
    ]  # fmt: skip
    return prompts, params


@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"max_num_batched_tokens": 24, "max_num_seqs": 5}])
@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_unwritten_pages_do_not_leak(
    model: str, options: dict[str, Any], tiny_model: Any, model_path: Path, start_engine: Any
) -> None:
    folder, _ = tiny_model(model, **({"sliding_window": 19} if model == "mistral" else {}))
    llm = start_engine(folder, tokenizer=str(model_path), max_model_len=256, enable_prefix_caching=False, **options)
    clean = tokens_of(llm.generate(*requests(12), use_tqdm=False))
    for _ in range(2):
        poison(llm)
        assert tokens_of(llm.generate(*requests(12), use_tqdm=False)) == clean


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_unwritten_pages_do_not_leak_in_half_precision(
    dtype: str, tiny_model: Any, model_path: Path, start_engine: Any
) -> None:
    """A leak makes logits NaN, and the request fails."""
    folder, _ = tiny_model("qwen3", head_dim=128)
    llm = start_engine(folder, tokenizer=str(model_path), dtype=dtype, max_model_len=256, enable_prefix_caching=False)
    poison(llm)
    for count in (12, 1, 3):
        assert all(tokens_of(llm.generate(*requests(count), use_tqdm=False)))


def spoil(model: Any) -> None:
    """Makes whoever reads one token produce NaN."""
    model.model.embed_tokens.weight[BAD_TOKEN] = torch.nan


@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}], ids=str)
def test_a_request_that_fails_fails_alone(
    options: dict[str, Any],
    tiny_model: Any,
    model_path: Path,
    start_engine: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = tiny_model("llama", edit=spoil)
    llm = start_engine(folder, tokenizer=str(model_path), max_model_len=256, **options)
    prompts, params = requests(9)
    params = [param.with_changes(allowed_token_ids=list(range(3, 900))) for param in params]
    clean = tokens_of(llm.generate(prompts, params, use_tqdm=False))
    # Outputs of all requests are wanted, not the error that `generate` makes of a failed one.
    monkeypatch.setattr("quire.entrypoints.llm._raise_failures", lambda outputs: None)
    llm.reset_prefix_cache()
    for bad_prompt in ([5, BAD_TOKEN, 7], [BAD_TOKEN] * 70):
        bad = SamplingParams(temperature=0.7, max_tokens=30, logprobs=2, prompt_logprobs=1, detokenize=False)
        plain = SamplingParams(temperature=0.0, max_tokens=30, detokenize=False)
        crowd = [*prompts[:4], bad_prompt, *prompts[4:], bad_prompt]
        outputs = llm.generate(crowd, [*params[:4], bad, *params[4:], plain], use_tqdm=False)
        assert [output.error is not None for output in outputs] == [index in (4, 10) for index in range(11)]
        assert tokens_of(outputs[:4] + outputs[5:-1]) == clean
        # The pages of the failed requests hold NaN; whoever gets them next does not mind.
        assert tokens_of(llm.generate(prompts, params, use_tqdm=False)) == clean
