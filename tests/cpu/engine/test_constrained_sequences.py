"""Sequences under a grammar, on the real loop, scheduler and masks, against one matcher that knows nothing of them."""

import random
import threading
from dataclasses import replace

import pytest
from llguidance import LLMatcher

from quire.engine.grammar import compile_grammar
from quire.testing.simulator import Simulation
from quire.testing.tokens import VOCAB_SIZE, next_token_id
from quire.types.deltas import FinishReason
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest
from quire.types.sampling import SamplingParams

SCHEMA = (
    '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"}},'
    ' "required": ["name", "age"], "additionalProperties": false}'
)
GRAMMARS = (
    "start: /[0-9]{3}-[0-9]{2}/",
    "start: /(ab)*/",
    'start: CHOICE\nCHOICE: "yes" | "no" | "perhaps"',
    'start: item ("," item)*\nitem: /[a-c]{1,4}/',
    LLMatcher.grammar_from_json_schema(SCHEMA),
)


def make_request(name, grammar, *, prompt=(10, 20, 30), arrival_time=0.0, produced=(), eos=(2, 3), **parameters):
    sampling = SamplingParams(**{"seed": 7, "max_tokens": 30, **parameters})
    return GenerationRequest(
        request_id=RequestId(name),
        prompt_token_ids=list(prompt),
        sampling=sampling,
        eos_token_ids=() if sampling.ignore_eos else eos,
        arrival_time=arrival_time,
        grammar=grammar,
        produced_token_ids=produced,
    )


def allowed_tokens(matcher, request, num_produced, eos):
    """As the rules say it: the grammar's tokens, less those that end the answer too early if others are left."""
    mask = matcher.compute_bitmask()
    allowed = {token for token in range(VOCAB_SIZE) if mask[token // 8] >> (token % 8) & 1}
    ending = {*eos, *request.sampling.stop_token_ids}
    if request.sampling.ignore_eos or num_produced < request.sampling.min_tokens:
        return allowed - ending or allowed
    return allowed


def follow(tokenizer, request, sample_index=0, eos=(2, 3)):
    """The answer of a sample and why it ended, by one matcher and the fake model's rule."""
    matcher = compile_grammar(tokenizer, request.grammar)
    produced = request.produced_token_ids[sample_index] if request.produced_token_ids else ()
    matcher.consume_tokens(list(produced))
    tokens, sampling = [*request.prompt_token_ids, *produced], request.sampling
    answer, num_prompt_tokens = [], len(request.prompt_token_ids)
    while not matcher.is_stopped():
        if len(tokens) - num_prompt_tokens >= sampling.max_tokens:
            return answer, FinishReason.LENGTH
        allowed = allowed_tokens(matcher, request, len(tokens) - num_prompt_tokens, eos)
        banned = frozenset(range(VOCAB_SIZE)) - allowed
        token = next_token_id(len(tokens), sum(tokens), seed=sampling.seed, sample_index=sample_index, banned=banned)
        tokens.append(token)
        answer.append(token)
        assert matcher.consume_token(token)
        if token in sampling.stop_token_ids:
            break
    return answer, FinishReason.STOP


def check_answers(report, tokenizer, requests):
    for request in requests:
        for sample_index in range(request.num_samples):
            sample = report.timelines[request.request_id].samples[sample_index]
            if not request.grammar:
                assert sample.finish_reason is not FinishReason.ERROR
                continue
            expected = follow(tokenizer, request, sample_index)
            assert (sample.token_ids, sample.finish_reason) == expected, request


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("grammar", GRAMMARS)
def test_an_answer_is_that_of_a_matcher_alone(vocabulary, grammar_tokenizer, grammar, steps_in_flight):
    simulation = Simulation(vocabulary=vocabulary, check_invariants=True, steps_in_flight=steps_in_flight)
    requests = [make_request("one", grammar)]
    check_answers(simulation.run(requests), grammar_tokenizer, requests)


@pytest.mark.parametrize("seed", range(6))
def test_many_with_and_without_grammars_in_a_small_cache(vocabulary, grammar_tokenizer, seed):
    rng = random.Random(seed)
    requests = []
    for index in range(24):
        parameters = rng.choice(
            [{}, {"n": 3}, {"min_tokens": 12}, {"ignore_eos": True}, {"logprobs": 1}, {"stop_token_ids": [101, 60]}]
        )
        requests.append(
            make_request(
                f"r{index}",
                rng.choice((*GRAMMARS, "")),
                prompt=[rng.randrange(4, VOCAB_SIZE) for _ in range(rng.randint(1, 40))],
                arrival_time=rng.random() * 0.3,
                seed=rng.randrange(1000),
                max_tokens=rng.randint(14, 30),
                **parameters,
            )
        )
    simulation = Simulation(
        vocabulary=vocabulary,
        check_invariants=True,
        num_blocks=24,
        block_size=4,
        max_num_seqs=rng.choice([3, 8]),
        max_num_batched_tokens=rng.choice([16, 64]),
        max_model_len=80,
    )
    aborted = {requests[index].request_id: requests[index].arrival_time + 0.05 for index in (3, 11)}
    report = simulation.run(requests, abort_times=aborted)
    check_answers(report, grammar_tokenizer, [request for request in requests if request.request_id not in aborted])
    if seed == 0:
        assert report.num_preemptions > 0


def test_a_replayed_request_goes_on_where_it_stopped(vocabulary, grammar_tokenizer):
    grammar = GRAMMARS[0]
    whole, _ = follow(grammar_tokenizer, make_request("r", grammar))
    for cut in range(len(whole) + 1):
        request = make_request("r", grammar, produced=(tuple(whole[:cut]),))
        sample = Simulation(vocabulary=vocabulary).run([request]).timelines[RequestId("r")].samples[0]
        assert sample.token_ids == whole[cut:]
        assert sample.finish_reason is FinishReason.STOP


def test_a_failed_step_takes_its_sequences_and_no_others(vocabulary, grammar_tokenizer):
    simulation = Simulation(vocabulary=vocabulary)
    first, later = make_request("first", GRAMMARS[0]), make_request("later", GRAMMARS[0], arrival_time=1.0)
    build = simulation._build

    def build_and_break():
        build()
        simulation.executor.failing_steps[2] = "broken"

    simulation._build = build_and_break
    report = simulation.run([first, later])
    assert report.timelines[first.request_id].samples[0].finish_reason is FinishReason.ERROR
    check_answers(report, grammar_tokenizer, [later])


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ("start: missing", "missing"),
        ("start: /(?=a)a/", "look-around"),
        ('start: "a"\nstart: ', "at"),
    ],
)
def test_a_grammar_that_does_not_compile_fails_its_request_alone(vocabulary, grammar_tokenizer, grammar, text):
    good, bad = make_request("good", GRAMMARS[0]), make_request("bad", grammar, n=2)
    report = Simulation(vocabulary=vocabulary).run([bad, good])
    for sample in report.timelines[bad.request_id].samples:
        assert sample.finish_reason is FinishReason.ERROR
        assert text in sample.error
    check_answers(report, grammar_tokenizer, [good])


