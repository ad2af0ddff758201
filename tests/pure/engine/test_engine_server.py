"""The engine's server and client over a real socket, with a fake executor behind."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from quire.engine import wire
from quire.engine.client import EngineClient
from quire.engine.loop import EngineLoop
from quire.engine.port import EngineInfo
from quire.engine.server import EngineServer
from quire.engine.stop import make_stop_check
from quire.errors import ConfigError, EngineDeadError, EngineError, EngineProtocolError, InvalidRequestError
from quire.kvcache.manager import KVCacheManager
from quire.scheduler.scheduler import Scheduler
from quire.testing.clock import VirtualClock
from quire.testing.fake_executor import FakeExecutor
from quire.types.deltas import FinishReason
from quire.types.ids import RequestId
from quire.types.request import GenerationRequest
from quire.types.sampling import SamplingParams

MAX_MODEL_LEN = 4096
NUM_BLOCKS = 1024
INFO = EngineInfo(
    max_model_len=MAX_MODEL_LEN,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    scheduling_policy="fcfs",
    num_blocks=NUM_BLOCKS,
    block_size=16,
    vocab_size=1000,
    dtype="none",
    device="fake",
    memory={},
    start_seconds={},
)


def make_loop(executor: FakeExecutor, clock: VirtualClock) -> EngineLoop:
    scheduler = Scheduler(
        cache=KVCacheManager(num_blocks=NUM_BLOCKS),
        max_num_seqs=INFO.max_num_seqs,
        max_num_batched_tokens=INFO.max_num_batched_tokens,
        max_model_len=MAX_MODEL_LEN,
        check_stop=make_stop_check(MAX_MODEL_LEN),
    )
    return EngineLoop(scheduler, executor, clock)


def request(name: str, max_tokens: int) -> GenerationRequest:
    return GenerationRequest(
        request_id=RequestId(name),
        prompt_token_ids=list(range(1, 40)),
        sampling=SamplingParams(max_tokens=max_tokens, seed=1),
    )


class FakeProfiler:
    """Writes no trace, and says that it has.

    Attributes:
        failure: Set, it is what both methods raise.
        may_stop: Cleared, it holds `stop_profile` back.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.may_stop = threading.Event()
        self.may_stop.set()
        self._records = False

    def start_profile(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self._records:
            raise InvalidRequestError("a profile is being recorded already", hint="stop it first")
        self._records = True

    def stop_profile(self) -> str:
        self.may_stop.wait(10)
        if self.failure is not None:
            raise self.failure
        self._records = False
        return "/traces/1.json.gz"


class Served:
    """An engine on a thread, and a client for it on the running event loop."""

    def __init__(self, profiler: FakeProfiler | None = None) -> None:
        self.profiler = profiler

    async def __aenter__(self) -> "Served":
        ours, self.theirs = socket.socketpair()
        clock = VirtualClock()
        self.executor = FakeExecutor(clock=clock, num_blocks=NUM_BLOCKS)
        self.loop = make_loop(self.executor, clock)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.client = EngineClient(*await asyncio.open_unix_connection(sock=ours))
        await self.client.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await asyncio.to_thread(self.thread.join, 10)
        assert not self.thread.is_alive()

    def wait_for_steps(self, count: int) -> None:
        """Waits until the engine has run `count` steps, whether or not anybody reads."""
        while self.executor.num_steps < count:
            threading.Event().wait(0.002)

    def _run(self) -> None:
        with self.theirs:
            EngineServer(self.loop, self.theirs, INFO, self.profiler).run()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, timeout=30))


async def collect(client: EngineClient, names: set[str]) -> dict[str, list[int]]:
    """Tokens by request, once all of `names` have finished."""
    tokens: dict[str, list[int]] = {}
    while names:
        for step in await client.receive():
            for delta in step.deltas:
                tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
                if delta.finish_reason is not None:
                    assert delta.finish_reason is FinishReason.LENGTH
                    names.discard(delta.request_id)
    return tokens


def test_requests_go_in_and_tokens_come_out() -> None:
    async def main() -> None:
        async with Served() as served:
            assert served.client.info == INFO
            for number in range(20):
                await served.client.add(request(f"r{number}", 30 + number))
            tokens = await collect(served.client, {f"r{number}" for number in range(20)})
            assert {name: len(token_ids) for name, token_ids in tokens.items()} == {
                f"r{number}": 30 + number for number in range(20)
            }
            assert tokens["r0"] == tokens["r19"][:30]

    run(main())


def test_an_abort_is_the_last_that_is_heard_of_a_request() -> None:
    async def main() -> None:
        async with Served() as served:
            await served.client.add(request("long", 4000))
            await served.client.receive()
            await served.client.abort([RequestId("long"), RequestId("never heard of")])
            await served.client.add(request("short", 3))
            tokens = await collect(served.client, {"short"})
            assert len(tokens.get("long", [])) < 4000
            assert len(tokens["short"]) == 3
        assert not served.loop.has_unfinished

    run(main())


