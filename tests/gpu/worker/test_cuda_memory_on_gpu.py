"""Readings of a real card, and traces with kernels in them."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from quire.config.cache import CacheConfig
from quire.errors import InsufficientMemoryError
from quire.worker.cuda_memory import CONTEXT_BYTES, measure_step, open_ledger, read_device, settle_ledger
from quire.worker.device import choose_device, describe_device
from quire.worker.profiler import Profiler

MIB = 2**20
DEVICE = torch.device("cuda")

pytestmark = pytest.mark.usefixtures("real_gpu")


def test_a_reading_sees_what_torch_allocates() -> None:
    before = read_device(DEVICE)
    held = torch.empty(300 * MIB, dtype=torch.uint8, device=DEVICE)
    after = read_device(DEVICE)
    assert after.total_bytes == before.total_bytes == torch.cuda.mem_get_info()[1]
    assert after.allocated_bytes - before.allocated_bytes == held.numel()
    assert after.reserved_bytes >= after.allocated_bytes


def test_a_step_is_measured_by_its_peak() -> None:
    torch.cuda.empty_cache()
    start = read_device(DEVICE)
    weights = torch.empty(200 * MIB, dtype=torch.uint8, device=DEVICE)
    loaded = read_device(DEVICE)

    def step() -> None:
        first = torch.empty(100 * MIB, dtype=torch.uint8, device=DEVICE)
        second = torch.empty(150 * MIB, dtype=torch.uint8, device=DEVICE)
        del first
        torch.empty(60 * MIB, dtype=torch.uint8, device=DEVICE)
        del second

    profiled = measure_step(step, DEVICE, num_tokens=1)
    ledger = open_ledger(start, CacheConfig(), weight_bytes=0, block_bytes=MIB, block_size=16)
    settled = settle_ledger(ledger, start=start, loaded=loaded, profiled=profiled, graph_bytes=0, sampler_bytes=0)
    assert settled.weight_bytes == weights.numel()
    assert settled.activation_bytes == 250 * MIB
    assert settled.rest_bytes < CONTEXT_BYTES + 2**30


def test_a_step_that_does_not_fit_is_the_callers_to_mend() -> None:
    too_many = 2 * torch.cuda.mem_get_info()[1]
    with pytest.raises(InsufficientMemoryError, match="--max-num-batched-tokens 2048"):
        measure_step(lambda: torch.empty(too_many, dtype=torch.uint8, device=DEVICE), DEVICE, num_tokens=8192)


def test_the_gpu_is_described() -> None:
    assert choose_device("auto") == choose_device("cuda") == "cuda"
    facts = describe_device("auto")
    assert facts["gpu"] == torch.cuda.get_device_name()
    assert 0 < facts["free_gpu_memory_bytes"] <= facts["gpu_memory_bytes"]
    assert facts["triton_version"]


def test_a_trace_holds_kernels(tmp_path: Path) -> None:
    numbers = torch.ones(256, 256, device=DEVICE)
    profiler = Profiler(str(tmp_path))
    profiler.start()
    numbers @ numbers
    path = profiler.stop()
    with gzip.open(path) as file:
        categories = {event.get("cat") for event in json.load(file)["traceEvents"]}
    assert "kernel" in categories
