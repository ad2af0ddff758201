"""Who gives way to whom. How it works out under load: `tests/cpu/scheduler/test_fair_share.py`."""

from collections.abc import Callable
from typing import Any

import pytest

from quire.scheduler.fair_share import choose_yielder
from quire.scheduler.tenant import Tenant
from quire.testing.traces import make_request

MakeBench = Callable[..., Any]


def fill(bench: Any, tenant: str, count: int, **fields: Any) -> None:
    for number in range(count):
        prompt = [ord(tenant), number, *range(6)]
        bench.scheduler.add(make_request(f"{tenant}{number}", prompt, max_tokens=40, tenant=tenant, **fields))


def names(bench: Any) -> str:
    return "".join(sorted(one.tenant.name for one in bench.scheduler._slots.running if one.slot is not None))


def test_a_newcomer_gets_a_slot_at_once(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_seqs=4)
    fill(bench, "a", 8)
    bench.step()
    fill(bench, "b", 1)
    bench.step()
    assert names(bench) == "aaab"
    bench.finish()
    assert bench.scheduler.statistics().num_preemptions == 1
    assert bench.end("b0").error is None


def test_nobody_takes_more_than_its_share_from_others(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_seqs=4)
    fill(bench, "a", 8)
    bench.step()
    fill(bench, "b", 8)
    for _ in range(10):
        bench.step()
        assert names(bench) == "aabb"
    assert bench.scheduler.statistics().num_preemptions == 2
    bench.finish()


def test_weights_make_shares(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_seqs=4)
    fill(bench, "a", 8)
    bench.step()
    fill(bench, "b", 8, weight=3.0)
    bench.step()
    assert names(bench) == "abbb"
    bench.finish()


def test_blocks_are_claimed_too(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_seqs=8, num_blocks=24, block_size=4)
    fill(bench, "a", 6)
    for _ in range(8):
        bench.step()
    fill(bench, "b", 1)
    bench.step()
    assert "b" in names(bench)
    bench.finish()


def test_the_last_sequence_of_a_tenant_is_never_taken(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_seqs=2)
    fill(bench, "a", 4)
    bench.step()
    fill(bench, "b", 4)
    fill(bench, "c", 4)
    for _ in range(10):
        bench.step()
        assert names(bench) in ("ab", "ac")
    assert bench.scheduler.statistics().num_preemptions == 1
    bench.finish()


def test_a_better_priority_is_not_taken_from(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_seqs=2, policy="priority")
    fill(bench, "a", 4, priority=0)
    bench.step()
    fill(bench, "b", 1, priority=1)
    bench.step()
    assert names(bench) == "aa"
    bench.finish()


def test_a_prompt_of_several_steps_overtakes_too_and_goes_on_first(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_batched_tokens=16)
    bench.scheduler.add(make_request("long", [1] * 200, max_tokens=2, tenant="a"))
    bench.step()
    bench.scheduler.add(make_request("other", [2] * 40, max_tokens=2, tenant="b"))
    for _ in range(3):
        assert not bench.tokens("other")
        bench.step()
    assert bench.tokens("other")
    assert not bench.tokens("long")
    bench.finish()
    assert bench.tokens("long")


def test_a_short_prompt_overtakes_the_long_one_of_another(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_batched_tokens=16)
    bench.scheduler.add(make_request("long", [1] * 200, max_tokens=2, tenant="a"))
    bench.step()
    bench.scheduler.add(make_request("short", [2] * 8, max_tokens=2, tenant="b"))
    bench.scheduler.add(make_request("own", [3] * 8, max_tokens=2, tenant="a"))
    bench.step()
    assert bench.tokens("short")
    assert not bench.tokens("own")
    bench.finish()


@pytest.mark.parametrize("max_num_batched_tokens", [1, 2, 3])
def test_overtaking_leaves_a_token_for_the_long_prompt(make_bench: MakeBench, max_num_batched_tokens: int) -> None:
    bench = make_bench(max_num_batched_tokens=max_num_batched_tokens)
    bench.scheduler.add(make_request("long", [1] * 30, max_tokens=2, tenant="a"))
    for number in range(20):
        bench.step()
        bench.scheduler.add(make_request(f"s{number}", [number], max_tokens=3, tenant="b"))
    bench.finish()
    assert bench.end("long").error is None