def test_idle_statistics_show_nothing_running_after_an_abort() -> None:
    async def main() -> None:
        async with Served() as served:
            await served.client.add(request("long", 4000))
            await served.client.receive()
            await served.client.abort([RequestId("long")])
            while True:
                stats = (await served.client.receive())[-1].stats
                assert stats is not None
                if stats.num_running == 0:
                    break
            assert stats.cache.num_blocks_in_use == 0

    run(main())


def test_a_reader_that_waits_loses_nothing() -> None:
    async def main() -> None:
        async with Served() as served:
            await served.client.add(request("a", 1200))
            await asyncio.to_thread(served.wait_for_steps, 1200)
            tokens = await collect(served.client, {"a"})
            assert len(tokens["a"]) == 1200

    run(main())


def test_the_end_of_the_engine_reaches_the_client() -> None:
    async def main() -> None:
        async with Served() as served:
            await served.client.add(request("a", 4000))
            served.theirs.shutdown(socket.SHUT_RDWR)
            with pytest.raises(EngineDeadError):
                while True:
                    await served.client.receive()

    run(main())


def test_the_end_of_the_client_ends_the_engine() -> None:
    async def main() -> None:
        async with Served() as served:
            await served.client.add(request("a", 4000))

    run(main())


async def receive_always(client: EngineClient) -> None:
    """Takes the outputs and answers of an engine until its end."""
    with contextlib.suppress(EngineDeadError):
        while True:
            await client.receive()


def test_a_profile_is_answered_while_the_engine_runs_and_while_it_rests() -> None:
    async def main() -> None:
        async with Served(FakeProfiler()) as served:
            client = served.client
            receiving = asyncio.create_task(receive_always(client))
            await client.start_profile()
            with pytest.raises(InvalidRequestError, match="recorded already") as caught:
                await client.start_profile()
            assert caught.value.hint == "stop it first"
            await client.add(request("long", 4000))
            assert await client.stop_profile() == "/traces/1.json.gz"
            answers = await asyncio.gather(client.start_profile(), client.stop_profile(), client.start_profile())
            assert answers == [None, "/traces/1.json.gz", None]
        await receiving

    run(main())


def test_a_profile_that_fails_does_not_end_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        profiler = FakeProfiler()
        async with Served(profiler) as served:
            receiving = asyncio.create_task(receive_always(served.client))
            profiler.failure = ConfigError("cannot write", param="torch_profiler_dir")
            with pytest.raises(ConfigError) as caught:
                await served.client.start_profile()
            assert caught.value.param == "torch_profiler_dir"
            profiler.failure = OSError("no space left on device")
            with pytest.raises(EngineError, match="the trace is lost: no space left"):
                await served.client.stop_profile()
            profiler.failure = None
            await served.client.start_profile()
        await receiving

    run(main())
    assert "OSError" in caplog.text


def test_an_engine_without_a_profiler_says_so() -> None:
    async def main() -> None:
        async with Served() as served:
            receiving = asyncio.create_task(receive_always(served.client))
            with pytest.raises(ConfigError, match="records no traces"):
                await served.client.start_profile()
        await receiving

    run(main())


def test_an_answer_whose_caller_has_left_is_not_given_to_the_next() -> None:
    async def main() -> None:
        profiler = FakeProfiler()
        profiler.may_stop.clear()
        async with Served(profiler) as served:
            receiving = asyncio.create_task(receive_always(served.client))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(served.client.stop_profile(), 0.01)
            starting = asyncio.create_task(served.client.start_profile())
            await asyncio.sleep(0)
            profiler.may_stop.set()
            await starting
        await receiving

    run(main())


@pytest.mark.parametrize("closes", [False, True])
def test_the_end_of_the_engine_ends_the_wait_for_a_profile(closes: bool) -> None:
    async def main() -> None:
        profiler = FakeProfiler()
        profiler.may_stop.clear()
        async with Served(profiler) as served:
            receiving = asyncio.create_task(receive_always(served.client))
            stopping = asyncio.create_task(served.client.stop_profile())
            await asyncio.sleep(0)
            if closes:
                receiving.cancel()
                closing = asyncio.create_task(served.client.close())
            else:
                served.theirs.shutdown(socket.SHUT_RDWR)
            with pytest.raises(EngineDeadError):
                await stopping
            profiler.may_stop.set()
            await asyncio.wait([receiving, *([closing] if closes else [])])

    run(main())


def test_an_answer_that_nobody_asked_for_is_a_protocol_error() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        client = EngineClient(*await asyncio.open_unix_connection(sock=ours))
        with theirs:
            theirs.sendall(wire.encode(wire.Profiled()))
            with pytest.raises(EngineProtocolError, match="unasked"):
                await client.receive()
            theirs.sendall(wire.encode(wire.Ready(info=INFO)))
            with pytest.raises(EngineProtocolError, match="sent Ready"):
                await client.receive()
            await client.close()

    run(main())
