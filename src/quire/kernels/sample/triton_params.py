"""Parameters of the slots that have changed, spread to where the sampler reads them."""

import torch
import triton
import triton.language as tl

from quire.kernels.sample.device_tensors import DeviceSamplingParams

_ENTRIES = 128


@triton.jit(do_not_specialize=["num_entries"])
def _write_params_kernel(
    packed,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    sample_index,
    num_entries,
    ENTRIES: tl.constexpr,
):
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    exists = entry < num_entries
    words = packed + entry
    slot = tl.load(words, mask=exists, other=0)
    tl.store(temperature + slot, tl.load(words + num_entries, mask=exists).to(tl.float32, bitcast=True), mask=exists)
    tl.store(top_k + slot, tl.load(words + 2 * num_entries, mask=exists), mask=exists)
    tl.store(top_p + slot, tl.load(words + 3 * num_entries, mask=exists).to(tl.float32, bitcast=True), mask=exists)
    tl.store(min_p + slot, tl.load(words + 4 * num_entries, mask=exists).to(tl.float32, bitcast=True), mask=exists)
    tl.store(sample_index + slot, tl.load(words + 5 * num_entries, mask=exists), mask=exists)
    low = tl.load(words + 6 * num_entries, mask=exists, other=0).to(tl.uint32, bitcast=True).to(tl.int64)
    high = tl.load(words + 7 * num_entries, mask=exists, other=0).to(tl.int64)
    tl.store(seed + slot, (high << 32) | low, mask=exists)


def write_params(params: DeviceSamplingParams, packed: torch.Tensor) -> None:
    """See `quire.kernels.sample.device.write_params`."""
    num_entries = packed.shape[1]
    _write_params_kernel[(triton.cdiv(num_entries, _ENTRIES),)](
        packed,
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        params.seed,
        params.sample_index,
        num_entries,
        ENTRIES=_ENTRIES,
        num_warps=4,
    )
