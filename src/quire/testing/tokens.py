"""The model behind `FakeExecutor`: a rule by which a reader can predict every token."""

from collections.abc import Sequence

from quire.types.request import GenerationRequest

VOCAB_SIZE = 1000


def next_token_id(
    num_tokens: int,
    sum_of_tokens: int,
    *,
    seed: int,
    sample_index: int,
    banned: frozenset[int] = frozenset(),
    vocab_size: int = VOCAB_SIZE,
) -> int:
    """The token after `num_tokens` tokens: `seed` + 7 `sample_index` + their number + their sum, modulo `vocab_size`.

    After 10, 20, 30 with seed 5 comes 5 + 0 + 3 + 60 = 68, and then 5 + 0 + 4 + 128 = 137.

    Args:
        num_tokens: Prompt tokens and those produced so far.
        sum_of_tokens: The sum of their ids.
        seed: The request's.
        sample_index: Which of its samples.
        banned: If the token is in here, the next larger one that is not is taken, round about.
        vocab_size: Tokens are below this.
    """
    token_id = (seed + 7 * sample_index + num_tokens + sum_of_tokens) % vocab_size
    while token_id in banned:
        token_id = (token_id + 1) % vocab_size
    return token_id


def predict_tokens(
    request: GenerationRequest,
    *,
    sample_index: int = 0,
    max_model_len: int = 1 << 30,
    vocab_size: int = VOCAB_SIZE,
) -> list[int]:
    """All tokens that a sample produces with `FakeExecutor`, however it is scheduled.

    Those in `produced_token_ids` are taken as given and are not part of the answer.
    """
    return _predict(
        request.prompt_token_ids,
        request.produced_token_ids[sample_index] if sample_index < len(request.produced_token_ids) else (),
        request,
        sample_index=sample_index,
        max_model_len=max_model_len,
        vocab_size=vocab_size,
    )


def _predict(
    prompt: Sequence[int],
    produced: Sequence[int],
    request: GenerationRequest,
    *,
    sample_index: int,
    max_model_len: int,
    vocab_size: int,
) -> list[int]:
    sampling, stop_token_ids = request.sampling, request.stop_token_ids
    assert sampling.seed is not None and sampling.max_tokens is not None
    num_tokens, total = len(prompt) + len(produced), sum(prompt) + sum(produced)
    max_num_tokens = min(len(prompt) + sampling.max_tokens, max_model_len)
    answer: list[int] = []
    while num_tokens < max_num_tokens:
        may_stop = num_tokens - len(prompt) >= sampling.min_tokens
        banned = frozenset() if may_stop else stop_token_ids
        seed = sampling.seed
        token_id = next_token_id(
            num_tokens, total, seed=seed, sample_index=sample_index, banned=banned, vocab_size=vocab_size
        )
        answer.append(token_id)
        num_tokens, total = num_tokens + 1, total + token_id
        if may_stop and token_id in stop_token_ids:
            break
    return answer
