"""Streams over an engine: every way in, and every way out."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest

from quire.errors import EngineDeadError, EngineError, OverloadedError, ParameterError, RequestFailedError
from quire.frontend.async_engine import LONG_PROMPT_CHARACTERS, AsyncEngine
from quire.frontend.chat_template import ChatTemplate
from quire.frontend.input_processor import InputProcessor
from quire.frontend.tokenizer import Tokenizer
from quire.types.deltas import FinishReason, SequenceDelta, StepOutputs
from quire.types.ids import RequestId
from quire.types.outputs import RequestOutput
from quire.types.request import GenerationRequest
from quire.types.sampling import RequestOutputKind, SamplingParams
from quire.types.stats import CacheStats, EngineStats

PARAMS = SamplingParams(max_tokens=8, seed=1)
DELTA = PARAMS.with_changes(output_kind=RequestOutputKind.DELTA)
STATS = EngineStats(1, 1, 0, 0, 0, 0, 0, 0.0, CacheStats())

Test = Callable[["Bench"], Coroutine[Any, Any, None]]


class Recorder:
    """An observer that notes everything."""

    def __init__(self) -> None:
        self.stats: list[EngineStats] = []
        self.finished: list[tuple[str, str | None]] = []
        self.tokens: list[int] = []

    def on_stats(self, stats: EngineStats) -> None:
        self.stats.append(stats)

    def on_finished(self, output: RequestOutput, request: GenerationRequest) -> None:
        assert output.request_id == request.request_id
        self.finished.append((output.request_id, output.outputs[0].finish_reason))

    def on_tokens(self, num_tokens: int, seconds: float, first: bool) -> None:
        self.tokens.append(num_tokens)


class Bench:
    """An engine whose port the test drives."""

    def __init__(self, tokenizer: Tokenizer, port: Any, **options: Any) -> None:
        self.port = port
        self.tokenizer = tokenizer
        self.recorder = Recorder()
        processor = InputProcessor(
            tokenizer, max_model_len=64, vocab_size=512, template=ChatTemplate("{{ messages[0].content }}")
        )
        self.engine = AsyncEngine(port, processor, observers=[self.recorder], **options)

    async def send(self, request_id: str, text: str = "", sample: int = 0, **fields: Any) -> None:
        """Lets the engine produce `text` and the front end take it."""
        ids = self.tokenizer.encode(text)
        delta = SequenceDelta(request_id=RequestId(request_id), sample_index=sample, token_ids=ids, **fields)
        await self.send_outputs([StepOutputs(deltas=[delta])])

    async def send_outputs(self, outputs: list[StepOutputs] | Exception) -> None:
        self.port.outputs.put_nowait(outputs)
        await settle()


async def settle() -> None:
    """Lets every task run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def run(tokenizer: Tokenizer, make_port: Callable[[], Any]) -> Callable[..., None]:
    """Runs a test coroutine with a bench, and fails if it leaves a task behind."""

    def run_test(test: Test, **options: Any) -> None:
        async def main() -> None:
            bench = Bench(tokenizer, make_port(), **options)
            async with asyncio.timeout(20):
                await test(bench)
                await bench.engine.close()
            assert bench.port.closed
            assert len(asyncio.all_tasks()) == 1

        asyncio.run(main())

    return run_test


async def start(stream: AsyncGenerator[RequestOutput, None]) -> "asyncio.Task[RequestOutput]":
    """Waits for a stream's first output in a task."""
    task = asyncio.ensure_future(anext(stream))
    await settle()
    return task


