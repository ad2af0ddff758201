"""Logits of engines and of Transformers on small random weights.

An engine's are read through the public API: log-probabilities of the whole vocabulary, less their mean, are logits less
theirs. Prompts of several lengths share steps of few tokens, so that they are computed in chunks beside decodes of
others.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quire import LLM, RequestOutput, SamplingParams

RELATIVE_ERROR = 1e-4
LENGTHS = (61, 130, 17, 200)
NUM_TOKENS = 6
NUM_BATCHED_TOKENS = 96


@pytest.fixture
def run_engine(model_path: Path, start_engine: Any) -> Callable[..., list[RequestOutput]]:
    """run_engine(folder, **options): prompts and answers with all their log-probabilities."""

    def run(folder: Path, **options: Any) -> list[RequestOutput]:
        llm: LLM = start_engine(
            folder,
            tokenizer=str(model_path),
            max_logprobs=-1,
            max_model_len=256,
            max_num_seqs=8,
            max_num_batched_tokens=NUM_BATCHED_TOKENS,
            **options,
        )
        numbers = random.Random(5)
        prompts = [[numbers.randrange(3, 1031) for _ in range(length)] for length in LENGTHS]
        params = SamplingParams(
            temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=-1, prompt_logprobs=-1, detokenize=False
        )
        return llm.generate(prompts, params, use_tqdm=False)

    return run


def _actual_logits(output: RequestOutput) -> torch.Tensor:
    """[prompt and answer less one, vocabulary]: what the engine says behind each token but the last, less its mean."""
    answer = output.outputs[0]
    assert output.prompt_logprobs is not None and answer.logprobs is not None
    entries = [entry for entry in output.prompt_logprobs[1:] if entry is not None] + answer.logprobs
    rows = torch.tensor([[entry[token].logprob for token in range(len(entry))] for entry in entries])
    return rows - rows.mean(dim=-1, keepdim=True)


@torch.inference_mode()
def _expected_logits(reference: Any, output: RequestOutput) -> torch.Tensor:
    """The same from Transformers, which is fed the engine's answer."""
    token_ids = output.prompt_token_ids + output.outputs[0].token_ids[:-1]
    logits = reference(torch.tensor([token_ids], device=reference.device)).logits[0].float().cpu()
    return logits - logits.mean(dim=-1, keepdim=True)


@pytest.fixture
def assert_logits() -> Callable[[str, list[RequestOutput], Any], None]:
    """assert_logits(name, outputs, reference): every row is Transformers'."""

    def check(name: str, outputs: list[RequestOutput], reference: Any) -> None:
        for output in outputs:
            actual, expected = _actual_logits(output), _expected_logits(reference, output)
            assert actual.shape == expected.shape
            errors = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
            worst = int(errors.nan_to_num(torch.inf).argmax())
            assert float(errors[worst]) <= RELATIVE_ERROR, f"{name}: relative error {errors[worst]:.2e} in row {worst}"

    return check


@pytest.fixture
def errors_beside() -> Callable[[list[RequestOutput], Any, torch.dtype], tuple[float, float]]:
    """errors_beside(outputs, reference, dtype): how far the engine's logits and those of Transformers in `dtype` are
    from Transformers' in float32. Converts the reference."""

    def measure(outputs: list[RequestOutput], reference: Any, dtype: torch.dtype) -> tuple[float, float]:
        exact = torch.cat([_expected_logits(reference, output) for output in outputs])
        rough = reference.to(dtype)
        theirs = torch.cat([_expected_logits(rough, output) for output in outputs])
        ours = torch.cat([_actual_logits(output) for output in outputs])
        return float((ours - exact).norm()), float((theirs - exact).norm())

    return measure
