"""The sampler one row at a time, in float64 and without shortcuts. `torch_cpu.py` must agree with it."""

import math
from collections.abc import Mapping, Sequence

from quire.kernels.sample.batch import TOP_P_ROUNDING

MASK_32 = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 on plain integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & MASK_32,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & MASK_32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & MASK_32, (k1 + 0xBB67AE85) & MASK_32
    return c0, c1, c2, c3


def uniform(seed: int, sample_index: int, position: int) -> float:
    """The random number in (0, 1) of that name."""
    counter = (position & MASK_32, position >> 32, sample_index & MASK_32, sample_index >> 32)
    high, low, _, _ = philox4x32(counter, (seed & MASK_32, (seed >> 32) & MASK_32))
    return ((((high << 32) | low) >> 12) + 0.5) / 2**52


def edit_logits(
    logits: Sequence[float],
    *,
    mask: Sequence[int] | None = None,
    allowed: Sequence[int] | None = None,
    excluded: Sequence[int] = (),
    bias: Mapping[int, float] | None = None,
    prompt_ids: Sequence[int] = (),
    output_ids: Sequence[int] = (),
    repetition: float = 1.0,
    frequency: float = 0.0,
    presence: float = 0.0,
) -> list[float]:
    """Mask, allowed ids, excluded ids, bias and penalties, in this order.

    Args:
        logits: [V].
        mask: Words of 32 bits, a bit per token; None allows all.
        allowed: None allows all.
        excluded: Never drawn.
        bias: Added.
        prompt_ids: Tokens of the prompt.
        output_ids: Tokens of the answer.
        repetition: Divides positive and multiplies negative logits of tokens that have occurred.
        frequency: Subtracted for every time that a token stands in the answer.
        presence: Subtracted if it stands there.
    """
    edited = []
    for token_id, logit in enumerate(logits):
        if mask is not None and not mask[token_id // 32] >> (token_id % 32) & 1:
            logit = -math.inf
        if (allowed is not None and token_id not in allowed) or token_id in excluded:
            logit = -math.inf
        logit += (bias or {}).get(token_id, 0.0)
        count = list(output_ids).count(token_id)
        if count or token_id in prompt_ids:
            logit = logit / repetition if logit > 0 else logit * repetition
        edited.append(logit - frequency * count - (presence if count else 0.0))
    return edited


def is_failed(logits: Sequence[float]) -> bool:
    """Whether no token can be drawn."""
    return any(math.isnan(logit) for logit in logits) or not math.isfinite(max(logits))


def kept_probabilities(
    logits: Sequence[float], *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> list[float]:
    """The distribution [V] that is drawn from, normalised."""
    best = max(logits)
    weights = [math.exp((logit - best) / temperature) for logit in logits]
    weights = [weight if weight >= min_p else 0.0 for weight in weights]
    if 0 < top_k < len(logits):
        least = sorted(logits, reverse=True)[top_k - 1]
        weights = [weight if logit >= least else 0.0 for weight, logit in zip(weights, logits, strict=True)]
    if top_p < 1.0:
        limit, reached = top_p * TOP_P_ROUNDING * sum(weights), 0.0
        for token_id in sorted(range(len(logits)), key=lambda token_id: (-logits[token_id], token_id)):
            weight = weights[token_id]
            if reached >= limit:
                weights[token_id] = 0.0
            reached += weight
    total = sum(weights)
    return [weight / total for weight in weights]


def draw(probabilities: Sequence[float], number: float) -> int:
    """The first token, in the order of ids, at which the cumulative probability exceeds `number`."""
    cumulative = 0.0
    for token_id, probability in enumerate(probabilities):
        cumulative += probability
        if cumulative > number:
            return token_id
    return max(token_id for token_id, probability in enumerate(probabilities) if probability > 0.0)


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Log-probabilities [V] of finite or -inf logits."""
    best = max(logits)
    log_total = best + math.log(sum(math.exp(logit - best) for logit in logits))
    return [logit - log_total for logit in logits]
