from itertools import pairwise

import pytest

from quire.errors import InvalidRequestError
from quire.scheduler.sequence import REPORT_INTERVAL
from quire.testing.tokens import predict_tokens
from quire.testing.traces import make_request
from quire.types.deltas import FinishReason
from quire.types.plan import StepPlan
from quire.types.sampling import RequestOutputKind
from quire.types.stats import EngineStats


def prompt_of(num_tokens: int, first: int = 1) -> list[int]:
    return list(range(first, first + num_tokens))


def test_the_first_plan_describes_a_sequence_whole_and_later_ones_only_differences(make_bench):
    bench = make_bench()
    bench.scheduler.add(make_request("a", prompt_of(6), max_tokens=4, seed=3))
    first, second, third = bench.schedule(), bench.schedule(), None
    (new,) = first.new_sequences
    assert (new.token_ids, new.num_prompt_tokens, new.num_computed_tokens) == (prompt_of(6), 6, 0)
    assert (new.seed, new.sample_index, len(new.block_ids)) == (3, 0, 2)
    assert (first.step, first.num_tokens, first.samples) == (1, [6], [True])
    assert second == StepPlan(step=2, slots=[new.slot], sequence_ids=[new.sequence_id], num_tokens=[1], samples=[True])
    bench.update()
    third = bench.schedule()
    assert third.new_sequences == []
    assert list(third.new_block_ids) == []
    bench.update()
    assert [len(blocks) for blocks in bench.schedule().new_block_ids.values()] == [1]


def test_no_token_is_scheduled_beyond_max_tokens(make_bench):
    bench = make_bench()
    bench.scheduler.add(make_request("a", prompt_of(3), max_tokens=2))
    assert bench.schedule() and bench.schedule()
    assert bench.schedule() is None, "the two tokens wanted are in flight"
    bench.finish()
    assert len(bench.tokens("a")) == 2
    assert bench.executor.num_computed_tokens == 3 + 1
    assert bench.end("a").finish_reason is FinishReason.LENGTH


def test_no_token_is_scheduled_beyond_the_context(make_bench):
    bench = make_bench(max_model_len=10)
    request = make_request("a", prompt_of(7), max_tokens=100)
    bench.scheduler.add(request)
    bench.finish()
    assert bench.tokens("a") == predict_tokens(request, max_model_len=10)
    assert len(bench.tokens("a")) == 3
    assert bench.executor.num_computed_tokens == 7 + 2
    assert bench.end("a").finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_stop_token_ends_a_sequence_and_the_token_after_it_is_dropped(make_bench, in_flight):
    request = make_request("a", prompt_of(3), max_tokens=20)
    expected = predict_tokens(request)
    stopping = make_request("a", prompt_of(3), max_tokens=20, stop_token_ids=[expected[4]])
    bench = make_bench()
    bench.scheduler.add(stopping)
    while bench.scheduler.has_unfinished:
        while len(bench.in_flight) < in_flight and bench.schedule():
            pass
        bench.update()
    bench.finish()
    assert bench.tokens("a") == expected[:5]
    assert (bench.end("a").finish_reason, bench.end("a").stop_token_id) == (FinishReason.STOP, expected[4])
    assert bench.executor.num_computed_tokens == 3 + 4 + (in_flight - 1)


def test_end_of_sequence_is_no_stop_token(make_bench):
    expected = predict_tokens(make_request("a", prompt_of(3)))
    bench = make_bench()
    bench.scheduler.add(make_request("a", prompt_of(3), eos_token_ids=(expected[2],)))
    bench.finish()
    assert bench.tokens("a") == expected[:3]
    assert (bench.end("a").finish_reason, bench.end("a").stop_token_id) == (FinishReason.STOP, None)


def test_min_tokens_holds_a_stop_back(make_bench):
    expected = predict_tokens(make_request("a", prompt_of(3)))
    request = make_request("a", prompt_of(3), eos_token_ids=(expected[0],), min_tokens=3)
    bench = make_bench()
    bench.scheduler.add(request)
    bench.finish()
    assert bench.tokens("a") == predict_tokens(request)
    assert len(bench.tokens("a")) >= 3


