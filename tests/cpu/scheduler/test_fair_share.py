"""One key floods the engine with ten times its fair load: what the other one notices, on the virtual clock.

The engine is loaded as in production: the quiet tenant asks for 0.3 of what the engine can do, the other for half of
it, which is its fair share, or for ten times that.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from quire.testing.fake_executor import CostModel
from quire.testing.simulator import Simulation, SimulationReport
from quire.testing.traces import merge, poisson_trace
from quire.types.request import GenerationRequest

SECONDS = 8.0
SHORT: dict[str, Any] = {"prompt_tokens": (16, 128), "output_tokens": (16, 64)}
LONG: dict[str, Any] = {"prompt_tokens": (256, 512), "output_tokens": (64, 128)}


def simulate(trace: list[GenerationRequest], **settings: Any) -> SimulationReport:
    sizes = {"max_num_seqs": 16, "max_num_batched_tokens": 256, "num_blocks": 512}
    return Simulation(**{**sizes, **settings}).run(trace)


@cache
def capacity() -> float:
    """Short requests per second that the engine can do."""
    return 300 / simulate(poisson_trace(num_requests=300, requests_per_second=1e6, seed=9, **SHORT)).seconds


def load(tenant: str, fraction_of_capacity: float, name: str, **shape: Any) -> list[GenerationRequest]:
    rate = fraction_of_capacity * capacity()
    trace = poisson_trace(
        num_requests=int(rate * SECONDS), requests_per_second=rate, name=name, seed=len(name), **(shape or SHORT)
    )
    return [replace(request, tenant=tenant) for request in trace]


def p95_ttft_seconds(report: SimulationReport, name: str) -> float:
    times = sorted(t.ttft_seconds for t in report.timelines.values() if t.request.request_id.startswith(name))
    return times[math.ceil(0.95 * len(times)) - 1]


def quiet_ttft_seconds(flood: float, **settings: Any) -> float:
    tenants = settings.pop("tenants", ("loud", "quiet"))
    quiet = load(tenants[1], 0.3, "quiet")
    return p95_ttft_seconds(simulate(merge(load(tenants[0], 0.5 * flood, "loud"), quiet), **settings), "quiet")


@pytest.mark.parametrize("num_blocks", [512, 160], ids=["slots are short", "blocks are short"])
def test_a_flood_of_ten_times_the_share_moves_the_p95_ttft_of_another_by_half_at_most(num_blocks: int) -> None:
    fair = quiet_ttft_seconds(1, num_blocks=num_blocks)
    flooded = quiet_ttft_seconds(10, num_blocks=num_blocks)
    assert flooded <= 1.5 * fair


def test_with_short_steps_the_quiet_tenant_waits_less_in_the_same_flood() -> None:
    """Steps cost what they do on a CPU, where about 8 of these requests are answered in a second."""

    def ttft_seconds(loud_per_second: float, max_num_prompt_tokens: int | None) -> float:
        shape: dict[str, Any] = {"prompt_tokens": (22, 82), "output_tokens": (24, 24)}
        loads = {"loud": loud_per_second, "quiet": 1.6}
        traces = {
            name: poisson_trace(num_requests=int(30 * rate), requests_per_second=rate, name=name, seed=3, **shape)
            for name, rate in loads.items()
        }
        trace = merge(*([replace(request, tenant=name) for request in trace] for name, trace in traces.items()))
        limits = {"max_num_batched_tokens": 144, "max_num_prompt_tokens": max_num_prompt_tokens}
        report = simulate(trace, steps_in_flight=1, cost=CostModel(0.007, 0.0014), **limits)
        return p95_ttft_seconds(report, "quiet")

    flooded = ttft_seconds(40, 64)
    assert flooded <= 1.5 * ttft_seconds(4, 64)
    assert flooded <= 0.8 * ttft_seconds(40, None)


def test_without_tenants_the_same_flood_does_move_it() -> None:
    """The measure measures something: all requests of one tenant are served in the order of arrival."""
    fair = quiet_ttft_seconds(1, tenants=("", ""))
    flooded = quiet_ttft_seconds(10, tenants=("", ""))
    assert flooded > 20 * fair


def test_fairness_costs_little_throughput() -> None:
    loud, quiet = load("loud", 5, "loud"), load("quiet", 0.3, "quiet")
    fair = simulate(merge(loud, quiet))
    alike = simulate([replace(request, tenant="") for request in merge(loud, quiet)])
    assert fair.num_preemptions > 0
    assert fair.seconds <= alike.seconds / 0.97


@pytest.mark.parametrize(("weight", "share"), [(1.0, 0.5), (3.0, 0.75)])
def test_tenants_that_both_want_more_get_tokens_by_weight(weight: float, share: float) -> None:
    """However different their requests are; counted while both of them wait."""
    heavy = [replace(request, weight=weight) for request in load("heavy", 3, "heavy", **SHORT)]
    light = load("light", 1.5, "light", **LONG)
    report = simulate(merge(heavy, light))

    def tokens_until(name: str, time: float) -> int:
        timelines = [t for t in report.timelines.values() if t.request.request_id.startswith(name)]
        begun = [t for t in timelines if t.samples[0].token_times and t.samples[0].token_times[0] <= time]
        made = sum(sum(moment <= time for moment in t.samples[0].token_times) for t in begun)
        return made + sum(len(t.request.prompt_token_ids) for t in begun)

    got = [tokens_until(name, SECONDS) / weight for name, weight in (("heavy", weight), ("light", 1.0))]
    jain = sum(got) ** 2 / (2 * sum(value**2 for value in got))
    assert jain >= 0.95
    assert got[0] * weight / (got[0] * weight + got[1]) == pytest.approx(share, abs=0.1)


def test_a_short_prompt_does_not_wait_for_the_long_prompt_of_another(make: Callable[..., GenerationRequest]) -> None:
    """The long one takes 16 steps; the short one enters as soon as the steps in flight are done."""
    long, short = make("long", 4096, "loud"), make("short", 64, "quiet", arrival_time=0.08)
    together = simulate([long, short])
    alike = simulate([long, replace(short, tenant="loud")])
    assert together.timelines[short.request_id].ttft_seconds < 0.15
    assert alike.timelines[short.request_id].ttft_seconds > 0.4


@pytest.fixture
def make() -> Callable[..., GenerationRequest]:
    def build(name: str, num_prompt_tokens: int, tenant: str, arrival_time: float = 0.0) -> GenerationRequest:
        shape = {"prompt_tokens": (num_prompt_tokens,) * 2, "output_tokens": (4, 4)}
        (request,) = poisson_trace(num_requests=1, requests_per_second=1e6, name=name, seed=3, **shape)
        return replace(request, tenant=tenant, arrival_time=arrival_time)

    return build


@pytest.mark.parametrize("num_tenants", [3, 40])
@pytest.mark.parametrize("num_blocks", [40, 512])
def test_many_tenants_all_end_and_do_not_take_turns_in_taking_slots(num_tenants: int, num_blocks: int) -> None:
    trace = poisson_trace(num_requests=200, requests_per_second=500, seed=5, **SHORT)
    owned = [replace(request, tenant=f"t{number % num_tenants}") for number, request in enumerate(trace)]
    report = simulate(owned, num_blocks=num_blocks, check_invariants=num_blocks == 40)
    assert all(math.isfinite(timeline.finish_time) for timeline in report.timelines.values())
    assert report.num_preemptions < 200
