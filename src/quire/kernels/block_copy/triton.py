"""All layers' block copies in one launch, after one small upload: addresses, sources and destinations."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

_WORDS_PER_PROGRAM = 2048


@triton.jit(do_not_specialize=["num_tensors", "num_pairs"])
def _copy_blocks_kernel(plan, num_tensors, num_pairs, BLOCK_WORDS: tl.constexpr, WORDS: tl.constexpr):
    """WORDS words of 4 bytes of one block of one tensor."""
    pair, piece, tensor = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    address = tl.load(plan + tensor)
    source = tl.load(plan + num_tensors + pair)
    destination = tl.load(plan + num_tensors + num_pairs + pair)
    base = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 16)
    word = piece * WORDS + tl.arange(0, WORDS)
    words = tl.load(base + source * BLOCK_WORDS + word, mask=word < BLOCK_WORDS)
    tl.store(base + destination * BLOCK_WORDS + word, words, mask=word < BLOCK_WORDS)


def copy_blocks(kv_caches: list[tuple[torch.Tensor, torch.Tensor]], pairs: Sequence[tuple[int, int]]) -> None:
    """See `quire.kernels.block_copy.copy_blocks`; here no block may be both source and destination.

    Launched without overlap with the kernels before it: those may still read the destinations.
    """
    sample = kv_caches[0][0]
    block_words, remainder = divmod(sample[0].numel() * sample.element_size(), 4)
    addresses = [tensor.data_ptr() for layer in kv_caches for tensor in layer]
    assert remainder == 0 and all(address % 16 == 0 for address in addresses), "blocks of whole words, aligned tensors"
    sources, destinations = zip(*pairs, strict=True)
    plan = torch.tensor([*addresses, *sources, *destinations], dtype=torch.int64, pin_memory=sample.is_cuda)
    grid = (len(pairs), triton.cdiv(block_words, _WORDS_PER_PROGRAM), len(addresses))
    _copy_blocks_kernel[grid](
        plan.to(sample.device, non_blocking=True),
        len(addresses),
        len(pairs),
        BLOCK_WORDS=block_words,
        WORDS=min(_WORDS_PER_PROGRAM, triton.next_power_of_2(block_words)),
        num_warps=4,
    )