def test_free_requests_run_while_a_grammar_is_compiled(vocabulary):
    """The compiler is held up until the free request has ended."""
    simulation = Simulation(vocabulary=vocabulary)
    free, waiting = make_request("free", ""), make_request("waiting", GRAMMARS[0])
    timelines = []
    load = simulation._compiler._load_vocabulary

    def load_late():
        released.wait(30)
        return load()

    released = threading.Event()
    simulation._compiler._load_vocabulary = load_late
    simulation.loop.add(waiting)
    simulation.loop.add(free)
    while not timelines or timelines[-1].finish_reason is None:
        timelines += [delta for delta in simulation.loop.step().deltas if delta.request_id == free.request_id]
    assert not simulation.loop.can_step
    assert simulation.loop.has_unfinished
    released.set()
    deltas = []
    while simulation.loop.has_unfinished:
        deltas += simulation.loop.step().deltas
    assert deltas[-1].request_id == waiting.request_id
    assert deltas[-1].finish_reason is FinishReason.STOP


def test_an_aborted_request_is_not_heard_of_though_its_grammar_is_compiled(vocabulary):
    simulation = Simulation(vocabulary=vocabulary)
    simulation.loop.add(make_request("gone", GRAMMARS[0]))
    simulation.loop.abort(RequestId("gone"))
    assert not simulation.loop.has_unfinished or not simulation.loop.step().deltas


def test_an_engine_without_grammars_says_so():
    request = make_request("r", GRAMMARS[0])
    sample = Simulation().run([request]).timelines[request.request_id].samples[0]
    assert sample.error == "this engine takes no grammars"


def test_the_end_of_a_complete_answer_is_a_part_of_its_text(vocabulary):
    loop = Simulation(vocabulary=vocabulary).loop
    loop.add(make_request("whole", GRAMMARS[0], stop_token_ids=[7]))
    loop.add(replace(make_request("ended", "start: /a*/", min_tokens=0), request_id=RequestId("ended")))
    ends = {}
    while loop.has_unfinished:
        for delta in loop.step().deltas:
            if delta.finish_reason is FinishReason.STOP:
                ends[delta.request_id] = (delta.shows_last_token, delta.token_ids[-1] in (2, 3))
    assert ends["whole"] == (True, False)
    assert ends.get("ended", (False, True)) == (False, True)
