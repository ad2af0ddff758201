"""The scheduler under load, on a virtual clock."""

import pytest

from quire.testing.fake_executor import CostModel
from quire.testing.simulator import Simulation, SimulationReport
from quire.testing.tokens import predict_tokens
from quire.testing.traces import burst_trace, long_prompt, make_request, merge, poisson_trace
from quire.types.deltas import FinishReason


def assert_tokens_are_those_of_the_rule(report: SimulationReport) -> None:
    for timeline in report.timelines.values():
        for index, sample in enumerate(timeline.samples):
            assert sample.token_ids == predict_tokens(timeline.request, sample_index=index)
            assert sample.finish_reason is FinishReason.LENGTH


def test_a_prompt_of_100_000_tokens_leaves_the_others_their_rhythm():
    cost = CostModel(base_seconds=0.010, per_token_seconds=0.0001)
    short = [make_request(f"short-{n}", [n] * 20, max_tokens=80) for n in range(8)]
    trace = merge(short, [long_prompt(100_000, arrival_time=0.05)])
    report = Simulation(num_blocks=7000, max_num_batched_tokens=2048, cost=cost).run(trace)
    gaps = [gap for n in range(8) for gap in report.timelines[f"short-{n}"].inter_token_seconds]
    assert max(gaps) <= cost.step_seconds(2048) * 1.0001
    assert report.largest_step == 2048
    assert report.timelines["long"].ttft_seconds < 51 * cost.step_seconds(2048)
    assert_tokens_are_those_of_the_rule(report)


def test_equal_requests_are_served_in_the_order_of_their_arrival():
    trace = [make_request(str(n), [n] * 40, max_tokens=10, arrival_time=0.001 * n) for n in range(30)]
    report = Simulation(max_num_seqs=4, max_num_batched_tokens=64).run(trace)
    firsts = [timeline.samples[0].token_times[0] for timeline in report.timelines.values()]
    ends = [timeline.finish_time for timeline in report.timelines.values()]
    assert firsts == sorted(firsts)
    assert ends == sorted(ends)
    assert report.max_waiting > 20


def test_running_sequences_advance_together():
    trace = burst_trace(num_bursts=1, requests_per_burst=16, seconds_between_bursts=0, output_tokens=(40, 40))
    report = Simulation(max_num_batched_tokens=4096).run(trace)
    assert report.num_steps == 40
    assert max(gap for timeline in report.timelines.values() for gap in timeline.inter_token_seconds) < 0.02


def test_priority_overtakes_and_the_last_in_rank_is_served_when_there_is_room():
    urgent = poisson_trace(num_requests=60, requests_per_second=20.0, prompt_tokens=(30, 60), output_tokens=(10, 20))
    patient = make_request("patient", [7] * 50, max_tokens=10, priority=5, arrival_time=urgent[10].arrival_time)
    waits = {}
    for policy in ("fcfs", "priority"):
        report = Simulation(policy=policy, max_num_seqs=1).run(merge(urgent, [patient]))
        waits[policy] = report.timelines["patient"].ttft_seconds
        overtaken = [t for t in report.timelines.values() if t.finish_time > report.timelines["patient"].finish_time]
        assert (len(overtaken) == 0) == (policy == "priority")
        assert_tokens_are_those_of_the_rule(report)
    assert waits["priority"] > 1.2 * waits["fcfs"]