def tokens_by_name(bench: Any, plan: Any) -> dict[str, int]:
    names = {one.sequence_id: one.request_id for one in bench.scheduler._slots.running}
    return dict(zip((names[one] for one in plan.sequence_ids), plan.num_tokens, strict=True))


def test_where_steps_are_short_a_prompt_goes_ahead_of_the_answers_of_who_was_served_more(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_batched_tokens=32, max_num_prompt_tokens=8)
    bench.scheduler.add(make_request("a", [1] * 20, max_tokens=20, tenant="a"))
    assert [tokens_by_name(bench, bench.step()) for _ in range(4)] == [{"a": 8}, {"a": 8}, {"a": 4}, {"a": 1}]
    bench.scheduler.add(make_request("b", [2] * 12, max_tokens=20, tenant="b"))
    bench.scheduler.add(make_request("own", [3] * 12, max_tokens=20, tenant="a"))
    assert tokens_by_name(bench, bench.step()) == {"b": 12}
    assert tokens_by_name(bench, bench.step()) == {"a": 1, "b": 1, "own": 8}
    bench.finish()


def test_a_long_prompt_is_kept_short_until_one_step_is_enough(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_batched_tokens=32, max_num_prompt_tokens=8)
    bench.scheduler.add(make_request("a", [1] * 8, max_tokens=20, tenant="a"))
    bench.step()
    bench.scheduler.add(make_request("b", [2] * 60, max_tokens=20, tenant="b"))
    bench.scheduler._waiting.tenant("a").charge(1000)
    assert [tokens_by_name(bench, bench.step()) for _ in range(4)] == [{"a": 1, "b": 8}] * 4
    # One step is enough for the rest.
    assert tokens_by_name(bench, bench.step()) == {"b": 28}
    bench.finish()


def test_answers_wait_for_no_more_than_one_step_full_of_prompts(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_seqs=8, max_num_batched_tokens=32, max_num_prompt_tokens=8)
    bench.scheduler.add(make_request("a", [1] * 8, max_tokens=40, tenant="a"))
    bench.step()
    bench.scheduler._waiting.tenant("a").charge(1000)
    num_ahead = most_ahead = 0
    for number in range(30):
        bench.scheduler.add(make_request(f"b{number}", [2, number, *range(12)], max_tokens=1, tenant="b"))
        plan = bench.step()
        num_ahead = 0 if "a" in tokens_by_name(bench, plan) else num_ahead + sum(plan.num_tokens)
        most_ahead = max(most_ahead, num_ahead)
    assert most_ahead == 28
    bench.finish()


def test_nobody_gives_way_to_who_was_served_more(make_bench: MakeBench) -> None:
    bench = make_bench(max_num_seqs=4)
    fill(bench, "a", 4)
    bench.step()
    fill(bench, "b", 1)
    (waiting,) = bench.scheduler.sequences("b0")
    running = bench.scheduler._slots.running
    options: dict[str, Any] = {"spared": [], "num_blocks_needed": 2, "max_num_seqs": 4, "num_blocks": 64}
    tenants: list[Tenant] = list(bench.scheduler._waiting.tenants())
    assert choose_yielder(waiting, running, tenants, **options) is not None
    assert choose_yielder(waiting, running, tenants, **{**options, "spared": running}) is None
    assert choose_yielder(waiting, running, tenants, **{**options, "num_blocks_needed": 33}) is None
    waiting.tenant.charge(1000)
    assert choose_yielder(waiting, running, tenants, **options) is None


def test_a_victim_comes_from_who_holds_most(make_bench: MakeBench) -> None:
    """Blocks run out while all grow: the quiet tenant's only answer, the youngest, is not the one to start again."""
    bench = make_bench(max_num_seqs=8, num_blocks=18, block_size=4)
    fill(bench, "a", 3)
    bench.step()
    bench.scheduler.add(make_request("b", [1] * 8, max_tokens=16, tenant="b"))
    bench.finish()
    assert bench.scheduler.statistics().num_preemptions > 0
    assert bench.end("b").num_preemptions == 0