def test_a_step_never_exceeds_its_budget_and_single_tokens_come_first(make_bench):
    bench = make_bench(max_num_batched_tokens=10)
    bench.scheduler.add(make_request("short", prompt_of(3), max_tokens=30))
    bench.step()
    bench.scheduler.add(make_request("long", prompt_of(40, first=100), max_tokens=3))
    seen = [bench.step() for _ in range(5)]
    assert [plan.num_tokens for plan in seen] == [[1, 9], [1, 9], [1, 9], [1, 9], [1, 4]]
    assert [plan.samples for plan in seen] == [[True, False]] * 4 + [[True, True]]


def test_long_prompts_are_served_in_the_order_of_their_arrival(make_bench):
    bench = make_bench(max_num_batched_tokens=8)
    for name in ("a", "b", "c"):
        bench.scheduler.add(make_request(name, prompt_of(12, first=ord(name)), max_tokens=2))
    bench.finish()
    firsts = list(dict.fromkeys(delta.request_id for delta in bench.deltas))
    assert firsts == ["a", "b", "c"]


def test_a_budget_of_one_token_serves_everyone(make_bench):
    bench = make_bench(max_num_batched_tokens=1)
    requests = [make_request(str(n), prompt_of(5, first=10 * n), max_tokens=3) for n in range(3)]
    for request in requests:
        bench.scheduler.add(request)
    bench.finish()
    assert [bench.tokens(str(n)) for n in range(3)] == [predict_tokens(request) for request in requests]


def test_slots_limit_the_running_sequences_and_are_handed_on(make_bench):
    bench = make_bench(max_num_seqs=2)
    for number in range(3):
        bench.scheduler.add(make_request(str(number), prompt_of(4, first=10 * number), max_tokens=1))
    first = bench.step()
    assert (len(first.slots), bench.scheduler.num_running, bench.scheduler.num_waiting) == (2, 0, 1)
    second = bench.step()
    assert sorted(second.released_slots) == sorted(first.slots)
    assert second.slots[0] in first.slots


def test_priority_orders_the_queue_and_fcfs_ignores_it(make_bench):
    for policy, expected in (("fcfs", ["a", "b", "c", "d"]), ("priority", ["c", "d", "b", "a"])):
        bench = make_bench(policy=policy, max_num_seqs=1)
        for name, priority in (("a", 5), ("b", 0), ("c", -1), ("d", -1)):
            bench.scheduler.add(make_request(name, prompt_of(4), max_tokens=1, priority=priority))
        bench.finish()
        assert [delta.request_id for delta in bench.deltas] == expected


def test_the_prefix_of_an_ended_request_is_reused_and_reported(make_bench):
    bench = make_bench()
    bench.scheduler.add(make_request("a", prompt_of(10), max_tokens=1))
    bench.finish()
    bench.clock.advance(1.0)
    bench.scheduler.add(make_request("b", prompt_of(10), max_tokens=1, arrival_time=bench.clock() - 0.5))
    bench.finish()
    end = bench.end("b")
    assert (end.num_cached_tokens, end.queue_seconds) == (8, 0.5)
    assert bench.executor.num_computed_tokens == 10 + 2


def test_answers_are_reused_by_the_next_turn(make_bench):
    bench = make_bench()
    request = make_request("a", prompt_of(6), max_tokens=10)
    bench.scheduler.add(request)
    bench.finish()
    bench.scheduler.add(make_request("b", prompt_of(6) + bench.tokens("a") + [7], max_tokens=1))
    bench.finish()
    # The last token of the answer was never computed, so 15 of the 17 tokens can be found, in blocks of 4.
    assert bench.end("b").num_cached_tokens == 12


def test_sequences_of_one_step_share_what_the_first_of_them_computes(make_bench):
    bench = make_bench()
    requests = [make_request(str(n), [*prompt_of(16), 100 + n], max_tokens=3) for n in range(3)]
    for request in requests:
        bench.scheduler.add(request)
    assert bench.step().num_tokens == [17, 1, 1]
    bench.finish()
    assert [bench.tokens(str(n)) for n in range(3)] == [predict_tokens(request) for request in requests]


def test_other_salts_share_nothing(make_bench):
    bench = make_bench()
    for number in range(2):
        bench.scheduler.add(make_request(str(number), prompt_of(16), max_tokens=1, cache_salt=str(number)))
    assert bench.step().num_tokens == [16, 16]


