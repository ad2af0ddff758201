"""Prompts of 128k tokens: chunked, against Transformers, in bounded memory."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from quire import SamplingParams

LENGTH = 131_000
CHUNK = 8_192
RELATIVE_ERROR = 1e-2
"""Larger than for short prompts: angles of positions near 131,072 are rounded to 0.008 in float32."""

ROPES: dict[str, dict[str, Any]] = {
    "Llama 3.1": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "YaRN": {
        "rope_type": "yarn",
        "rope_theta": 1_000_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32_768,
    },
}


@torch.inference_mode()
def expected_logprobs(reference: Any, token_ids: list[int]) -> torch.Tensor:
    """Of the token behind the prompt, [vocabulary]; chunk by chunk, since whole scores would take 68 GB a head."""
    from transformers import DynamicCache

    cache = DynamicCache(config=reference.config)
    chunk = 2048
    for start in range(0, len(token_ids), chunk):
        piece = torch.tensor([token_ids[start : start + chunk]], device=reference.device)
        logits = reference(piece, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return torch.log_softmax(logits[0, -1].float(), dim=-1).cpu()


@pytest.mark.parametrize("rope", ROPES)
def test_128k_tokens(rope: str, device: str, tiny_model: Any, model_path: Path, start_engine: Any) -> None:
    length = LENGTH if device == "cuda" else 4_000
    folder, reference = tiny_model(
        "llama",
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=128 if device == "cuda" else 64,
        max_position_embeddings=131_072,
        rope_parameters=ROPES[rope],
    )
    llm = start_engine(
        folder,
        tokenizer=str(model_path),
        max_model_len=131_072,
        max_num_batched_tokens=CHUNK,
        max_logprobs=-1,
        kv_cache_memory_bytes=2**30,
        max_num_seqs=8,
    )
    numbers = random.Random(3)
    prompt = [numbers.randrange(3, 1031) for _ in range(length)]
    others = [[numbers.randrange(3, 1031) for _ in range(40)] for _ in range(4)]
    short = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, detokenize=False)
    last = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, logprobs=-1, detokenize=False)
    expected = llm.generate(others, short, use_tqdm=False)
    peak_before = peak_bytes()
    outputs = llm.generate([*others, prompt], [short] * 4 + [last], use_tqdm=False)
    # The largest step was run at the start: a long context takes pages, and nothing that grows with it.
    assert peak_bytes() <= peak_before + 2**26
    assert [output.outputs[0].token_ids for output in outputs[:4]] == [
        output.outputs[0].token_ids for output in expected
    ]
    answer = outputs[-1].outputs[0]
    assert answer.logprobs is not None
    actual = torch.tensor([answer.logprobs[0][token].logprob for token in range(1031)])
    wanted = expected_logprobs(reference, prompt)
    error = float((actual - wanted).norm() / (wanted - wanted.mean()).norm())
    print(f"{rope}, {length} tokens: relative error {error:.2e}")
    assert error <= RELATIVE_ERROR


def peak_bytes() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
