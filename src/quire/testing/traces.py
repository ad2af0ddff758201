"""Requests with arrival times, made from a seed."""

import random
from collections.abc import Iterable
from typing import Any

from quire.testing.tokens import VOCAB_SIZE
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest
from quire.types.sampling import SamplingParams


def make_request(
    request_id: str,
    prompt_token_ids: list[int],
    *,
    max_tokens: int = 16,
    seed: int = 0,
    arrival_time: float = 0.0,
    priority: int = 0,
    eos_token_ids: tuple[int, ...] = (),
    produced_token_ids: tuple[tuple[int, ...], ...] = (),
    cache_salt: str = "",
    tenant: str = "",
    weight: float = 1.0,
    **sampling: Any,
) -> GenerationRequest:
    """A request as a front end would send it; `sampling` goes to `SamplingParams`."""
    return GenerationRequest(
        request_id=RequestId(request_id),
        prompt_token_ids=prompt_token_ids,
        sampling=SamplingParams(max_tokens=max_tokens, seed=seed, **sampling),
        eos_token_ids=eos_token_ids,
        priority=priority,
        tenant=tenant,
        weight=weight,
        arrival_time=arrival_time,
        cache_salt=cache_salt,
        produced_token_ids=produced_token_ids,
    )


def random_prompt(rng: random.Random, num_tokens: int) -> list[int]:
    """Token ids of a prompt that shares a block with no other."""
    return rng.choices(range(VOCAB_SIZE), k=num_tokens)


def poisson_trace(
    *,
    num_requests: int,
    requests_per_second: float,
    prompt_tokens: tuple[int, int] = (16, 256),
    output_tokens: tuple[int, int] = (8, 64),
    shared_prefix_tokens: int = 0,
    name: str = "request",
    seed: int = 0,
) -> list[GenerationRequest]:
    """Independent arrivals at a mean rate.

    Args:
        num_requests: How many.
        requests_per_second: On average; the times between them are exponentially distributed.
        prompt_tokens: Smallest and largest length, uniformly drawn.
        output_tokens: The same for `max_tokens`.
        shared_prefix_tokens: Leading tokens, of those in `prompt_tokens`, that all prompts have in common.
        name: Request ids are this and a number.
        seed: Of everything drawn here.
    """
    rng = random.Random(seed)
    prefix = random_prompt(rng, shared_prefix_tokens)
    arrival_time, trace = 0.0, []
    for number in range(num_requests):
        arrival_time += rng.expovariate(requests_per_second)
        num_own = max(1, rng.randint(*prompt_tokens) - shared_prefix_tokens)
        trace.append(
            make_request(
                f"{name}-{number}",
                prefix + random_prompt(rng, num_own),
                max_tokens=rng.randint(*output_tokens),
                seed=rng.randrange(1 << 30),
                arrival_time=arrival_time,
            )
        )
    return trace


def burst_trace(
    *,
    num_bursts: int,
    requests_per_burst: int,
    seconds_between_bursts: float,
    prompt_tokens: tuple[int, int] = (16, 256),
    output_tokens: tuple[int, int] = (8, 64),
    name: str = "burst",
    seed: int = 0,
) -> list[GenerationRequest]:
    """Requests that arrive many at a time; arguments as for `poisson_trace`."""
    rng = random.Random(seed)
    return [
        make_request(
            f"{name}-{burst}-{number}",
            random_prompt(rng, rng.randint(*prompt_tokens)),
            max_tokens=rng.randint(*output_tokens),
            seed=rng.randrange(1 << 30),
            arrival_time=burst * seconds_between_bursts,
        )
        for burst in range(num_bursts)
        for number in range(requests_per_burst)
    ]


def long_prompt(
    num_tokens: int, *, arrival_time: float = 0.0, max_tokens: int = 8, name: str = "long", seed: int = 0
) -> GenerationRequest:
    """One request with a long prompt, to be mixed with others by `merge`."""
    prompt = random_prompt(random.Random(seed), num_tokens)
    return make_request(name, prompt, max_tokens=max_tokens, seed=seed, arrival_time=arrival_time)


def merge(*traces: Iterable[GenerationRequest]) -> list[GenerationRequest]:
    """All requests in the order of their arrival."""
    return sorted((request for trace in traces for request in trace), key=lambda request: request.arrival_time)