def test_abort_frees_everything_at_once_wherever_the_request_is(make_bench):
    bench = make_bench(max_num_seqs=3, max_num_batched_tokens=16)
    bench.scheduler.add(make_request("running", prompt_of(6), max_tokens=50))
    bench.scheduler.add(make_request("samples", prompt_of(9, first=50), max_tokens=50, n=4))
    for _ in range(3):
        bench.step()
    bench.scheduler.add(make_request("partial", prompt_of(40, first=100), max_tokens=50))
    bench.scheduler.add(make_request("waiting", prompt_of(6), max_tokens=50))
    bench.schedule()
    bench.schedule()
    num_deltas = len(bench.deltas)
    for name in ("running", "samples", "partial", "waiting", "unknown"):
        bench.scheduler.abort(name)
        bench.scheduler.check_invariants()
    assert not bench.scheduler.has_unfinished
    assert (bench.scheduler.num_running, bench.scheduler.num_waiting) == (0, 0)
    assert bench.cache.num_free_blocks == bench.cache.num_blocks
    bench.finish()
    assert len(bench.deltas) == num_deltas, "an aborted request is heard of"


def test_slots_of_aborted_sequences_are_released_in_the_next_plan(make_bench):
    bench = make_bench(max_num_seqs=1)
    bench.scheduler.add(make_request("a", prompt_of(4)))
    first = bench.schedule()
    bench.scheduler.abort("a")
    request = make_request("b", prompt_of(4, first=9), max_tokens=2)
    bench.scheduler.add(request)
    second = bench.schedule()
    assert second.released_slots == second.slots == first.slots
    bench.finish()
    assert bench.tokens("b") == predict_tokens(request)


def test_an_id_in_use_is_refused(make_bench):
    bench = make_bench()
    bench.scheduler.add(make_request("a", prompt_of(4)))
    with pytest.raises(InvalidRequestError, match="'a' is in the engine already"):
        bench.scheduler.add(make_request("a", prompt_of(4)))
    bench.finish()
    bench.scheduler.add(make_request("a", prompt_of(4)))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt holds no token"),
        (prompt_of(50), "the prompt has 50 tokens, and a context of 50 leaves none"),
        (prompt_of(49), "the KV cache is full: it holds 32 "),
    ],
)
def test_what_can_never_run_fails_and_the_rest_goes_on(make_bench, prompt, message):
    bench = make_bench(num_blocks=8, max_model_len=50)
    good = make_request("good", prompt_of(5))
    bench.scheduler.add(make_request("bad", prompt, n=2))
    assert bench.scheduler.has_unfinished, "nobody would ask for the rejection"
    bench.scheduler.add(good)
    bench.finish()
    for sample_index in range(2):
        assert bench.end("bad", sample_index).finish_reason is FinishReason.ERROR
        assert message in bench.end("bad", sample_index).error
    assert bench.tokens("good") == predict_tokens(good)


def test_a_sequence_that_outgrows_the_whole_cache_fails_with_what_it_had_produced(make_bench):
    bench = make_bench(num_blocks=4, block_size=4)
    request = make_request("a", prompt_of(10), max_tokens=50)
    bench.scheduler.add(request)
    bench.finish()
    assert bench.end("a").finish_reason is FinishReason.ERROR
    assert "after 17 tokens the KV cache is full" in bench.end("a").error
    assert bench.tokens("a") == predict_tokens(request)[:7]


def test_a_preempted_sequence_that_has_outgrown_the_whole_cache_fails(make_bench):
    bench = make_bench(num_blocks=6, block_size=1)
    bench.scheduler.add(make_request("a", prompt_of(3), max_tokens=1))
    request = make_request("b", prompt_of(5), max_tokens=50)
    bench.scheduler.add(request)
    # Every block is used by b. While a, which only shares three of them, is there, b is not alone and gives way.
    assert bench.schedule() and bench.schedule() and not bench.schedule()
    assert [(sequence.slot, sequence.num_pending) for sequence in bench.scheduler.sequences("b")] == [(None, 2)]
    bench.finish()
    assert bench.end("b").finish_reason is FinishReason.ERROR
    assert "after 7 tokens the KV cache is full" in bench.end("b").error
    assert bench.tokens("b") == predict_tokens(request)[:2]


