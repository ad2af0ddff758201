"""Small random models of Transformers, the same in quire, and a driver that runs them on a paged cache."""

import random
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quire.checkpoint.architecture import parse_architecture
from quire.kernels.linear.native import pack
from quire.kernels.native import NativeCpu, extension
from quire.kernels.paged_attention import prepare
from quire.layers.embedding import Embedding
from quire.layers.forward_batch import ForwardBatch
from quire.layers.linear import Linear
from quire.layers.logits import LogitsHead
from quire.models.decoder import DecoderModel
from quire.models.registry import create_model
from quire.worker.batch_state import StepRows
from quire.worker.kv_storage import KVCaches
from quire.worker.recorded_model import RecordedModel

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
}


def make_reference(model_type: str, **overrides: Any) -> torch.nn.Module:
    """A model of Transformers in float32 whose weights are large enough that attention is far from uniform."""
    config = AutoConfig.for_model(model_type, **{**SIZES, **overrides})
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.3)
    return model


def make_model(
    reference: torch.nn.Module, *, dtype: torch.dtype = torch.float32, max_model_len: int | None = None
) -> DecoderModel:
    """The same model in quire, built from its config and loaded through its tensor map."""
    architecture = parse_architecture(reference.config.to_dict(), source="config.json")
    model = create_model(architecture, dtype=dtype, max_model_len=max_model_len).to_empty(device="cpu")
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.fill_(float("nan"))
    state = reference.state_dict()
    for name, place in model.tensor_map().items():
        parameters[place.parameter][place.row_start : place.row_start + place.num_rows].copy_(state[name])
    return model


