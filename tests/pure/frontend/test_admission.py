"""How many requests get in, and how long the others are told to wait."""

import pytest

from quire.errors import OverloadedError
from quire.frontend.admission import Admission


def test_refuses_above_the_bound() -> None:
    admission = Admission(2)
    admission.check(1, now=0.0)
    with pytest.raises(OverloadedError, match="2 requests are in the engine, the limit is 2") as failure:
        admission.check(2, now=0.0)
    assert failure.value.retry_after_seconds == 5.0
    assert failure.value.http_status == 429


@pytest.mark.parametrize(
    ("finishes", "now", "to_finish", "expected"),
    [
        ([0.0, 2.0, 4.0, 6.0], 8.0, 1, 2.0),
        ([0.0, 2.0, 4.0, 6.0], 8.0, 3, 6.0),
        ([0.0, 0.01, 0.02], 0.03, 1, 1.0),
        ([0.0], 500.0, 1, 60.0),
    ],
)
def test_the_wait_comes_from_the_rate_of_finishing(
    finishes: list[float], now: float, to_finish: int, expected: float
) -> None:
    admission = Admission(1)
    for time in finishes:
        admission.note_finish(time)
    assert admission.retry_after_seconds(to_finish, now) == pytest.approx(expected)
