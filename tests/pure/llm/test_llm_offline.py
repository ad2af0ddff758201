"""`LLM` around an engine without a model: tokens, text, order, refusals and failures of a batch."""

from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from quire.config.engine import EngineConfig
from quire.engine.loop import EngineLoop
from quire.engine.port import EngineInfo
from quire.engine.stop import make_stop_check
from quire.entrypoints.launch import BuiltEngine
from quire.entrypoints.llm import LLM
from quire.errors import ParameterError, RequestFailedError
from quire.frontend.input_processor import InputProcessor
from quire.frontend.tokenizer import Tokenizer
from quire.kvcache.manager import KVCacheManager
from quire.scheduler.scheduler import Scheduler
from quire.testing.clock import VirtualClock
from quire.testing.fake_executor import FakeExecutor
from quire.testing.tokens import VOCAB_SIZE, predict_tokens
from quire.testing.traces import make_request
from quire.types.sampling import RequestOutputKind, SamplingParams

MAX_MODEL_LEN = 512


class Bench:
    """An `LLM` whose model is the rule of `quire.testing.tokens`, and whose tokens are written as their ids."""

    def __init__(self) -> None:
        backend = Backend(models.BPE({f"{index:03d},": index for index in range(VOCAB_SIZE)}, []))
        backend.decoder = decoders.ByteLevel()
        self.tokenizer = Tokenizer(backend)
        self.cache = KVCacheManager(num_blocks=400)
        clock = VirtualClock()
        self.executor = FakeExecutor(clock=clock, num_blocks=400)
        self.scheduler = Scheduler(
            cache=self.cache,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            max_model_len=MAX_MODEL_LEN,
            check_stop=make_stop_check(MAX_MODEL_LEN),
        )
        info = EngineInfo(
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            scheduling_policy="fcfs",
            num_blocks=400,
            block_size=16,
            vocab_size=VOCAB_SIZE,
            dtype="none",
            device="fake",
            memory={},
            start_seconds={},
        )
        engine = BuiltEngine(EngineLoop(self.scheduler, self.executor, clock), self.executor, info)
        inputs = InputProcessor(self.tokenizer, max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB_SIZE)
        self.llm = LLM.from_parts(EngineConfig(), engine, inputs)

    def assert_idle(self) -> None:
        assert not self.scheduler.has_unfinished
        self.llm._engine.loop.step()
        self.scheduler.check_invariants()
        assert self.cache.num_free_blocks == self.cache.num_blocks


@pytest.fixture
def bench() -> Bench:
    return Bench()


def prompts(count: int) -> list[Any]:
    return [[number + 1] * (5 + number) for number in range(count)]


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_outputs_are_whole_and_in_order_whatever_their_kind(bench: Bench, kind: RequestOutputKind) -> None:
    params = [SamplingParams(max_tokens=7 * number + 1, seed=number, output_kind=kind) for number in range(20)]
    outputs = bench.llm.generate(prompts(20), params, use_tqdm=False)
    for number, output in enumerate(outputs):
        (answer,) = output.outputs
        expected = predict_tokens(make_request("x", prompts(20)[number], max_tokens=7 * number + 1, seed=number))
        assert (output.prompt, output.prompt_token_ids) == (None, prompts(20)[number])
        assert answer.token_ids == expected
        assert answer.text == bench.tokenizer.decode(expected)
        assert (output.finished, answer.finish_reason) == (True, "length")
    bench.assert_idle()


def test_a_stop_string_ends_an_answer_within_the_batch(bench: Bench) -> None:
    expected = predict_tokens(make_request("x", [3] * 9, max_tokens=60, seed=2))
    text = bench.tokenizer.decode(expected)
    stop = bench.tokenizer.decode(expected[20:21])
    params = [SamplingParams(max_tokens=60, seed=2, stop=stop), SamplingParams(max_tokens=60, seed=2)]
    stopped, whole = bench.llm.generate([[3] * 9] * 2, params, use_tqdm=False)
    assert stopped.outputs[0].text == text[: text.index(stop)]
    assert whole.outputs[0].text == text
    bench.assert_idle()


def test_the_answers_of_one_prompt_are_told_apart(bench: Bench) -> None:
    params = SamplingParams(n=3, max_tokens=40, seed=5)
    (output,) = bench.llm.generate([4, 5, 6], params, use_tqdm=False)
    request = make_request("x", [4, 5, 6], max_tokens=40, seed=5)
    assert [answer.token_ids for answer in output.outputs] == [
        predict_tokens(request, sample_index=index) for index in range(3)
    ]


def test_a_refusal_comes_before_anything_runs(bench: Bench) -> None:
    with pytest.raises(ParameterError, match="vocabulary"):
        bench.llm.generate([[1, 2], [3, VOCAB_SIZE]], SamplingParams(max_tokens=4), use_tqdm=False)
    assert bench.executor.num_steps == 0
    bench.assert_idle()


def test_a_failed_step_fails_the_call_and_not_the_engine(bench: Bench) -> None:
    bench.executor.failing_steps[5] = "out of luck"
    with pytest.raises(RequestFailedError, match="out of luck"):
        bench.llm.generate(prompts(3), SamplingParams(max_tokens=9, seed=1), use_tqdm=False)
    bench.assert_idle()
    (output,) = bench.llm.generate([7, 7], SamplingParams(max_tokens=9, seed=1), use_tqdm=False)
    assert output.outputs[0].token_ids == predict_tokens(make_request("x", [7, 7], max_tokens=9, seed=1))


def test_statistics_count_all_tokens(bench: Bench) -> None:
    assert bench.llm.get_stats() is None
    bench.llm.generate(prompts(3), SamplingParams(max_tokens=50, seed=1), use_tqdm=False)
    stats = bench.llm.get_stats()
    assert stats is not None
    assert (stats.num_prompt_tokens, stats.num_generated_tokens, stats.num_running) == (5 + 6 + 7, 150, 0)
