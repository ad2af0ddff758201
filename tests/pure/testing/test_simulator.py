import pytest

from quire.testing.fake_executor import CostModel
from quire.testing.simulator import Simulation
from quire.testing.tokens import predict_tokens
from quire.testing.traces import make_request, poisson_trace
from quire.types.deltas import FinishReason


def test_a_lone_request_takes_the_time_of_its_steps():
    cost = CostModel(base_seconds=1.0, per_token_seconds=0.01)
    request = make_request("a", list(range(30)), max_tokens=3, arrival_time=10.0)
    report = Simulation(cost=cost).run([request])
    timeline = report.timelines["a"]
    assert timeline.ttft_seconds == pytest.approx(1.30)
    assert timeline.inter_token_seconds == pytest.approx([1.01, 1.01])
    assert timeline.finish_time == pytest.approx(10.0 + 1.30 + 2.02)
    assert (timeline.queue_seconds, timeline.num_cached_tokens) == (0.0, 0)
    assert timeline.token_ids == predict_tokens(request)
    assert timeline.samples[0].finish_reason is FinishReason.LENGTH
    assert (report.num_steps, report.num_computed_tokens, report.largest_step) == (3, 32, 30)


def test_time_stands_still_while_nothing_happens():
    requests = [make_request(str(n), [n], max_tokens=1, arrival_time=1000.0 * n) for n in range(3)]
    report = Simulation(cost=CostModel(1.0, 0.0)).run(requests)
    assert [timeline.finish_time for timeline in report.timelines.values()] == pytest.approx([1.0, 1001.0, 2001.0])


def test_an_aborted_request_keeps_what_it_had_and_has_no_end():
    request = make_request("a", [1, 2, 3], max_tokens=1000)
    report = Simulation(cost=CostModel(1.0, 0.0)).run([request], abort_times={"a": 5.0})
    timeline = report.timelines["a"]
    assert timeline.aborted_time == pytest.approx(5.0)
    assert timeline.token_ids == predict_tokens(request)[:5]
    assert (timeline.finish_time, timeline.samples[0].finish_reason) == (float("inf"), None)


def test_a_run_can_be_repeated():
    trace = poisson_trace(num_requests=20, requests_per_second=40.0, prompt_tokens=(5, 90), output_tokens=(5, 40))
    simulation = Simulation(num_blocks=30)
    first, second = simulation.run(trace), simulation.run(trace)
    assert first == second
    assert first.num_preemptions == sum(
        sample.num_preemptions for timeline in first.timelines.values() for sample in timeline.samples
    )


def test_an_engine_that_stands_still_is_noticed(monkeypatch):
    simulation = Simulation()
    monkeypatch.setattr("quire.scheduler.scheduler.Scheduler.schedule", lambda self, now: None)
    with pytest.raises(AssertionError, match="stands still"):
        simulation.run([make_request("a", [1])])
