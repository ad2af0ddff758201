"""Log-probabilities of the model's own distribution, before any sampling parameter."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(slots=True)
class TokenLogprobs:
    """L positions; column 0 is the token that stands there, then k alternatives in falling order.

    Attributes:
        token_ids: [L, 1 + k] int64.
        logprobs: [L, 1 + k] float32.
        ranks: [L, 1 + k] int64; 1 + the number of tokens with a greater log-probability.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    ranks: np.ndarray


def pick_logprobs(logprobs: torch.Tensor, token_ids: np.ndarray, num_top: int) -> TokenLogprobs:
    """Reads the entries to report.

    Args:
        logprobs: [L, V] float32, normalised (`torch.log_softmax` of the logits). Not modified.
        token_ids: [L] int64; the tokens that stand at the positions.
        num_top: k, at most V; equally likely alternatives come in no particular order.
    """
    tokens = torch.from_numpy(token_ids)[:, None]
    own = logprobs.gather(1, tokens)
    own_ranks = (logprobs > own).sum(1, keepdim=True) + 1
    if num_top == 0:
        return TokenLogprobs(tokens.numpy(), own.numpy(), own_ranks.numpy())
    top, top_ids = logprobs.topk(num_top, dim=1)
    return TokenLogprobs(
        torch.cat((tokens, top_ids), 1).numpy(),
        torch.cat((own, top), 1).numpy(),
        np.concatenate((own_ranks.numpy(), _falling_ranks(top.numpy())), 1),
    )


def _falling_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of values [L, k] that fall along each row; equal values share one."""
    columns = np.arange(values.shape[1])
    starts = np.zeros(values.shape, np.int64)
    starts[:, 1:] = np.where(values[:, 1:] < values[:, :-1], columns[1:], 0)
    return np.maximum.accumulate(starts, axis=1) + 1