class PagedDriver:
    """Runs sequences on a model, block tables shuffled, unused slots NaN.

    Args:
        model: Whose layers the caches are made for.
        block_size: Tokens per block.
    """

    def __init__(self, model: DecoderModel, *, block_size: int = 16, num_blocks: int = 64) -> None:
        architecture = model.architecture
        shape = (num_blocks, block_size, architecture.num_key_value_heads, architecture.head_dim)
        dtype = model.embedding.weight.dtype
        self.model = model
        self.block_size = block_size
        self.kv_caches = [
            (torch.full(shape, float("nan"), dtype=dtype), torch.full(shape, float("nan"), dtype=dtype))
            for _ in range(architecture.num_hidden_layers)
        ]
        self._free = random.Random(3).sample(range(num_blocks), num_blocks)
        self._tables: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}

    @torch.inference_mode()
    def step(self, work: dict[str, list[int]], *, num_last: int | None = None) -> dict[str, torch.Tensor]:
        """Appends tokens to sequences, one step for all.

        Args:
            work: Names and new tokens of the sequences.
            num_last: Of how many last tokens of each the logits are computed; None for all.

        Returns:
            Logits [tokens, vocab] per sequence.
        """
        slots: list[int] = []
        positions: list[int] = []
        for name, token_ids in work.items():
            start = self._lengths.get(name, 0)
            self._lengths[name] = start + len(token_ids)
            new_positions = range(start, start + len(token_ids))
            slots += self._grow(name, new_positions)
            positions += new_positions
        rows = torch.arange(len(slots)).split([len(token_ids) for token_ids in work.values()])
        if num_last is not None:
            rows = [sequence_rows[len(sequence_rows) - num_last :] for sequence_rows in rows]
        logits = self._run(work, positions, slots, torch.cat(list(rows)))
        return dict(zip(work, logits.split([len(sequence_rows) for sequence_rows in rows]), strict=True))

    def _run(
        self, work: dict[str, list[int]], positions: list[int], slots: list[int], logit_rows: torch.Tensor
    ) -> torch.Tensor:
        tables = [self._tables[name] for name in work]
        block_tables = torch.zeros(len(work), max(map(len, tables)), dtype=torch.int32)
        for row, table in enumerate(tables):
            block_tables[row, : len(table)] = torch.tensor(table)
        batch = ForwardBatch(
            token_ids=torch.tensor([token for token_ids in work.values() for token in token_ids]),
            positions=torch.tensor(positions),
            slot_mapping=torch.tensor(slots),
            logit_rows=logit_rows,
            kv_caches=self.kv_caches,
            attention=prepare(
                [len(token_ids) for token_ids in work.values()],
                [self._lengths[name] for name in work],
                block_tables,
                self.kv_caches[0][0],
                dtype=self.model.dtype,
                sliding_windows=self.model.sliding_windows,
            ),
        )
        return self.model.compute_logits(self.model.forward(batch))

    def _grow(self, name: str, positions: Iterable[int]) -> list[int]:
        """The slots of new positions."""
        table = self._tables.setdefault(name, [])
        slots = []
        for position in positions:
            if position // self.block_size == len(table):
                table.append(self._free.pop())
            slots.append(table[position // self.block_size] * self.block_size + position % self.block_size)
        return slots


class RecordedDriver:
    """The same with the compiled kernels: the model's step is recorded once, every call replays it.

    Args:
        model: Its weights are packed in their own number format.
        block_size: Tokens per block.
    """

    def __init__(self, model: DecoderModel, *, block_size: int = 16, num_blocks: int = 64) -> None:
        native = NativeCpu.create(2)
        assert native is not None
        for module in model.modules():
            if isinstance(module, (Linear, Embedding, LogitsHead)) and module.weight is not None:
                module.packed, module.weight = pack(native, module.weight), None
        model.finish_loading()
        architecture = model.architecture
        shape = (num_blocks, block_size, architecture.num_key_value_heads, architecture.head_dim)
        layers = [
            (torch.full(shape, float("nan"), dtype=model.dtype), torch.full(shape, float("nan"), dtype=model.dtype))
            for _ in range(architecture.num_hidden_layers)
        ]
        self.model = RecordedModel(model, native, KVCaches(layers))
        self.block_size = block_size
        self._slots: dict[str, int] = {}
        self._lengths = np.zeros(8, np.int64)
        free = random.Random(3).sample(range(num_blocks), num_blocks)
        tables = np.array(free, np.int32).reshape(8, -1)
        self._state = SimpleNamespace(
            token_ids=np.zeros((8, num_blocks // 8 * block_size), np.int32), block_tables=tables
        )

    def step(self, work: dict[str, list[int]], *, num_last: int | None = None) -> dict[str, torch.Tensor]:
        """See `PagedDriver.step`."""
        slots = np.array([self._slots.setdefault(name, len(self._slots)) for name in work], np.int64)
        counts = np.array([len(token_ids) for token_ids in work.values()], np.int64)
        starts = self._lengths[slots]
        for slot, start, token_ids in zip(slots, starts, work.values(), strict=True):
            self._state.token_ids[slot, start : start + len(token_ids)] = token_ids
        self._lengths[slots] += counts
        rows = list(np.split(np.arange(counts.sum()), counts.cumsum()[:-1]))
        if num_last is not None:
            rows = [sequence_rows[len(sequence_rows) - num_last :] for sequence_rows in rows]
        step_rows = StepRows(np.arange(len(slots)), slots, starts, counts, np.ones(len(slots), bool))
        logits = self.model.compute_logits(self.model.run(self._state, step_rows, np.concatenate(rows)))
        return dict(zip(work, logits.split([len(sequence_rows) for sequence_rows in rows]), strict=True))


DRIVERS = {"torch": PagedDriver} | ({"compiled": RecordedDriver} if extension() else {})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are too small to share work; threads would wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def reference_of() -> Callable[..., torch.nn.Module]:
    """make_reference(model_type, **config)."""
    return make_reference


@pytest.fixture
def model_of() -> Callable[..., DecoderModel]:
    """make_model(reference, dtype=..., max_model_len=...)."""
    return make_model


@pytest.fixture(params=DRIVERS)
def driver_of(request: pytest.FixtureRequest) -> type[PagedDriver] | type[RecordedDriver]:
    """PagedDriver(model, block_size=...) or RecordedDriver."""
    return DRIVERS[request.param]