def test_a_sequence_that_fills_the_cache_to_its_last_slot_does_not_fail(make_bench):
    bench = make_bench(num_blocks=4, block_size=4)
    request = make_request("a", prompt_of(10), max_tokens=7)
    bench.scheduler.add(request)
    bench.finish()
    assert bench.end("a").finish_reason is FinishReason.LENGTH
    # A stop token in flight when blocks run out still counts.
    expected = predict_tokens(make_request("b", prompt_of(10), max_tokens=7))
    bench.scheduler.add(make_request("b", prompt_of(10), max_tokens=50, eos_token_ids=(expected[-1],)))
    bench.finish()
    assert bench.end("b").finish_reason is FinishReason.STOP
    assert bench.tokens("b") == expected


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_samples_share_one_computation_of_the_prompt(make_bench, enable_prefix_caching):
    bench = make_bench(enable_prefix_caching=enable_prefix_caching)
    request = make_request("a", prompt_of(30), max_tokens=5, n=4, seed=9)
    bench.scheduler.add(request)
    first, second = bench.step(), bench.step()
    assert first.num_tokens == [30]
    assert sorted(second.num_tokens) == [1, 1, 1, 1]
    assert len(second.block_copies) == 3, "tokens 28 and 29 stand in a block that is not full"
    bench.finish()
    for sample_index in range(4):
        assert bench.tokens("a", sample_index) == predict_tokens(request, sample_index=sample_index)
    assert bench.executor.num_computed_tokens == 30 + 3 + 4 * 4
    assert bench.scheduler.statistics().num_prompt_tokens == 30


@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_samples_go_on_when_the_first_has_gone(make_bench, enable_prefix_caching):
    bench = make_bench(enable_prefix_caching=enable_prefix_caching, max_num_seqs=1)
    request = make_request("a", prompt_of(10), max_tokens=3, n=3)
    bench.scheduler.add(request)
    bench.finish()
    for sample_index in range(3):
        assert bench.tokens("a", sample_index) == predict_tokens(request, sample_index=sample_index)


def test_a_held_sample_takes_over_when_the_first_fails(make_bench):
    bench = make_bench(max_num_batched_tokens=8)
    request = make_request("a", prompt_of(20), max_tokens=3, n=3)
    bench.scheduler.add(request)
    (first,) = [sequence for sequence in bench.scheduler.sequences("a") if sequence.sample_index == 0]
    bench.executor.failing_sequences[first.sequence_id] = "NaN in the logits at layer 3"
    bench.finish()
    assert bench.end("a", 0).finish_reason is FinishReason.ERROR
    assert "NaN" not in bench.end("a", 0).error
    for sample_index in (1, 2):
        assert bench.tokens("a", sample_index) == predict_tokens(request, sample_index=sample_index)


def test_one_failed_sequence_leaves_the_others_alone(make_bench):
    bench = make_bench()
    requests = [make_request(str(n), prompt_of(5, first=10 * n), max_tokens=4) for n in range(3)]
    for request in requests:
        bench.scheduler.add(request)
    bench.step()
    (failing,) = bench.scheduler.sequences("1")
    bench.executor.failing_sequences[failing.sequence_id] = "overflow"
    bench.finish()
    assert bench.end("1").finish_reason is FinishReason.ERROR
    for number in (0, 2):
        assert bench.tokens(str(number)) == predict_tokens(requests[number])


def test_what_reuses_the_tokens_of_a_failed_sequence_starts_again(make_bench):
    bench = make_bench()
    requests = [make_request(str(n), [*prompt_of(12), n], max_tokens=5) for n in range(3)]
    for request in requests[:2]:
        bench.scheduler.add(request)
    (failing,) = bench.scheduler.sequences("0")
    bench.executor.failing_sequences[failing.sequence_id] = "overflow"
    assert bench.schedule().num_tokens == [13, 1], "the second reuses, in this step, what the first computes"
    bench.scheduler.add(requests[2])
    assert bench.schedule().num_tokens == [1, 1, 1]
    bench.finish()
    assert bench.end("0").finish_reason is FinishReason.ERROR
    for number in (1, 2):
        assert bench.tokens(str(number)) == predict_tokens(requests[number])


