"""Random requests, aborts, failures and interleavings on tiny engines, against tokens known in advance.

The fake executor checks every plan and every position that is read; the invariants are checked after every rule.
"""

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from quire.testing.tokens import predict_tokens
from quire.testing.traces import make_request
from quire.types.deltas import FinishReason
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest
from quire.types.sampling import RequestOutputKind

MAX_MODEL_LEN = 40


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    # Few distinct prompts, so that prefixes meet.
    base = [10 * draw(st.integers(0, 1)) + number % 7 for number in range(30)]
    prompt = base[: draw(st.integers(1, 24))] + draw(st.sampled_from([[], [500], [501]]))
    request = make_request(
        "unnamed",
        prompt,
        max_tokens=draw(st.integers(1, 14)),
        seed=draw(st.integers(0, 3)),
        priority=draw(st.integers(0, 2)),
        n=draw(st.sampled_from([1, 1, 1, 2, 3])),
        eos_token_ids=tuple(range(draw(st.sampled_from([0, 0, 60, 300])))),
        min_tokens=0,
        prompt_logprobs=draw(st.sampled_from([None, None, None, 0])),
        cache_salt=draw(st.sampled_from(["", "", "salt"])),
        tenant=draw(st.sampled_from(["", "a", "b"])),
        output_kind=draw(st.sampled_from([RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY])),
    )
    produced = draw(st.sampled_from([0, 0, 0, 1, 5]))
    if not produced:
        return request
    answers = (predict_tokens(request, sample_index=index, max_model_len=MAX_MODEL_LEN) for index in range(3))
    return with_fields(request, produced_token_ids=tuple(tuple(answer[:produced]) for answer in answers))


def with_fields(request: GenerationRequest, **changes: object) -> GenerationRequest:
    fields = {name: getattr(request, name) for name in GenerationRequest.__dataclass_fields__}
    return GenerationRequest(**{**fields, **changes})


