"""The ledger of a GPU, from readings of cards that are not here."""

import re
from dataclasses import replace

import pytest
import torch

from quire.checkpoint.architecture import parse_architecture
from quire.config.cache import CacheConfig
from quire.errors import InsufficientMemoryError
from quire.worker import cuda_memory
from quire.worker.cuda_memory import (
    CONTEXT_BYTES,
    MAX_LIBRARY_BYTES,
    DeviceReading,
    check_card_is_free,
    estimate_graph_bytes,
    margin_bytes,
    measure_step,
    open_ledger,
    settle_ledger,
    torch_memory_fraction,
)
from quire.worker.memory import GIB, check_weights_fit, choose_num_blocks, count_parameters

MIB = 2**20
BLOCK_BYTES = 2 * MIB
WEIGHTS = 15 * GIB


class Card:
    """A card on which a process allocates, and another one holds memory; `read` is what torch would say."""

    def __init__(self, total=140 * GIB, foreign=0, context=CONTEXT_BYTES):
        self.total, self.foreign, self.context = total, foreign, context
        self.libraries = self.reserved = self.allocated = self.peak = 0

    def allocate(self, num_bytes, rounding=0):
        self.allocated += num_bytes
        self.reserved += num_bytes + rounding
        self.peak = max(self.peak, self.reserved)

    def run_step(self, num_bytes):
        """Temporary tensors, of which torch keeps the memory."""
        self.reserved += num_bytes
        self.peak = max(self.peak, self.reserved)

    @property
    def ours(self):
        return self.context + self.libraries + self.reserved

    def read(self):
        return DeviceReading(
            total_bytes=self.total,
            free_bytes=self.total - self.foreign - self.ours,
            reserved_bytes=self.reserved,
            allocated_bytes=self.allocated,
            peak_reserved_bytes=self.peak,
        )


def opened(card, config, weight_bytes=WEIGHTS):
    return open_ledger(card.read(), config, weight_bytes=weight_bytes, block_bytes=BLOCK_BYTES, block_size=16)