def test_what_has_given_way_meanwhile_starts_again_too(make_bench):
    bench = make_bench(num_blocks=4)
    failing = make_request("failing", prompt_of(8), max_tokens=5)
    reusing = make_request("reusing", [*prompt_of(4), *prompt_of(4, first=50)], max_tokens=5)
    bench.scheduler.add(failing)
    bench.scheduler.add(reusing)
    bench.executor.failing_sequences[bench.scheduler.sequences("failing")[0].sequence_id] = "overflow"
    assert bench.schedule().num_tokens == [8, 4]
    assert bench.schedule().num_tokens == [1]
    assert bench.scheduler.sequences("reusing")[0].slot is None
    bench.finish()
    assert bench.end("failing").finish_reason is FinishReason.ERROR
    assert bench.tokens("reusing") == predict_tokens(reusing)


def test_a_failed_step_ends_its_sequences_and_nothing_else(make_bench):
    bench = make_bench()
    requests = {name: make_request(name, prompt_of(14), max_tokens=6) for name in ("a", "b", "c")}
    other = make_request("other", prompt_of(5, first=50), max_tokens=20)
    bench.scheduler.add(other)
    bench.step()
    bench.executor.failing_steps[2] = "the device ran out of memory"
    bench.scheduler.add(requests["a"])
    assert bench.schedule().step == 2
    # Reuses blocks that step 2, as is not known yet, does not compute.
    bench.scheduler.add(requests["b"])
    assert bench.schedule().new_sequences[0].num_computed_tokens == 12
    bench.update()
    bench.scheduler.add(requests["c"])
    bench.finish()
    for name in ("a", "other"):
        assert bench.end(name).finish_reason is FinishReason.ERROR
        assert bench.end(name).error == "the device ran out of memory"
    assert bench.tokens("other") == predict_tokens(other)[:1]
    for name in ("b", "c"):
        assert bench.tokens(name) == predict_tokens(requests[name])
    assert bench.scheduler.statistics().num_preemptions == 0


def test_a_replay_goes_on_where_it_stopped_and_sends_nothing_twice(make_bench):
    whole = make_request("a", prompt_of(7), max_tokens=12, n=2, seed=4)
    expected = [predict_tokens(whole, sample_index=index) for index in range(2)]
    produced = (tuple(expected[0][:5]), tuple(expected[1][:9]))
    bench = make_bench()
    bench.scheduler.add(make_request("a", prompt_of(7), max_tokens=12, n=2, seed=4, produced_token_ids=produced))
    bench.finish()
    assert bench.tokens("a", 0) == expected[0][5:]
    assert bench.tokens("a", 1) == expected[1][9:]
    assert bench.executor.num_computed_tokens == (7 + 5 + 6) + (1 + 9 + 2)
    assert bench.scheduler.statistics().num_generated_tokens == 7 + 3


def test_a_replay_whose_answer_is_complete_ends_at_once(make_bench):
    expected = predict_tokens(make_request("a", prompt_of(7), max_tokens=4))
    bench = make_bench()
    produced = (tuple(expected), tuple(expected[:2]))
    request = make_request("a", prompt_of(7), max_tokens=4, n=2, produced_token_ids=produced)
    bench.scheduler.add(request)
    bench.finish()
    assert (bench.tokens("a", 0), bench.end("a", 0).finish_reason) == ([], FinishReason.LENGTH)
    assert bench.tokens("a", 1) == predict_tokens(request, sample_index=1)


@pytest.mark.parametrize("budget", [3, 7, 64])
def test_prompt_logprobs_come_in_order_and_once(make_bench, budget):
    bench = make_bench(max_num_batched_tokens=budget)
    bench.scheduler.add(make_request("warm", prompt_of(22), max_tokens=1))
    bench.finish()
    bench.scheduler.add(make_request("a", prompt_of(22), max_tokens=4, n=2, prompt_logprobs=0, logprobs=0))
    bench.finish()
    entries = {index: [] for index in range(2)}
    for delta in (delta for delta in bench.deltas if delta.request_id == "a"):
        entries[delta.sample_index] += delta.prompt_logprobs
        assert [entry.token_ids[0] for entry in delta.logprobs] == delta.token_ids
    assert [entry.logprobs[0] for entry in entries[0]] == [-float(position) for position in range(1, 22)]
    assert [entry.token_ids[0] for entry in entries[0]] == prompt_of(22)[1:]
    assert entries[1] == []
    assert next(delta for delta in bench.deltas if delta.request_id == "a").num_cached_tokens == 0


