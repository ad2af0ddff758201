import numpy as np
import pytest
import torch

from quire.kernels.sample import pick_logprobs, reference


@pytest.mark.parametrize("num_top", [0, 1, 5, 40])
def test_own_token_first_then_the_most_likely(num_top):
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) * 4
    token_ids = np.array([0, 39, 7, 7, 20, 3])
    picked = pick_logprobs(torch.log_softmax(logits, -1), token_ids, num_top)
    assert picked.token_ids.shape == picked.logprobs.shape == picked.ranks.shape == (6, 1 + num_top)
    for row, values in enumerate(logits.tolist()):
        exact = np.array(reference.log_softmax(values))
        falling = np.argsort(-exact)
        expected_ids = [token_ids[row], *falling[:num_top]]
        assert picked.token_ids[row].tolist() == expected_ids
        np.testing.assert_allclose(picked.logprobs[row], exact[expected_ids], atol=2e-6)
        assert picked.ranks[row].tolist() == [int((exact > exact[token]).sum()) + 1 for token in expected_ids]


def test_equally_likely_tokens_share_a_rank():
    logprobs = torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1]]).log()
    picked = pick_logprobs(logprobs, np.array([2]), 5)
    assert picked.ranks.tolist() == [[2, 1, 2, 2, 4, 4]]
