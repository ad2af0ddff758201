"""The engine's server and client over a real socket, with a fake executor behind."""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from quire.engine.client import EngineClient
from quire.engine.loop import EngineLoop
from quire.engine.port import EngineInfo
from quire.engine.server import EngineServer
from quire.engine.stop import make_stop_check
from quire.errors import EngineDeadError
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


class Served:
    """An engine on a thread, and a client for it on the running event loop."""

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
            EngineServer(self.loop, self.theirs, INFO).run()


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
