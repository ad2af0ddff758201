import copy

import pytest
import torch

from quire.kernels.step_inputs import StepInputs, reference, step_inputs

BLOCK_SIZE = 16


def poisoned_outputs(num_tokens: int, device: str, *, are_decodes: bool) -> StepInputs:
    return StepInputs(
        token_ids=torch.full((num_tokens,), -77, dtype=torch.int32, device=device),
        slot_mapping=torch.full((num_tokens,), -77, dtype=torch.int64, device=device),
        decodes=torch.full((num_tokens, 3), -77, dtype=torch.int32, device=device) if are_decodes else None,
        draw_positions=torch.full((num_tokens,), -77, dtype=torch.int32, device=device) if are_decodes else None,
    )


@pytest.mark.parametrize("num_tokens", [1, 5, 128, 300])
@pytest.mark.parametrize("are_decodes", [False, True])
def test_equals_reference(device, num_tokens, are_decodes):
    generator = torch.Generator().manual_seed(num_tokens)
    num_slots, max_blocks = 301, 9
    block_tables = torch.randint(0, 1000, (num_slots, max_blocks), generator=generator, dtype=torch.int32)
    last_tokens = torch.randint(0, 5000, (num_slots,), generator=generator, dtype=torch.int32)
    tokens = torch.randint(-1, 3, (num_tokens,), generator=generator)
    positions = torch.randint(-1, BLOCK_SIZE * max_blocks, (num_tokens,), generator=generator)
    slots = torch.randperm(num_slots, generator=generator)[:num_tokens]
    new_blocks = torch.where(positions % BLOCK_SIZE == 0, 2000 + slots, -1)
    packed = torch.stack((tokens, positions, slots, new_blocks)).to(torch.int32)

    expected = poisoned_outputs(num_tokens, "cpu", are_decodes=are_decodes)
    expected_tables = block_tables.clone()
    reference.step_inputs(packed, expected_tables, last_tokens, expected, block_size=BLOCK_SIZE)
    actual = poisoned_outputs(num_tokens, device, are_decodes=are_decodes)
    actual_tables = block_tables.to(device, copy=True)
    step_inputs(packed.to(device), actual_tables, last_tokens.to(device), actual, block_size=BLOCK_SIZE)

    assert torch.equal(actual_tables.cpu(), expected_tables)
    for name in StepInputs.__slots__:
        wanted = copy.copy(getattr(expected, name))
        if wanted is not None:
            assert torch.equal(getattr(actual, name).cpu(), wanted), name
