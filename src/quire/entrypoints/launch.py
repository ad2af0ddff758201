"""Wires the rooms together; the only file that knows all of them.

Run as a module it is the engine process: `python -m quire.entrypoints.launch SOCKET`.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quire.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quire.config.engine import EngineConfig
from quire.config.resolve import resolve
from quire.engine import wire
from quire.engine.client import EngineClient, EngineProcess, serve_socket
from quire.engine.executor import Executor
from quire.engine.loop import EngineLoop
from quire.engine.port import EngineInfo
from quire.engine.server import EngineServer
from quire.engine.stop import make_stop_check
from quire.errors import EngineProtocolError, QuireError
from quire.frontend.async_engine import AsyncEngine
from quire.frontend.input_processor import create_input_processor
from quire.frontend.tokenizer import Tokenizer, load_tokenizer
from quire.kvcache.manager import KVCacheManager
from quire.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from quire.worker.cpu_executor import CpuExecutor


@dataclass(slots=True)
class BuiltEngine:
    """An engine in this process."""

    loop: EngineLoop
    executor: Executor
    info: EngineInfo


def build_engine(config: EngineConfig, checkpoint: Checkpoint, *, serving: bool) -> BuiltEngine:
    """Loads the model and builds the loop around it, in this process.

    Raises:
        QuireError: The model cannot be loaded or does not fit.
    """
    begin = time.perf_counter()
    _import_torch()
    imported = time.perf_counter()
    resolved = resolve(
        config,
        context_length=checkpoint.architecture.context_length,
        device="cpu",
        serving=serving,
    )
    executor = _build_executor(resolved, checkpoint)
    scheduler_config = resolved.scheduler
    assert resolved.model.max_model_len is not None
    assert scheduler_config.max_num_seqs is not None and scheduler_config.max_num_batched_tokens is not None
    cache = KVCacheManager(
        num_blocks=executor.num_blocks,
        block_size=resolved.cache.block_size,
        enable_prefix_caching=resolved.cache.enable_prefix_caching,
    )
    scheduler = Scheduler(
        cache=cache,
        max_num_seqs=scheduler_config.max_num_seqs,
        max_num_batched_tokens=scheduler_config.max_num_batched_tokens,
        max_model_len=resolved.model.max_model_len,
        policy=scheduler_config.scheduling_policy,
        check_stop=make_stop_check(resolved.model.max_model_len),
    )
    info = EngineInfo(
        max_model_len=resolved.model.max_model_len,
        max_num_seqs=scheduler_config.max_num_seqs,
        max_num_batched_tokens=scheduler_config.max_num_batched_tokens,
        scheduling_policy=scheduler_config.scheduling_policy,
        num_blocks=executor.num_blocks,
        block_size=resolved.cache.block_size,
        vocab_size=checkpoint.architecture.vocab_size,
        dtype=executor.dtype,
        device=resolved.device.device,
        memory=executor.memory.as_dict(),
        start_seconds={"import_torch": imported - begin, **executor.start_seconds},
    )
    # What has been built lives as long as the process: the collector need not look at it again.
    gc.freeze()
    return BuiltEngine(EngineLoop(scheduler, executor, time.monotonic), executor, info)


def _import_torch() -> None:
    """The slowest import, at a place of its own so that it can be timed, and done while others work."""
    from quire.worker.threads import prepare_torch

    prepare_torch()
    import torch  # noqa: F401


def _build_executor(config: EngineConfig, checkpoint: Checkpoint) -> "CpuExecutor":
    from quire.worker.cpu_executor import CpuExecutor

    return CpuExecutor(config, checkpoint)


async def start_async_engine(config: EngineConfig, *, log_level: str = "info") -> AsyncEngine:
    """Starts an engine process and the front end for it.

    The process imports torch while this one finds the model and reads its tokenizer.

    Raises:
        QuireError: The model cannot be found or loaded, or does not fit.
    """
    process = await EngineProcess.spawn([sys.executable, "-m", "quire.entrypoints.launch"])
    try:
        checkpoint = await asyncio.to_thread(open_checkpoint, config.model)
    except BaseException:
        await process.close()
        raise
    located = replace(config, model=replace(config.model, model=str(checkpoint.path), revision=None))
    tokenizer, client = await asyncio.gather(
        asyncio.to_thread(load_tokenizer, checkpoint.tokenizer), process.start(located, log_level)
    )
    return _front_end(config, checkpoint, tokenizer, client)


async def start_async_engine_in_process(config: EngineConfig) -> AsyncEngine:
    """The same engine on a thread of this process, for debugging.

    Raises:
        QuireError: The model cannot be found or loaded, or does not fit.
    """
    checkpoint = await asyncio.to_thread(open_checkpoint, config.model)
    built = await asyncio.to_thread(build_engine, config, checkpoint, serving=True)
    tokenizer = await asyncio.to_thread(load_tokenizer, checkpoint.tokenizer)
    ours, theirs = socket.socketpair()
    threading.Thread(target=_serve, args=(built, theirs), name="quire-engine", daemon=True).start()
    client = EngineClient(*await asyncio.open_unix_connection(sock=ours))
    await client.start()
    return _front_end(config, checkpoint, tokenizer, client)


def _front_end(config: EngineConfig, checkpoint: Checkpoint, tokenizer: Tokenizer, client: EngineClient) -> AsyncEngine:
    processor = create_input_processor(config.model, checkpoint, tokenizer, client.info)
    engine = AsyncEngine(client, processor, max_num_queued_reqs=config.scheduler.max_num_queued_reqs)
    engine.start()
    return engine


def _serve(built: BuiltEngine, connection: socket.socket) -> None:
    """Serves the front end at the other end of `connection` until it goes away, then ends the engine."""
    with connection:
        try:
            EngineServer(built.loop, connection, built.info).run()
        finally:
            built.executor.shutdown()


def main() -> None:
    """The engine process: connects to the front end, loads what it says, and serves it until it goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = serve_socket(sys.argv[1])
    _import_torch()
    body = wire.read_frame(connection)
    if body is None:
        return
    message = wire.decode_to_engine(body)
    if not isinstance(message, wire.Start):
        raise EngineProtocolError(f"the first message is {type(message).__name__}, not Start")
    logging.basicConfig(level=message.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    try:
        checkpoint = open_checkpoint(message.config.model)
        built = build_engine(message.config, checkpoint, serving=True)
    except QuireError as error:
        failure = wire.StartFailed(kind=type(error).__name__, message=error.message, hint=error.hint, param=error.param)
        connection.sendall(wire.encode(failure))
        return
    _serve(built, connection)


if __name__ == "__main__":
    main()
