"""Programmatic dependent launch: a kernel starts while its predecessor in the stream still drains.

A kernel launched this way waits (`gdc_wait`) before it touches what its predecessors write; until then it may load
weights. Needs compute capability 9.0; elsewhere kernels start one after the other, as usual.
"""

from functools import cache

import torch


def is_supported(device: torch.device) -> bool:
    """Whether kernels on `device` may be launched this way; never on a CPU."""
    return device.type == "cuda" and _capability(device.index or 0) >= (9, 0)


def options(tensor: torch.Tensor) -> dict[str, bool]:
    """Launch keywords for a kernel that works on `tensor` and was compiled with PDL = `is_supported`."""
    return {"launch_pdl": True} if is_supported(tensor.device) else {}


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
