import statistics
from itertools import pairwise

import pytest

from quire.testing.clock import VirtualClock
from quire.testing.tokens import next_token_id, predict_tokens
from quire.testing.traces import burst_trace, long_prompt, make_request, merge, poisson_trace


def test_the_clock_moves_forwards_only():
    clock = VirtualClock(5.0)
    clock.advance(1.5)
    clock.advance_to(6.0)
    assert clock() == 6.5
    clock.advance_to(7.0)
    assert clock() == 7.0
    with pytest.raises(AssertionError, match="cannot go back"):
        clock.advance(-1.0)


def test_a_token_can_be_computed_by_hand():
    assert next_token_id(3, 60, seed=5, sample_index=0) == 68
    assert next_token_id(3, 60, seed=5, sample_index=2) == 82
    assert next_token_id(3, 60, seed=935, sample_index=0, banned=frozenset({998, 999})) == 0


def test_predictions_end_as_an_engine_does():
    free = predict_tokens(make_request("a", [1, 2, 3], max_tokens=10))
    assert len(free) == 10
    assert predict_tokens(make_request("a", [1, 2, 3], max_tokens=10), max_model_len=7) == free[:4]
    assert predict_tokens(make_request("a", [1, 2, 3], max_tokens=10, eos_token_ids=(free[4],))) == free[:5]
    late = predict_tokens(make_request("a", [1, 2, 3], max_tokens=10, eos_token_ids=(free[0],), min_tokens=2))
    assert late[0] != free[0]
    replay = make_request("a", [1, 2, 3], max_tokens=10, produced_token_ids=(tuple(free[:6]),))
    assert predict_tokens(replay) == free[6:]


def test_traces_are_repeatable_and_have_the_rate_asked_for():
    trace = poisson_trace(num_requests=400, requests_per_second=4.0, seed=1)
    assert trace == poisson_trace(num_requests=400, requests_per_second=4.0, seed=1)
    assert trace != poisson_trace(num_requests=400, requests_per_second=4.0, seed=2)
    gaps = [after.arrival_time - before.arrival_time for before, after in pairwise(trace)]
    assert min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.2)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.25)


def test_lengths_and_prefixes_are_those_asked_for():
    trace = poisson_trace(
        num_requests=50, requests_per_second=1.0, prompt_tokens=(30, 40), output_tokens=(5, 9), shared_prefix_tokens=20
    )
    assert all(30 <= len(request.prompt_token_ids) <= 40 for request in trace)
    assert all(5 <= request.sampling.max_tokens <= 9 for request in trace)
    assert len({tuple(request.prompt_token_ids[:20]) for request in trace}) == 1
    assert len({request.prompt_token_ids[20] for request in trace}) > 10


def test_merged_traces_are_in_the_order_of_arrival():
    bursts = burst_trace(num_bursts=3, requests_per_burst=2, seconds_between_bursts=10.0)
    trace = merge(bursts, [long_prompt(500, arrival_time=15.0)])
    assert [request.arrival_time for request in trace] == [0.0, 0.0, 10.0, 10.0, 15.0, 20.0, 20.0]
    assert len({request.request_id for request in trace}) == 7
