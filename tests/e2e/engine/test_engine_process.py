"""The engine as a process of its own: start, refusal to start, death, and leaving nothing behind."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import psutil
import pytest

from quire import SamplingParams
from quire.checkpoint.checkpoint import small_model_path
from quire.config.engine import EngineConfig
from quire.entrypoints import launch
from quire.errors import CheckpointNotFoundError, ConfigError, EngineDeadError, InsufficientMemoryError
from quire.types.outputs import RequestOutput

try:
    MODEL = str(small_model_path())
except CheckpointNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

LONG = SamplingParams(max_tokens=900, ignore_eos=True, temperature=0.0)


def config(**options: Any) -> EngineConfig:
    return EngineConfig.from_options(model=MODEL, max_model_len=1024, use_tqdm_on_load=False, **options)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, timeout=120))


async def last(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    final = None
    async for output in outputs:
        final = output
    assert final is not None
    return final


def engine_process() -> psutil.Process:
    """The one engine process that this process has started itself."""
    children = [child for child in psutil.Process().children() if "quire.entrypoints.launch" in child.cmdline()]
    (engine,) = children
    return engine


def test_a_killed_engine_fails_every_stream_within_two_seconds() -> None:
    async def main() -> None:
        engine = await launch.start_async_engine(config())
        streams = [engine.generate("Count: one, two,", LONG, request_id=f"r{n}") for n in range(3)]
        first = [await anext(stream) for stream in streams]
        assert all(not output.finished for output in first)
        engine_process().kill()
        begin = time.monotonic()
        for ending in await asyncio.gather(*(last(stream) for stream in streams), return_exceptions=True):
            assert isinstance(ending, EngineDeadError)
        assert time.monotonic() - begin < 2.0
        assert not engine.is_healthy
        with pytest.raises(EngineDeadError):
            await anext(engine.generate("x", LONG, request_id="late"))
        await engine.close()

    run(main())


def test_close_ends_the_process_and_leaves_no_socket() -> None:
    async def main() -> None:
        engine = await launch.start_async_engine(config())
        process = engine_process()
        paths = [connection.laddr for connection in process.net_connections("unix")]
        assert not any(map(os.path.lexists, filter(None, paths)))
        assert not process.net_connections("inet")
        output = await last(engine.generate("Hello", SamplingParams(max_tokens=4), request_id="r"))
        assert output.finished
        await engine.close()
        assert not process.is_running()

    run(main())


def test_an_error_at_start_arrives_as_what_it_was() -> None:
    async def main() -> None:
        too_long = EngineConfig.from_options(model=MODEL, max_model_len=100_000)
        with pytest.raises(ConfigError, match="100000 exceeds the 8192 tokens"):
            await launch.start_async_engine(too_long)
        with pytest.raises(InsufficientMemoryError) as caught:
            await launch.start_async_engine(config(kv_cache_memory_bytes=1))
        assert caught.value.hint
        with pytest.raises(CheckpointNotFoundError):
            await launch.start_async_engine(EngineConfig.from_options(model="/no/such/folder"))

    run(main())


def test_one_process_gives_the_same_tokens() -> None:
    async def main() -> None:
        params = SamplingParams(max_tokens=12, temperature=0.7, seed=3, ignore_eos=True)
        two = await launch.start_async_engine(config(dtype="float32"))
        one = await launch.start_async_engine_in_process(config(dtype="float32"))
        prompt = "The quick brown fox"
        expected = await last(two.generate(prompt, params, request_id="a"))
        output = await last(one.generate(prompt, params, request_id="a"))
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids
        await two.close()
        await one.close()

    run(main())
