"""How far each number format is from float32 on the small real model: teacher-forced on greedy answers.

`pytest tests/cpu/parity/test_number_formats.py -s` prints the figures that docs/models.md states. The model's
file is Q4_1 itself, so that int4 here costs less than on weights that were never rounded.
"""

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
NUM_BLOCKS = 16  # of a sequence

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
    """The small model in one set of formats, asked for the logits of up to `max_num_seqs` sequences."""

    def __init__(self, checkpoint: Checkpoint, native: NativeCpu, max_num_seqs: int = 1, **options: Any) -> None:
        config = EngineConfig.from_options(model=checkpoint.name, **options)
        formats = choose_formats(config, checkpoint)
        architecture = checkpoint.architecture
        model = create_model(architecture, dtype=formats.activations, max_model_len=512)
        load_packed_weights(model, checkpoint, NativePacking(native, formats.weights), progress=False)
        caches = allocate_caches(
            num_layers=architecture.num_hidden_layers,
            num_blocks=max_num_seqs * NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            num_kv_heads=architecture.num_key_value_heads,
            head_dim=architecture.head_dim,
            dtype=formats.kv_cache,
        )
        self._model = RecordedModel(model, native, caches)
        self._tables = np.arange(max_num_seqs * NUM_BLOCKS, dtype=np.int32).reshape(max_num_seqs, NUM_BLOCKS)

    def log_probabilities(self, token_ids: list[int]) -> torch.Tensor:
        """[tokens, vocabulary] of one sequence."""
        return torch.log_softmax(self._logits([token_ids], [0], np.arange(len(token_ids))), dim=-1)

    def continue_greedily(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Prompts and answers. All go on together: a sequence's numbers do not depend on its company."""
        sequences = [list(prompt) for prompt in prompts]
        starts = [0] * len(prompts)
        for _ in range(num_tokens):
            last = np.cumsum([len(ids) - start for ids, start in zip(sequences, starts, strict=True)]) - 1
            best = self._logits(sequences, starts, last).argmax(-1).tolist()
            starts = [len(token_ids) for token_ids in sequences]
            for token_ids, token_id in zip(sequences, best, strict=True):
                token_ids.append(token_id)
        return sequences

    def _logits(self, sequences: list[list[int]], starts: list[int], rows: np.ndarray) -> torch.Tensor:
        """Computes what stands from `starts` on, one sequence after the other; logits of those `rows`."""
        lengths = np.array([len(token_ids) for token_ids in sequences])
        token_ids = np.zeros((len(sequences), lengths.max()), np.int32)
        for row, ids in zip(token_ids, sequences, strict=True):
            row[: len(ids)] = ids
        state: Any = SimpleNamespace(token_ids=token_ids, block_tables=self._tables)
        slots, begins = np.arange(len(sequences)), np.array(starts)
        steps = StepRows(slots, slots, begins, lengths - begins, np.ones(len(sequences), bool))
        return self._model.compute_logits(self._model.run(state, steps, rows))


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint, native: NativeCpu) -> list[tuple[list[int], torch.Tensor]]:
    """Greedy answers in float32, with the log-probabilities of their tokens' positions."""
    from quire.frontend.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(checkpoint.tokenizer)
    scorer = Scorer(checkpoint, native, max_num_seqs=len(PROMPTS), dtype="float32")
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    sequences = scorer.continue_greedily(prompts, NUM_TOKENS)
    return [
        (token_ids, scorer.log_probabilities(token_ids)[len(prompt) - 1 : -1])
        for prompt, token_ids in zip(prompts, sequences, strict=True)
    ]


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