def test_statistics_count_what_happened(make_bench):
    bench = make_bench(max_num_batched_tokens=8)
    assert bench.scheduler.statistics() == EngineStats(0, 0, 0, 0, 0, 0, 0, 0.0, bench.cache.statistics())
    bench.scheduler.add(make_request("a", prompt_of(9), max_tokens=3))
    bench.scheduler.add(make_request("b", prompt_of(11), max_tokens=3))
    bench.step()
    stats = bench.scheduler.statistics()
    assert (stats.step, stats.num_running, stats.num_waiting, stats.num_step_tokens) == (1, 1, 1, 8)
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (8, 0)
    assert stats.execute_seconds == pytest.approx(0.0108)
    bench.finish()
    stats = bench.scheduler.statistics()
    assert (stats.num_prompt_tokens, stats.num_generated_tokens, stats.num_preemptions) == (20, 6, 0)


def test_resetting_the_prefix_cache_forgets_past_prompts(make_bench):
    bench = make_bench()
    for name, cached in (("a", 0), ("b", 8), ("c", 0)):
        if name == "c":
            bench.scheduler.reset_prefix_cache()
        bench.scheduler.add(make_request(name, prompt_of(10), max_tokens=1))
        bench.finish()
        assert bench.end(name).num_cached_tokens == cached


def test_a_preempted_sequence_finds_its_prefix_again(make_bench):
    bench = make_bench(num_blocks=14, max_num_batched_tokens=32)
    requests = {
        "a": make_request("a", prompt_of(4, first=90), max_tokens=40),
        "b": make_request("b", prompt_of(24), max_tokens=30),
    }
    bench.scheduler.add(requests["a"])
    bench.scheduler.add(requests["b"])
    while not bench.scheduler.statistics().num_preemptions:
        bench.step()
    (preempted,) = bench.scheduler.sequences("b")
    assert (preempted.slot, preempted.num_preemptions, bench.scheduler.num_waiting) == (None, 1, 1)
    bench.scheduler.abort("a")
    (again,) = bench.step().new_sequences
    assert again.sequence_id == preempted.sequence_id
    assert again.token_ids[:24] == prompt_of(24)
    assert again.num_computed_tokens >= 20
    bench.finish()
    assert bench.tokens("b") == predict_tokens(requests["b"])


def test_a_preempted_sequence_with_a_token_in_flight_waits_for_it(make_bench):
    bench = make_bench(num_blocks=6, max_num_batched_tokens=32)
    requests = [make_request(str(n), prompt_of(8, first=50 * n), max_tokens=9) for n in range(2)]
    for request in requests:
        bench.scheduler.add(request)
    while not bench.scheduler.statistics().num_preemptions:
        if len(bench.in_flight) == 2:
            bench.update()
        assert bench.schedule()
    (preempted,) = bench.scheduler.sequences("1")
    assert preempted.num_pending == 1
    known = len(preempted.token_ids)
    bench.scheduler.abort("0")
    assert bench.schedule() is None, "its last token is not known yet"
    while bench.in_flight:
        bench.update()
    assert len(bench.schedule().new_sequences[0].token_ids) == known + 1
    bench.finish()
    assert bench.tokens("1") == predict_tokens(requests[1])


def test_a_preempted_sample_finds_its_own_answer_again(make_bench):
    bench = make_bench(num_blocks=18, max_num_batched_tokens=32)
    bench.scheduler.add(make_request("first", prompt_of(4, first=90), max_tokens=60))
    samples = make_request("samples", prompt_of(8), max_tokens=30, n=2)
    bench.scheduler.add(samples)
    while not bench.scheduler.statistics().num_preemptions:
        bench.step()
    bench.scheduler.abort("first")
    (again,) = bench.step().new_sequences
    assert again.num_computed_tokens > 12
    bench.finish()
    for sample_index in range(2):
        assert bench.tokens("samples", sample_index) == predict_tokens(samples, sample_index=sample_index)


