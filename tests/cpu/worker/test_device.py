"""Which device is taken, from what torch knows of the GPU."""

import pytest
import torch

from quire.errors import ConfigError
from quire.kernels.native import instruction_sets
from quire.worker.device import GpuFacts, choose_device, describe_device, find_obstacle, read_gpu_facts

GOOD = GpuFacts(cuda_version="12.8", is_available=True, name="NVIDIA H200", capability=(9, 0), has_triton=True)
BAD = [
    (GpuFacts(), "this build of torch knows no CUDA"),
    (GpuFacts(cuda_version="12.8"), "torch sees no GPU"),
    (GpuFacts(cuda_version="12.8", complaint="the driver is too old"), "the driver is too old"),
    (
        GpuFacts(cuda_version="12.8", is_available=True, name="Tesla T4", capability=(7, 5), has_triton=True),
        "Tesla T4 has compute capability 7.5, at least 8.0 is needed",
    ),
    (
        GpuFacts(cuda_version="12.8", is_available=True, name="NVIDIA H200", capability=(9, 0)),
        "Triton is not installed",
    ),
]


def test_a_gpu_is_taken_where_there_is_one():
    assert choose_device("auto", GOOD) == choose_device("cuda", GOOD) == "cuda"
    assert choose_device("cpu", GOOD) == "cpu"
    assert find_obstacle(GOOD) is None


@pytest.mark.parametrize(("facts", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_what_keeps_a_gpu_from_being_used_is_said(facts, reason, caplog):
    assert choose_device("auto", facts) == "cpu"
    assert (reason in caplog.text) == facts.is_available
    with pytest.raises(ConfigError, match="device cuda cannot be used") as caught:
        choose_device("cuda", facts)
    assert reason in caught.value.message
    assert caught.value.param == "device"
    assert caught.value.hint.endswith("or --device cpu")


def test_this_machine_is_described():
    facts = read_gpu_facts()
    described = describe_device("auto")
    assert described["device"] == ("cpu" if find_obstacle(facts) else "cuda")
    assert ("gpu" in described) == (described["device"] == "cuda")
    if not torch.cuda.is_available():
        assert described["no_gpu_because"]
        assert describe_device("cpu") == {
            "device": "cpu",
            "kernels": described["kernels"],
            "instruction_sets": instruction_sets(),
        }
