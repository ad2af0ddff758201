"""How many requests get in, and how long the others are told to wait."""

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.errors import OverloadedError, ParameterError
from quire.frontend.admission import Admission

_numbers = count()


def enter(admission: Admission, tenant: str = "", num_answers: int = 1, tokens: int = 0, now: float = 0.0) -> str:
    request_id = f"r{next(_numbers)}"
    admission.enter(request_id, tenant, num_answers, now)
    admission.queue(request_id, tokens, now)
    return request_id


def fill(admission: Admission, tenant: str = "", tokens: int = 0) -> int:
    """Enters until it is refused; returns how many got in."""
    for number in range(1000):
        try:
            enter(admission, tenant, tokens=tokens)
        except OverloadedError:
            return number
    raise AssertionError("nothing is refused")


def test_refuses_above_the_bound() -> None:
    admission = Admission(2)
    enter(admission)
    enter(admission)
    with pytest.raises(OverloadedError, match="2 requests are in the engine, the limit is 2") as failure:
        enter(admission)
    assert failure.value.retry_after_seconds == 5.0
    assert failure.value.http_status == 429
    assert len(admission) == 2


def test_samples_count_before_they_are_made() -> None:
    admission = Admission(8)
    enter(admission, num_answers=5)
    with pytest.raises(OverloadedError):
        enter(admission, num_answers=4)
    enter(admission, num_answers=3)


def test_one_request_alone_may_exceed_the_bounds() -> None:
    admission = Admission(2, 10)
    enter(admission, num_answers=16, tokens=1000)
    with pytest.raises(OverloadedError):
        enter(admission)


def test_an_id_is_taken_once() -> None:
    admission = Admission(8)
    admission.enter("a", "", 1, 0.0)
    with pytest.raises(ParameterError, match="unique"):
        admission.enter("a", "", 1, 0.0)
    admission.leave("a")
    admission.enter("a", "", 1, 0.0)


def test_prompt_tokens_that_wait_are_bounded() -> None:
    admission = Admission(100, 50)
    first = enter(admission, tokens=30)
    enter(admission, tokens=20)
    with pytest.raises(OverloadedError, match="50 prompt tokens wait, 1 more exceed the limit of 50"):
        enter(admission, tokens=1)
    admission.start(first, now=2.0)
    enter(admission, tokens=30)


def test_a_flood_leaves_room_for_others() -> None:
    admission = Admission(100, 1000)
    enter(admission, "quiet")
    flooded = fill(admission, "loud")
    assert 48 <= flooded <= 51
    for _ in range(20):
        enter(admission, "quiet", tokens=10)
    assert fill(admission, "third") > 5


def test_a_flood_of_tokens_leaves_room_for_others() -> None:
    admission = Admission(10_000, 1000)
    enter(admission, "quiet")
    assert 48 <= fill(admission, "loud", tokens=10) <= 51
    for _ in range(20):
        enter(admission, "quiet", tokens=10)


def test_a_tenant_alone_may_use_all_of_the_queue() -> None:
    assert fill(Admission(100), "only") == 100


@pytest.mark.parametrize(
    ("finishes", "now", "expected"),
    [
        ([0.0, 2.0, 4.0, 6.0], 8.0, 2.0),
        ([0.0, 0.01, 0.02], 0.03, 1.0),
        ([0.0], 500.0, 60.0),
    ],
)
def test_the_wait_comes_from_the_rate_of_finishing(finishes: list[float], now: float, expected: float) -> None:
    admission = Admission(1)
    for time in finishes:
        admission.leave(enter(admission), time)
    enter(admission)
    with pytest.raises(OverloadedError) as failure:
        enter(admission, now=now)
    assert failure.value.retry_after_seconds == pytest.approx(expected)


def test_the_wait_for_tokens_comes_from_the_rate_of_starting() -> None:
    admission = Admission(100, 100)
    for now in (0.0, 1.0, 2.0, 3.0):
        request_id = enter(admission, tokens=50)
        admission.start(request_id, now)
        admission.leave(request_id, now)
    enter(admission, tokens=100)
    with pytest.raises(OverloadedError) as failure:
        enter(admission, tokens=100, now=4.0)
    assert failure.value.retry_after_seconds == pytest.approx(2.0)


def test_who_cannot_be_served_in_time_is_refused_at_once() -> None:
    admission = Admission(100, 1000)
    request_id = enter(admission, tokens=50)
    admission.start(request_id, 0.0)
    enter(admission, tokens=100)
    assert admission.expected_wait_seconds("", 2.0) == pytest.approx(4.0)
    admission.enter("late", "", 1, 2.0)
    with pytest.raises(OverloadedError, match=r"the queue takes about 4\.0 s") as failure:
        admission.queue("late", 1, 2.0, deadline=5.0)
    assert failure.value.retry_after_seconds == pytest.approx(4.0)
    admission.queue("late", 1, 2.0, deadline=7.0)


def test_tenants_with_little_in_the_queue_wait_for_little() -> None:
    admission = Admission(100, 1000)
    enter(admission, "quiet")
    admission.start(enter(admission, "loud", tokens=50), 0.0)
    enter(admission, "loud", tokens=300)
    assert admission.expected_wait_seconds("quiet", 1.0) == 0.0
    enter(admission, "quiet", tokens=10)
    assert admission.expected_wait_seconds("quiet", 1.0) == pytest.approx(20 / 50)
    assert admission.expected_wait_seconds("loud", 1.0) == pytest.approx(310 / 50)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 9)), max_size=40))
def test_the_sums_stay_those_of_the_requests(wanted: list[tuple[str, int, int]]) -> None:
    admission = Admission(20, 60)
    inside: list[str] = []
    for number, (tenant, num_answers, tokens) in enumerate(wanted):
        request_id = str(number)
        try:
            admission.enter(request_id, tenant, num_answers, float(number))
        except OverloadedError:
            continue
        try:
            admission.queue(request_id, tokens, float(number))
            inside.append(request_id)
        except OverloadedError:
            admission.leave(request_id)
        if inside and number % 2:
            admission.start(inside[0], float(number))
        if inside and number % 3 == 0:
            admission.leave(inside.pop(0), float(number))
        admission.check_invariants()
        assert len(admission) == len(inside)
