"""How far each number format is from float32 on the small real model: teacher-forced on greedy answers.

`pytest tests/cpu/parity/test_number_formats.py -s` prints the figures that docs/performance.md states. The model's
file is Q4_1 itself, so that int4 here costs less than on weights that were never rounded.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from quire.checkpoint.checkpoint import Checkpoint, open_checkpoint, small_model_path
from quire.config.engine import EngineConfig
from quire.errors import CheckpointNotFoundError
from quire.kernels.native import NativeCpu
from quire.models.loading.load import load_packed_weights
from quire.models.loading.native_packing import NativePacking
from quire.models.registry import create_model
from quire.worker.batch_state import StepRows
from quire.worker.cpu_formats import choose_formats
from quire.worker.kv_storage import allocate_caches
from quire.worker.recorded_model import RecordedModel

PROMPTS = (
    "The capital of France is", "Once upon a time, in a village by the sea,", "def fibonacci(n):\n",
    "Water boils at", "1, 1, 2, 3, 5, 8,", "To be, or not to be,", "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to", "import numpy as np\n", "In 1969, humans first",
)  # fmt: skip
NUM_TOKENS = 200
BLOCK_SIZE = 16

# Options, the least top-1 agreement in percent, the largest mean Kullback-Leibler divergence in nats.
FORMATS: dict[str, tuple[dict[str, Any], float, float]] = {
    "Q4_1": ({}, 97.0, 0.02),
    "bfloat16": ({"dtype": "bfloat16"}, 97.0, 0.02),
    "float16": ({"dtype": "float16"}, 97.0, 0.02),
    "int8": ({"quantization": "int8"}, 95.0, 0.05),
    "int4": ({"quantization": "int4"}, 95.0, 0.05),
    "Q4_1, int8 KV cache": ({"kv_cache_dtype": "int8"}, 95.0, 0.05),
}


@pytest.fixture(scope="module")
def native() -> NativeCpu:
    found = NativeCpu.create(2)
    if found is None:
        pytest.skip("quire was installed without compiled kernels")
    return found


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    try:
        config = EngineConfig.from_options(model=str(small_model_path()))
    except CheckpointNotFoundError as error:
        pytest.skip(str(error))
    return open_checkpoint(config.model)


class Scorer:
    """The small model in one set of formats, asked for the logits of whole sequences."""

    def __init__(self, checkpoint: Checkpoint, native: NativeCpu, **options: Any) -> None:
        config = EngineConfig.from_options(model=checkpoint.name, **options)
        formats = choose_formats(config, checkpoint)
        architecture = checkpoint.architecture
        model = create_model(architecture, dtype=formats.activations, max_model_len=512)
        load_packed_weights(model, checkpoint, NativePacking(native, formats.weights), progress=False)
        caches = allocate_caches(
            num_layers=architecture.num_hidden_layers,
            num_blocks=32,
            block_size=BLOCK_SIZE,
            num_kv_heads=architecture.num_key_value_heads,
            head_dim=architecture.head_dim,
            dtype=formats.kv_cache,
        )
        self._model = RecordedModel(model, native, caches)
        self._tables = np.arange(32, dtype=np.int32)[None]

    def log_probabilities(self, token_ids: list[int], start: int = 0) -> torch.Tensor:
        """[tokens from `start` on, vocabulary]; what stands before `start` has been computed."""
        count = len(token_ids) - start
        state: Any = SimpleNamespace(token_ids=np.array([token_ids], np.int32), block_tables=self._tables)
        one = np.zeros(1, np.int64)
        rows = StepRows(one, one, one + start, one + count, np.ones(1, bool))
        hidden = self._model.run(state, rows, np.arange(count))
        return torch.log_softmax(self._model.compute_logits(hidden), dim=-1)

    def continue_greedily(self, prompt: list[int], num_tokens: int) -> list[int]:
        token_ids = list(prompt)
        start = 0
        while len(token_ids) < len(prompt) + num_tokens:
            best = int(self.log_probabilities(token_ids, start)[-1].argmax())
            start = len(token_ids)
            token_ids.append(best)
        return token_ids


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint, native: NativeCpu) -> Iterator[list[tuple[list[int], torch.Tensor]]]:
    """Greedy answers in float32, with the log-probabilities of their tokens' positions."""
    from quire.frontend.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint.tokenizer)
    scorer = Scorer(checkpoint, native, dtype="float32")
    answers = []
    for prompt in PROMPTS:
        prompt_ids = tokenizer.encode(prompt)
        token_ids = scorer.continue_greedily(prompt_ids, NUM_TOKENS)
        answers.append((token_ids, scorer.log_probabilities(token_ids)[len(prompt_ids) - 1 : -1]))
    yield answers


@pytest.mark.parametrize("name", FORMATS)
def test_agreement_with_float32(
    name: str, checkpoint: Checkpoint, native: NativeCpu, expected: list[tuple[list[int], torch.Tensor]]
) -> None:
    options, least_agreement, largest_divergence = FORMATS[name]
    scorer = Scorer(checkpoint, native, **options)
    num_tokens, num_equal, divergence = 0, 0, 0.0
    for token_ids, exact in expected:
        ours = scorer.log_probabilities(token_ids)[-len(exact) - 1 : -1]
        num_tokens += len(exact)
        num_equal += int((ours.argmax(-1) == exact.argmax(-1)).sum())
        divergence += float((exact.exp() * (exact - ours)).sum())
    agreement = 100.0 * num_equal / num_tokens
    print(f"{name}: {num_tokens} tokens, top-1 agreement {agreement:.2f} %, mean KL {divergence / num_tokens:.5f}")
    assert num_tokens == NUM_TOKENS * len(PROMPTS)
    assert agreement >= least_agreement and divergence / num_tokens <= largest_divergence