def test_a_long_prompt_without_blocks_waits_and_is_not_overtaken(make_bench):
    bench = make_bench(num_blocks=13, max_num_batched_tokens=5)
    requests = [
        make_request("decoding", prompt_of(4), max_tokens=18),
        make_request("long", prompt_of(40, first=20), max_tokens=2),
        make_request("behind", prompt_of(2, first=80), max_tokens=2),
    ]
    bench.scheduler.add(requests[0])
    bench.step()
    for request in requests[1:]:
        bench.scheduler.add(request)
    while bench.cache.num_free_blocks:
        bench.step()
    stalled = bench.step()
    assert stalled.num_tokens == [1], "there is no block for the prompt, and it does not take one from its elders"
    bench.finish()
    for request in requests:
        assert bench.tokens(request.request_id) == predict_tokens(request)
    assert [d.request_id for d in bench.deltas if d.finish_reason] == ["decoding", "long", "behind"]


def test_others_give_way_to_a_long_prompt_that_is_first_in_rank(make_bench):
    bench = make_bench(num_blocks=14, max_num_batched_tokens=5, policy="priority")
    small = make_request("small", prompt_of(4), max_tokens=30, priority=1)
    long = make_request("long", prompt_of(44, first=20), max_tokens=2)
    bench.scheduler.add(small)
    bench.step()
    bench.scheduler.add(long)
    while not bench.scheduler.statistics().num_preemptions:
        plan = bench.step()
    assert plan.num_tokens == [4], "it computes its prompt, alone"
    assert [sequence.num_preemptions for sequence in bench.scheduler.sequences("small")] == [1]
    bench.finish()
    for request in (small, long):
        assert bench.tokens(request.request_id) == predict_tokens(request)


def test_a_request_that_waits_for_blocks_is_not_looked_up_in_every_step(make_bench):
    bench = make_bench(num_blocks=20)
    bench.scheduler.add(make_request("short", prompt_of(8, first=100), max_tokens=8))
    bench.scheduler.add(make_request("endless", prompt_of(24, first=200), max_tokens=30))
    bench.step()
    bench.scheduler.add(make_request("waiting", prompt_of(36), max_tokens=2))
    bench.step()
    num_queried_tokens = bench.scheduler.statistics().cache.num_queried_tokens
    while bench.scheduler.sequences("short"):
        bench.step()
    assert bench.scheduler.num_waiting == 1
    assert bench.scheduler.statistics().cache.num_queried_tokens == num_queried_tokens
    bench.step()
    assert bench.scheduler.num_waiting == 0, "it could enter and did not"
    bench.finish()


def test_prompt_logprobs_come_once_in_spite_of_preemptions(make_bench):
    bench = make_bench(num_blocks=14, max_num_batched_tokens=7)
    requests = [make_request(str(n), prompt_of(16, first=40 * n), max_tokens=30, prompt_logprobs=0) for n in range(4)]
    for request in requests:
        bench.scheduler.add(request)
    bench.finish()
    assert bench.scheduler.statistics().num_preemptions > 0
    for request in requests:
        deltas = [delta for delta in bench.deltas if delta.request_id == request.request_id]
        entries = [entry for delta in deltas for entry in delta.prompt_logprobs]
        assert [entry.token_ids[0] for entry in entries] == request.prompt_token_ids[1:]
        assert bench.tokens(request.request_id) == predict_tokens(request)


# Plans of the steady state, and reports at intervals.


def test_plans_of_the_steady_state_share_their_lists(make_bench):
    bench = make_bench(enable_prefix_caching=False)
    for name in ("a", "b"):
        bench.scheduler.add(make_request(name, prompt_of(3), max_tokens=5 if name == "a" else 9))
    plans = []
    while (plan := bench.step()) is not None:
        plans.append(plan)
    assert [len(plan.slots) for plan in plans] == [2] * 5 + [1] * 4
    for before, after in pairwise(plans[1:]):
        same = len(before.slots) == len(after.slots)
        for name in ("slots", "sequence_ids", "num_tokens", "samples"):
            assert (getattr(before, name) is getattr(after, name)) == same


def final_only(name, num_tokens, **fields):
    return make_request(name, prompt_of(5), max_tokens=num_tokens, output_kind=RequestOutputKind.FINAL_ONLY, **fields)


