"""Which device this process can use, and what it is."""

import importlib.util
import logging
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from quire.errors import ConfigError
from quire.kernels.native import describe_kernels, instruction_sets

logger = logging.getLogger("quire.worker")

MIN_COMPUTE_CAPABILITY = (8, 0)
"""Of the GPU (Ampere): older ones have no bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What torch knows of the GPU that this process would use.

    Attributes:
        cuda_version: That this build of torch was made for; None where it knows no CUDA.
        is_available: Whether torch can use a GPU.
        complaint: What torch said while it looked.
        has_triton: Whether Triton, the kernels' compiler, is installed.
    """

    cuda_version: str | None = None
    is_available: bool = False
    complaint: str = ""
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    has_triton: bool = False


def choose_device(wanted: str, facts: GpuFacts | None = None) -> str:
    """Turns what `DeviceConfig.device` says into "cpu" or "cuda"; logs why a GPU that is there is not taken.

    Raises:
        ConfigError: "cuda" is asked for and cannot be had; says why.
    """
    if wanted == "cpu":
        return "cpu"
    facts = facts or read_gpu_facts()
    obstacle = find_obstacle(facts)
    if obstacle is None:
        return "cuda"
    reason, hint = obstacle
    if wanted == "auto":
        if facts.is_available:
            logger.warning("the model runs on the CPU: %s (%s)", reason, hint)
        return "cpu"
    raise ConfigError(f"device cuda cannot be used: {reason}", hint=f"{hint}; or --device cpu", param="device")


def find_obstacle(facts: GpuFacts) -> tuple[str, str] | None:
    """Why the GPU cannot be used, and what to do about it; None where it can."""
    if facts.cuda_version is None:
        return "this build of torch knows no CUDA", "install one that does: on Linux `pip install torch`"
    if not facts.is_available:
        reason = facts.complaint or "torch sees no GPU"
        return reason, "`nvidia-smi` shows whether the driver sees one; CUDA_VISIBLE_DEVICES may hide it"
    if facts.capability < MIN_COMPUTE_CAPABILITY:
        found, needed = (".".join(map(str, pair)) for pair in (facts.capability, MIN_COMPUTE_CAPABILITY))
        return f"{facts.name} has compute capability {found}, at least {needed} is needed", "use a newer GPU"
    if not facts.has_triton:
        return "Triton is not installed", "pip install triton"
    return None


def read_gpu_facts() -> GpuFacts:
    """Looks for a GPU; initialises the driver where there is one."""
    cuda_version = torch.version.cuda
    with warnings.catch_warnings(record=True) as complaints:
        # torch warns, for one, where the driver is too old.
        warnings.simplefilter("always")
        is_available = cuda_version is not None and torch.cuda.is_available()
    complaint = str(complaints[-1].message).strip() if complaints else ""
    if not is_available:
        return GpuFacts(cuda_version=cuda_version, complaint=complaint)
    return GpuFacts(
        cuda_version=cuda_version,
        is_available=True,
        name=torch.cuda.get_device_name(),
        capability=torch.cuda.get_device_capability(),
        has_triton=importlib.util.find_spec("triton") is not None,
    )


def describe_device(wanted: str) -> dict[str, Any]:
    """For people: the device that would be used, and what runs on it. Takes some of a GPU's memory for a moment.

    Raises:
        ConfigError: See `choose_device`.
    """
    facts = read_gpu_facts()
    if choose_device(wanted, facts) == "cpu":
        obstacle = find_obstacle(facts) if wanted == "auto" else None
        reason = {} if obstacle is None else {"no_gpu_because": obstacle[0]}
        return {"device": "cpu", **reason, "kernels": describe_kernels(), "instruction_sets": instruction_sets()}
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return {
        "device": "cuda",
        "gpu": facts.name,
        "compute_capability": ".".join(map(str, facts.capability)),
        "gpu_memory_bytes": total_bytes,
        "free_gpu_memory_bytes": free_bytes,
        "cuda_version": facts.cuda_version,
        "triton_version": _triton_version(),
        "kernels": "Triton and cuBLAS",
    }


def _triton_version() -> str | None:
    """None where Triton was installed under another name."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None