def test_blocks_are_taken_from_the_worst_priority():
    trace = burst_trace(num_bursts=1, requests_per_burst=9, seconds_between_bursts=0, output_tokens=(120, 120))
    trace = [
        make_request(r.request_id, r.prompt_token_ids[:32], max_tokens=120, priority=number // 3)
        for number, r in enumerate(trace)
    ]
    report = Simulation(policy="priority", num_blocks=50).run(trace)
    preemptions = [timeline.samples[0].num_preemptions for timeline in report.timelines.values()]
    assert preemptions[:3] == [0, 0, 0]
    assert sum(preemptions) > 0
    assert_tokens_are_those_of_the_rule(report)


@pytest.mark.parametrize(
    ("oversubscription", "enable_prefix_caching", "policy"),
    [(2, True, "fcfs"), (4, True, "priority"), (4, False, "fcfs")],
)
def test_a_preemption_storm_ends_with_the_tokens_of_the_calm(oversubscription, enable_prefix_caching, policy):
    trace = burst_trace(
        num_bursts=1,
        requests_per_burst=24,
        seconds_between_bursts=0.0,
        prompt_tokens=(8, 32),
        output_tokens=(80, 160),
    )
    num_blocks = sum(len(r.prompt_token_ids) + r.sampling.max_tokens for r in trace) // 16 // oversubscription
    storm = Simulation(
        num_blocks=num_blocks,
        enable_prefix_caching=enable_prefix_caching,
        policy=policy,
        check_invariants=oversubscription == 2,
    ).run(trace)
    assert storm.num_preemptions >= 10
    assert_tokens_are_those_of_the_rule(storm)
    calm = Simulation(num_blocks=10_000).run(trace)
    assert calm.num_preemptions == 0
    assert storm.tokens == calm.tokens
    assert storm.num_computed_tokens < 1.5 * calm.num_computed_tokens, "more work is repeated than is worth it"


def test_long_sequences_that_each_need_most_of_the_cache_take_turns():
    trace = [make_request(str(n), [n] * 300, max_tokens=100) for n in range(4)]
    report = Simulation(num_blocks=28, max_num_batched_tokens=64, check_invariants=True).run(trace)
    assert_tokens_are_those_of_the_rule(report)
    assert report.num_computed_tokens < 2 * 4 * 400


def test_samples_compute_their_prompt_once_even_in_a_crowd():
    crowd = poisson_trace(num_requests=20, requests_per_second=100.0, output_tokens=(20, 60))
    request = make_request("samples", [5, 6] * 150, max_tokens=30, n=6, seed=3, arrival_time=0.1)
    report = Simulation(enable_prefix_caching=False).run(merge(crowd, [request]))
    assert_tokens_are_those_of_the_rule(report)
    own = sum(len(r.prompt_token_ids) + r.sampling.max_tokens - 1 for r in crowd)
    assert report.num_computed_tokens == own + 300 + 5 + 6 * 29


def test_chunks_of_any_size_and_steps_in_flight_give_equal_tokens():
    trace = poisson_trace(
        num_requests=15,
        requests_per_second=60.0,
        prompt_tokens=(1, 120),
        output_tokens=(1, 20),
        shared_prefix_tokens=33,
    )
    trace.append(make_request("samples", [9] * 70, max_tokens=12, n=3, seed=8, arrival_time=0.05))
    for budget, steps_in_flight in ((1, 2), (3, 1), (17, 2), (31, 1), (31, 2), (4096, 1), (4096, 2)):
        report = Simulation(max_num_batched_tokens=budget, steps_in_flight=steps_in_flight).run(trace)
        assert report.largest_step <= budget
        assert_tokens_are_those_of_the_rule(report)


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_a_replay_from_any_point_goes_on_with_the_same_tokens(enable_prefix_caching):
    whole = make_request("whole", [3, 1, 4] * 11, max_tokens=24, seed=11)
    expected = predict_tokens(whole)
    replays = [
        make_request(
            str(cut), whole.prompt_token_ids, max_tokens=24, seed=11, produced_token_ids=(tuple(expected[:cut]),)
        )
        for cut in range(24)
    ]
    report = Simulation(enable_prefix_caching=enable_prefix_caching, num_blocks=24).run(replays)
    for cut in range(24):
        assert report.timelines[str(cut)].token_ids == expected[cut:]


def test_aborts_at_any_moment_leave_the_others_alone():
    trace = poisson_trace(num_requests=30, requests_per_second=100.0, prompt_tokens=(5, 90), output_tokens=(20, 60))
    abort_times = {r.request_id: r.arrival_time + 0.02 * (n % 7) for n, r in enumerate(trace) if n % 3 == 0}
    simulation = Simulation(num_blocks=40, max_num_batched_tokens=48, check_invariants=True)
    report = simulation.run(trace, abort_times=abort_times)
    for request_id, timeline in report.timelines.items():
        expected = predict_tokens(timeline.request)
        assert timeline.token_ids == (
            expected if request_id not in abort_times else expected[: len(timeline.token_ids)]
        )
    assert simulation.cache.num_free_blocks == simulation.cache.num_blocks


def test_a_shared_prefix_is_computed_once():
    trace = poisson_trace(
        num_requests=20,
        requests_per_second=50.0,
        prompt_tokens=(210, 230),
        output_tokens=(4, 4),
        shared_prefix_tokens=208,
    )
    report = Simulation().run(trace)
    assert report.num_computed_tokens < 208 + 20 * (22 + 3)
    assert [timeline.num_cached_tokens for timeline in report.timelines.values()] == [0] + [208] * 19