@pytest.mark.parametrize("num_tokens", [1, 2, REPORT_INTERVAL, 3 * REPORT_INTERVAL + 5])
def test_tokens_that_nobody_looks_at_come_many_at_a_time_and_are_the_same(make_bench, num_tokens):
    bench = make_bench()
    request = final_only("a", num_tokens)
    bench.scheduler.add(request)
    bench.finish()
    assert bench.tokens("a") == predict_tokens(request)
    assert bench.end("a").finish_reason is FinishReason.LENGTH
    counts = [len(delta.token_ids) for delta in bench.deltas]
    assert counts[0] == 1, "the first token tells when the answer began"
    assert max(counts) <= REPORT_INTERVAL
    assert len(counts) <= 3 + num_tokens // REPORT_INTERVAL
    assert [delta.num_cached_tokens is None for delta in bench.deltas] == [False] + [True] * (len(counts) - 1)
    assert bench.scheduler.statistics().num_generated_tokens == num_tokens


def test_sequences_that_started_together_are_reported_in_different_steps(make_bench):
    bench = make_bench(max_num_seqs=16, num_blocks=400)
    for number in range(16):
        bench.scheduler.add(final_only(str(number), 200))
    bench.step()
    per_step = []
    for _ in range(2 * REPORT_INTERVAL):
        num_before = len(bench.deltas)
        bench.step()
        per_step.append(len(bench.deltas) - num_before)
    assert max(per_step) == 1
    assert sum(per_step) >= 16


@pytest.mark.parametrize("wish", [{"stop": ["x"]}, {"logprobs": 0}, {"n": 2}])
def test_what_somebody_looks_at_comes_token_by_token(make_bench, wish):
    bench = make_bench()
    kind = RequestOutputKind.DELTA if "n" in wish else RequestOutputKind.FINAL_ONLY
    bench.scheduler.add(make_request("a", prompt_of(5), max_tokens=9, output_kind=kind, **wish))
    bench.finish()
    assert {len(delta.token_ids) for delta in bench.deltas} == {1}


def test_a_stop_token_ends_what_is_reported_at_intervals_at_once(make_bench):
    expected = predict_tokens(final_only("a", 60))
    stop = expected[20]
    bench = make_bench()
    bench.scheduler.add(final_only("a", 60, stop_token_ids=[stop]))
    bench.finish()
    assert bench.tokens("a") == expected[: expected.index(stop) + 1]
    assert (bench.end("a").finish_reason, bench.end("a").stop_token_id) == (FinishReason.STOP, stop)


def test_what_was_not_reported_comes_with_the_error_that_ends_it(make_bench):
    bench = make_bench()
    request = final_only("a", 60)
    bench.scheduler.add(request)
    for _ in range(10):
        bench.step()
    bench.executor.failing_steps[11] = "device lost a step"
    bench.finish()
    assert bench.end("a").error == "device lost a step"
    assert bench.tokens("a") == predict_tokens(request)[:10]


def test_blocks_are_shared_when_they_are_full_and_not_when_they_are_reported(make_bench):
    bench = make_bench(block_size=4)
    bench.scheduler.add(final_only("a", 60))
    bench.step()
    for number in range(1, 30):
        bench.step()
        assert bench.cache.statistics().num_cached_blocks == (5 + number) // 4


@pytest.mark.parametrize(("restricts", "exhausted"), [(True, True), (True, False), (False, True)])
def test_parameters_that_leave_no_token_are_the_callers_fault_and_drop_no_cache(make_bench, restricts, exhausted):
    """Not so where the logits were no numbers, nor where nothing but the model has excluded any token."""
    bench = make_bench()
    first = make_request("a", prompt_of(12), max_tokens=1)
    bench.scheduler.add(first)
    bench.finish()
    bench.scheduler.add(
        make_request("b", prompt_of(5, first=40), max_tokens=3, allowed_token_ids=[7] * restricts or None)
    )
    (failing,) = bench.scheduler.sequences("b")
    bench.executor.failing_sequences[failing.sequence_id] = "no token can be drawn"
    bench.executor.exhausted_sequences |= {failing.sequence_id} if exhausted else set()
    bench.finish()
    end = bench.end("b")
    assert (end.finish_reason, end.blames_request) == (FinishReason.ERROR, restricts and exhausted)
    again = make_request("c", prompt_of(12), max_tokens=1)
    bench.scheduler.add(again)
    bench.finish()
    assert bool(bench.end("c").num_cached_tokens) is (restricts and exhausted)