def test_a_request_from_prompt_to_end(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        stream = bench.engine.generate("the fox", DELTA, "r")
        first = await start(stream)
        (request,) = bench.port.requests
        assert (request.request_id, request.prompt_token_ids) == ("r", bench.tokenizer.encode("the fox"))
        await bench.send("r", "jumps")
        await bench.send("r", " over", finish_reason=FinishReason.LENGTH)
        outputs = [await first, *[output async for output in stream]]
        assert "".join(output.outputs[0].text for output in outputs) == "jumps over"
        assert outputs[-1].finished
        assert (bench.port.aborted, bench.engine.num_requests) == ([], 0)
        assert bench.recorder.finished == [("r", "length")]
        assert sum(bench.recorder.tokens) == sum(len(output.outputs[0].token_ids) for output in outputs)

    run(test)


def test_a_slow_reader_gets_one_merged_output(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        stream = await bench.engine.submit("the fox", DELTA, "r")
        for text in ("jumps", " over", " the"):
            await bench.send("r", text)
        assert (await anext(stream)).outputs[0].text == "jumps over the"
        await bench.send("r", " dog", finish_reason=FinishReason.STOP)
        await bench.send("r", "ignored")
        assert [output.finished async for output in stream] == [True]

    run(test)


def test_final_only_wakes_its_reader_at_the_end(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        stream = bench.engine.generate("x", PARAMS.with_changes(output_kind=RequestOutputKind.FINAL_ONLY), "r")
        first = await start(stream)
        await bench.send("r", "jumps")
        assert not first.done()
        await bench.send("r", " over", finish_reason=FinishReason.LENGTH)
        assert (await first).outputs[0].text == "jumps over"

    run(test)


# Ways out


def test_cancelling_the_reader_aborts_the_request(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        async def read() -> None:
            async for _ in bench.engine.generate("x", PARAMS, "r"):
                pass

        task = asyncio.ensure_future(read())
        await settle()
        await bench.send("r", "jumps")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        assert (bench.port.aborted, bench.engine.num_requests) == (["r"], 0)
        assert bench.recorder.finished == [("r", "abort")]

    run(test)


def test_leaving_the_loop_aborts_the_request(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        async with contextlib.aclosing(bench.engine.generate("x", PARAMS, "r")) as stream:
            first = await start(stream)
            await bench.send("r", "jumps")
            await first
        await settle()
        assert bench.port.aborted == ["r"]

    run(test)


def test_cancelling_while_the_request_is_sent_aborts_it(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        sent = asyncio.Event()

        async def add(request: GenerationRequest) -> None:
            sent.set()
            await asyncio.Event().wait()

        bench.port.add = add
        task = asyncio.ensure_future(bench.engine.submit("x", PARAMS, "r"))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        assert (bench.port.aborted, bench.engine.num_requests) == (["r"], 0)

    run(test)


def test_abort_ends_a_stream_with_what_it_has(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        stream = await bench.engine.submit("x", PARAMS, "r")
        await bench.send("r", "jumps")
        await bench.engine.abort("r")
        await bench.engine.abort(["r", "unknown"])
        (output,) = [output async for output in stream]
        assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("jumps", FinishReason.ABORT)
        stream.close()
        await settle()
        assert bench.port.aborted == ["r"]

    run(test)


def test_a_stop_string_ends_the_request_in_the_engine(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        stream = await bench.engine.submit("x", PARAMS.with_changes(stop=[" over"]), "r")
        await bench.send("r", "jumps over the")
        outputs = [output async for output in stream]
        assert (outputs[-1].outputs[0].text, outputs[-1].outputs[0].stop_reason) == ("jumps", " over")
        assert bench.port.aborted == ["r"]

    run(test)


def test_the_death_of_the_engine_reaches_every_stream(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        streams = [bench.engine.generate("x", PARAMS, f"r{index}") for index in range(3)]
        waiting = [await start(stream) for stream in streams]
        done = await bench.engine.submit("x", PARAMS, "done")
        await bench.send("done", "jumps", finish_reason=FinishReason.LENGTH)
        await bench.send_outputs(EngineDeadError("the engine process has ended", hint="see the log"))
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [(type(error), str(error)) for error in errors] == [
            (EngineDeadError, "the engine process has ended\nhint: see the log")
        ] * 3
        assert len({id(error) for error in errors}) == 3
        assert [output.finished async for output in done] == [True]
        assert not bench.engine.is_healthy
        with pytest.raises(EngineDeadError):
            await bench.engine.submit("x", PARAMS)
        assert bench.recorder.finished[1:] == [(f"r{index}", "error") for index in range(3)]

    run(test)


@pytest.mark.parametrize("error", [EngineError("a frame does not parse"), OSError("broken")])
def test_whatever_ends_the_connection_ends_the_streams(
    run: Callable[..., None], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(bench: Bench) -> None:
        first = await start(bench.engine.generate("x", PARAMS))
        await bench.send_outputs(error)
        with pytest.raises(EngineDeadError, match="connection to the engine failed"):
            await first

    run(test)
    assert "the connection to the engine fails" in caplog.text


def test_an_engine_found_dead_when_a_request_is_sent(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        bench.port.dead = True
        with pytest.raises(EngineDeadError):
            await bench.engine.submit("x", PARAMS)
        await settle()
        assert not bench.engine.is_healthy

    run(test)


def test_a_failed_request_fails_alone(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        bad = await start(bench.engine.generate("x", PARAMS, "bad"))
        good = await start(bench.engine.generate("x", PARAMS, "good"))
        await bench.send("bad", finish_reason=FinishReason.ERROR, error="out of pages")
        await bench.send("good", "jumps")
        with pytest.raises(RequestFailedError, match="out of pages"):
            await bad
        assert (await good).outputs[0].text == "jumps"

    run(test)


def test_closing_the_engine_ends_the_streams(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        first = await start(bench.engine.generate("x", PARAMS))
        await bench.engine.close()
        with pytest.raises(EngineDeadError, match="shut down"):
            await first

    run(test)


# Ways in


def test_a_bad_request_leaves_nothing_behind(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        for prompt in ("", "x" * 100_000):
            with pytest.raises(ValueError, match="the prompt"):
                await bench.engine.submit(prompt, PARAMS)
        assert (bench.engine.num_requests, bench.port.requests) == (0, [])
        await bench.engine.wait_until_idle()

    run(test)


def test_ids_are_unique_while_they_run(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        stream = await bench.engine.submit("x", PARAMS, "r")
        with pytest.raises(ParameterError, match="request_id"):
            await bench.engine.submit("x", PARAMS, "r")
        await bench.send("r", finish_reason=FinishReason.LENGTH)
        again = await bench.engine.submit("x", PARAMS, "r")
        stream.close()
        assert bench.engine.num_requests == 1
        again.close()
        fresh = [await bench.engine.submit("x", PARAMS) for _ in range(2)]
        assert fresh[0].request_id != fresh[1].request_id

    run(test)


def test_the_bound_counts_what_is_in_the_engine(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        first = await bench.engine.submit("x", PARAMS, "r")
        with pytest.raises(OverloadedError, match="the limit is 1") as failure:
            await bench.engine.submit("x", PARAMS)
        assert failure.value.retry_after_seconds > 0
        await bench.send("r", finish_reason=FinishReason.LENGTH)
        await bench.engine.submit("x", PARAMS)
        assert (await anext(first)).finished

    run(test, max_num_queued_reqs=1)


def test_long_prompts_are_counted_while_they_are_tokenised(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        text = " fox" * LONG_PROMPT_CHARACTERS
        long = asyncio.ensure_future(bench.engine.submit(text, PARAMS, "r"))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await bench.engine.submit("x", PARAMS)
        with pytest.raises(ValueError, match="the prompt has"):
            await long
        await bench.engine.submit("x", PARAMS)

    run(test, max_num_queued_reqs=1)


def test_chats_are_encoded(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        prompt = await bench.engine.encode_chat([{"role": "user", "content": "the <|im_end|>"}])
        assert prompt.text == "the <|im_end|>"
        assert not any(bench.tokenizer.is_special(token_id) for token_id in prompt.token_ids)

    run(test)


# Drain and observers


def test_draining_waits_for_those_inside_and_lets_nobody_in(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        await bench.engine.submit("x", PARAMS, "r")
        draining = asyncio.ensure_future(bench.engine.drain(10))
        await settle()
        with pytest.raises(OverloadedError, match="shutting down"):
            await bench.engine.submit("x", PARAMS)
        assert not draining.done()
        await bench.send("r", finish_reason=FinishReason.LENGTH)
        assert await draining == 0

    run(test)


def test_stragglers_get_their_last_output(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        stream = await bench.engine.submit("x", PARAMS, "r")
        await bench.send("r", "jumps")
        assert await bench.engine.drain(0) == 1
        (output,) = [output async for output in stream]
        assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("jumps", FinishReason.ABORT)
        await settle()
        assert bench.port.aborted == ["r"]

    run(test)


def test_statistics_reach_observers_and_a_bad_observer_harms_nobody(
    run: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Recorder):
        def on_stats(self, stats: EngineStats) -> None:
            raise ZeroDivisionError

    async def test(bench: Bench) -> None:
        bench.engine.observers.insert(0, Broken())
        bench.engine.start()
        await bench.send_outputs([StepOutputs(stats=STATS)])
        assert (bench.engine.stats, bench.recorder.stats) == (STATS, [STATS])
        assert bench.engine.is_healthy

    run(test)
    assert "an observer of the engine failed" in caplog.text


def test_profiles_until_the_engine_dies(run: Callable[..., None]) -> None:
    async def test(bench: Bench) -> None:
        await bench.engine.start_profile()
        assert bench.port.recording
        assert await bench.engine.stop_profile() == "/traces/1.json.gz"
        assert not bench.port.recording
        await bench.send_outputs(EngineDeadError("gone"))
        for method in (bench.engine.start_profile, bench.engine.stop_profile):
            with pytest.raises(EngineDeadError, match="gone"):
                await method()

    run(test)
