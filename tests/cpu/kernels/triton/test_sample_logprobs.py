import math

import numpy as np
import pytest
import torch

from quire.kernels.sample import complete_logprobs, pick_logprobs, pick_logprobs_on_device, reference


def pick(logits, token_ids, num_top, device):
    picked = pick_logprobs_on_device(
        logits.to(device), torch.tensor(token_ids, dtype=torch.int32, device=device), num_top
    )
    return complete_logprobs(picked.token_ids.cpu().numpy(), picked.logprobs.cpu().numpy(), picked.ranks.cpu().numpy())


@pytest.mark.parametrize("vocab_size", [1, 40, 1000, 5003])
@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_equals_the_reference_and_the_cpu(device, vocab_size, num_top):
    num_top = min(num_top, vocab_size)
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(1)) * 4
    logits[2, vocab_size // 2 :] = -math.inf
    logits[2, 0] = 1.0
    token_ids = [0, vocab_size - 1, vocab_size // 3]
    picked = pick(logits, token_ids, num_top, device)
    expected = pick_logprobs(torch.log_softmax(logits, -1), np.array(token_ids), num_top)
    for row, values in enumerate(logits.tolist()):
        exact = np.array(reference.log_softmax(values))
        assert picked.token_ids[row].tolist() == [token_ids[row], *np.argsort(-exact, kind="stable")[:num_top]]
        np.testing.assert_allclose(picked.logprobs[row], exact[picked.token_ids[row]], atol=5e-6)
    np.testing.assert_array_equal(picked.ranks, expected.ranks)
    np.testing.assert_allclose(picked.logprobs, expected.logprobs, atol=5e-6)


def test_equally_likely_tokens_share_a_rank(device):
    logits = torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1]]).log()
    assert pick(logits, [2], 5, device).ranks.tolist() == [[2, 1, 2, 2, 4, 4]]


def test_all_alternatives_of_a_row(device):
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(2))
    picked = pick(logits, [7, 8], 300, device)
    assert sorted(picked.token_ids[0, 1:].tolist()) == list(range(300))
    assert (np.diff(picked.logprobs[:, 1:], axis=1) <= 0).all()


@pytest.mark.parametrize("bad", [[math.nan, 0.0, 1.0], [0.0, math.inf, 0.0], [-math.inf] * 3])
def test_a_row_that_is_not_finite_is_not_a_number(device, bad):
    logits = torch.tensor([[0.0, 1.0, 2.0], bad, [0.0, 1.0, 2.0]])
    picked = pick(logits, [1, -1, 1], 0, device)
    assert np.isnan(picked.logprobs[:, 0]).tolist() == [False, True, False]