def start(card, config=None, *, activations=2 * GIB, libraries=200 * MIB, graphs=GIB, sampler=GIB // 4, grows=0):
    """What an executor does, up to the size of the KV cache."""
    config = config or CacheConfig()
    first = card.read()
    ledger = opened(card, config)
    check_card_is_free(ledger, config)
    check_weights_fit(ledger)
    card.allocate(WEIGHTS, rounding=30 * MIB)
    loaded = card.read()
    card.libraries += libraries
    card.foreign += grows
    card.run_step(activations)
    profiled = card.read()
    return settle_ledger(
        ledger, start=first, loaded=loaded, profiled=profiled, graph_bytes=graphs, sampler_bytes=sampler
    )


def blocks(ledger, config=None, *, max_num_seqs=256, max_model_len=4096):
    return choose_num_blocks(ledger, config or CacheConfig(), max_num_seqs=max_num_seqs, max_model_len=max_model_len)


@pytest.mark.parametrize("foreign", [0, 30 * GIB])
@pytest.mark.parametrize("context", [300 * MIB, CONTEXT_BYTES, 650 * MIB])
@pytest.mark.parametrize("utilization", [0.3, 0.5, 0.75])
def test_the_fraction_is_honoured_within_2_percent(utilization, context, foreign):
    card = Card(foreign=foreign, context=context)
    ledger = start(card, CacheConfig(gpu_memory_utilization=utilization))
    card.allocate(blocks(ledger) * BLOCK_BYTES)
    card.libraries += GIB + GIB // 4  # graphs and sampler
    permitted = utilization * card.total
    assert permitted - 0.01 * card.total < card.ours < permitted + 0.002 * card.total
    assert card.read().free_bytes > 0


def test_every_part_is_what_was_measured():
    ledger = start(Card(foreign=20 * GIB), CacheConfig(gpu_memory_utilization=0.8))
    assert ledger.weight_bytes == WEIGHTS
    assert ledger.activation_bytes == 2 * GIB
    assert (ledger.graph_bytes, ledger.sampler_bytes) == (GIB, GIB // 4)
    assert ledger.rest_bytes == CONTEXT_BYTES + 200 * MIB + 30 * MIB + margin_bytes(140 * GIB)
    assert ledger.foreign_bytes == 20 * GIB
    assert ledger.kv_room_bytes == ledger.limit_bytes - ledger.fixed_bytes
    assert set(ledger.as_dict().values()) >= {num_bytes for _, num_bytes in ledger.fixed_parts}


def test_a_process_that_grows_during_the_start_is_not_ours():
    calm = start(Card(foreign=20 * GIB), CacheConfig(gpu_memory_utilization=0.8))
    grown = start(Card(foreign=20 * GIB), CacheConfig(gpu_memory_utilization=0.8), grows=9 * GIB)
    assert grown.rest_bytes <= calm.rest_bytes + MAX_LIBRARY_BYTES
    assert grown.foreign_bytes == pytest.approx(29 * GIB, abs=MAX_LIBRARY_BYTES)
    assert grown.kv_room_bytes <= calm.kv_room_bytes
    shrunk = start(Card(foreign=20 * GIB), CacheConfig(gpu_memory_utilization=0.8), grows=-9 * GIB)
    assert shrunk.kv_room_bytes >= calm.kv_room_bytes


def test_a_process_that_takes_what_was_promised_leaves_what_is_free():
    card = Card()
    ledger = start(card, CacheConfig(gpu_memory_utilization=0.9), grows=60 * GIB)
    card.allocate(blocks(ledger) * BLOCK_BYTES)
    card.libraries += GIB + GIB // 4
    assert 0 <= card.read().free_bytes < 2 * GIB


def test_a_card_in_use_is_refused_with_a_fraction_that_fits():
    config = CacheConfig(gpu_memory_utilization=0.92)
    with pytest.raises(InsufficientMemoryError) as caught:
        start(Card(foreign=60 * GIB), config)
    text = str(caught.value)
    assert "asks for 128.80 of the card's 140.00 GiB, and 80.00 GiB are free" in text
    assert "other processes hold 60.00 GiB" in text
    assert caught.value.param == "gpu_memory_utilization"
    fitting = float(re.search(r"--gpu-memory-utilization ([\d.]+) fits", text)[1])
    assert fitting == 0.57
    assert blocks(start(Card(foreign=60 * GIB), CacheConfig(gpu_memory_utilization=fitting))) > 256


def test_a_card_without_room_for_the_weights_says_so():
    with pytest.raises(InsufficientMemoryError, match="nvidia-smi") as caught:
        start(Card(foreign=130 * GIB))
    assert "fits" not in caught.value.hint


def test_the_whole_of_a_free_card_may_be_asked_for():
    card = Card(context=700 * MIB)
    ledger = start(card, CacheConfig(gpu_memory_utilization=1.0))
    card.allocate(blocks(ledger) * BLOCK_BYTES)
    assert card.read().free_bytes >= GIB + GIB // 4


def test_weights_that_leave_nothing_are_refused_before_loading():
    ledger = opened(Card(total=16 * GIB), CacheConfig())
    with pytest.raises(InsufficientMemoryError, match=r"weights take 15\.00 GiB") as caught:
        check_weights_fit(ledger)
    assert "16.00 GiB available x 0.92 - 15.00 GiB weights - 0.56 GiB context and libraries" in caught.value.message
    assert "--gpu-memory-utilization 0.98" in caught.value.hint
    assert "smaller or a quantised model" in _hint(opened(Card(total=12 * GIB), CacheConfig()))


def _hint(ledger):
    with pytest.raises(InsufficientMemoryError) as caught:
        check_weights_fit(ledger)
    return caught.value.hint


def test_a_sequence_that_does_not_fit_names_the_length_that_does():
    ledger = start(Card(total=24 * GIB))
    with pytest.raises(InsufficientMemoryError, match="max_model_len=131072") as caught:
        blocks(ledger, max_model_len=131072)
    for part in ("24.00 GiB available x 0.92", "15.00 GiB weights", "2.00 GiB activations", "1.00 GiB CUDA graphs"):
        assert part in caught.value.message
    fitting = int(re.search(r"--max-model-len (\d+) fits", caught.value.hint)[1])
    assert blocks(ledger, max_model_len=fitting) == fitting // 16
    with pytest.raises(InsufficientMemoryError):
        blocks(ledger, max_model_len=fitting + 1)


def test_without_a_prefix_cache_no_more_than_all_sequences_need():
    ledger = start(Card())
    assert blocks(ledger, CacheConfig(enable_prefix_caching=False), max_num_seqs=3, max_model_len=161) == 33
    assert blocks(ledger, max_num_seqs=3, max_model_len=161) == ledger.kv_room_bytes // BLOCK_BYTES


@pytest.mark.parametrize(
    "config", [CacheConfig(kv_cache_memory_bytes=12 * GIB + 5), CacheConfig(num_gpu_blocks_override=6144)]
)
def test_exact_sizes_need_only_be_free(config):
    ledger = start(Card(foreign=100 * GIB), config)
    assert blocks(ledger, config) == 6144
    assert torch_memory_fraction(ledger, config) == 1.0


def test_an_exact_size_beyond_what_is_free_is_refused():
    config = CacheConfig(kv_cache_memory_bytes=30 * GIB)
    ledger = start(Card(foreign=100 * GIB), config)
    with pytest.raises(InsufficientMemoryError, match=r"30\.00 GiB does not fit: 40\.00 GiB free of 140\.00") as caught:
        blocks(ledger, config)
    fitting = int(re.search(r"--kv-cache-memory-bytes (\d+) fits", caught.value.hint)[1])
    assert blocks(ledger, CacheConfig(kv_cache_memory_bytes=fitting)) * BLOCK_BYTES == fitting


def test_torch_may_hold_all_but_what_is_not_its_own():
    ledger = start(Card(), CacheConfig(gpu_memory_utilization=0.5))
    fraction = torch_memory_fraction(ledger, CacheConfig(gpu_memory_utilization=0.5))
    assert fraction == pytest.approx(0.51 - ledger.rest_bytes / ledger.available_bytes)
    assert fraction * 140 * GIB > ledger.limit_bytes - ledger.rest_bytes


def test_the_table_and_the_dictionary_show_every_purpose():
    ledger = replace(start(Card()), num_blocks=2048)
    lines = ledger.table().splitlines()
    assert [line[2:17].strip() for line in lines[1:]] == [
        "weights",
        "KV cache",
        "activations",
        "CUDA graphs",
        "sampler",
        "rest",
        "other processes",
        "card",
    ]
    assert "4.00 GiB  32,768 tokens in 2,048 blocks" in lines[2]
    assert ledger.as_dict()["kv_cache"] == 4 * GIB


LLAMA_8B = parse_architecture(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    source="test",
)


def test_graphs_are_estimated_from_the_largest_and_their_number():
    few = estimate_graph_bytes(LLAMA_8B, num_graphs=1, num_rows=512, dtype_bytes=2)
    many = estimate_graph_bytes(LLAMA_8B, num_graphs=40, num_rows=512, dtype_bytes=2)
    assert 2 * 512 * 128256 * 4 < few < GIB
    assert many - few == 39 * cuda_memory.GRAPH_BYTES


def test_a_tied_output_projection_is_counted_once_where_it_is_not_copied():
    tied = replace(LLAMA_8B, tie_word_embeddings=True)
    assert count_parameters(LLAMA_8B) == count_parameters(tied) == 8_030_261_248
    assert count_parameters(tied, copies_tied_head=False) == 8_030_261_248 - 128256 * 4096
    assert count_parameters(LLAMA_8B, copies_tied_head=False) == 8_030_261_248


def test_a_largest_step_that_does_not_fit_names_a_smaller_one(monkeypatch):
    def run():
        raise torch.cuda.OutOfMemoryError("out of memory")

    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    reading = DeviceReading(total_bytes=24 * GIB, free_bytes=0, peak_reserved_bytes=23 * GIB)
    monkeypatch.setattr(cuda_memory, "read_device", lambda device: reading)
    with pytest.raises(InsufficientMemoryError, match="step of 16384 tokens does not fit") as caught:
        measure_step(run, torch.device("cuda"), num_tokens=16384)
    assert "--max-num-batched-tokens 4096" in caught.value.hint
    assert measure_step(lambda: None, torch.device("cuda"), num_tokens=1) == reading
