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


@dataclass(slots=True)
class DeviceLogprobs:
    """`TokenLogprobs` on the device, all but the ranks of the alternatives, which follow from their order.

    Attributes:
        token_ids: [L, 1 + k] int32.
        logprobs: [L, 1 + k] float32.
        ranks: [L] int32; of column 0.
    """

    token_ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor


def pick_logprobs_on_device(logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> DeviceLogprobs:
    """Reads the entries to report from raw logits, without waiting for the device. NaN where a row is not finite.

    Args:
        logits: [L, V] float32 contiguous. Not modified.
        token_ids: [L] int32 on the device; the tokens that stand at the positions, negative where there is none.
        num_top: k, at most V; equally likely alternatives come in no particular order.
    """
    from quire.kernels.sample import triton_logprobs

    own, ranks, peaks, log_sums = triton_logprobs.own_logprobs(logits, token_ids)
    if num_top == 0:
        return DeviceLogprobs(token_ids[:, None], own[:, None], ranks)
    top, top_ids = logits.topk(num_top, dim=1)
    top_logprobs = (top - peaks[:, None]) - log_sums[:, None]
    return DeviceLogprobs(
        torch.cat((token_ids[:, None], top_ids.to(torch.int32)), 1), torch.cat((own[:, None], top_logprobs), 1), ranks
    )


def complete_logprobs(token_ids: np.ndarray, logprobs: np.ndarray, ranks: np.ndarray) -> TokenLogprobs:
    """From the arrays of `DeviceLogprobs`, once they are on the host."""
    return TokenLogprobs(
        token_ids.astype(np.int64),
        logprobs,
        np.concatenate((ranks.astype(np.int64)[:, None], _falling_ranks(logprobs[:, 1:])), 1),
    )


def _falling_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of values [L, k] that fall along each row; equal values share one."""
    columns = np.arange(values.shape[1])
    starts = np.zeros(values.shape, np.int64)
    starts[:, 1:] = np.where(values[:, 1:] < values[:, :-1], columns[1:], 0)
    return np.maximum.accumulate(starts, axis=1) + 1
