"""What a key has used and what is left, on a virtual clock."""

import random
from typing import Any

import pytest

from quire.entrypoints.http.keys import ApiKey
from quire.entrypoints.http.quota import Account, RateLimit, show_duration
from quire.errors import OverloadedError, ParameterError
from quire.testing.clock import VirtualClock
from quire.testing.traces import make_request
from quire.types.request import GenerationRequest


def make(clock: VirtualClock, **limits: Any) -> Account:
    return Account(ApiKey(name="a", digest=b"", **limits), clock)


def request(name: str, num_prompt_tokens: int = 10, max_tokens: int = 10, **sampling: Any) -> GenerationRequest:
    return make_request(name, [1] * num_prompt_tokens, max_tokens=max_tokens, **sampling)


def test_requests_per_minute() -> None:
    clock = VirtualClock()
    account = make(clock, requests_per_minute=3)
    for _ in range(3):
        account.count_request()
    with pytest.raises(OverloadedError, match="3 requests per minute") as failure:
        account.count_request()
    assert failure.value.retry_after_seconds == pytest.approx(20.0)
    clock.advance(failure.value.retry_after_seconds)
    account.count_request()
    with pytest.raises(OverloadedError):
        account.count_request()


def test_tokens_are_reserved_and_then_corrected_to_what_was_used() -> None:
    clock = VirtualClock()
    account = make(clock, tokens_per_minute=600)
    account.reserve(request("a", 100, 200))
    assert account.headers()["x-ratelimit-remaining-tokens"] == "300"
    with pytest.raises(OverloadedError, match="600 tokens per minute, and this request may take 310") as failure:
        account.reserve(request("b", 10, 300))
    assert failure.value.retry_after_seconds == pytest.approx(1.0)
    account.settle("a", 120)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "480"
    account.settle("a", 120)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "480"
    account.reserve(request("b", 10, 300))


def test_every_sample_is_reserved_for() -> None:
    account = make(VirtualClock(), tokens_per_minute=1000)
    account.reserve(request("a", 100, 20, n=5))
    assert account.headers()["x-ratelimit-remaining-tokens"] == "800"


def test_a_request_larger_than_a_minutes_worth_waits_for_a_full_bucket_and_is_paid_for_later() -> None:
    clock = VirtualClock()
    account = make(clock, tokens_per_minute=100)
    account.reserve(request("large", 50, 500))
    account.settle("large", 250)
    assert account.headers()["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(OverloadedError) as failure:
        account.reserve(request("next", 1, 1))
    assert failure.value.retry_after_seconds == pytest.approx(91.2)


def test_concurrency() -> None:
    account = make(VirtualClock(), max_concurrency=2)
    account.reserve(request("a"))
    account.reserve(request("b"))
    with pytest.raises(OverloadedError, match="2 prompts at a time") as failure:
        account.reserve(request("c"))
    assert failure.value.retry_after_seconds == 1.0
    account.settle("a", 5)
    account.reserve(request("c"))


def test_a_refused_request_holds_nothing() -> None:
    account = make(VirtualClock(), tokens_per_minute=30, max_concurrency=5)
    account.reserve(request("a", 10, 10))
    with pytest.raises(OverloadedError):
        account.reserve(request("b", 10, 10))
    assert account.num_running == 1
    assert account.headers()["x-ratelimit-remaining-tokens"] == "10"


def test_priority_is_added_to_and_cannot_be_raised() -> None:
    account = make(VirtualClock(), priority=5)
    assert (account.priority(None), account.priority(2)) == (5, 7)
    with pytest.raises(ParameterError, match="priority must be at least 0"):
        account.priority(-1)
    free = make(VirtualClock())
    assert (free.priority(None), free.priority(-3)) == (0, -3)


def test_other_limits_keep_what_was_used() -> None:
    clock = VirtualClock()
    account = make(clock, requests_per_minute=10)
    for _ in range(4):
        account.count_request()
    account.configure(ApiKey(name="a", digest=b"", requests_per_minute=6, tokens_per_minute=50))
    assert account.headers()["x-ratelimit-remaining-requests"] == "2"
    assert account.headers()["x-ratelimit-limit-tokens"] == "50"
    account.configure(ApiKey(name="a", digest=b""))
    assert account.headers() == {}


def test_headers_are_openai_s() -> None:
    clock = VirtualClock()
    account = make(clock, requests_per_minute=60, tokens_per_minute=6000)
    account.count_request()
    account.reserve(request("a", 1000, 2000))
    assert account.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "3000",
        "x-ratelimit-reset-tokens": "30s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.1204, "121ms"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m0s"),
        (360.0, "6m0s"),
        (61.25, "1m1.25s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


def test_no_more_is_let_through_than_the_limit_and_a_first_minute_s_worth() -> None:
    rng, clock = random.Random(7), VirtualClock()
    limit, taken = RateLimit(120, clock()), 0.0
    for _ in range(5000):
        clock.advance(rng.expovariate(10.0))
        amount = rng.randint(1, 5)
        if not limit.wait_seconds(amount, clock()):
            limit.take(amount, clock())
            taken += amount
        assert taken <= 120 + 2.0 * clock() + 1e-6
        assert 0 <= limit.level(clock()) <= 120
    assert taken >= 0.97 * 2.0 * clock()