class SchedulerMachine(RuleBasedStateMachine):
    make_bench = None

    @initialize(
        num_blocks=st.integers(3, 24),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(1, 24),
        prompt_budget=st.none() | st.integers(1, 24),
        policy=st.sampled_from(["fcfs", "priority"]),
        caching=st.booleans(),
    )
    def build(self, num_blocks, block_size, max_num_seqs, budget, prompt_budget, policy, caching):
        self.bench = type(self).make_bench(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_num_prompt_tokens=prompt_budget,
            max_model_len=MAX_MODEL_LEN,
            policy=policy,
            enable_prefix_caching=caching,
        )
        self.capacity = num_blocks * block_size
        self.requests: dict[RequestId, GenerationRequest] = {}
        self.aborted: dict[RequestId, int] = {}
        self.has_failed_steps = False
        self.failing: set[tuple[RequestId, int]] = set()

    @rule(request=requests())
    def add(self, request):
        request = with_fields(request, request_id=RequestId(f"r{len(self.requests)}"))
        self.requests[request.request_id] = request
        self.bench.scheduler.add(request)
        self.bench.scheduler.check_invariants()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        self.bench.scheduler.abort(request_id)
        self.bench.scheduler.check_invariants()
        assert not self.bench.scheduler.sequences(request_id)
        self.aborted.setdefault(request_id, len(self.bench.deltas))

    @precondition(lambda self: len(self.bench.in_flight) < 2)
    @rule()
    def schedule(self):
        self.bench.schedule()

    @precondition(lambda self: len(self.bench.in_flight) < 2)
    @rule()
    def schedule_a_step_that_fails(self):
        step = self.bench.executor.num_steps + 1
        self.bench.executor.failing_steps[step] = "device lost a step"
        if self.bench.schedule() is None:
            del self.bench.executor.failing_steps[step]
        else:
            self.has_failed_steps = True

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def let_a_sequence_fail(self, data):
        sequences = self.bench.scheduler.sequences(data.draw(st.sampled_from(sorted(self.requests))))
        for sequence in sequences[-1:]:
            self.bench.executor.failing_sequences[sequence.sequence_id] = "NaN"
            self.failing.add((sequence.request_id, sequence.sample_index))

    @precondition(lambda self: self.bench.in_flight)
    @rule()
    def update(self):
        self.bench.update()

    @precondition(lambda self: self.bench.in_flight)
    @rule(count=st.integers(2, 8))
    def run_on(self, count):
        for _ in range(count):
            while len(self.bench.in_flight) < 2 and self.bench.schedule():
                pass
            if self.bench.in_flight:
                self.bench.update()

    def teardown(self):
        if not hasattr(self, "requests"):
            return
        self.bench.finish()
        for request in self.requests.values():
            for sample_index in range(request.num_samples):
                self.check_answer(request, sample_index)

    def check_answer(self, request, sample_index):
        bench, request_id = self.bench, request.request_id
        expected = predict_tokens(request, sample_index=sample_index, max_model_len=MAX_MODEL_LEN)
        found = bench.tokens(request_id, sample_index)
        assert found == expected[: len(found)]
        if request_id in self.aborted:
            later = bench.deltas[self.aborted[request_id] :]
            assert all(delta.request_id != request_id for delta in later), "an aborted request is heard of"
            return
        end = bench.end(request_id, sample_index)
        if end.finish_reason is not FinishReason.ERROR:
            complete = not request.produced_token_ids or found
            assert found == expected or not complete
            self.check_prompt_logprobs(request, sample_index)
        elif "KV cache" in end.error:
            produced = request.produced_token_ids[sample_index] if request.produced_token_ids else ()
            assert len(request.prompt_token_ids) + len(produced) + len(found) > self.capacity
        elif (request_id, sample_index) in self.failing and "the model" in end.error:
            assert end.error == "the model could not compute this answer"
        else:
            assert end.error == "device lost a step"
            assert self.has_failed_steps

    def check_prompt_logprobs(self, request, sample_index):
        deltas = [d for d in self.bench.deltas if d.request_id == request.request_id and d.sample_index == sample_index]
        positions = [-entry.logprobs[0] for delta in deltas for entry in delta.prompt_logprobs]
        asked = request.sampling.prompt_logprobs is not None and sample_index == 0 and not request.produced_token_ids
        assert positions == (list(range(1, len(request.prompt_token_ids))) if asked else [])


def test_random_interleavings(make_bench):
    SchedulerMachine.make_bench = staticmethod(make_bench)
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("case", range(40))
def test_random_engines_give_the_tokens_of_the_rule(make_bench, case):
    """Wider than the state machine: more requests at once, no aborts, in every corner of the engine's size."""
    rng = random.Random(case)
    block_size = rng.choice([1, 2, 4, 16])
    bench = make_bench(
        num_blocks=rng.randint(2, 5) * 24 // block_size,
        block_size=block_size,
        max_num_seqs=rng.choice([1, 3, 8, 16]),
        max_num_batched_tokens=rng.choice([1, 3, 7, 17, 64]),
        max_num_prompt_tokens=rng.choice([None, 1, 5, 64]),
        policy=rng.choice(["fcfs", "priority"]),
        enable_prefix_caching=rng.random() < 0.7,
    )
    trace = []
    for number in range(12):
        prompt = [rng.randrange(2) for _ in range(rng.randint(1, 20))]
        request = make_request(
            str(number),
            prompt,
            max_tokens=rng.randint(1, 20),
            seed=number,
            n=rng.choice([1, 1, 3]),
            priority=number % 3,
            tenant=rng.choice("abc"),
            output_kind=rng.choice([RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY]),
        )
        trace.append(request)
        bench.scheduler.add(request)
        if rng.random() < 0.5:
            bench.step()
    bench.finish()
    for request in trace:
        for sample_index in range(request.num_samples):
            assert bench.tokens(request.request_id, sample_index) == predict_tokens(request, sample_index=sample_index)
